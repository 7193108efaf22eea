"""What is known of an impression in training alone, like its position, beside a ranker's tower."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from watchnext.features.batches import FeatureSpec

_UNKNOWN_SHARE = 0.1
_RATE = 4.0


class ShallowTower(tf.keras.layers.Layer):
    """Adds to a logit what is known in training alone: a number per value, 0 before training.

    With f the logit of everything else and p an input that counts `within` another, s (a position within its surface; s is
    alone where there is none),

        training   z = f + w_s(p)
        serving    z = f + w_s(0)          0: unknown

    Every impression of a request is served the same w_s(0), so that p moves no order, and f is what is left of a click
    once p has taken its own part (the shallow tower of Zhao et al., Recommending What Video to Watch Next, RecSys 2019,
    section 4.2.2). p must be no input of f: ReLU layers that are told "unknown" in some rows learn in these what a policy
    that puts good videos on top makes of them, and that is what is served then.

    w_s(0) is learned from a tenth of the rows, drawn anew at each step, which are taken for unknown, and
    f learns nothing from these: there z = stop_gradient(f) + w_s(0). A row whose p is unknown in the log teaches both.
    There is no penalty on w: what it holds back, f would take. For the same reason w moves 4 times as far in a step as the
    other weights do, being stored as w / 4 (Adagrad's steps do not depend on the scale of a gradient): few numbers, of which
    every one has thousands of rows, would else be the last ones to arrive, and f stands in for them meanwhile.

    Args:
        features: categorical inputs. One whose `within` is no categorical input of `others` counts alone.
        others: the served inputs.
        vocabulary_sizes: id space -> number of known ids.

    Raises:
        ValueError: an input is not categorical.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        others: Sequence[FeatureSpec],
        vocabulary_sizes: Mapping[str, int],
    ) -> None:
        super().__init__(name="shallow_tower")
        odd = [spec.name for spec in features if spec.kind != "categorical"]
        if odd:
            raise ValueError(f"only categories can be known in training alone: {odd}")
        space_of = {spec.name: spec.space for spec in others if spec.kind == "categorical"}
        self.columns = {spec.name: vocabulary_sizes[spec.space or ""] + 1 for spec in features}
        # Logs without surfaces have no such input.
        self.within = {spec.name: spec.within if spec.within in space_of else None for spec in features}
        self.begins: dict[str, int] = {}
        size = 0
        for name, within in self.within.items():
            self.begins[name] = size
            rows = 1 if within is None else vocabulary_sizes[space_of[within] or ""] + 1
            size += rows * self.columns[name]
        self.table = self.add_weight(name="weights", shape=(size, 1), initializer="zeros")

    def call(self, logits: tf.Tensor, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """[num_impressions, any] logits of everything else -> those with what the features add, the same shape.

        Args:
            logits: f.
            inputs: categorical int32 [num_impressions], those of the query side perhaps [1]; in training the features, too.
            training: whether they are known.
        """
        rows = tf.shape(logits)[0]
        if not training:
            return logits + self.added(inputs, dict.fromkeys(self.columns, tf.zeros([1], tf.int32)))
        is_known = tf.reduce_any(tf.stack([inputs[name] > 0 for name in self.columns]), axis=0)
        drawn = tf.random.get_global_generator().uniform([rows]) < _UNKNOWN_SHARE
        left_out = is_known & drawn
        values = {name: tf.where(left_out, 0, inputs[name]) for name in self.columns}
        logits = tf.where(left_out[:, tf.newaxis], tf.stop_gradient(logits), logits)
        return logits + self.added(inputs, values)

    def added(self, inputs: Mapping[str, tf.Tensor], values: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[rows, 1] w, summed over the features, of which `values` has the ids, int32 [rows]."""
        total = tf.zeros([1, 1])
        for name, value in values.items():
            within = self.within[name]
            row = 0 if within is None else inputs[within]
            total += tf.gather(self.table, self.begins[name] + row * self.columns[name] + value)
        return _RATE * total

    def forward_plan(self, weights: int) -> dict[str, Any]:
        """What `forward.Ranker` adds for an unknown value. `weights`: place of the table among the ranker's weights.

        Of each feature: the input within which it counts, where its weights begin, how many stand between two w_s(0).
        """
        served = [(within, self.begins[name], self.columns[name]) for name, within in self.within.items()]
        return {"weights": weights, "rate": _RATE, "served": served}
