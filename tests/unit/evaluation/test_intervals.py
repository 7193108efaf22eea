"""Intervals: means by arithmetic, widths against the textbook, pairs that have to be pairs."""

import numpy as np
import pyarrow as pa
import pytest

from watchnext.evaluation.intervals import PerUser, bootstrap, per_user


def test_a_mean_is_over_events_and_sums_are_within_users() -> None:
    found = per_user(np.array([1.0, 0.0, 0.5, 0.5]), pa.array(["b", "a", "b", "c"]))
    assert found.totals.tolist() == [1.0 + 0.5, 0.0, 0.5]
    assert found.counts.tolist() == [2.0, 1.0, 1.0]
    assert found.mean == (1.0 + 0.0 + 0.5 + 0.5) / 4


def test_the_interval_has_the_width_of_the_normal_approximation() -> None:
    """With 400 users of one event each the standard error is sd / 20."""
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    found = bootstrap([PerUser(values, np.ones(400))], same_users=True)
    assert found.value == pytest.approx(values.mean())
    width = 2 * 1.96 * values.std() / 20
    assert 0.9 * width < found.high - found.low < 1.1 * width
    assert found.low < found.value < found.high


def test_users_are_drawn_whole() -> None:
    """Each user's event a hundred times over says no more than once. Fails where events are drawn."""
    values = np.random.default_rng(2).normal(size=200)
    once = bootstrap([PerUser(values, np.ones(200))], same_users=True)
    often = bootstrap([PerUser(100 * values, np.full(200, 100.0))], same_users=True)
    assert often.value == pytest.approx(once.value)
    assert often.high - often.low == pytest.approx(once.high - once.low)


def test_trainings_that_disagree_widen_the_interval() -> None:
    values = np.random.default_rng(3).normal(scale=0.1, size=500)
    alike = [PerUser(values, np.ones(500))] * 4
    apart = [PerUser(values + shift, np.ones(500)) for shift in (-1.5, -0.5, 0.5, 1.5)]
    narrow, wide = bootstrap(alike, same_users=True), bootstrap(apart, same_users=True)
    assert narrow.value == pytest.approx(wide.value)
    assert narrow.high - narrow.low < 0.03
    # The mean of four draws from these shifts has the standard error sqrt(1.25) / 2 = 0.56.
    assert 1.5 < wide.high - wide.low < 2.6


def test_same_users_are_drawn_once_for_all_trainings() -> None:
    """What differs between users does not average out over trainings that are judged on the same ones."""
    values = np.random.default_rng(4).normal(size=300)
    trainings = [PerUser(values, np.ones(300))] * 9
    same, other = (bootstrap(trainings, same_users=same_users) for same_users in (True, False))
    # Drawn apart, nine times as many users: a third of the width, more where one training is drawn twice.
    assert 1.8 < (same.high - same.low) / (other.high - other.low) < 3.3


def test_a_difference_needs_the_same_events() -> None:
    one = PerUser(np.array([1.0, 2.0]), np.array([2.0, 2.0]))
    other = PerUser(np.array([0.5, 2.5]), np.array([2.0, 2.0]))
    assert one.minus(other).totals.tolist() == [0.5, -0.5]
    with pytest.raises(ValueError, match="same events"):
        one.minus(PerUser(np.array([1.0, 2.0]), np.array([1.0, 2.0])))


def test_no_events_give_no_interval() -> None:
    found = bootstrap([PerUser(np.zeros(0), np.zeros(0))], same_users=True)
    assert np.isnan([found.value, found.low, found.high]).all()
