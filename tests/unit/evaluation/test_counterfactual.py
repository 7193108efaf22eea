"""Counterfactual estimates in a world whose policies' worth is known by arithmetic, and logs that cannot tell."""

import numpy as np
import pyarrow as pa
import pytest

from watchnext.errors import InputError
from watchnext.evaluation.counterfactual import (
    Logged,
    NoOverlapError,
    doubly_robust_difference,
    out_of_day,
    overlap,
    snips_difference,
)

REWARD = np.array([[1.0, 2.0, 4.0], [3.0, 1.0, 0.5]])  # by kind of request and action
LOGGING = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
OURS = np.array([[0.1, 0.3, 0.6], [0.6, 0.3, 0.1]])
THEIRS = np.array([[0.4, 0.3, 0.3], [0.3, 0.3, 0.4]])
KINDS = np.array([0.7, 0.3])
TRUTH = float(((OURS - THEIRS) * REWARD).sum(axis=1) @ KINDS)


def draw(seed: int, users: int = 300, rows_each: int = 5) -> tuple[Logged, np.ndarray, np.ndarray]:
    """A log, and kind and action of each row; rewards have a part of their user's own."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows_each)
    kind = (rng.random(len(user)) < KINDS[1]).astype(int)
    action = (rng.random((len(user), 1)) > LOGGING[kind].cumsum(axis=1)[:, :-1]).sum(axis=1)
    noise = rng.normal(0, 0.5, users)[user] + rng.exponential(1.0, len(user)) - 1.0
    log = Logged(REWARD[kind, action] + noise, LOGGING[kind, action], pa.array(user))
    return log, kind, action


def estimate(how: str, seed: int) -> tuple[float, bool]:
    log, kind, action = draw(seed)
    ours, theirs = OURS[kind, action], THEIRS[kind, action]
    if how == "snips":
        change, *_ = snips_difference(log, ours, theirs)
    else:
        scale = 0.0 if how == "dr, wrong model" else 1.0
        if how == "dr, wrong propensities":
            log = Logged(log.rewards, np.clip(log.propensities * 1.15, 0, 1), log.user_ids)
        change, *_ = doubly_robust_difference(
            log,
            ours,
            theirs,
            expected=scale * REWARD[kind, action],
            expected_ours=scale * (OURS * REWARD).sum(axis=1)[kind],
            expected_theirs=scale * (THEIRS * REWARD).sum(axis=1)[kind],
        )
    return change.value, change.low <= TRUTH <= change.high


@pytest.mark.parametrize("how", ["snips", "dr", "dr, wrong model", "dr, wrong propensities"])
def test_the_difference_of_two_policies_is_found(how: str) -> None:
    """Meant to fail with rewards averaged without weights, by 0.3, and with rows drawn in place of users."""
    found = [estimate(how, seed) for seed in range(60)]
    values = np.array([value for value, _ in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - TRUTH) < 3.5 * error
    assert error < 0.05 * TRUTH, "and closely: else this could not fail"
    assert sum(held for _, held in found) >= 52, "of 60; 57 expected of 95 %"


def test_effective_rows_by_hand() -> None:
    found = overlap(np.array([2.0, 0.0, 1.0, 1.0]))
    assert (found.effective_rows, found.largest_share, found.mean_weight) == (16 / 6, 0.5, 1.0)
    assert overlap(np.zeros(3)).effective_rows == 0.0


def few_rows() -> tuple[Logged, np.ndarray, np.ndarray]:
    log, kind, action = draw(1, users=20)
    return log, OURS[kind, action], THEIRS[kind, action]


def one_heavy_row() -> tuple[Logged, np.ndarray, np.ndarray]:
    log, kind, action = draw(1)
    propensities = log.propensities.copy()
    propensities[0] = 1e-4
    return Logged(log.rewards, propensities, log.user_ids), OURS[kind, action], THEIRS[kind, action]


def never_logged() -> tuple[Logged, np.ndarray, np.ndarray]:
    """The challenger shows mostly what the log never did: none of its weight is there to be seen."""
    log, kind, action = draw(1)
    return log, 0.2 * OURS[kind, action], THEIRS[kind, action]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (few_rows, "effective rows of 100"),
        (one_heavy_row, "one row has"),
        (never_logged, "the mean weight is 0.2"),
    ],
)
def test_a_log_that_cannot_tell_says_so(case: object, words: str) -> None:
    assert callable(case)
    with pytest.raises(NoOverlapError, match=words):
        snips_difference(*case())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"propensities": [0.5, 0.0, 0.5]}, "1 of 3 rows have propensities that are not above 0"),
        ({"propensities": [0.5, 1.1, -0.5]}, "2 of 3 rows have propensities"),
        ({"propensities": [np.nan, 0.5, 0.5]}, "1 of 3 rows have impressions without a propensity"),
        ({"rewards": [1.0, np.inf, 2.0]}, "1 of 3 rows have rewards that are no numbers"),
        ({"rewards": [], "propensities": [], "user_ids": []}, "the log is empty"),
        ({"user_ids": [7, 7, 7]}, "the log is of one user"),
        ({"rewards": [1.0]}, "different lengths"),
    ],
)
def test_a_broken_log_is_refused(changes: dict[str, list[float]], words: str) -> None:
    columns = {"rewards": [1.0, 2.0, 3.0], "propensities": [0.5, 0.5, 0.5], "user_ids": [1, 2, 3], **changes}
    with pytest.raises(InputError, match=words):
        Logged(
            np.array(columns["rewards"], float),
            np.array(columns["propensities"], float),
            pa.array(columns["user_ids"], pa.int64()),
        )


def test_policies_that_are_none_or_the_same_are_refused() -> None:
    log, kind, action = draw(1)
    ours = OURS[kind, action]
    with pytest.raises(InputError, match="the same on every row"):
        snips_difference(log, ours, ours)
    with pytest.raises(InputError, match="not within 0 and 1"):
        snips_difference(log, np.where(np.arange(len(ours)) == 3, 1.5, ours), ours)
    with pytest.raises(InputError, match="1 probabilities for 1500 rows"):
        snips_difference(log, ours[:1], ours)


def test_the_model_of_a_day_has_not_seen_it() -> None:
    days = np.array(["a", "b", "b", "c"])
    rewards = np.array([1.0, 2.0, 4.0, 10.0])

    def fit(rows: np.ndarray):  # type: ignore[no-untyped-def]
        mean = rewards[rows].mean()
        return lambda predicted: np.full(int(predicted.sum()), mean)

    assert out_of_day(days, fit).tolist() == [16 / 3, 11 / 2, 11 / 2, 7 / 3]
    with pytest.raises(InputError, match="one day"):
        out_of_day(days[1:3], fit)
