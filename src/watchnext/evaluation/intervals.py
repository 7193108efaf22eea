"""Means, and how much one model's differs from another's, with the interval that other users would have moved them in."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import norm

_DRAWS_AT_ONCE = 4_000_000
_EVENTS_DRAWN = 2_000_000


@dataclass(frozen=True)
class PerUser:
    """A quantity summed within each user, since what a user does twice is not two observations.

    Attributes:
        totals: float64 [num_users], sum over the user's events.
        counts: float64 [num_users], how many events; the mean is sum(totals) / sum(counts).
    """

    totals: np.ndarray
    counts: np.ndarray

    def __post_init__(self) -> None:
        if self.totals.shape != self.counts.shape or self.totals.ndim != 1:
            raise ValueError(f"totals {self.totals.shape} and counts {self.counts.shape} are not of one axis")

    @property
    def mean(self) -> float:
        """sum(totals) / sum(counts); NaN without events."""
        count = float(self.counts.sum())
        return float(self.totals.sum()) / count if count else float("nan")

    def minus(self, other: "PerUser") -> "PerUser":
        """The paired difference: same users, same events.

        Raises:
            ValueError: the events are not the same.
        """
        if not np.array_equal(self.counts, other.counts):
            raise ValueError("a paired difference needs the same events of the same users")
        return PerUser(self.totals - other.totals, self.counts)


@dataclass(frozen=True)
class Estimate:
    """A mean, and the ends of its interval."""

    value: float
    low: float
    high: float


def per_user(values: np.ndarray, user_ids: pa.Array, weights: np.ndarray | None = None) -> PerUser:
    """Sum a value per event within each user; users in ascending order of their first event.

    Args:
        values: [num_events].
        user_ids: [num_events].
        weights: [num_events], what the mean divides the values by; None: 1 each.
    """
    codes = pc.dictionary_encode(user_ids).indices.to_numpy(zero_copy_only=False)
    return PerUser(np.bincount(codes, weights=values), np.bincount(codes, weights=weights).astype(np.float64))


def bootstrap(
    trainings: Sequence[PerUser],
    *,
    same_users: bool,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The mean over trainings, users and events, with a percentile bootstrap interval.

    Whole users are drawn with replacement, and so are trainings where there are several. With few of them the spread
    between trainings is understated, as by every bootstrap, by the factor sqrt(1 - 1 / trainings).

    Args:
        trainings: what each training's model made of its users.
        same_users: whether all trainings were judged on the same users (one set of logs), who are then drawn once
            for all of them; False where each has a world of its own.
        level: how often the interval is to hold the mean.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        The mean and the ends of the interval; all NaN without events.

    Source: B. Efron and R. Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13.
    """
    if not trainings:
        raise ValueError("there is no training to take a mean over")
    sizes = {len(training.counts) for training in trainings}
    if same_users and len(sizes) > 1:
        raise ValueError(f"trainings on the same users have {sorted(sizes)} of them")
    count = sum(float(training.counts.sum()) for training in trainings)
    if count == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    value = sum(float(training.totals.sum()) for training in trainings) / count
    rng = np.random.default_rng([seed, len(trainings), resamples])
    drawn = rng.multinomial(len(trainings), np.full(len(trainings), 1 / len(trainings)), size=resamples)
    means = np.empty(resamples)
    step = max(1, _DRAWS_AT_ONCE // max(sizes))
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        totals, counts = np.zeros(rows), np.zeros(rows)
        weights: np.ndarray | None = None
        for place, training in enumerate(trainings):
            users = len(training.counts)
            if weights is None or not same_users:
                weights = rng.multinomial(users, np.full(users, 1 / users), size=rows).astype(np.float64)
            times = drawn[begin : begin + rows, place]
            totals += times * (weights @ training.totals)
            counts += times * (weights @ training.counts)
        means[begin : begin + rows] = np.divide(totals, counts, out=np.full(rows, np.nan), where=counts > 0)
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


@dataclass(frozen=True)
class Change:
    """How much the mean of one model differs from that of another, as a share of the other's, or another statistic.

    Attributes:
        value: mean of the one over mean of the other, less 1; NaN where that is no number.
        low: lower end of the interval.
        high: upper end.
        standard_error: of the value, over users; infinite for one user.
    """

    value: float
    low: float
    high: float
    standard_error: float

    def detectable(self, level: float, power: float = 0.8) -> float:
        """The margin that two equal models would be shown to lie within, with probability `power`.

            (z_level + z_power) * standard_error

        Args:
            level: of a one-sided test.
            power: how often it is to be passed.
        """
        return float(norm.ppf(level) + norm.ppf(power)) * self.standard_error


def two_way_change(
    ours: np.ndarray,
    theirs: np.ndarray,
    user_ids: pa.Array,
    video_ids: pa.Array,
    *,
    level: float,
    resamples: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the ratio of two sums over events, less 1, where other users and other videos would have been drawn.

    Users and videos are drawn apart, each whole and with replacement, and an event counts as often as its user was drawn
    times as often as its video was (the pigeonhole bootstrap): where a few videos make most of the difference,
    intervals over users alone are too narrow. It is somewhat wider than right where neither matters. Percentiles.

    Args:
        ours: float64 [num_events], of the model in question.
        theirs: of the other one.
        user_ids: [num_events].
        video_ids: [num_events].
        level: how often the interval is to hold the ratio.
        resamples: how many draws; fewer, and 200 at least, of more than two million events.
        seed: of the draws.

    Returns:
        Its ends; infinite for one user or one video, NaN where theirs sums to 0.

    Source: A. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007).
    """
    if not len(ours) or theirs.sum() == 0:
        return float("nan"), float("nan")
    codes = [
        pc.dictionary_encode(ids).indices.to_numpy(zero_copy_only=False) for ids in (user_ids, video_ids)
    ]
    sizes = [int(code.max()) + 1 for code in codes]
    if min(sizes) < 2:
        return -np.inf, np.inf
    rng = np.random.default_rng([seed, *sizes, resamples])
    both = np.stack([ours, theirs], axis=1)
    draws = []
    for _ in range(max(200, min(resamples, 1_000 * _EVENTS_DRAWN // len(ours)))):
        weights = np.ones(len(ours))
        for code, size in zip(codes, sizes, strict=True):
            weights *= np.bincount(rng.integers(size, size=size), minlength=size)[code]
        own, other = weights @ both
        draws.append(own / other - 1.0 if other else np.nan)
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below != 0)


def bca(
    totals: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    levels: Sequence[float],
    resamples: int = 4_000,
    seed: int = 0,
) -> list[Change]:
    """BCa bootstrap intervals over users of any statistic of sums, one per level.

    As `paired.paired_change`, with G from draws, and a from leaving each user out in turn: for levels that leave a hundred
    draws or more beyond each end.

    Args:
        totals: float64 [num_users, num_sums], what each user adds to each sum.
        statistic: sums [..., num_sums] -> values [...]; NaN where it is not defined. Such draws are left out.
        levels: how often each interval is to hold the statistic.
        resamples: how many draws.
        seed: of the draws.
    """
    users = len(totals)
    sums = totals.sum(axis=0)
    value = float(statistic(sums))
    draws = np.concatenate([statistic(weights @ totals) for weights in _weights(users, resamples, seed)])
    draws = draws[np.isfinite(draws)]
    spread = draws.std() if len(draws) else 0.0
    if spread <= 1e-12:  # They agree on every user, or there is one user alone.
        if users < 2:
            return [Change(value, -np.inf, np.inf, np.inf)] * len(levels)
        return [Change(value, value, value, float(spread))] * len(levels)
    share = np.mean(draws < value) + 0.5 * np.mean(draws == value)
    z0 = norm.ppf(np.clip(share, 1 / len(draws), 1 - 1 / len(draws)))
    without = statistic(sums - totals)
    without = np.where(np.isfinite(without), without, value)
    away = without.mean() - without
    a = float((away**3).sum() / (6.0 * (away**2).sum() ** 1.5))
    found = []
    for level in levels:
        z = norm.ppf([(1 - level) / 2, (1 + level) / 2])
        low, high = np.quantile(draws, norm.cdf(z0 + (z0 + z) / (1.0 - a * (z0 + z))))
        found.append(Change(value, float(low), float(high), float(spread)))
    return found


def _weights(users: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user is drawn, float64 [some resamples, num_users], in parts that fit into memory."""
    rng = np.random.default_rng([seed, users, resamples])
    step = max(1, _DRAWS_AT_ONCE // users)
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        yield rng.multinomial(users, np.full(users, 1 / users), size=rows).astype(np.float64)
