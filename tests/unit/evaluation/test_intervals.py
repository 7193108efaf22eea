"""Intervals: means by arithmetic, widths against the textbook, pairs that have to be pairs."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from watchnext.evaluation.intervals import PerUser, bootstrap, per_user, two_way_change
from watchnext.evaluation.paired import paired_change


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


def two_models(users: int, seed: int, harm: float = 0.0) -> tuple[PerUser, PerUser]:
    """Hits of few events per user, most of which both models find or both miss; ours loses a share of its own."""
    rng = np.random.default_rng(seed)
    counts = 1.0 + rng.poisson(1.5, size=users)
    theirs = rng.binomial(counts.astype(int), rng.beta(1.0, 3.0, size=users))
    ours = rng.binomial(theirs, 0.9 - harm) + rng.binomial(
        (counts - theirs).astype(int), 0.1 * theirs.sum() / (counts - theirs).sum()
    )
    return PerUser(ours.astype(float), counts), PerUser(theirs.astype(float), counts)


def test_a_change_is_a_ratio_of_means() -> None:
    ours, theirs = (
        PerUser(np.array([1.0, 3.0]), np.array([2.0, 4.0])),
        PerUser(np.array([2.0, 3.0]), np.array([2.0, 4.0])),
    )
    assert paired_change(ours, theirs, level=0.9).value == pytest.approx((1 + 3) / (2 + 3) - 1)


def test_its_interval_is_the_one_that_scipy_makes() -> None:
    """An independent BCa of the same statistic, of 20,000 draws where ours has none."""
    ours, theirs = two_models(300, seed=1)
    found = paired_change(ours, theirs, level=0.9)
    expected = scipy_bootstrap(
        (ours.totals, theirs.totals),
        lambda own, other, axis: own.sum(axis=axis) / other.sum(axis=axis) - 1.0,
        paired=True,
        vectorized=True,
        confidence_level=0.9,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(5),
    )
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.03 * width)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.03)


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    """Of two models that differ by chance alone, each end is passed in one of twenty trials."""
    trials = [paired_change(*two_models(250, seed=seed), level=0.9) for seed in range(400)]
    above = np.mean([found.low > 0.0 for found in trials])
    below = np.mean([found.high < 0.0 for found in trials])
    # Standard error of a share of 0.05 in 400 trials: 0.011. The truth is 0 within 0.003, by the form of two_models.
    assert 0.02 < above < 0.09
    assert 0.02 < below < 0.09


def test_far_ends_keep_their_level_of_watch_times() -> None:
    """Of 3,000 pairs of equal models whose users have log-normal watch times; a few of them have most of it.

    Meant to fail with the normal quantile in place of Student's: 29 and 41 are beyond, not 8 and 27.
    """
    rng = np.random.default_rng(12)
    beyond = np.zeros(2)
    for _ in range(3_000):
        theirs = rng.lognormal(6.0, 1.0, 400) * rng.beta(2.0, 5.0, 400)
        ours = PerUser(theirs * rng.lognormal(-0.045, 0.3, 400), np.ones(400))
        found = paired_change(ours, PerUser(theirs, np.ones(400)), level=1 - 2 / 240)
        beyond += found.low > 0.0, found.high < 0.0
    # 12.5 are to be expected at each end.
    assert 4 <= beyond[0] <= 25
    assert 4 <= beyond[1] <= 34


def test_pairing_takes_out_what_users_have_in_common() -> None:
    """The same figures paired with the wrong users: a much wider interval."""
    ours, theirs = two_models(400, seed=3)
    paired = paired_change(ours, theirs, level=0.9)
    shuffled = PerUser(np.random.default_rng(1).permutation(ours.totals), ours.counts)
    assert paired_change(shuffled, theirs, level=0.9).standard_error > 1.5 * paired.standard_error


def test_what_a_change_cannot_be_told_of() -> None:
    ours, theirs = two_models(50, seed=4)
    same = paired_change(theirs, theirs, level=0.9)
    assert (same.value, same.low, same.high, same.standard_error) == (0.0, 0.0, 0.0, 0.0)
    one = paired_change(
        PerUser(np.array([1.0]), np.array([2.0])), PerUser(np.array([2.0]), np.array([2.0])), level=0.9
    )
    assert (one.value, one.low, one.high) == (-0.5, -np.inf, np.inf), "one user says nothing of others"
    none = PerUser(np.zeros(50), ours.counts)
    assert paired_change(ours, none, level=0.9).low == np.inf, "better than nothing"
    assert paired_change(none, none, level=0.9).high == 0.0
    nobody = paired_change(PerUser(np.zeros(0), np.zeros(0)), PerUser(np.zeros(0), np.zeros(0)), level=0.9)
    assert np.isnan(nobody.value)
    with pytest.raises(ValueError, match="same events"):
        paired_change(ours, PerUser(theirs.totals, theirs.counts + 1), level=0.9)


def test_far_ends_go_on_as_those_of_a_normal_distribution() -> None:
    """At levels that 4,000 draws cannot show. Meant to fail with plain quantiles: the outermost draw is 3.5 errors out."""
    rng = np.random.default_rng(9)
    theirs = rng.normal(1.0, 0.1, size=2_000)
    ours = theirs + rng.normal(0.0, 0.3, size=2_000)
    models = PerUser(ours, np.ones(2_000)), PerUser(theirs, np.ones(2_000))
    error = (ours - theirs).std() / np.sqrt(2_000) / theirs.mean()
    for level, errors in ((0.9, 1.645), (0.99, 2.576), (1 - 4e-5, 4.107), (1 - 4e-9, 5.877)):
        found = paired_change(*models, level=level)
        assert 0.93 * errors < (found.high - found.low) / 2 / error < 1.07 * errors


def test_a_few_videos_that_decide_widen_the_interval_over_users_by_videos() -> None:
    """Every user saw the same ten videos, and what is gained is gained of some videos.

    The textbook's standard error of a mean over ten videos is their spread / sqrt(10). Meant to fail where users alone are
    drawn, for whom the gain is certain.
    """
    rng = np.random.default_rng(3)
    users, videos = np.repeat(np.arange(400), 10), np.tile(np.arange(10), 400)
    gain = np.array([0.5, -0.5] * 5)
    theirs = rng.uniform(0.9, 1.1, 4_000)
    ours = theirs * (1 + gain[videos])
    low, high = two_way_change(ours, theirs, pa.array(users), pa.array(videos), level=0.95, resamples=400)
    expected = 2 * 1.96 * 0.5 / np.sqrt(10)
    assert 0.7 * expected < high - low < 1.3 * expected
    by_user = [PerUser(np.bincount(users, weights=values), np.full(400, 10.0)) for values in (ours, theirs)]
    alone = paired_change(by_user[0], by_user[1], level=0.95)
    assert alone.high - alone.low < 0.1 * (high - low)
    every = pa.array(np.arange(4_000))
    low, high = two_way_change(ours, theirs, every, every, level=0.95, resamples=400)
    by_event = paired_change(PerUser(ours, np.ones(4_000)), PerUser(theirs, np.ones(4_000)), level=0.95)
    assert 1.0 < (high - low) / (by_event.high - by_event.low) < 2.2, (
        "an event is drawn by both: sqrt(3) times as wide"
    )


def test_what_two_ways_cannot_tell() -> None:
    one = np.ones(4)
    alone, several = pa.array([7] * 4), pa.array([1, 2, 3, 4])
    assert two_way_change(one, one, several, alone, level=0.9) == (-np.inf, np.inf)
    assert np.isnan(two_way_change(one, 0 * one, several, several, level=0.9)).all()
