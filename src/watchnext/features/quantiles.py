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
    boundaries: dict[str, list[float]] = {}
    for name in names:
        # One column at a time is all that has to fit into memory.
        values = pc.drop_null(examples.select(name).to_pyarrow()[name]).to_numpy()
        values = np.clip(values[~np.isnan(values)], -LARGEST, LARGEST)
        boundaries[name] = np.quantile(values, positions).tolist() if len(values) else []
    return boundaries


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
