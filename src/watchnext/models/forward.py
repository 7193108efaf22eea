"""What a trained tower answers, computed with NumPy from its weights: how a server asks a tower for one request.

TensorFlow takes most of a millisecond to be asked at all, and hands the work to threads of its own; of a few hundred rows
its products take twice as long as those of BLAS. So a SavedModel says, beside the graph which is trained, judged and served
by others, what it is made of (`towers.save_signature`), and `towers.load_forward` makes one of the classes below from that.
Whatever saves a tower holds both to each other (`held_to`).

A plan is what `json.dumps` takes. Weights are named in it by their places in the list of the tower's weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from watchnext.features.batches import FeatureSpec
from watchnext.features.quantiles import BELOW_ONE, LARGEST

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]

TOLERANCE = 1e-3
"""Of what both ways say, relative and absolute: a thousand float32 products are added up in another order."""


def intervals(edges: npt.NDArray[np.float32]) -> Floats:
    """The quantile normalisation of a feature (`models.ranking.QuantileNormalizer`) as a table.

    Args:
        edges: ascending, [count]; empty for a feature that is always missing.

    Returns:
        float32 [distinct edges + 1, 6]: the upper edge of an interval and the value there, its lower edge and its width, the
        value above the lower edge and how much it rises from there to below the upper one; +inf is the edge of the last.
    """
    if len(edges) == 0:
        return np.array([[np.inf, np.nan, 0.0, 1.0, np.nan, 0.0]], np.float32)
    distinct, first, count = np.unique(edges, return_index=True, return_counts=True)
    last = first + count - 1
    highest = max(len(edges) - 1, 1)
    upper = np.append(distinct, np.inf)
    value = np.append((first + last) / 2 / highest, 1.0)
    lower = np.append(0.0, distinct)
    width = np.r_[1.0, np.diff(distinct.astype(np.float64)), 1.0]
    start = np.append(0.0, last / highest)
    rise = np.r_[0.0, (first[1:] - last[:-1]) / highest, 0.0]
    if len(edges) == 1:
        value[0], start[1] = 0.5, 1.0
    return np.stack([upper, value, lower, width, start, rise], axis=1).astype(np.float32)


def padded_intervals(boundaries: Sequence[npt.ArrayLike]) -> Floats:
    """`intervals` of several features, float32 [num_features, longest, 6]: what pads one is never found."""
    rows = [intervals(np.clip(edges, -LARGEST, LARGEST).astype(np.float32)) for edges in boundaries]
    longest = max((len(row) for row in rows), default=1)
    return np.stack([np.pad(row, ((0, longest - len(row)), (0, 0)), mode="edge") for row in rows])


class Table:
    """An embedding table, see `towers.EmbeddingTable`: index 0 is the zero vector.

    Args:
        weights: float32 [V + 1, dim]; its first row is overwritten.
    """

    def __init__(self, weights: Floats) -> None:
        weights[0] = 0.0
        self._weights = weights
        self.dim = weights.shape[1]

    def of(self, indices: npt.NDArray[np.int32]) -> Floats:
        """[rows] -> [rows, dim]."""
        return self._weights[indices]

    def pooled(self, bags: npt.NDArray[np.int32], how: str) -> Floats:
        """[rows, length] -> [rows, dim]: mean, sum or maximum over the known ids of each bag."""
        bags = np.ascontiguousarray(bags.T)  # sums over the first axis run through memory in its order
        known = bags > 0
        if how == "max":
            highest = np.where(known[:, :, None], self._weights[bags], -np.inf).max(axis=0, initial=-np.inf)
            return np.where(np.isfinite(highest), highest, np.float32(0.0))
        # Padding stands at the end of nearly all bags: it is not read.
        longest = int(np.flatnonzero(known.any(axis=1)).max(initial=-1)) + 1
        total = self._weights[bags[:longest]].sum(axis=0)
        if how == "mean":
            total /= np.maximum(known[:longest].sum(axis=0, dtype=np.float32), 1.0)[:, None]
        return total


class Query:
    """`retrieval.QueryTower` as it is served."""

    def __init__(self, plan: Mapping[str, Any], weights: Sequence[Floats]) -> None:
        self._features = [(spec["name"], spec["kind"], spec["space"]) for spec in plan["features"]]
        self._tables = {space: Table(weights[place]) for space, place in plan["tables"].items()}
        self._pooling = plan["pooling"]
        self._layers = [(weights[kernel], weights[bias], is_relu) for kernel, bias, is_relu in plan["layers"]]
        self._has_bias_component = plan["head"] == "linear"
        self._longest_age_s = plan["longest_example_age_s"]
        self._serving_age_s = plan["serving_example_age_s"]
        self._tells_unwatched = plan["unwatched_labels"]

    def __call__(self, arrays: Arrays) -> dict[str, Floats]:
        """Encoded requests -> `embedding` [num_queries, D]."""
        parts: list[Floats] = []
        for name, kind, space in self._features:
            values = arrays[name]
            if kind == "multivalent":
                parts.append(self._tables[space].pooled(values, self._pooling))
                parts.append(np.log1p((values > 0).sum(axis=1, keepdims=True, dtype=np.float32)) / 4.0)
            elif kind == "categorical":
                parts.append(self._tables[space].of(values))
            elif kind == "unit":
                known = np.isfinite(values)
                parts.append(np.stack([np.where(known, values, 0.0), known], axis=1, dtype=np.float32))
            else:
                age = np.float32(1.0 / self._longest_age_s) * (values[:, None] + self._serving_age_s)
                parts += [age, np.square(age), np.sqrt(np.maximum(age, 0.0))]
        if self._tells_unwatched:
            parts.append(np.zeros((len(parts[0]), 1), np.float32))
        queries = np.concatenate(parts, axis=1, dtype=np.float32)
        for kernel, bias, is_relu in self._layers:
            queries = queries @ kernel
            queries += bias
            if is_relu:
                np.maximum(queries, 0.0, out=queries)
        if self._has_bias_component:
            queries = np.concatenate([queries, np.ones_like(queries[:, :1])], axis=1)
        return {"embedding": queries}


class _Side:
    """What enters a ranker's first layer of one of its sides, see `ranking.RankingTower`."""

    def __init__(
        self, plan: Mapping[str, Any], tables: Mapping[str, Table], powers: bool, id_weights: Floats | None
    ) -> None:
        self._embedded = [
            (spec["name"], spec["kind"], tables[spec["space"]])
            for spec in plan["features"]
            if spec["space"] in tables
        ]
        self._continuous = [spec["name"] for spec in plan["features"] if spec["kind"] == "continuous"]
        self._blocks = (4 if powers else 2) if self._continuous else 0
        if self._continuous:
            table = padded_intervals(plan["boundaries"])
            self._edges = [np.ascontiguousarray(edges) for edges in table[:, :, 0]]
            # A column lies together over all features: what is found in it is taken by one index.
            self._columns = [np.ascontiguousarray(table[:, :, column]).ravel() for column in range(6)]
            self._begins = np.arange(len(table))[:, None] * table.shape[1]
        self._weighted = [tuple(pair) for pair in plan["id_weights"]]
        self._id_weights = id_weights
        self.width = sum(table.dim for _, _, table in self._embedded) + self._blocks * len(self._continuous)

    def __call__(self, arrays: Arrays) -> Floats:
        """Encoded inputs -> float32 [rows, width]."""
        rows = len(arrays[self._embedded[0][0] if self._embedded else self._continuous[0]])
        entered = np.empty((rows, self.width), np.float32)
        begin = 0
        for name, kind, table in self._embedded:
            values = table.of(arrays[name]) if kind == "categorical" else table.pooled(arrays[name], "mean")
            entered[:, begin : begin + table.dim] = values
            begin += table.dim
        if self._continuous:
            normalized = self._normalized(np.stack([arrays[name] for name in self._continuous]))
            missing = np.isnan(normalized)
            normalized[missing] = 0.0
            blocks = [normalized, missing]
            if self._blocks == 4:
                blocks[1:1] = [np.square(normalized), np.sqrt(normalized)]
            for block in blocks:
                entered[:, begin : begin + len(block)] = block.T
                begin += len(block)
        return entered

    def _normalized(self, values: Floats) -> Floats:
        """[num_features, rows], NaN = missing -> the same shape, in [0, 1), NaN where missing."""
        missing = np.isnan(values)
        x = np.where(missing, np.float32(0.0), values)
        np.clip(x, -LARGEST, LARGEST, out=x)
        found = np.empty(x.shape, np.intp)
        for place, edges in enumerate(self._edges):
            found[place] = edges.searchsorted(x[place])
        found += self._begins
        edge, at_edge, below, width, start, rise = (column[found] for column in self._columns)
        is_edge = x == edge
        x -= below
        x /= width
        x *= rise
        x += start
        np.copyto(x, at_edge, where=is_edge)
        np.minimum(x, np.float32(BELOW_ONE), out=x)
        x[missing] = np.nan
        return x

    def id_logits(self, arrays: Arrays) -> Floats | None:
        """[rows] what the side's ids add to the logit, see `ranking.IdWeights`; None: they add nothing."""
        if self._id_weights is None or not self._weighted:
            return None
        sums = []
        for name, begin in self._weighted:
            ids = arrays[name]
            ids = ids[:, None] if ids.ndim == 1 else ids
            known = ids > 0
            weights = np.where(known, self._id_weights[np.maximum(ids - 1, 0) + begin], np.float32(0.0))
            sums.append(weights.sum(axis=1) / np.maximum(known.sum(axis=1, dtype=np.float32), 1.0))
        return np.sum(sums, axis=0, dtype=np.float32)


