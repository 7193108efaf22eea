"""The basic retrieval tutorial of TensorFlow Recommenders: a user-id tower times a video-id tower.

In-batch softmax by `tfrs.tasks.Retrieval`, without logQ correction, Adagrad, large batches, as in the tutorial
"Recommending movies: retrieval". It knows users by their id: what a user did after training cannot change the
recommendation, and users that training has not seen share one untrained row.
"""

import os
from collections.abc import Iterator

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from benchmarks.quality.folds import Fold
from benchmarks.quality.measure import Scorer

PATIENCE = 2
MAX_PASSES = 30
CONFIGS = {
    "tfrs_two_tower": [
        # The tutorial's own settings, with as many passes as help.
        {"dim": 32, "learning_rate": 0.1, "batch_size": 8192},
        {"dim": 64, "learning_rate": 0.1, "batch_size": 2048},
    ]
}


class TwoTower(tfrs.Model):
    """User embedding . video embedding; row 0 of the users is for unknown ones, as StringLookup has it."""

    def __init__(self, num_users: int, num_items: int, dim: int) -> None:
        super().__init__()
        self.users = tf.keras.layers.Embedding(num_users + 1, dim)
        self.items = tf.keras.layers.Embedding(num_items, dim)
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, features, training=False):  # type: ignore[no-untyped-def]
        """The task's own loss over the pairs of the batch."""
        return self.task(self.users(features["user"]), self.items(features["item"]), compute_metrics=False)


def fit(fold: Fold, config: dict, seed: int) -> Iterator[Scorer]:
    """Train, a scorer after each pass; a video that nobody completed in training is unknown."""
    tf.keras.utils.set_random_seed(seed)
    model = TwoTower(fold.num_users, fold.num_items, config["dim"])
    model.compile(optimizer=tf.keras.optimizers.legacy.Adagrad(config["learning_rate"]))
    data = {"user": fold.train_user + 1, "item": fold.train_item}
    rows = tf.data.Dataset.from_tensor_slices(data).shuffle(len(fold.train_user), seed=seed)
    batches = rows.batch(config["batch_size"]).prefetch(2)
    trained = np.zeros(fold.num_users, bool)
    trained[fold.train_user] = True
    unknown = np.bincount(fold.train_item, minlength=fold.num_items) == 0

    def score(begin: int, end: int) -> np.ndarray:
        users = fold.event_user[begin:end]
        queries = model.users(tf.constant(np.where(trained[users], users + 1, 0))).numpy()
        scores = queries @ model.items(tf.range(fold.num_items)).numpy().T
        scores[:, unknown] = -np.inf
        return scores

    for _ in range(MAX_PASSES):
        model.fit(batches, epochs=1, verbose=0)
        yield score
