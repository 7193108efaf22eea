"""DCN-v2 (Wang et al. 2021): embeddings, cross layers of TensorFlow Recommenders, and a deep tower above them."""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from benchmarks.ranking.folds import Fold, Rows
from benchmarks.ranking.peers.linear import cumulative

EMBEDDING_DIM = 16
BATCH_SIZE = 1024
MODELS = {
    "dcn_v2": {
        "configs": [
            {"weighted": False, "learning_rate": 1e-3, "dropout": 0.0},
            {"weighted": True, "learning_rate": 1e-3, "dropout": 0.0},
            {"weighted": True, "learning_rate": 1e-3, "dropout": 0.3},
            {"weighted": True, "learning_rate": 3e-4, "dropout": 0.3},
        ],
        "passes": 4,
    }
}
"""`weighted`: clicked impressions by watch time."""


def scores_by_pass(name: str, fold: Fold, config: dict, passes: int, seed: int) -> list[np.ndarray]:
    """Logits of the held rows after each pass."""
    del name
    tf.keras.utils.set_random_seed(seed % 2**31)
    rows = fold.training
    time_s = rows.watch_time_s.astype(np.float64)
    weight = np.ones(len(rows))
    if config["weighted"]:
        weight = np.where(rows.clicked, time_s / time_s[rows.clicked].mean(), 1.0)
    model = make(fold, config["dropout"])
    model.compile(
        optimizer=tf.keras.optimizers.legacy.Adam(config["learning_rate"]),
        loss=tf.keras.losses.BinaryCrossentropy(from_logits=True),
    )
    learned, held = arrays(fold, rows), arrays(fold, fold.held)
    scores = []
    for _ in range(passes):
        model.fit(
            learned,
            rows.clicked.astype(np.float32),
            sample_weight=weight.astype(np.float32),
            batch_size=BATCH_SIZE,
            verbose=0,
        )
        scores.append(model.predict(held, batch_size=16 * BATCH_SIZE, verbose=0)[:, 0].astype(np.float64))
    return scores


def make(fold: Fold, dropout: float) -> tf.keras.Model:
    """The stacked form: cross layers, then the tower. A table per id space; bags are averaged."""
    tables = {space: tf.keras.layers.Embedding(size + 1, EMBEDDING_DIM) for space, size in fold.sizes.items()}
    inputs, parts = {}, []
    for one in fold.named("categorical", "multivalent"):
        width = 1 if one.kind == "categorical" else one.length
        codes = inputs[one.name] = tf.keras.Input([width], dtype=tf.int32, name=one.name)
        known = tf.cast(codes > 0, tf.float32)[..., tf.newaxis]
        total = tf.reduce_sum(tables[one.space](codes) * known, axis=1)
        parts.append(total / tf.maximum(tf.reduce_sum(known, axis=1), 1.0))
    width = 2 * len(fold.named("continuous", "unit"))
    parts.append(tf.keras.Input([width], dtype=tf.float32, name="numbers"))
    inputs["numbers"] = parts[-1]
    first = crossed = tf.concat(parts, axis=1)
    for _ in range(2):
        crossed = tfrs.layers.dcn.Cross()(first, crossed)
    deep = crossed
    for units in (128, 64):
        deep = tf.keras.layers.Dense(units, activation="relu")(deep)
        deep = tf.keras.layers.Dropout(dropout)(deep)
    return tf.keras.Model(inputs, tf.keras.layers.Dense(1)(deep))


def arrays(fold: Fold, rows: Rows) -> dict[str, np.ndarray]:
    """Codes [num_rows, any], and `numbers`: the cumulative of each number and whether it is missing."""
    result = {
        one.name: rows.inputs[one.name].reshape(len(rows), -1)
        for one in fold.named("categorical", "multivalent")
    }
    numbers = []
    for one in fold.named("continuous", "unit"):
        values = rows.inputs[one.name]
        missing = np.isnan(values)
        numbers += [np.where(missing, 0.0, cumulative(values, fold.boundaries.get(one.name))), missing]
    result["numbers"] = np.stack(numbers, axis=1).astype(np.float32)
    return result
