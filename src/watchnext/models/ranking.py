"""Ranking (paper, section 4): expected watch time of one impression, by weighted logistic regression."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from watchnext.errors import InputError
from watchnext.features.batches import FeatureSpec
from watchnext.features.quantiles import BELOW_ONE, LARGEST
from watchnext.models import forward, training
from watchnext.models.calibration import WatchTimeCurve
from watchnext.models.checkpoints import Checkpoints
from watchnext.models.losses import Odds, expected_watch_time_s, weighted_logistic_loss
from watchnext.models.shallow_tower import ShallowTower
from watchnext.models.shards import Shards
from watchnext.models.towers import (
    EmbeddingTable,
    MatmulDtype,
    adagrad,
    fastest_matmul_dtype,
    load_signature,
    log_dim,
    relu_tower,
    run_dense,
    save_signature,
    serving_specs,
)
from watchnext.models.workers import ALONE, Workers

_SIDES = ("query", "impression")
_NORMALIZED = "normalized_"
_SAMPLE_ROWS = 64
_ROWS = "the query side has neither one row nor one per impression: rows of both sides"


class QuantileNormalizer(tf.keras.layers.Layer):
    """The cumulative distribution of each continuous feature, in the graph (paper, section 4.1).

    The same function as `watchnext.features.quantiles.normalize`, for all features at once; missing stays NaN. With u
    the distinct boundaries of a feature, of which u_k stands at the places first_k to last_k of n, and u_k the first one
    that is not below x:

        x = u_k               (first_k + last_k) / 2 / (n - 1)
        u_{k-1} < x < u_k     ( last_{k-1} + (x - u_{k-1}) / (u_k - u_{k-1}) * (first_k - last_{k-1}) ) / (n - 1)

    so that a row of a table per interval (`forward.intervals`), found by one binary search, says all.

    Args:
        boundaries: one ascending array per feature; empty for a feature that is always missing.
    """

    def __init__(self, boundaries: Sequence[np.ndarray]) -> None:
        super().__init__(name="quantile_normalizer", trainable=False)
        table = forward.padded_intervals(boundaries)
        self.edges = tf.constant(table[:, :, 0])
        self.table = tf.constant(table)
        self.run = tf.function(
            self.call, input_signature=[tf.TensorSpec([None, len(boundaries)], tf.float32)]
        )

    def call(self, values: tf.Tensor) -> tf.Tensor:
        """[num_examples, num_features], NaN = missing -> the same shape, in [0, 1), NaN where missing."""
        x = tf.transpose(values)
        missing = tf.math.is_nan(x)
        x = tf.clip_by_value(tf.where(missing, 0.0, x), -LARGEST, LARGEST)
        interval = tf.gather(self.table, tf.searchsorted(self.edges, x, side="left"), batch_dims=1)
        edge, at_edge, below, width, start, rise = tf.unstack(interval, axis=-1)
        place = tf.where(x == edge, at_edge, start + (x - below) / width * rise)
        return tf.transpose(tf.where(missing, np.nan, tf.minimum(place, BELOW_ONE)))


class IdWeights(tf.keras.layers.Layer):
    """A number per value of each categorical input, added to the logit: 0 before training.

        z(ids) = sum over inputs f of  mean over the known ids v of f of  w_fv        (0 where none is known)

    With a squared penalty it is a normal prior: a value that few impressions had stays near 0, what many had is told
    apart. An embedding of the former is a random vector to the tower. Inputs of one id space have weights of their own:
    that a video is a good one says nothing of what follows it.

    Args:
        features: categorical and multivalent inputs.
        vocabulary_sizes: id space -> number of known ids.
    """

    def __init__(self, features: Sequence[FeatureSpec], vocabulary_sizes: Mapping[str, int]) -> None:
        super().__init__(name="id_weights")
        self.features = tuple(features)
        sizes = [vocabulary_sizes[spec.space] for spec in self.features if spec.space is not None]
        self.begins = dict(
            zip([spec.name for spec in self.features], np.cumsum([0, *sizes[:-1]]).tolist(), strict=True)
        )
        # One variable for all, so that a step has one update; as [n, 1], whose rows are gathered.
        self.table = self.add_weight(name="weights", shape=(sum(sizes), 1), initializer="zeros")

    def call(self, side: str, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[rows] the sums of the inputs of one side, which has at least one."""
        places, shares = [], []
        for spec in self.features:
            if spec.side != side:
                continue
            ids = inputs[spec.name]
            ids = ids[:, tf.newaxis] if spec.kind == "categorical" else ids
            known = tf.cast(ids > 0, tf.float32)
            shares.append(tf.math.divide_no_nan(known, tf.reduce_sum(known, axis=1, keepdims=True)))
            places.append(tf.maximum(ids - 1, 0) + self.begins[spec.name])
        weights = tf.gather(self.table[:, 0], tf.concat(places, axis=1))
        return tf.reduce_sum(weights * tf.concat(shares, axis=1), axis=1)


