"""How much one model's mean differs from another's over the same users, by saddlepoint in place of draws."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student

from watchnext.evaluation.intervals import Change, PerUser

_SOLVE_STEPS = 50
_NEAR_THE_MEAN = 0.1
"""Normal quantiles below which the saddlepoint formula would divide what rounding leaves by little."""


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
