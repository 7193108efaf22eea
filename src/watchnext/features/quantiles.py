"""Quantile normalisation of continuous features (the paper's section 4.1, "Normalizing Continuous Features").

A feature x with distribution f becomes its cumulative distribution, approximated by linear interpolation on
quantiles of the training values, so that it is spread evenly over [0, 1).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

BELOW_ONE = float(np.nextafter(np.float32(1.0), np.float32(0.0)))
"""The largest normalised value: the greatest float32 below 1."""

LARGEST = 1e38
"""Stands for infinity: the difference of two such values is still a float32."""


SAMPLE_ROWS = 4_000_000
"""Quantiles are taken over about so many examples at most: their standard error is then below 0.0003 of the rows."""


def compute_boundaries(
    examples: ir.Table, names: Sequence[str], count: int, *, key: Sequence[str], rows: int
) -> dict[str, list[float]]:
    """Quantiles of each feature over `examples`, missing values left out.

    Args:
        examples: one float64 column per name; null = missing.
        names: the features.
        count: how many boundaries, the smallest and the largest value included; at least 2.
        key: columns that identify an example; by their md5 a sample is drawn where there are too many.
        rows: number of examples.

    Returns:
        Per feature the quantiles at i / (count - 1), ascending. Equal neighbours are kept: they are how a
        value that many examples share gets its share of [0, 1). Empty where every value is missing.
    """
    if rows > SAMPLE_ROWS:
        digits = 6
        text = ibis.literal("")
        for name in key:
            text = text + examples[name].cast("string") + "|"
        bound = f"{int(SAMPLE_ROWS / rows * 16**digits):0{digits}x}"
        examples = examples.filter(text.hexdigest("md5")[:digits] < bound)
    positions = np.arange(count) / (count - 1)
    quantiles = _quantiles_there if examples.get_backend().name == "pyspark" else _quantiles_here
    return {name: quantiles(examples[name], positions) for name in names}


def _quantiles_here(column: ir.FloatingColumn, positions: npt.NDArray[np.float64]) -> list[float]:
    # One column at a time is all that has to fit into memory.
    values = pc.drop_null(column.to_pyarrow()).to_numpy()
    values = np.clip(values[~np.isnan(values)], -LARGEST, LARGEST)
    return np.quantile(values, positions).tolist() if len(values) else []


def _quantiles_there(column: ir.FloatingColumn, positions: npt.NDArray[np.float64]) -> list[float]:
    """The same, to the bit, where the values are not to leave the cluster: two of them per boundary do."""
    values = column.name("value").as_table()
    values = values.filter(values.value.notnull() & ~values.value.isnan())
    rows = int(values.count().to_pyarrow().as_py())
    if rows == 0:
        return []
    places = positions * (rows - 1)
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, rows - 1)
    ranked = values.mutate(place=ibis.row_number().over(ibis.window(order_by="value")).cast("int64"))
    wanted = ranked.filter(ranked.place.isin(sorted({*below.tolist(), *above.tolist()}))).to_pyarrow()
    found = dict(zip(wanted["place"].to_pylist(), wanted["value"].to_pylist(), strict=True))
    pairs = np.clip(
        [[found[one], found[other]] for one, other in zip(below, above, strict=True)], -LARGEST, LARGEST
    )
    # Between two values as NumPy does it, rather than by a formula that rounds otherwise.
    return [float(np.quantile(pair, part)) for pair, part in zip(pairs, places - below, strict=True)]


def write_boundaries(boundaries: Mapping[str, Sequence[float]], path: Path) -> None:
    """Store boundaries as JSON; floats survive the round trip exactly."""
    path.write_text(json.dumps({name: list(values) for name, values in boundaries.items()}, indent=1) + "\n")


def read_boundaries(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """What `write_boundaries` stored: feature name -> ascending boundaries, float64 [count] or [0]."""
    return {
        name: np.asarray(values, dtype=np.float64) for name, values in json.loads(path.read_text()).items()
    }


def normalize(x: npt.ArrayLike, boundaries: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The cumulative distribution at x, in [0, 1): the reference that the ranking model's graph is held to.

    Between two boundaries linear; at a value that several boundaries share, the middle of their places, so
    that a constant feature is 0.5. Below the smallest boundary 0, above the largest `BELOW_ONE`. Infinite values and
    boundaries count as +-LARGEST.

    Args:
        x: values, any shape; NaN = missing.
        boundaries: ascending, [count]; empty for a feature that is always missing.

    Returns:
        Same shape as x. Missing values, and every value of a feature without boundaries, are 0; that they are
        missing is told to a model by another input.
    """
    values = np.clip(np.asarray(x, dtype=np.float64), -LARGEST, LARGEST)
    edges = np.clip(np.asarray(boundaries, dtype=np.float64), -LARGEST, LARGEST)
    if edges.ndim != 1:
        raise ValueError(f"boundaries must have one axis, they have shape {edges.shape}")
    if edges.size == 0:
        return np.zeros(values.shape)
    left = np.searchsorted(edges, values, side="left")
    right = np.searchsorted(edges, values, side="right")
    below = np.clip(left - 1, 0, edges.size - 1)
    above = np.clip(left, 0, edges.size - 1)
    width = edges[above] - edges[below]
    part = np.where(width > 0, (values - edges[below]) / np.where(width > 0, width, 1.0), 0.0)
    place = np.where(right > left, (left + right - 1) / 2, below + part)
    place = np.where(left == edges.size, edges.size - 1, place)
    normalized = np.clip(place / max(edges.size - 1, 1), 0.0, BELOW_ONE)
    if edges.size == 1:
        normalized = np.where(values == edges[0], 0.5, np.where(values < edges[0], 0.0, BELOW_ONE))
    return np.where(np.isnan(values), 0.0, normalized)