class RankingTower(tf.keras.Model):
    """Embedded categories and normalised continuous features through a ReLU tower to one logit (paper, figure 7).

    Features of one id space share a table, and each is fed into the tower separately. A continuous feature
    enters as x, x^2, sqrt(x) and an indicator of being missing.

    What is known of a request (the query side) is the same for all its candidates. The first layer is linear in its
    inputs, so that with x = (x_q, x_i) and its kernel W = (W_q; W_i)

        W x + b = W_q x_q + (W_i x_i + b)

    and W_q x_q, as well as the embeddings it is made of, is computed once per request, whatever the number of candidates.

    Beside the tower, every categorical input adds a number per value to the logit (`IdWeights`). Where an id space has few
    impressions per id, that is all that can be learned of an id: such spaces are left out of `embedded`.

    What is known in training alone, like the position, is no input of the tower: it is added to the logit (`ShallowTower`).

    Args:
        features: the inputs.
        vocabulary_sizes: id space -> number of known ids.
        boundaries: continuous feature -> its quantiles in training.
        hidden_units: widths of the ReLU layers, bottom first; none makes it a logistic regression.
        dims_per_doubling: embedding dimensions added with each doubling of a vocabulary.
        initial_logit: bias of the last layer before training.
        logit_bound: served logits lie in [-logit_bound, logit_bound], so that no odds overflow.
        unit_s: see `losses.weighted_logistic_loss`.
        nets: networks of the same widths over the same inputs, each beginning and learning by itself; the logit is the mean
            of theirs, which varies less from one training to the next.
        powers: whether x^2 and sqrt(x) of continuous features are inputs (paper, section 4.1).
        id_weights: whether there are `IdWeights`.
        embedded: id spaces whose ids are embedded; None: all.
        matmul_dtype: of the ReLU layers' products while training; serving computes in float32.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        vocabulary_sizes: Mapping[str, int],
        boundaries: Mapping[str, np.ndarray],
        hidden_units: Sequence[int],
        dims_per_doubling: float,
        initial_logit: float,
        logit_bound: float,
        unit_s: float,
        nets: int = 1,
        powers: bool = True,
        id_weights: bool = False,
        embedded: Collection[str] | None = None,
        matmul_dtype: tf.DType = tf.float32,
    ) -> None:
        super().__init__(name="ranker")
        self.features = tuple(features)
        self.served = tuple(spec for spec in self.features if not spec.training_only)
        self.by_side = {side: tuple(spec for spec in self.served if spec.side == side) for side in _SIDES}
        self.continuous = {
            side: tuple(spec.name for spec in specs if spec.kind == "continuous")
            for side, specs in self.by_side.items()
        }
        self.vocabulary_sizes = dict(vocabulary_sizes)
        self.boundaries = {
            name: np.asarray(boundaries[name], np.float64)
            for names in self.continuous.values()
            for name in names
        }
        self.logit_bound = logit_bound
        self.unit_s = unit_s
        self.powers = powers
        self.matmul_dtype = matmul_dtype
        self.tables = {
            space: EmbeddingTable(
                vocabulary_sizes[space],
                log_dim(vocabulary_sizes[space], dims_per_doubling),
                name=f"{space}_table",
            )
            for space in dict.fromkeys(spec.space for spec in self.served if spec.space is not None)
            if embedded is None or space in embedded
        }
        ids = [spec for spec in self.served if spec.space is not None]
        self.id_weights = IdWeights(ids, vocabulary_sizes) if id_weights and ids else None
        beside = [spec for spec in self.features if spec.training_only]
        self.shallow = ShallowTower(beside, self.served, vocabulary_sizes) if beside else None
        self.curve: WatchTimeCurve | None = None
        self.normalizers = {
            side: QuantileNormalizer([boundaries[name] for name in names])
            for side, names in self.continuous.items()
            if names
        }
        self.widths = [
            sum(self.tables[spec.space].dim for spec in self.by_side[side] if spec.space in self.tables)
            + (4 if powers else 2) * len(self.continuous[side])
            for side in _SIDES
        ]
        self.nets = [self._net(hidden_units, initial_logit, number) for number in range(nets)]
        self.serve = tf.function(self._serve, input_signature=[serving_specs(self.served)])

    def _net(
        self, hidden_units: Sequence[int], initial_logit: float, number: int
    ) -> list[tf.keras.layers.Dense]:
        """Built layers, bottom first; the last one makes the logit."""
        tower = relu_tower(hidden_units, name=f"tower_{number}")
        last = tf.keras.layers.Dense(
            1, bias_initializer=tf.keras.initializers.Constant(initial_logit), name=f"logit_{number}"
        )
        if hidden_units:
            tower.build([None, sum(self.widths)])
        last.build([None, hidden_units[-1] if hidden_units else sum(self.widths)])
        return [*tower.layers, last]

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """[num_impressions] float32 logits, not yet bounded: the mean of the networks'. Otherwise `logits_by_net`."""
        return tf.reduce_mean(self.logits_by_net(inputs, training), axis=1)

    def logits_by_net(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The logits that each network alone would give.

        Args:
            inputs: categorical int32 [rows], multivalent int32 [rows, any], continuous float32 [rows] with NaN =
                missing; or, instead of the continuous ones, what `normalize_once` makes of them. Inputs of the
                impression side have a row per impression, those of the query side as many or one for all.
            training: whether what is known in training alone is among the inputs, and products are computed in
                `matmul_dtype`.

        Returns:
            [num_impressions, nets] float32, not yet bounded.

        Raises:
            tf.errors.InvalidArgumentError: the query side has neither one row nor one per impression.
        """
        sides = [self._side(side, inputs, training) for side in _SIDES if self.by_side[side]]
        if len(sides) == 2:
            queries, impressions = (tf.shape(side)[0] for side in sides)
            fits = tf.debugging.Assert(
                (queries == 1) | (queries == impressions), [_ROWS, queries, impressions]
            )
            # None when not in a graph: then it has raised already.
            with tf.control_dependencies([fits] if fits is not None else []):
                sides = [tf.identity(side) for side in sides]
        dtype = self.matmul_dtype if training else tf.float32
        logits = tf.stack([self._run(net, sides, dtype) for net in self.nets], axis=1)
        if self.id_weights is not None:
            for side in dict.fromkeys(spec.side for spec in self.id_weights.features):
                logits += self.id_weights(side, inputs)[:, tf.newaxis]
        return logits if self.shallow is None else self.shallow(logits, inputs, training)

    def _run(
        self, net: Sequence[tf.keras.layers.Dense], sides: Sequence[tf.Tensor], dtype: tf.DType
    ) -> tf.Tensor:
        """[num_impressions] float32 logits of one network."""
        first, *rest = net
        kernels = tf.split(first.kernel, self.widths, axis=0)
        products = [
            tf.matmul(tf.cast(side, dtype), tf.cast(kernel, dtype))
            for side, kernel in zip(sides, [k for k in kernels if k.shape[0]], strict=True)
        ]
        values = first.activation(tf.nn.bias_add(sum(products[1:], products[0]), tf.cast(first.bias, dtype)))
        for layer in rest:
            values = run_dense(layer, values)
        return tf.cast(values[:, 0], tf.float32)

    def squared_weights(self) -> tf.Tensor:
        """[] what a squared penalty sums up: id weights, and kernels, a network's share in the mean of each. Biases and
        embeddings are let be."""
        squares = [tf.reduce_sum(tf.square(layer.kernel)) for net in self.nets for layer in net]
        total = tf.add_n(squares) / len(self.nets)
        return total if self.id_weights is None else total + tf.reduce_sum(tf.square(self.id_weights.table))

    def _side(self, side: str, inputs: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """[rows, width of the side]: what enters the first layer."""
        parts = []
        for spec in self.by_side[side]:
            if spec.space not in self.tables:
                continue
            table = self.tables[spec.space]
            if spec.kind == "categorical":
                parts.append(table(inputs[spec.name]))
            else:
                parts.append(
                    table.pool(inputs[spec.name], "mean") if training else table.mean(inputs[spec.name])
                )
        if self.continuous[side]:
            stored = _NORMALIZED + side
            x = inputs[stored] if stored in inputs else self.normalized(side, inputs)
            missing = tf.math.is_nan(x)
            x = tf.where(missing, 0.0, x)
            parts += [x, tf.square(x), tf.sqrt(x)] if self.powers else [x]
            parts.append(tf.cast(missing, tf.float32))
        return tf.concat(parts, axis=1)

    def normalized(self, side: str, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """[rows, continuous features of the side] normalised, NaN = missing.

        Training computes it once before the first epoch; serving within the graph.
        """
        return self.normalizers[side](tf.stack([inputs[name] for name in self.continuous[side]], axis=1))

    def _serve(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logits = tf.clip_by_value(self(inputs), -self.logit_bound, self.logit_bound)
        if self.curve is None:
            seconds = expected_watch_time_s(logits, unit_s=self.unit_s)
        else:
            seconds = self.curve.expected_watch_time_s(logits)
        return {"expected_watch_time_s": seconds, "logit": logits}

    def forward_plan(self) -> dict[str, Any]:
        """What `forward.Ranker` makes of the weights what this serves."""
        place = {id(weight): number for number, weight in enumerate(self.weights)}
        side_of = {spec.name: spec.side for spec in self.served}
        begins = {} if self.id_weights is None else self.id_weights.begins
        sides = [
            {
                "features": [dataclasses.asdict(spec) for spec in self.served if spec.side == side],
                "boundaries": [self.boundaries[name].tolist() for name in self.continuous[side]],
                "id_weights": [(name, begin) for name, begin in begins.items() if side_of[name] == side],
            }
            for side in _SIDES
            if self.by_side[side]
        ]
        return {
            "kind": "ranker",
            "sides": sides,
            "tables": {space: place[id(table.table)] for space, table in self.tables.items()},
            "nets": [
                [(place[id(layer.kernel)], place[id(layer.bias)]) for layer in net] for net in self.nets
            ],
            "powers": self.powers,
            "id_weights": None if self.id_weights is None else place[id(self.id_weights.table)],
            "shallow": self.shallow and self.shallow.forward_plan(place[id(self.shallow.table)]),
            "logit_bound": self.logit_bound,
            "unit_s": self.unit_s,
            "curve": None if self.curve is None else dataclasses.asdict(self.curve),
        }

    def calibrate(self, curve: WatchTimeCurve | None) -> None:
        """Serve the expected watch time that `curve` says of a logit; None: the odds."""
        self.curve = curve
        self.serve = tf.function(self._serve, input_signature=[serving_specs(self.served)])


class RankingModel(tfrs.Model):
    """The ranking tower and the loss it is trained with.

    Args:
        tower: makes the logits.
        loss: (logits, clicked, watch_time_s) -> [] mean loss.
        l2: half of it times the squared weights (`RankingTower.squared_weights`) is added to the loss.
    """

    def __init__(
        self,
        tower: RankingTower,
        loss: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.impression_loss = loss
        self.l2 = l2

    def compute_loss(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Mean loss of impressions that carry `clicked` and `watch_time_s`, float32 [num_impressions], and the penalty.

        Of several networks, the mean of their losses: none learns from what the others say."""
        logits = tf.unstack(self.tower.logits_by_net(inputs, training), axis=1)
        losses = [self.impression_loss(one, inputs["clicked"], inputs["watch_time_s"]) for one in logits]
        loss = tf.add_n(losses) / len(losses)
        return loss + self.l2 / 2.0 * self.tower.squared_weights() if self.l2 else loss


def train(
    examples: Mapping[str, np.ndarray] | Shards,
    features: Sequence[FeatureSpec],
    *,
    vocabulary_sizes: Mapping[str, int],
    boundaries: Mapping[str, np.ndarray],
    hidden_units: Sequence[int],
    dims_per_doubling: float,
    odds: Odds,
    unit_s: float,
    cap_s: float,
    logit_bound: float,
    batch_size: int,
    learning_rate: float,
    epochs: int,
    patience: int,
    seed: int,
    evaluate: Callable[[RankingModel], Mapping[str, float]],
    nets: int = 1,
    powers: bool = True,
    id_weights: bool = False,
    rows_per_embedded_id: float = 0.0,
    l2: float = 0.0,
    matmul_dtype: MatmulDtype = "auto",
    objective: str = "weighted_pairwise_loss",
    where: str = "train_ranking",
    checkpoints: Checkpoints | None = None,
    workers: Workers = ALONE,
) -> tuple[RankingModel, training.Training]:
    """Train ranking.

    Args:
        examples: what `Encoder.encode_ranking` makes of the training examples; of several workers, those of this one.
        features: the inputs of the ranker.
        vocabulary_sizes: id space -> number of known ids.
        boundaries: continuous feature -> its quantiles in training.
        hidden_units: see RankingTower.
        dims_per_doubling: see RankingTower.
        odds: see `losses.weighted_logistic_loss`.
        unit_s: see `losses.weighted_logistic_loss`.
        cap_s: see `losses.weighted_logistic_loss`.
        logit_bound: see RankingTower.
        batch_size: impressions per step of each worker.
        learning_rate: of Adagrad.
        epochs: at most this many passes over the examples.
        patience: passes without a better objective before training stops.
        seed: decides the order of examples; `training.start` decides the rest.
        evaluate: metrics of the model on the tuning day; empty where there is none.
        nets: see RankingTower.
        powers: see RankingTower.
        id_weights: see RankingTower.
        rows_per_embedded_id: id spaces with fewer examples per known id are not embedded.
        l2: see RankingModel.
        matmul_dtype: `auto` is `towers.fastest_matmul_dtype`.
        objective: which of them decides on the epoch; less is better.
        where: named in errors and progress.
        checkpoints: see `training.fit`.
        workers: who trains together, see `training.fit`.

    Raises:
        InputError: there are no examples, none of them is clicked with watch time, or all are clicked where the odds
            are those of unclicked impressions, or the loss became NaN.
    """
    shards = Shards.of(examples)
    rows, clicks, weights, strange = 0, 0.0, 0.0, 0
    for part in shards.parts():
        clicked = part["clicked"].astype(np.float64)
        training.require_examples(clicked, where)
        weight = clicked * np.minimum(part["watch_time_s"], cap_s) / unit_s
        rows, clicks = rows + len(clicked), clicks + clicked.sum()
        weights, strange = weights + weight.sum(), strange + int((~np.isfinite(weight)).sum())
    if strange:
        raise InputError(f"{strange} training examples have no watch time that is a number", where=where)
    # What is counted is counted of everybody's examples: the workers train one model.
    rows, clicks, weights = workers.sum(np.array([rows, clicks, weights]))
    negatives = rows - (clicks if odds == "unclicked" else 0.0)
    if weights == 0 or negatives == 0:
        raise InputError(
            "the odds of watch time cannot be learned: "
            + ("every impression was clicked" if negatives == 0 else "no impression was clicked and watched"),
            where=f"{where}, {rows:.0f} training examples",
            remedy="look at the columns clicked and watch_time_s of the logs",
        )
    with workers.scope():
        tower = RankingTower(
            features,
            vocabulary_sizes=vocabulary_sizes,
            boundaries=boundaries,
            hidden_units=hidden_units,
            dims_per_doubling=dims_per_doubling,
            # What a model that knows nothing of its inputs would say; training then learns only what differs.
            initial_logit=float(np.log(weights / negatives)),
            logit_bound=logit_bound,
            unit_s=unit_s,
            nets=nets,
            powers=powers,
            id_weights=id_weights,
            embedded=[
                space for space, size in vocabulary_sizes.items() if rows >= rows_per_embedded_id * size
            ],
            matmul_dtype=fastest_matmul_dtype() if matmul_dtype == "auto" else tf.as_dtype(matmul_dtype),
        )
        model = RankingModel(
            tower,
            lambda logits, clicks, watch_time_s: weighted_logistic_loss(
                logits, clicks, watch_time_s, unit_s=unit_s, cap_s=cap_s, odds=odds
            ),
            l2,
        )
        model.compile(optimizer=adagrad(learning_rate))
    outcome = training.fit(
        model,
        shards.through(partial(normalize_once, tower), normalized_names(tower, shards.names)),
        batch_size=batch_size,
        epochs=epochs,
        patience=patience,
        seed=seed,
        evaluate=lambda: evaluate(model),
        objective=objective,
        maximise=False,
        where=where,
        checkpoints=checkpoints,
        workers=workers,
    )
    return model, outcome


def normalized_names(tower: RankingTower, names: Sequence[str]) -> list[str]:
    """The names of what `normalize_once` makes of arrays of these names."""
    continuous = {name for of_side in tower.continuous.values() for name in of_side}
    return [name for name in names if name not in continuous] + [
        _NORMALIZED + side for side in tower.normalizers
    ]


def normalize_once(
    tower: RankingTower, examples: Mapping[str, np.ndarray], batch_size: int = 65_536
) -> dict[str, np.ndarray]:
    """The examples with the continuous features of each side replaced by one array, normalised, which no epoch then
    computes again."""
    names_kept = set(normalized_names(tower, list(examples)))
    arrays = {name: array for name, array in examples.items() if name in names_kept}
    for side, normalizer in tower.normalizers.items():
        names = tower.continuous[side]
        rows = len(examples[names[0]])
        normalized = np.empty((rows, len(names)), np.float32)
        for begin in range(0, rows, batch_size):
            end = min(begin + batch_size, rows)
            values = np.stack([examples[name][begin:end] for name in names], axis=1)
            normalized[begin:end] = normalizer.run(tf.constant(values)).numpy()
        arrays[_NORMALIZED + side] = normalized
    return arrays


def predict(
    tower: RankingTower, examples: Mapping[str, np.ndarray], batch_size: int = 16_384
) -> dict[str, np.ndarray]:
    """`expected_watch_time_s` and `logit`, float32 [num_impressions], of encoded examples, both sides a row each."""
    names = [spec.name for spec in tower.served]
    rows = len(examples[names[0]])
    parts = [
        tower.serve({name: tf.constant(examples[name][begin : begin + batch_size]) for name in names})
        for begin in range(0, rows, batch_size)
    ]
    return {
        name: np.concatenate([part[name].numpy() for part in parts]) if parts else np.empty(0, np.float32)
        for name in ("expected_watch_time_s", "logit")
    }


def save(model: RankingModel, directory: Path) -> None:
    """Write `ranker/` (SavedModel) into `directory`.

    Beside `serving_default`, which takes every input by its name, it has the signature `packed`, see
    `towers.save_signature`: to bind dozens of inputs costs half a millisecond of each request. A server computes with
    neither, but with `models.forward`.
    """
    tower = model.tower
    layout = {
        f"{side}_{kind}": [spec.name for spec in specs if spec.kind == kind]
        for side, specs in tower.by_side.items()
        for kind in ("categorical", "continuous")
    }
    specs = {
        name: tf.TensorSpec(
            [None, len(members)], tf.int32 if name.endswith("categorical") else tf.float32, name=name
        )
        for name, members in layout.items()
        if members
    } | serving_specs([spec for spec in tower.served if spec.kind == "multivalent"])

    @tf.function(input_signature=[specs])
    def packed(arrays: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = dict(arrays)
        for side in _SIDES:
            if layout[f"{side}_categorical"]:
                columns = tf.unstack(inputs.pop(f"{side}_categorical"), axis=1)
                inputs |= dict(zip(layout[f"{side}_categorical"], columns, strict=True))
            if layout[f"{side}_continuous"]:
                inputs[_NORMALIZED + side] = tower.normalizers[side](inputs.pop(f"{side}_continuous"))
        return tower._serve(inputs)

    save_signature(
        tower,
        tower.serve,
        str(directory / "ranker"),
        packed=packed,
        layout={name: members for name, members in layout.items() if members},
        plan=tower.forward_plan(),
        sample=forward.sample_of(
            tower.served, tower.vocabulary_sizes, _SAMPLE_ROWS, boundaries=tower.boundaries
        ),
    )


def load_ranker(directory: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """The stored ranker as a function: encoded impressions -> expected_watch_time_s and logit, float32 [N] each."""
    return load_signature(str(directory))
