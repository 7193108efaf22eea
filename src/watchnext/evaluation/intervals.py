"""Means, and how much one model's differs from another's, with the interval that other users would have moved them in."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import norm
from scipy.stats import t as student

_DRAWS_AT_ONCE = 4_000_000
_EVENTS_DRAWN = 2_000_000
_SOLVE_STEPS = 50
_NEAR_THE_MEAN = 0.1
"""Normal quantiles below which the saddlepoint formula would divide what rounding leaves by little."""


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


def paired_change(ours: PerUser, theirs: PerUser, *, level: float) -> Change:
    """Ratio of two means over the same users and events, less 1, with a BCa bootstrap interval over users.

    Users are drawn whole and with replacement, for both models together, so that what is easy or hard of a user's
    events for either falls out. With R the ratio, x_i(r) = ours_i - r theirs_i what user i adds, and G(r) = P(R* <= r) =
    P(sum of x(r) over drawn users <= 0) the distribution of the ratio of a draw:

        z0    = normal quantile of G(R)
        a     = sum x_i(R)^3 / (6 (sum x_i(R)^2)^1.5)
        ends  = the r at which G(r) = Phi(z0 + (z0 + z) / (1 - a (z0 + z))),  z = -+ Student's quantile of (1 + level) / 2

    which unlike plain percentiles keeps its level to second order where R* is skewed or biased. Of watch time a few users
    have much, so that the spread itself is known as well as by few users: Student's quantile in place of the normal one,
    with the degrees of freedom 2 / (sum x_i^4 / (sum x_i^2)^2 - 1 / n) of its estimate (Satterthwaite), n of normal x.

    G is not drawn but computed, by the saddlepoint approximation for the mean of users drawn with replacement
    (`_quantile_of_draw`): levels close to 1, as the tenth challenger of a day is judged at, would take 100,000 draws and
    more, and the luck of the draws would move every level. Where so few users differ that no draw reaches an end, it is
    z standard errors away.

    Args:
        ours: of the model in question.
        theirs: of the other one, in the same order of users.
        level: how often the interval is to hold the ratio; of 0.9, each end alone is passed by one in twenty.

    Returns:
        All NaN without events. Of a mean of 0 there are no shares: 0 where ours is 0, too, else infinity.

    Raises:
        ValueError: the events are not the same.

    Sources: B. Efron, Better bootstrap confidence intervals, JASA 82 (1987); A. Davison and D. Hinkley, Saddlepoint
    approximations in resampling methods, Biometrika 75 (1988), and Bootstrap Methods and their Application (1997), 9.5,
    for ratios.
    """
    return paired_changes(ours, theirs, levels=(level,))[0]


def paired_changes(ours: PerUser, theirs: PerUser, *, levels: Sequence[float]) -> list[Change]:
    """`paired_change` at several levels."""
    if not np.array_equal(ours.counts, theirs.counts):
        raise ValueError("a paired change needs the same events of the same users")
    own, other = float(ours.totals.sum()), float(theirs.totals.sum())
    if not (np.isfinite([own, other]).all() and ours.counts.sum() > 0):
        return [Change(float("nan"), float("nan"), float("nan"), float("nan"))] * len(levels)
    if other == 0:
        beyond = np.inf if own > 0 else 0.0
        return [Change(beyond, beyond, beyond, 0.0)] * len(levels)
    ratio_of_means, users = own / other, len(ours.counts)
    value = ratio_of_means - 1.0
    if users < 2:
        return [Change(value, -np.inf, np.inf, np.inf)] * len(levels)
    apart = ours.totals - ratio_of_means * theirs.totals
    scale = float(np.sqrt((apart**2).sum()))
    error = scale / abs(other)
    if error <= 1e-12:  # They agree on every user.
        return [Change(value, value, value, error)] * len(levels)
    a = z0 = float(((apart / scale) ** 3).sum()) / 6.0
    freedom = 2.0 / max(float(((apart / scale) ** 4).sum()) - 1.0 / users, 2.0 / users)

    def end(share: float) -> float:
        z = float(student.ppf(share, freedom))
        stretched = 1.0 - a * (z0 + z)
        if stretched > 0:
            wanted = z0 + (z0 + z) / stretched
            found = _solve(ours.totals / scale, theirs.totals / scale, ratio_of_means, error, wanted)
            if found is not None:
                return found - 1.0
        return value + error * z

    found = []
    for level in levels:
        low, high = sorted((end((1 - level) / 2), end((1 + level) / 2)))
        found.append(Change(value, low, high, error))
    return found


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


def _solve(
    ours: np.ndarray, theirs: np.ndarray, ratio_of_means: float, error: float, wanted: float
) -> float | None:
    """The ratio r at which the normal quantile of G(r) is `wanted`, see `paired_change`; None where there is none."""
    r = ratio_of_means + error * wanted
    slope, last = 1.0 / error, None
    for _ in range(_SOLVE_STEPS):
        quantile = _quantile_of_draw(ours - r * theirs)
        if quantile is None:
            return None
        if last is not None and r != last[0]:
            steeper = (quantile - last[1]) / (r - last[0])
            slope = steeper if steeper > 0.1 / error else slope
        if abs(quantile - wanted) < 1e-6:
            return float(r)
        last = (r, quantile)
        r -= (quantile - wanted) / slope
    return None


def _quantile_of_draw(x: np.ndarray) -> float | None:
    """Normal quantile of the probability that as many x as there are, drawn with replacement, sum to 0 or less.

    With K(l) = n log(mean exp(l x)) and the saddlepoint l at which K'(l) = 0,

        w = sign(l) sqrt(-2 K(l)),  v = l sqrt(K''(l)),  quantile = w + log(v / w) / w

    (Barndorff-Nielsen's form of Lugannani and Rice), and near l = 0, where that is 0 / 0, w + skewness / 6.

    Args:
        x: float64 [num_users], such that sum(x^2) is near 1.

    Returns:
        None where all x are of one sign: no draw sums to 0.
    """
    if not x.min() < 0 < x.max():
        return None
    users, squares = len(x), float((x**2).sum())
    tilt = -float(x.sum()) / squares
    for _ in range(_SOLVE_STEPS):
        weights = np.exp(tilt * x)
        total = float(weights.sum())
        mean = float(weights @ x) / total
        variance = float(weights @ x**2) / total - mean**2
        if not (np.isfinite(total) and variance > 0):
            return None
        step = mean / variance
        tilt -= float(np.clip(step, -2.0, 2.0))
        if abs(step) < 1e-7:
            break
    else:
        return None
    w = float(np.copysign(np.sqrt(max(0.0, -2.0 * users * np.log1p(np.expm1(tilt * x).mean()))), tilt))
    if abs(w) < _NEAR_THE_MEAN:
        return w + float((x**3).sum()) / squares**1.5 / 6.0
    return w + float(np.log(tilt * np.sqrt(users * variance) / w)) / w


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

    As `paired_change`, with G from draws, and a from leaving each user out in turn: for levels that leave a hundred draws or
    more beyond each end.

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
