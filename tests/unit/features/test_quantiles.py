"""Quantile normalisation: values by hand, uniformity, and the corners."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchnext.engine import EngineParams, connect
from watchnext.features import quantiles
from watchnext.features.quantiles import (
    BELOW_ONE,
    compute_boundaries,
    normalize,
    read_boundaries,
    write_boundaries,
)


def boundaries_of(values: list[float | None], count: int, directory: Path) -> list[float]:
    directory.mkdir(exist_ok=True)
    table = pa.table({"id": list(range(len(values))), "x": pa.array(values, pa.float64())})
    pq.write_table(table, directory / "part-00000.parquet")
    with connect(EngineParams()) as engine:
        found = compute_boundaries(engine.read(directory), ["x"], count, key=["id"], rows=len(values))
    return found["x"]


def test_between_boundaries_it_is_linear() -> None:
    edges = [0.0, 10.0, 30.0, 40.0, 80.0]
    expected = [0.0, (0 + 5 / 10) / 4, 1 / 4, (1 + 5 / 20) / 4, (3 + 10 / 40) / 4]
    np.testing.assert_allclose(normalize([0.0, 5.0, 10.0, 15.0, 50.0], edges), expected)


def test_outside_the_boundaries_it_is_clipped_below_one() -> None:
    np.testing.assert_array_equal(normalize([-1.0, 80.0, 81.0], [0.0, 80.0]), [0.0, BELOW_ONE, BELOW_ONE])
    assert BELOW_ONE < 1.0
    assert np.float32(BELOW_ONE) < np.float32(1.0)


def test_a_value_that_many_examples_share_is_the_middle_of_its_share() -> None:
    edges = [0.0, 0.0, 0.0, 4.0, 8.0]
    np.testing.assert_allclose(normalize([0.0, 2.0, 4.0], edges), [(0 + 2) / 2 / 4, (2 + 2 / 4) / 4, 3 / 4])


def test_a_constant_feature_is_one_half_at_its_constant() -> None:
    for edges in ([3.0] * 8, [3.0]):
        np.testing.assert_array_equal(normalize([2.0, 3.0, 4.0], edges), [0.0, 0.5, BELOW_ONE])


def test_missing_is_zero_and_so_is_a_feature_that_is_always_missing() -> None:
    np.testing.assert_array_equal(normalize([np.nan, 2.0], [0.0, 4.0]), [0.0, 0.5])
    np.testing.assert_array_equal(normalize([np.nan, 2.0], []), [0.0, 0.0])


def test_normalized_training_values_are_spread_evenly(tmp_path: Path) -> None:
    """A heavy tail becomes uniform: every tenth of [0, 1) holds a tenth of the values, give or take 1 %.

    Seen to fail on the mutant that takes boundaries evenly between the extremes.
    """
    values = np.random.default_rng(3).lognormal(0, 2, 20_000)
    normalized = normalize(values, boundaries_of(values.tolist(), 256, tmp_path))
    shares = np.histogram(normalized, bins=10, range=(0, 1))[0] / len(values)
    np.testing.assert_allclose(shares, 0.1, atol=0.001)


def test_it_never_falls_as_the_value_grows() -> None:
    edges = np.sort(np.random.default_rng(4).integers(0, 20, 64)).astype(float)
    assert (np.diff(normalize(np.linspace(-1, 21, 999), edges)) >= 0).all()


def test_boundaries_are_quantiles_of_the_values_that_are_there(tmp_path: Path) -> None:
    assert boundaries_of([4.0, None, 0.0, 2.0, float("nan"), 1.0, 3.0], 5, tmp_path) == [
        0.0,
        1.0,
        2.0,
        3.0,
        4.0,
    ]
    assert boundaries_of([None, None], 5, tmp_path) == []
    assert boundaries_of([7.0], 3, tmp_path) == [7.0, 7.0, 7.0]


def test_a_sample_is_used_where_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiles, "SAMPLE_ROWS", 1000)
    found = boundaries_of([float(x) for x in range(10_000)], 5, tmp_path)
    assert found == boundaries_of([float(x) for x in range(10_000)], 5, tmp_path)
    assert found[-1] < 9999.0 or found[0] > 0.0
    np.testing.assert_allclose(found, [0, 2500, 5000, 7500, 10_000], atol=500)


def test_boundaries_survive_the_file(tmp_path: Path) -> None:
    write_boundaries({"x": [0.1, 1 / 3], "y": []}, tmp_path / "quantiles.json")
    read = read_boundaries(tmp_path / "quantiles.json")
    assert read["x"].tolist() == [0.1, 1 / 3]
    assert read["y"].shape == (0,)
