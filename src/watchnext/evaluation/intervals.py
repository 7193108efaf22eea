"""Means with the interval that other users, and other trainings, would have moved them in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DRAWS_AT_ONCE = 4_000_000


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
