"""What is measured side by side makes the same values, or its speeds would say nothing."""

import math
from pathlib import Path

import duckdb
import pytest
from benchmarks.features.__main__ import run
from benchmarks.features.measures import declared, measure_ours, measure_plain, prepare

from watchnext.engine import EngineParams, connect
from watchnext.features.history import read_logs


def test_both_make_the_same_features(tmp_path: Path) -> None:
    """Every value of every impression of 20,000: ids and bags exactly, numbers to 1e-6."""
    prepare(20_000, tmp_path)
    assert measure_ours(tmp_path) > 0
    assert measure_plain(tmp_path) > 0
    with connect(EngineParams()) as engine:
        names = [one.name for one in declared(read_logs(engine, tmp_path / "tables"))]
    order = "ORDER BY shown_at, request_id, video_id"
    ours = duckdb.sql(
        f"FROM '{tmp_path}/features/ranking_examples/*/part-*.parquet' {order}"
    ).to_arrow_table()
    plain = duckdb.sql(f"FROM '{tmp_path}/plain.parquet' {order}").to_arrow_table()
    assert ours.num_rows == plain.num_rows > 18_000
    for name in names:
        # A column of users has the user's own name there.
        by_hand = plain[name.removeprefix("user_column_")].to_pylist()
        for place, (one, other) in enumerate(zip(ours[name].to_pylist(), by_hand, strict=True)):
            if isinstance(one, float) and other is not None:
                assert math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6), (name, place, one, other)
            else:
                assert one == other or not (one or other), (name, place, one, other)


def test_the_result_has_what_is_reported(tmp_path: Path) -> None:
    result = run(5_000, 10_000, tmp_path)
    assert result["rows_per_s_10m"] > 0
    assert result["rows_per_s_100m"] > 0
    for name in ("time", "cpu"):
        assert result[f"{name}_per_row_large_over_small"] > 0
    assert result["ratio_to_plain_duckdb"] == pytest.approx(
        result["rows_per_s_10m"] / result["plain_rows_per_s"], rel=1e-9
    )
    assert 0 < result["peak_rss_gb_100m"] < 8
