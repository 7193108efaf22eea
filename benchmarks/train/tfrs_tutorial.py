"""Contender: the way of TensorFlow Recommenders' retrieval tutorial, on the same inputs and the same tower.

Keras embedding layers, `tfrs.tasks.Retrieval` with in-batch negatives, Keras's Adagrad, `tf.data` and the train
function that `fit` calls.
"""

import argparse
import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import tensorflow as tf
import tensorflow_recommenders as tfrs

from benchmarks.train.data import BATCH_SIZE, SEED, Size, make_examples
from benchmarks.train.worker import measure, serve

NUM_BATCHES = 16


class TwoTower(tfrs.Model):
    """The mean of the bag's embeddings through ReLU layers, against an embedding of the label."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.query_model = tf.keras.Sequential(
            [
                tf.keras.layers.Embedding(size.vocabulary + 1, size.embedding_dim, mask_zero=True),
                tf.keras.layers.GlobalAveragePooling1D(),
                *(tf.keras.layers.Dense(width, activation="relu") for width in size.widths),
            ]
        )
        self.candidate_model = tf.keras.layers.Embedding(size.vocabulary + 1, size.embedding_dim)
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, features, training=False):  # type: ignore[no-untyped-def]
        """As in the tutorial; FactorizedTopK, which costs more than the training, is left out."""
        return self.task(
            self.query_model(features["history"]),
            self.candidate_model(features["label"]),
            compute_metrics=False,
        )


def main() -> None:
    """In-batch negatives alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=Size.parse)
    size: Size = parser.parse_args().size
    tf.keras.utils.set_random_seed(SEED)
    model = TwoTower(size)
    model.compile(optimizer=tf.keras.optimizers.Adagrad(0.01))
    rows = tf.data.Dataset.from_tensor_slices(make_examples(size, NUM_BATCHES))
    shuffled = rows.shuffle(100_000, seed=SEED, reshuffle_each_iteration=False)
    # Batches are kept ready, as in the tutorial.
    batches = iter(shuffled.batch(BATCH_SIZE).cache().repeat().prefetch(2))
    train_step = model.make_train_function()
    train_step(batches)
    serve(
        {
            "train": lambda steps: measure(
                lambda: float(train_step(batches)["total_loss"]), steps=steps, examples_per_step=BATCH_SIZE
            )
        },
        {},
    )


if __name__ == "__main__":
    main()
