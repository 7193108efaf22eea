"""Causal evidence of a log that knows its propensities: would users have watched more of the challenger's slates?

The pages that the shadow day logged were made by a policy that put each video at its position with a known probability.
Where a contender's slate has the same video at the same position, the page shows what its slate would have earned;
`evaluation.counterfactual` weighs and judges that, and says where it cannot be told. The model of the reward that the
doubly robust estimate leans on is a video's mean watch time per impression over the days before, no contender's
ranker, and it has not seen the day it is used on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from watchnext.decisions.gate import Check
from watchnext.decisions.slates import Shown
from watchnext.errors import InputError
from watchnext.features.history import Id

if TYPE_CHECKING:
    from watchnext.decisions.gate import Outcome
    from watchnext.evaluation.intervals import Change

CHECK = "watch_time_s_per_impression"
LEVEL = 0.95


@dataclass(frozen=True)
class Page:
    """A logged page, and the slates of champion and challenger for the same request."""

    user_id: Id
    shown: Sequence[Shown]
    slates: tuple[Sequence[Id], Sequence[Id]]


def watch_time_check(
    pages: Sequence[Page], expected_s: Callable[[Id], float]
) -> tuple[Check, dict[str, float]]:
    """Whether the challenger's slates would have been watched for longer.

    Passed where both estimates, SNIPS and doubly robust, have their interval above 0; failed where one has it below;
    else, and where the log cannot tell, not judged.

    Args:
        pages: of the shadow day.
        expected_s: what a video is watched for per impression, by the days before, in seconds.

    Returns:
        The check, and its figures by name.
    """
    import numpy as np
    import pyarrow as pa

    from watchnext.evaluation.counterfactual import Logged, doubly_robust_difference, snips_difference

    rows = [
        (page.user_id, one, page.slates[0][one.position], page.slates[1][one.position])
        for page in pages
        for one in page.shown
        if one.position < min(len(slate) for slate in page.slates)
    ]
    reason = "a challenger has to be worth more to users, not to itself"
    bound = f"above 0 by SNIPS and doubly robust, intervals of {LEVEL:.0%} over users"
    try:
        log = Logged(
            np.array([one.watch_time_s for _, one, _, _ in rows], dtype=np.float64),
            np.array([math.nan if one.propensity is None else one.propensity for _, one, _, _ in rows]),
            pa.array([user for user, *_ in rows]),
        )
        theirs, ours = (
            np.array([row[place] == row[1].video_id for row in rows], dtype=np.float64) for place in (2, 3)
        )
        snips, own, other = snips_difference(log, ours, theirs, level=LEVEL)
        robust, *_ = doubly_robust_difference(
            log,
            ours,
            theirs,
            expected=np.array([expected_s(one.video_id) for _, one, _, _ in rows]),
            expected_ours=np.array([expected_s(video) for *_, video in rows]),
            expected_theirs=np.array([expected_s(row[2]) for row in rows]),
            level=LEVEL,
        )
    except InputError as error:
        offenders = ", ".join(str(offender) for offender in error.offenders)
        value = error.what + (f" ({offenders})" if offenders else "")
        return Check(CHECK, value, bound, "not judged", reason), {}
    outcome: Outcome = "not judged"
    if snips.high < 0 or robust.high < 0:
        outcome = "failed"
    elif snips.low > 0 and robust.low > 0:
        outcome = "passed"
    value = (
        f"SNIPS {_seconds(snips)}, doubly robust {_seconds(robust)};"
        f" effective rows {own.effective_rows:.0f} and {other.effective_rows:.0f} of {len(rows)}"
    )
    metrics = {
        f"causal_{name}{end}": figure
        for name, change in (("snips_s", snips), ("doubly_robust_s", robust))
        for end, figure in (("", change.value), ("_low", change.low), ("_high", change.high))
    }
    metrics |= {
        f"{who}_effective_rows": found.effective_rows
        for who, found in (("challenger", own), ("champion", other))
    }
    return Check(CHECK, value, bound, outcome, reason), metrics


def _seconds(change: "Change") -> str:
    return f"{change.value:+.2f} s [{change.low:+.2f}, {change.high:+.2f}]"
