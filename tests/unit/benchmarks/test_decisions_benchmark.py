"""The benchmark of decisions: rounds that cannot go otherwise, bounds by the book, and what is kept of a run cut off."""

import json
from pathlib import Path

import pytest
from benchmarks.decisions.__main__ import bound, kept_rows, report
from benchmarks.decisions.rounds import KINDS, play, release_round


def test_a_round_takes_all_steps() -> None:
    """Five per cent are eight standard errors here. Meant to fail where causal evidence is not asked."""
    better, worse = (release_round(kind, 10_000, 200_000, 3) for kind in ("better_5pct", "worse_online"))
    assert (better["gate"], better["offline"], better["causal"]) == ("challenger", "crown", "crown")
    assert (worse["gate"], worse["offline"], worse["causal"]) == ("challenger", "crown", "keep")
    assert 20_000 < better["user_days"] <= 20_000 + 7 * 200_000


def test_bounds_are_those_of_clopper_and_pearson() -> None:
    """None of 300: 1 - 0.025^(1/300); the textbook's rule of three is its neighbour."""
    assert bound(0, 300, upper=True) == pytest.approx(1 - 0.025 ** (1 / 300))
    assert bound(300, 300, upper=False) == pytest.approx(0.025 ** (1 / 300))


def test_a_line_that_was_cut_off_is_played_again(tmp_path: Path) -> None:
    rows = play(range(2), 1_500, 2_000)
    path = tmp_path / "rounds.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows)[:-20], encoding="utf-8")
    kept = kept_rows(path)
    assert [row["seed"] for row in kept] == [0]
    found = report(rows, 1_500, 2_000)
    assert found["rounds"] == 2
    assert set(found["user_days"]) == set(KINDS)
    assert 0 <= found["coverage_of_95pct_intervals"] <= 1
