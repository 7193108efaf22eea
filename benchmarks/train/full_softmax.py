"""Contender: the full softmax over every video, with the tower and optimizer of `ours`, in float32 and in bfloat16."""

import argparse

import watchnext  # noqa: F401  Before TensorFlow: it asks for Keras 2.

# isort: split
import tensorflow as tf

from benchmarks.train.data import SEED, Size, make_examples
from benchmarks.train.ours import make_tower
from benchmarks.train.worker import measure, serve
from watchnext.models import towers, training

BATCH_SIZE = 256
"""Logits and their gradient take 8 MB per example at a million classes."""


def main() -> None:
    """One size; one task per dtype, on the same weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=Size.parse)
    size: Size = parser.parse_args().size
    training.start(SEED, deterministic=True)
    batches = iter(
        training.shuffled_batches(make_examples(size, 2), batch_size=BATCH_SIZE, epochs=1_000_000, seed=SEED)
    )
    tower = make_tower(size, tf.float32)
    candidates = tf.Variable(tf.random.normal([size.vocabulary, size.embedding_dim], stddev=0.05))
    optimizer = towers.adagrad(0.01)

    def task(dtype: tf.DType):  # type: ignore[no-untyped-def]
        @tf.function
        def step() -> tf.Tensor:
            batch = next(batches)
            tower.matmul_dtype = dtype
            with tf.GradientTape() as tape:
                queries = tower(batch, training=True)
                logits = tf.matmul(tf.cast(queries, dtype), tf.cast(candidates, dtype), transpose_b=True)
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"] - 1, logits)
                )
            weights = [*tower.trainable_variables, candidates]
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return loss

        step()
        return lambda steps: measure(lambda: float(step()), steps=steps, examples_per_step=BATCH_SIZE)

    serve({"float32": task(tf.float32), "bfloat16": task(tf.bfloat16)}, {})


if __name__ == "__main__":
    main()
