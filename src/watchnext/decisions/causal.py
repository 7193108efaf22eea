"""Causal evidence of a log whose chance is known: would users have watched more of the challenger's slates?

**Logged propensities.** The pages that the shadow day logged were made by a policy that put each video at its position with
a known probability. Where a contender's slate has the same video at the same position, the page shows what its slate would
have earned.

**Uniformly random exposures.** A log may hold videos that were shown whoever asked, each of a pool as likely as any other
(KuaiRand's `log_random_*`, and whatever has `random` as its only source): the propensity is 1 over the size of the pool. A
contender is asked for a slate at the instant of each such exposure; where the slate has the video, the exposure shows what a
place of it would have earned, wherever on the slate it is. It stands for showing a place of the slate drawn at random, with
probability 1 over the slate's length: this compares which videos are on the slates, and not their order. (L. Li, W. Chu,
J. Langford and X. Wang, Unbiased offline evaluation of contextual-bandit-based news article recommendation algorithms, WSDM
2011, replay so.)

`evaluation.counterfactual` weighs and judges both, and says where it cannot be told. A day that judges many challengers is
bound to flatter one here, too: each is judged at its share of the day's error rate (`ledger`). The model of the reward that
the doubly robust estimate leans on is a video's mean watch time per impression over the days before, no contender's ranker,
and it has not seen the day it is used on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from watchnext.decisions.checks import Check, percent
from watchnext.decisions.ledger import spent_on
from watchnext.decisions.slates import Shown
from watchnext.errors import InputError
from watchnext.features.history import Id

if TYPE_CHECKING:
    import numpy as np

    from watchnext.decisions.checks import Outcome
    from watchnext.evaluation.intervals import Change

CHECK = "watch_time_s_per_impression"
RANDOM_CHECK = "watch_time_s_per_random_exposure"
ERROR_RATE = 0.05
"""Of a shadow day: how often any of its challengers may pass that is no better than its champion."""

EXPOSURES_PER_VIDEO = 5
"""With fewer on average, neither the size of the pool nor that all of it are equally likely can be seen."""

_CHANCE = 1e-4
"""Counts of exposures that chance would make less often than this are not those of a uniform draw."""

_REASON = "a challenger has to be worth more to users, not to itself"


@dataclass(frozen=True)
class Page:
    """A logged page, and the slates of champion and challenger for the same request."""

    user_id: Id
    shown: Sequence[Shown]
    slates: tuple[Sequence[Id], Sequence[Id]]


def watch_time_check(
    pages: Sequence[Page], expected_s: Callable[[Id], float], place: int = 1
) -> tuple[Check, dict[str, float]]:
    """Whether the challenger's slates would have been watched for longer.

    Passed where both estimates, SNIPS and doubly robust, have their interval above 0; failed where one has it below;
    else, and where the log cannot tell, not judged.

    Args:
        pages: of the shadow day.
        expected_s: what a video is watched for per impression, by the days before, in seconds.
        place: of the challenger among those that this day has judged so, from 1.

    Returns:
        The check, and its figures by name.
    """
    import numpy as np

    rows = [
        (page.user_id, one, page.slates[0][one.position], page.slates[1][one.position])
        for page in pages
        for one in page.shown
        if one.position < min(len(slate) for slate in page.slates)
    ]
    theirs, ours = (
        np.array([row[place] == row[1].video_id for row in rows], dtype=np.float64) for place in (2, 3)
    )
    return _check(
        CHECK,
        [user for user, *_ in rows],
        [one for _, one, *_ in rows],
        [math.nan if one.propensity is None else one.propensity for _, one, *_ in rows],
        (ours, theirs),
        (
            np.array([expected_s(video) for *_, video in rows]),
            np.array([expected_s(video) for _, _, video, _ in rows]),
        ),
        expected_s,
        place,
    )


def random_exposure_check(
    exposures: Sequence[Page], pool: int, expected_s: Callable[[Id], float], place: int = 1
) -> tuple[Check, dict[str, float]]:
    """`watch_time_check` by uniformly random exposures.

    Args:
        exposures: of the shadow day, each a page of one video, and the slates of both at its instant.
        pool: of how many videos one was drawn each time, see `pool_of`.
        expected_s: as there.
        place: as there.
    """
    import numpy as np

    rows = [
        (page.user_id, page.shown[0], page.slates)
        for page in exposures
        if all(len(one) for one in page.slates)
    ]
    theirs, ours = (
        np.array([(one.video_id in slates[place]) / len(slates[place]) for _, one, slates in rows])
        for place in (0, 1)
    )
    expected_theirs, expected_ours = (
        np.array([sum(map(expected_s, slates[place])) / len(slates[place]) for *_, slates in rows])
        for place in (0, 1)
    )
    return _check(
        RANDOM_CHECK,
        [user for user, *_ in rows],
        [one for _, one, _ in rows],
        [1.0 / pool] * len(rows),
        (ours, theirs),
        (expected_ours, expected_theirs),
        expected_s,
        place,
    )


def pool_of(video_ids: Sequence[Id]) -> int:
    """Of how many videos the random exposures of a day were drawn, if they were drawn uniformly.

    Args:
        video_ids: of all of them.

    Raises:
        InputError: they are too few to see that, or some videos were shown more often than others by more than chance
            (chi-squared test).
    """
    from collections import Counter

    from scipy.stats import chisquare

    counts = Counter(video_ids)
    if len(video_ids) < EXPOSURES_PER_VIDEO * len(counts):
        raise InputError(
            f"{len(video_ids)} random exposures of {len(counts)} videos are too few to see what they were drawn from",
            where="the log",
            remedy=f"log {EXPOSURES_PER_VIDEO} of each video a day, or draw from fewer",
        )
    if len(counts) > 1 and chisquare(list(counts.values())).pvalue < _CHANCE:
        often = counts.most_common(1)[0]
        raise InputError(
            "the exposures that the log calls random are not uniform",
            where="the log",
            offenders=[f"{often[0]}: {often[1]} times, {len(video_ids) / len(counts):.1f} on average"],
            remedy="log with which propensity each was shown",
        )
    return len(counts)


def not_told(name: str, error: InputError, place: int = 1) -> Check:
    """The check of a log that says nothing, and why."""
    offenders = ", ".join(str(offender) for offender in error.offenders)
    value = error.what + (f" ({offenders})" if offenders else "")
    return Check(name, value, _bound(place), "not judged", _REASON)


def _level(place: int) -> float:
    """Of intervals of which each end alone holds at the share of the error rate that is left for this place."""
    return 1 - 2 * spent_on(place, ERROR_RATE)


def _bound(place: int) -> str:
    return (
        f"above 0 by SNIPS and doubly robust, intervals of {percent(_level(place))} over users"
        f" (challenger {place} of the shadow day)"
    )


def _check(
    name: str,
    user_ids: Sequence[Id],
    shown: Sequence[Shown],
    propensities: Sequence[float],
    policies: "tuple[np.ndarray, np.ndarray]",
    expected: "tuple[np.ndarray, np.ndarray]",
    expected_s: Callable[[Id], float],
    place: int,
) -> tuple[Check, dict[str, float]]:
    """Both estimates of rows that were shown with `propensities`; `policies` and `expected` are ours and theirs."""
    import numpy as np
    import pyarrow as pa

    from watchnext.evaluation.counterfactual import Logged, doubly_robust_difference, snips_difference

    ours, theirs = policies
    try:
        log = Logged(
            np.array([one.watch_time_s for one in shown], dtype=np.float64),
            np.array(propensities, dtype=np.float64),
            pa.array(user_ids),
        )
        snips, own, other = snips_difference(log, ours, theirs, level=_level(place))
        robust, *_ = doubly_robust_difference(
            log,
            ours,
            theirs,
            expected=np.array([expected_s(one.video_id) for one in shown]),
            expected_ours=expected[0],
            expected_theirs=expected[1],
            level=_level(place),
        )
    except InputError as error:
        return not_told(name, error, place), {}
    outcome: Outcome = "not judged"
    if snips.high < 0 or robust.high < 0:
        outcome = "failed"
    elif snips.low > 0 and robust.low > 0:
        outcome = "passed"
    value = (
        f"SNIPS {_seconds(snips)}, doubly robust {_seconds(robust)};"
        f" effective rows {own.effective_rows:.0f} and {other.effective_rows:.0f} of {len(shown)}"
    )
    metrics = {
        f"causal_{estimate}{end}": figure
        for estimate, change in (("snips_s", snips), ("doubly_robust_s", robust))
        for end, figure in (("", change.value), ("_low", change.low), ("_high", change.high))
    }
    metrics |= {
        f"{who}_effective_rows": found.effective_rows
        for who, found in (("challenger", own), ("champion", other))
    }
    return Check(name, value, _bound(place), outcome, _REASON), metrics


def _seconds(change: "Change") -> str:
    return f"{change.value:+.2f} s [{change.low:+.2f}, {change.high:+.2f}]"
