"""Means, and how much one model's differs from another's, with the interval that other users would have moved them in."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import norm

_DRAWS_AT_ONCE = 4_000_000
_TAIL = 100
"""How many draws beyond a quantile make it worth believing."""


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


def per_user(values: np.ndarray, user_ids: pa.Array) -> PerUser:
    """Sum a value per event within each user; users in ascending order of their first event.

    Args:
        values: [num_events].
        user_ids: [num_events].
    """
    codes = pc.dictionary_encode(user_ids).indices.to_numpy(zero_copy_only=False)
    return PerUser(np.bincount(codes, weights=values), np.bincount(codes).astype(np.float64))


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
        standard_error: standard deviation of the draws of the bootstrap; infinite for one user.
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


def paired_change(
    ours: PerUser, theirs: PerUser, *, level: float, resamples: int = 4_000, seed: int = 0
) -> Change:
    """Ratio of two means over the same users and events, less 1, with a BCa bootstrap interval over users.

    Users are drawn whole and with replacement, for both models together, so that what is easy or hard of a user's
    events for either falls out. With R the ratio, R* that of a draw, R_(i) that without user i and R_(.) their mean:

        z0    = normal quantile of the share of draws with R* < R (half of those with R* = R)
        a     = sum (R_(.) - R_(i))^3 / (6 (sum (R_(.) - R_(i))^2)^1.5)
        ends  = quantiles of R* at Phi(z0 + (z0 + z) / (1 - a (z0 + z))),  z = -+ normal quantile of (1 + level) / 2

    which unlike the plain percentiles keeps its level to second order where R* is skewed or biased. Quantiles beyond the
    outermost _TAIL draws, which a level close to 1 asks for, go on from there as those of a normal distribution would:
    their distance from the median grows with the normal quantile.

    Args:
        ours: of the model in question.
        theirs: of the other one, in the same order of users.
        level: how often the interval is to hold the ratio; of 0.9, each end alone is passed by one in twenty.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        All NaN without events. Of a mean of 0 there are no shares: 0 where ours is 0, too, else infinity.

    Raises:
        ValueError: the events are not the same.

    Source: B. Efron, Better bootstrap confidence intervals, JASA 82 (1987).
    """
    return paired_changes(ours, theirs, levels=(level,), resamples=resamples, seed=seed)[0]


def paired_changes(
    ours: PerUser, theirs: PerUser, *, levels: Sequence[float], resamples: int = 4_000, seed: int = 0
) -> list[Change]:
    """`paired_change` at several levels, by the same draws."""
    if not np.array_equal(ours.counts, theirs.counts):
        raise ValueError("a paired change needs the same events of the same users")
    own, other = float(ours.totals.sum()), float(theirs.totals.sum())
    if not (np.isfinite([own, other]).all() and ours.counts.sum() > 0):
        return [Change(float("nan"), float("nan"), float("nan"), float("nan"))] * len(levels)
    if other == 0:
        beyond = np.inf if own > 0 else 0.0
        return [Change(beyond, beyond, beyond, 0.0)] * len(levels)
    totals = np.stack([ours.totals, theirs.totals], axis=1)
    return bca(totals, _ratio_less_1, levels=levels, resamples=resamples, seed=seed)


def _ratio_less_1(sums: np.ndarray) -> np.ndarray:
    return ratio(sums[..., 0], sums[..., 1]) - 1.0


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
    """BCa bootstrap intervals over users of a statistic of sums, one per level; see `paired_change` for the formulas.

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
        low, high = _quantiles(draws, z0 + (z0 + z) / (1.0 - a * (z0 + z)))
        found.append(Change(value, float(low), float(high), float(spread)))
    return found


def _weights(users: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each user is drawn, float64 [some resamples, num_users], in parts that fit into memory."""
    rng = np.random.default_rng([seed, users, resamples])
    step = max(1, _DRAWS_AT_ONCE // users)
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        yield rng.multinomial(users, np.full(users, 1 / users), size=rows).astype(np.float64)


def _quantiles(draws: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Quantiles of `draws` at Phi(z), beyond the outermost _TAIL of them as the normal distribution goes on."""
    outermost = -norm.ppf(min(_TAIL / len(draws), 0.25))
    inside = np.clip(z, -outermost, outermost)
    middle = np.median(draws)
    return middle + (np.quantile(draws, norm.cdf(inside)) - middle) * np.where(z == inside, 1.0, z / inside)
