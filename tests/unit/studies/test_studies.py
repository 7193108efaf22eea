"""What single studies compute on the way, and one of them from end to end in a small world."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_study import rows_of_small_study

from watchnext.studies import ann, figure5, surrogate
from watchnext.studies._lab import Ground


def ground_of(users: list[int], at: list[int], labels: list[int], history: list[list[int]]) -> Ground:
    """Training examples as arrays; everything else is nothing."""
    examples = pa.table(
        {"user_id": users, "watched_at": pa.array(at, pa.int64()).cast(pa.timestamp("us", tz="UTC"))}
    )
    arrays = {
        "label": np.array(labels, dtype=np.int32),
        "history": np.array([bag + [0] * (50 - len(bag)) for bag in history], dtype=np.int32),
    }
    return Ground("logs", None, 0, Path(), None, examples, arrays)  # type: ignore[arg-type]


def test_a_held_out_context_is_all_but_the_label_whenever_it_was() -> None:
    """User 1 watched 7 before the days, then 3, 4, 5; examples are stored in another order."""
    ground = ground_of([1, 2, 1, 1], [300, 100, 100, 200], [5, 9, 3, 4], [[7, 3, 4], [], [7], [7, 3]])
    context = figure5.held_out_context(ground)
    assert [row[row > 0].tolist() for row in context] == [[7, 3, 4], [], [7, 4, 5], [7, 3, 5]]


def test_a_held_out_context_keeps_the_last_fifty() -> None:
    labels = list(range(1, 61))
    history = [labels[max(0, place - 50) : place] for place in range(60)]
    context = figure5.held_out_context(ground_of([1] * 60, labels, labels, history))
    assert context[0].tolist() == list(range(11, 61))
    assert context[59].tolist() == list(range(10, 60))


def test_bags_are_cut_to_the_size_of_others() -> None:
    few = np.array([[1, 0, 0], [0, 0, 0], [1, 2, 3]])
    many = np.array([[4, 5, 6], [4, 5, 0], [0, 4, 5]])
    cut = figure5.as_large_as(few, many, seed=1)
    assert (cut > 0).sum(axis=1).tolist() == [1, 0, 2]
    for row, whole in zip(cut, many, strict=True):
        assert set(row[row > 0]) <= set(whole)
    drawn = {int(figure5.as_large_as(few, many, seed)[0, 0]) for seed in range(20)}
    assert drawn == {4, 5, 6}


def test_the_newest_of_a_bag_stand_at_the_end_wherever_it_is_padded() -> None:
    left = np.array([[0, 0, 1, 2], [0, 0, 0, 0], [1, 2, 3, 4]])
    right = np.array([[1, 2, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]])
    for bags in (left, right):
        assert surrogate.newest(bags, 3).tolist() == [[0, 1, 2], [0, 0, 0], [2, 3, 4]]
        assert surrogate.newest(bags, 1).tolist() == [[2], [0], [4]]


def test_a_limit_and_its_counterpart_leave_as_many_examples() -> None:
    users = [1] * 9 + [2] * 3 + [3]
    ground = ground_of(users, list(range(13)), [1] * 13, [[]] * 13)
    capped, sampled = (surrogate.changes(ground, one) for one in (surrogate.CAPPED, surrogate.SAMPLED))
    assert capped is not None
    assert sampled is not None
    assert np.bincount(np.array(users)[capped["rows"]]).tolist() == [0, 3, 3, 1]
    assert len(set(sampled["rows"].tolist())) == 7


def test_logs_that_do_not_say_where_a_watch_came_from_have_no_recommended_ones() -> None:
    assert surrogate.changes(ground_of([1], [1], [1], [[]]), surrogate.RECOMMENDED) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["figure5", "ann"])
def test_a_study_runs_from_end_to_end(name: str, project_root: Path) -> None:
    rows = rows_of_small_study(name, project_root, [0.0, 1.0])
    for row in rows:
        assert row["low"] <= row["estimate"] <= row["high"], row
        assert row["source"] == "simulated"
    assert {row["dial"] for row in rows} == ({0.0, 1.0} if name == "figure5" else {1.0})
    text = (project_root / f"docs/studies/{name}.md").read_text(encoding="utf-8")
    assert "reproduced" not in text
    if name == "ann":
        unchanged = [row for row in rows if row["variant"] == ann.variant_of(1.0) and row["against"]]
        assert unchanged
        assert all(abs(row["estimate"]) < 1e-12 for row in unchanged)
        found = {
            row["variant"]: row["estimate"]
            for row in rows
            if row["metric"] == ann.FOUND and not row["against"]
        }
        assert 0.3 < found[ann.variant_of(0.5)] < found[ann.variant_of(0.9)] < 1.0
