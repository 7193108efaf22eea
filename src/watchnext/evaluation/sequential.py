"""Live experiments that may be looked at whenever somebody likes: an always-valid interval, and a check of the arms.

An interval of fixed level that is looked at every day is wrong on some day far more often than its level says. The
interval here is wrong on any day at all, over the whole life of an experiment, at most at the stated rate.

**The interval.** Let D be the difference of the two arms' means over users and V its estimated variance after the
users of now. For a true difference d, mixing the likelihood ratios of D against d over a normal distribution of
differences around d with the variance tau^2 gives

    M(d) = sqrt(V / (V + tau^2)) exp(tau^2 (D - d)^2 / (2 V (V + tau^2)))

which, as V falls, is a martingale of mean 1 at the true d (in the limit of many users, where D is normal with
independent increments in information 1 / V). By Ville's inequality it ever exceeds 1 / error_rate with probability at
most error_rate, so the d for which it does not are an interval that holds the true one at all times together:

    D -+ sqrt((2 V (V + tau^2) / tau^2) (log(1 / error_rate) + log((V + tau^2) / V) / 2))

tau^2 decides at which V it is narrowest; with planned users it is narrowest there, at the ratio tau^2 / V of
-2 log(a) + log(-2 log(a)) + 1 for the error rate a. Users are the units: their days are one observation, a mean over the
days so far. That keeps the increments independent as long as a user's days are exchangeable: a difference that itself
changes from day to day (novelty) is averaged over.

**The arms.** Users are meant to be assigned by a coin of known bias. Of n users with n_1 in the second arm, a Beta
mixture over all other biases against the meant one p,

    B(1 + n_1, 1 + n - n_1) / (p^n_1 (1 - p)^(n - n_1)),

exceeds 1 / error_rate at any time with probability at most error_rate if the coin is the meant one. If it does, some
users of one arm are missing, and no difference between arms can be believed.

The package confseq has such intervals, but was last released in 2023 and needs a compiler and Boost to install.

Sources: R. Johari, P. Koomen, L. Pekelis and D. Walsh, Peeking at A/B tests, KDD 2017, eq. 6 (mSPRT); I. Waudby-Smith,
D. Arbour, R. Sinha, E. Kennedy and A. Ramdas, Time-uniform central limit theory and asymptotic confidence sequences,
Annals of Statistics 52 (2024); M. Lindon and A. Malek, Anytime-valid inference for multinomial count data, NeurIPS 2022.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaln

from watchnext.errors import InputError

FEWEST_USERS = 100
"""Of an arm: with fewer, a mean of watch times is not near enough to normal."""

SAMPLE_RATIO_ERROR_RATE = 0.001
"""How often a sound experiment is called off over its arms, over all looks."""


@dataclass(frozen=True)
class Difference:
    """Mean over the challenger's users less mean over the champion's, in the unit of the values.

    Attributes:
        value: the difference.
        low: lower end of the always-valid interval.
        high: upper end.
        standard_error: of the difference, as of now.
    """

    value: float
    low: float
    high: float
    standard_error: float


def sequential_difference(
    challenger: np.ndarray, champion: np.ndarray, *, planned_users: int, error_rate: float = 0.05
) -> Difference:
    """The always-valid interval of a difference between two arms; see above.

    Args:
        challenger: [num_users] a value per user of this arm, such as watch time in seconds per day.
        champion: [num_users of the other arm].
        planned_users: of both arms together, when the interval is to be narrowest; fixed before the experiment begins.
        error_rate: that at any look whatever the interval misses the true difference.

    Raises:
        InputError: an arm has too few users or values that are no numbers, all are alike, or the plan is no number of
            users.
    """
    _planned(planned_users)
    for name, values in (("challenger", challenger), ("champion", champion)):
        _values(name, values)
    n, m = len(challenger), len(champion)
    return _mixture(
        float(np.mean(challenger) - np.mean(champion)),
        float(np.var(challenger, ddof=1) / n + np.var(champion, ddof=1) / m),
        (n + m) / planned_users,
        error_rate,
    )


def sequential_mean(values: np.ndarray, *, planned_users: int, error_rate: float = 0.05) -> Difference:
    """The always-valid interval of a mean over users who see both sides of an interleaved experiment.

    Args:
        values: [num_users] what a user gave the challenger less what the same user gave the champion.
        planned_users: when the interval is to be narrowest; fixed before the experiment begins.
        error_rate: as for `sequential_difference`.

    Raises:
        InputError: as there.
    """
    _planned(planned_users)
    _values("experiment", values)
    variance = float(np.var(values, ddof=1) / len(values))
    return _mixture(float(np.mean(values)), variance, len(values) / planned_users, error_rate)


def _planned(users: int) -> None:
    if users < 2 * FEWEST_USERS:
        raise InputError(f"an experiment cannot be planned for {users} users", where="planned_users")


def _values(name: str, values: np.ndarray) -> None:
    if np.ndim(values) != 1 or len(values) < FEWEST_USERS:
        raise InputError(
            f"{np.shape(values)[0] if np.ndim(values) else 0} users of the {name} are too few to compare",
            where="the experiment's log",
            remedy=f"wait for {FEWEST_USERS}: looking early does no harm",
        )
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InputError(
            f"{len(wrong)} of the {name}'s {len(values)} values are no numbers",
            where="the experiment's log",
            offenders=[f"user in row {row}" for row in wrong[:3]],
            remedy="leave no user out: a user without watches has the value 0",
        )


def _mixture(value: float, variance: float, seen: float, error_rate: float) -> Difference:
    """The interval of a normal mean of this variance after the share `seen` of the planned users; see above."""
    if variance == 0:
        raise InputError(
            "every user of an arm has the same value: there is nothing to compare", where="the log"
        )
    odds = -2 * math.log(error_rate)
    mixture = variance * seen * (odds + math.log(odds) + 1)
    half = math.sqrt(
        2
        * variance
        * (variance + mixture)
        / mixture
        * (-math.log(error_rate) + 0.5 * math.log((variance + mixture) / variance))
    )
    return Difference(value, value - half, value + half, math.sqrt(variance))


def sample_ratio_is_off(
    challenger_users: int,
    champion_users: int,
    *,
    challenger_share: float = 0.5,
    error_rate: float = SAMPLE_RATIO_ERROR_RATE,
) -> bool:
    """Whether the arms have sizes that the coin which assigns users would hardly ever give, however often one looks.

    Args:
        challenger_users: seen so far.
        champion_users: seen so far.
        challenger_share: the share of users that is meant to get the challenger.
        error_rate: of saying so of a sound experiment at any look.
    """
    if not 0 < challenger_share < 1:
        raise InputError(f"a share of {challenger_share} leaves one arm empty", where="challenger_share")
    n, m = challenger_users, champion_users
    log_evidence = betaln(1 + n, 1 + m) - n * math.log(challenger_share) - m * math.log1p(-challenger_share)
    return bool(log_evidence > -math.log(error_rate))
