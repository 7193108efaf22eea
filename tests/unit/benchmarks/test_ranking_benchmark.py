"""What `make bench-ranking` computes of scores: losses of several days, the leak check, the comparison."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import CannotMeasure
from benchmarks.ranking import measure
from benchmarks.ranking.__main__ import NAME, compare, leak_check
from benchmarks.ranking.folds import Fold, Input, Rows


def rows(clicked: list[int], watch_time_s: list[float], groups: list[int], users: list[int]) -> Rows:
    return Rows(
        {},
        np.array(clicked, bool),
        np.array(watch_time_s, np.float32),
        np.array(groups, np.int64),
        np.array(users, np.int64),
    )


MONDAY = rows([1, 0, 1, 0], [10, 0, 30, 0], [0, 0, 1, 1], [7, 7, 8, 8])
TUESDAY = rows([1, 0], [60, 0], [0, 0], [7, 7])


def test_the_loss_of_several_days_is_their_mispredicted_over_their_total_watch_time() -> None:
    # Monday: 10 s of 40 s wrong; Tuesday: a tie of 60 s.
    scores = [np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.5, 0.5])]

    assert measure.pooled_loss(scores, [MONDAY, TUESDAY]) == pytest.approx((10 + 30) / (40 + 60))
    assert measure.metrics(scores, [MONDAY, TUESDAY])["auc"] == pytest.approx((4 * 0.5 + 2 * 0.5) / 6)


def test_days_without_a_pair_are_refused() -> None:
    alone = rows([1, 0], [10, 0], [0, 1], [7, 7])
    with pytest.raises(CannotMeasure, match="no clicked and unclicked"):
        measure.pooled_loss([np.array([1.0, 0.0])], [alone])


def test_a_score_per_row_is_asked_for_and_a_finite_one() -> None:
    with pytest.raises(CannotMeasure, match="shape"):
        measure.checked(np.zeros(3), TUESDAY)
    with pytest.raises(CannotMeasure, match="not finite"):
        measure.checked(np.array([np.nan, 0.0]), TUESDAY)


def test_a_rate_that_stands_still_within_groups_scores_one_half() -> None:
    held = np.array([0.2, 0.2, 0.9, 0.9, np.nan, np.nan])
    # As of each impression it has risen after the click: negated, the earlier, clicked one scores higher.
    live = np.array([0.2, 0.4, 0.9, 0.95, 0.0, 0.5])

    found = leak_check(held, live, [MONDAY, TUESDAY])

    assert found == {"leak_check_loss": 0.5, "leak_check_live_loss": 0.0}


def test_a_rate_that_moves_within_a_group_fails_the_benchmark() -> None:
    live = np.array([0.2, 0.4, 0.9, 0.95, 0.0, 0.5])
    with pytest.raises(CannotMeasure, match=r"0\.000000, not 0\.5"):
        leak_check(live, live, [MONDAY, TUESDAY])


def test_the_ratio_is_to_the_peer_with_the_least_loss_and_its_interval_is_over_users() -> None:
    random = np.random.default_rng(3)
    users = np.repeat(np.arange(200), 4)
    clicked = np.tile([1, 0, 0, 1], 200)
    day = rows(
        clicked.tolist(), (random.exponential(30, 800) * clicked).tolist(), users.tolist(), users.tolist()
    )
    noise = random.normal(size=(3, 800))
    scores = {
        NAME: [clicked + 0.5 * noise[0]],
        "good": [clicked + noise[1]],
        "poor": [clicked + 9 * noise[2]],
    }
    losses = {name: measure.pooled_loss(one, [day]) for name, one in scores.items()}

    found = compare(scores, [day])

    assert found["best_peer"] == "good"
    assert found["ratio_loss"] == pytest.approx(losses[NAME] / losses["good"])
    assert found["ratio_loss_low"] < found["ratio_loss"] < found["ratio_loss_high"] < 1
    # Ten times the same users and events tell ten times as much only if a user is not one unit.
    again = compare({name: one * 10 for name, one in scores.items()}, [day] * 10)
    assert again["ratio_loss_high"] == pytest.approx(found["ratio_loss_high"], rel=0.02)


def test_a_fold_is_read_as_it_was_written(tmp_path: Path) -> None:
    learned = replace(MONDAY, inputs={"age_s": np.array([1.0, np.nan, 3.0, 4.0], np.float32)})
    age = Input("age_s", "continuous", None, None, "query")
    fold = Fold((age,), {}, {"age_s": np.array([1.0, 4.0])}, learned, learned)

    fold.save(tmp_path / "fold")
    read = Fold.load(tmp_path / "fold")

    assert read.inputs == fold.inputs
    np.testing.assert_array_equal(read.held.inputs["age_s"], learned.inputs["age_s"])
    np.testing.assert_array_equal(read.training.clicked, MONDAY.clicked)
    np.testing.assert_array_equal(read.boundaries["age_s"], [1.0, 4.0])