class Ranker:
    """`ranking.RankingTower` as it is served."""

    def __init__(self, plan: Mapping[str, Any], weights: Sequence[Floats]) -> None:
        tables = {space: Table(weights[place]) for space, place in plan["tables"].items()}
        id_weights = None if plan["id_weights"] is None else weights[plan["id_weights"]][:, 0]
        self._sides = [_Side(side, tables, plan["powers"], id_weights) for side in plan["sides"]]
        self._nets = [[(weights[kernel], weights[bias]) for kernel, bias in net] for net in plan["nets"]]
        begins = np.cumsum([0, *(side.width for side in self._sides)])
        self._rows = [
            slice(begin, begin + side.width) for begin, side in zip(begins, self._sides, strict=False)
        ]
        # What `shallow_tower.ShallowTower` adds for an unknown value, by the input within which it counts.
        shallow = plan["shallow"] or {"served": []}
        self._unknown = [
            (within, shallow["rate"] * weights[shallow["weights"]][begin::step, 0])
            for within, begin, step in shallow["served"]
        ]
        self._bound = plan["logit_bound"]
        self._unit_s = plan["unit_s"]
        self._curve = None if plan["curve"] is None else _curve(**plan["curve"])

    def __call__(self, arrays: Arrays) -> dict[str, Floats]:
        """Encoded inputs, a row per impression, of the query side as many or one -> `logit`, `expected_watch_time_s` [N].

        Raises:
            ValueError: the query side has neither one row nor one per impression.
        """
        entered = [side(arrays) for side in self._sides]
        rows = len(entered[-1])
        if len(entered[0]) not in (1, rows):
            raise ValueError(f"{len(entered[0])} rows of the query side for {rows} impressions")
        logits = np.mean([self._run(net, entered) for net in self._nets], axis=0, dtype=np.float32)
        for side in self._sides:
            beside = side.id_logits(arrays)
            if beside is not None:
                logits = logits + beside
        for within, unknown in self._unknown:
            logits = logits + unknown[0 if within is None else arrays[within]]
        logits = np.clip(logits, -self._bound, self._bound)
        seconds = self._unit_s * np.exp(logits) if self._curve is None else self._curve(logits)
        return {"expected_watch_time_s": seconds.astype(np.float32), "logit": logits}

    def _run(self, net: Sequence[tuple[Floats, Floats]], entered: Sequence[Floats]) -> Floats:
        (kernel, bias), *rest = net
        values = entered[-1] @ kernel[self._rows[-1]]
        for side, rows in zip(entered[:-1], self._rows[:-1], strict=True):
            values += side @ kernel[rows]
        values += bias
        for kernel, bias in rest:
            np.maximum(values, 0.0, out=values)
            values = values @ kernel
            values += bias
        return values[:, 0]


