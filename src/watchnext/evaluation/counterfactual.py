"""What another policy would have earned on the requests of a log, from the probabilities that the log was made with.

A log shows what users did with what they were shown. Each row is an impression: the video that a request showed at a
position, the probability p with which the logging policy put it there, and the reward r, such as the watch time in
seconds. For the policy in question, pi is the probability with which it puts this video at this position. With the
weights w = pi / p, which make the rows stand for those of that policy,

    IPS    sum(w r) / n                               unbiased, and as wild as its largest weight
    SNIPS  sum(w r) / sum(w)                          consistent; a reward of 1 everywhere is 1
    DR     sum(q_pi + w (r - q)) / n                  with a model q of the reward: unbiased if either p or q is right

where q is the model's reward of the row as it was logged, and q_pi the one expected under the policy in question.

**Assumptions.** The reward of an impression depends on the request, the video and its position, not on what else is on
the page (item-position model: Swaminathan et al., Off-policy evaluation for slate recommendation, NeurIPS 2017, name it and
what it costs). The log gave every video at every position that the policy would choose a chance (overlap). p is the true
probability. **Cross-fitting**: the model that gives q to a day's rows has been fitted on other days alone (`out_of_day`),
or its errors would be those of the rows themselves, and it is never the ranker of one of the policies compared.

Intervals are BCa over users (`intervals.bca`): whoever is in a log with many rows is drawn with all of them. Nothing
is said where the log cannot carry it; see `require_overlap`.

Sources: A. Swaminathan and T. Joachims, The self-normalized estimator for counterfactual learning, NeurIPS 2015;
M. Dudik, J. Langford and L. Li, Doubly robust policy evaluation and learning, ICML 2011; A. Owen, Monte Carlo theory,
methods and examples (2013), chapter 9, for the effective sample size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from watchnext.errors import InputError
from watchnext.evaluation.intervals import Change, bca, per_user, ratio

SMALLEST_EFFECTIVE_ROWS = 100.0
LARGEST_SHARE_OF_A_ROW = 0.05
MEAN_WEIGHT = (0.7, 1.3)


class NoOverlapError(InputError):
    """The log does not carry a conclusion about this policy."""


@dataclass(frozen=True)
class Logged:
    """The rows of a log that a policy is judged on.

    Attributes:
        rewards: float64 [num_rows].
        propensities: float64 [num_rows], probability with which the log's own policy showed this, above 0 and at most 1.
        user_ids: [num_rows].

    Raises:
        InputError: on making it: no rows, one user, different lengths, or values outside of these.
    """

    rewards: np.ndarray
    propensities: np.ndarray
    user_ids: pa.Array

    def __post_init__(self) -> None:
        lengths = {len(self.rewards), len(self.propensities), len(self.user_ids)}
        if len(lengths) != 1:
            raise InputError(f"columns of different lengths {sorted(lengths)}", where="the log")
        if not len(self.rewards):
            raise InputError("the log is empty", where="the log")
        with np.errstate(invalid="ignore"):
            _refuse("rewards that are no numbers", ~np.isfinite(self.rewards), self.rewards)
            _refuse("impressions without a propensity", np.isnan(self.propensities), self.propensities)
            outside = ~((self.propensities > 0) & (self.propensities <= 1))
            _refuse("propensities that are not above 0 and at most 1", outside, self.propensities)
        if len(self.user_ids.unique()) < 2:
            raise InputError(
                "the log is of one user: how much others would differ cannot be told", where="the log"
            )

    def weights(self, probabilities: np.ndarray) -> np.ndarray:
        """w of every row for a policy that shows it with `probabilities`, float64 [num_rows].

        Raises:
            InputError: they are no probabilities.
        """
        if probabilities.shape != self.rewards.shape:
            raise InputError(
                f"{len(probabilities)} probabilities for {len(self.rewards)} rows", where="the policy"
            )
        with np.errstate(invalid="ignore"):
            _refuse(
                "probabilities of the policy that are not within 0 and 1",
                ~((probabilities >= 0) & (probabilities <= 1)),
                probabilities,
            )
        return probabilities / self.propensities


@dataclass(frozen=True)
class Overlap:
    """How much of a log speaks of a policy.

    Attributes:
        effective_rows: sum(w)^2 / sum(w^2): so many rows of weight 1 would say as much.
        largest_share: of one row in sum(w).
        mean_weight: sum(w) / n, which is 1 where the log gives everything that the policy would show a chance.
    """

    effective_rows: float
    largest_share: float
    mean_weight: float


def overlap(weights: np.ndarray) -> Overlap:
    """See `Overlap`. Of weights that are all 0: 0 rows."""
    total = float(weights.sum())
    if total == 0:
        return Overlap(0.0, 1.0, 0.0)
    return Overlap(total**2 / float((weights**2).sum()), float(weights.max()) / total, total / len(weights))


def require_overlap(weights: np.ndarray, who: str) -> Overlap:
    """The overlap of a policy with the log, if it is enough to conclude from.

    Raises:
        NoOverlapError: too few effective rows, one row that decides, or weights whose mean is far from 1: the policy shows
            what the log never did, or the propensities are not what they are called.
    """
    found = overlap(weights)
    problems = []
    if found.effective_rows < SMALLEST_EFFECTIVE_ROWS:
        problems.append(f"{found.effective_rows:.0f} effective rows of {len(weights)}")
    if found.largest_share > LARGEST_SHARE_OF_A_ROW:
        problems.append(f"one row has {found.largest_share:.0%} of all weight")
    if not MEAN_WEIGHT[0] <= found.mean_weight <= MEAN_WEIGHT[1]:
        problems.append(f"the mean weight is {found.mean_weight:.2f}, and 1 where the log covers the policy")
    if problems:
        raise NoOverlapError(
            f"the log cannot tell what {who} would have earned",
            where="the log",
            offenders=problems,
            remedy="log more, or with more chance for what it would show; or compare both in a live experiment",
        )
    return found


def snips_difference(
    log: Logged, ours: np.ndarray, theirs: np.ndarray, *, level: float = 0.95
) -> tuple[Change, Overlap, Overlap]:
    """SNIPS of one policy less SNIPS of another on the same log, per impression, with its interval over users.

    Args:
        log: the rows.
        ours: float64 [num_rows], probability with which the policy in question shows each row.
        theirs: of the other one.
        level: how often the interval is to hold the difference.

    Returns:
        The difference in the unit of the rewards, and the overlap of each.

    Raises:
        NoOverlapError: the log does not carry it for one of them.
        InputError: the policies are the same on every row, or are no probabilities.
    """
    own, other = _both(log, ours, theirs)
    found = require_overlap(own, "the challenger"), require_overlap(other, "the champion")
    sums = _by_user(log, own * log.rewards, own, other * log.rewards, other)
    change = bca(
        sums,
        lambda s: ratio(s[..., 0], s[..., 1]) - ratio(s[..., 2], s[..., 3]),
        levels=(level,),
    )[0]
    return change, *found


def doubly_robust_difference(
    log: Logged,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    expected: np.ndarray,
    expected_ours: np.ndarray,
    expected_theirs: np.ndarray,
    level: float = 0.95,
) -> tuple[Change, Overlap, Overlap]:
    """DR of one policy less DR of another; as `snips_difference`.

    Args:
        log: the rows.
        ours: as there.
        theirs: as there.
        expected: float64 [num_rows], q: what a cross-fitted model expects of each row as it was logged.
        expected_ours: q_pi of the policy in question.
        expected_theirs: of the other one.
        level: as there.
    """
    own, other = _both(log, ours, theirs)
    for model in (expected, expected_ours, expected_theirs):
        if model.shape != log.rewards.shape:
            raise InputError(
                f"{len(model)} expected rewards for {len(log.rewards)} rows", where="the reward model"
            )
        _refuse("expected rewards that are no numbers", ~np.isfinite(model), model)
    found = require_overlap(own, "the challenger"), require_overlap(other, "the champion")
    residual = log.rewards - expected
    difference = (expected_ours + own * residual) - (expected_theirs + other * residual)
    sums = _by_user(log, difference, np.ones(len(difference)))
    change = bca(sums, lambda s: ratio(s[..., 0], s[..., 1]), levels=(level,))[0]
    return change, *found


def out_of_day(
    days: np.ndarray, fit: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]
) -> np.ndarray:
    """Cross-fitting: what models expect that have not seen the day of a row.

    Args:
        days: [num_rows] the day of each row.
        fit: rows to fit on, bool [num_rows] -> (rows to predict, bool [num_rows] -> float64 [that many]).

    Returns:
        float64 [num_rows].

    Raises:
        InputError: the log has one day alone, so that no model can be of another.
    """
    names = np.unique(days)
    if len(names) < 2:
        raise InputError(
            "a log of one day has no other day to fit a model of the reward on",
            where="the log",
            remedy="give it earlier days as well, or use SNIPS, which needs no model",
        )
    expected = np.empty(len(days))
    for day in names:
        inside = days == day
        expected[inside] = fit(~inside)(inside)
    return expected


def _both(log: Logged, ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    own, other = log.weights(ours), log.weights(theirs)
    if np.array_equal(ours, theirs):
        raise InputError(
            "both policies show the same on every row: there is nothing to compare", where="the policies"
        )
    return own, other


def _by_user(log: Logged, *columns: np.ndarray) -> np.ndarray:
    return np.stack([per_user(column, log.user_ids).totals for column in columns], axis=1)


def _refuse(what: str, wrong: np.ndarray, values: np.ndarray) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise InputError(
            f"{len(rows)} of {len(wrong)} rows have {what}",
            where="the log",
            offenders=[f"row {row}: {values[row]}" for row in rows[:3]],
            remedy="mend the log, or leave such requests out as a whole",
        )
