"""What is known in training alone: added by its value while training, by nothing but its surface when served."""

import numpy as np
import pytest
import tensorflow as tf

from watchnext.features.batches import FeatureSpec
from watchnext.models import shallow_tower
from watchnext.models.shallow_tower import ShallowTower

SURFACE = FeatureSpec("surface", "categorical", "surface")
POSITION = FeatureSpec("position", "categorical", "position", None, "impression", True, within="surface")
SIZES = {"surface": 2, "position": 3}
TABLE = np.arange(12.0).reshape(3, 4)
"""A row per surface, the unknown one first; a column per position, likewise."""


def layer(others=(SURFACE,)):
    made = ShallowTower([POSITION], others, SIZES)
    made.table.assign(TABLE[: len(others) * 2 + 1].reshape(-1, 1) / shallow_tower._RATE)
    return made


def test_a_position_counts_within_its_surface_and_served_is_the_surface_alone():
    inputs = {"surface": np.array([0, 1, 2, 2], np.int32), "position": np.array([0, 3, 1, 0], np.int32)}
    found = layer().added(inputs, {"position": inputs["position"]})
    assert found.numpy()[:, 0].tolist() == [0.0, 7.0, 9.0, 8.0]
    # One row of the query side for all: an order is as it was.
    logits = np.array([[0.5, 1.0], [0.25, -1.0]], np.float32)
    assert layer()(logits, {"surface": np.array([2], np.int32)}).numpy() == pytest.approx(logits + 8.0)
    # Logs without surfaces: a position is a position.
    assert layer(()).added({}, {"position": np.array([0, 2], np.int32)}).numpy()[:, 0].tolist() == [
        0.0,
        2.0,
    ]


def test_rows_taken_for_unknown_teach_the_unknown_value_and_nothing_else():
    """Of the gradient of the sum of logits: 1 for each row, to f and to w_s(p); of those rows to w_s(0), and none to f."""
    rows = 4_000
    draw = np.random.default_rng(1)
    inputs = {
        "surface": draw.integers(0, 3, rows).astype(np.int32),
        "position": draw.integers(0, 4, rows).astype(np.int32),
    }
    made, f = layer(), tf.Variable(tf.zeros([rows, 2]))
    tf.random.set_global_generator(tf.random.Generator.from_seed(7))
    with tf.GradientTape() as tape:
        logits = made(f, inputs, training=True)
        total = tf.reduce_sum(logits[:, 0])
    to_f, to_table = tape.gradient(total, [f, made.table])
    deaf = to_f.numpy()[:, 0] == 0.0
    assert set(to_f.numpy()[:, 0].tolist()) == {0.0, 1.0}
    # Who is unknown in the log teaches both.
    assert not deaf[inputs["position"] == 0].any()
    assert deaf[inputs["position"] > 0].mean() == pytest.approx(0.1, abs=0.02)
    seen = np.where(deaf, 0, inputs["position"])
    assert logits.numpy()[:, 0] == pytest.approx(TABLE[inputs["surface"], seen])
    counted = np.zeros_like(TABLE)
    np.add.at(counted, (inputs["surface"], seen), 1.0)
    dense = tf.convert_to_tensor(to_table).numpy().reshape(TABLE.shape)
    assert dense == pytest.approx(counted * shallow_tower._RATE)


def test_a_number_that_is_known_in_training_alone_is_refused():
    with pytest.raises(ValueError, match="only categories can be known in training alone"):
        ShallowTower([FeatureSpec("depth", "continuous", training_only=True)], (), SIZES)