def _curve(logits: Sequence[float], seconds: Sequence[float]) -> Callable[[Floats], Floats]:
    """`calibration.WatchTimeCurve.expected_watch_time_s`."""
    at, log_s = np.asarray(logits, np.float64), np.log(seconds)
    knots = at[1:-1].astype(np.float32)
    begin, log_begin, slope = (
        column.astype(np.float32) for column in (at[:-1], log_s[:-1], np.diff(log_s) / np.diff(at))
    )

    def curve(z: Floats) -> Floats:
        knot = knots.searchsorted(z)
        return np.exp(log_begin[knot] + (z - begin[knot]) * slope[knot])

    return curve


KINDS: Mapping[
    str, Callable[[Mapping[str, Any], Sequence[Floats]], Callable[[Arrays], dict[str, Floats]]]
] = {
    "query": Query,
    "ranker": Ranker,
}
"""By the `kind` of a plan."""


def sample_of(
    features: Sequence[FeatureSpec],
    vocabulary_sizes: Mapping[str, int],
    rows: int,
    *,
    boundaries: Mapping[str, npt.ArrayLike] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Encoded inputs of every kind, unknown and missing ones among them, for `held_to`: the same each time.

    A number without quantiles is the age of an example, which no request lacks: what a tower makes of a missing one nobody
    has said, and one processor's rectifier makes zero of it, another's leaves it.

    Args:
        features: the inputs.
        vocabulary_sizes: id space -> number of known ids.
        rows: how many.
        boundaries: continuous feature -> its quantiles, from among which and beyond which values are taken.
    """
    draw = np.random.default_rng(0)
    quantiles = boundaries or {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for spec in features:
        if spec.kind in ("categorical", "multivalent"):
            length = spec.length or 1
            ids = draw.integers(0, vocabulary_sizes[spec.space or ""] + 1, (rows, length)).astype(np.int32)
            if spec.kind == "multivalent":
                ids[np.arange(length) >= draw.integers(0, length + 1, rows)[:, None]] = 0
            arrays[spec.name] = ids if spec.kind == "multivalent" else ids[:, 0]
            continue
        edges = np.asarray(quantiles.get(spec.name, []), np.float64)
        values = draw.random(rows) if spec.kind == "unit" or len(edges) == 0 else draw.choice(edges, rows)
        if spec.kind == "continuous":
            values = values * draw.choice([1.0, 1.0, 0.9, 1.1], rows)
        if spec.kind == "unit" or spec.name in quantiles:
            values = np.where(draw.random(rows) < 0.1, np.nan, values)
        arrays[spec.name] = values.astype(np.float32)
    return arrays


def held_to(made: Mapping[str, Floats], wanted: Mapping[str, Floats]) -> None:
    """Hold what is computed here to what the graph says of the same inputs.

    Raises:
        ValueError: they differ by more than rounding.
    """
    for name, values in wanted.items():
        if not np.allclose(made[name], values, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            unknown = np.isnan(made[name]) != np.isnan(values)
            off = "only one of them knows" if unknown.any() else float(np.nanmax(np.abs(made[name] - values)))
            raise ValueError(f"{name}: what NumPy says is off what the graph says: {off}")
