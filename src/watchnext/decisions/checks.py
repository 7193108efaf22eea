"""What the gate and the shadow comparison ask of a model beside another, as settings, and whether it is so, as arithmetic.

Nothing here opens a bundle or a registry: measurements in, `Check`s out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from watchnext.config import Section
from watchnext.decisions.measuring import Measured

if TYPE_CHECKING:
    from watchnext.evaluation.intervals import Change


Outcome = Literal["passed", "failed", "not judged"]


class Margin(Section):
    """A check against another model: how much worse is still let through.

    Attributes:
        margin: share of the other model's value, 0.02 = two per cent of it.
        reason: why the check is there; shown with its outcome.
    """

    margin: float = Field(ge=0, lt=1)
    reason: str


class Slices(Section):
    """Parts of the gate day that a mean over all hides, each with a margin of its own.

    Attributes:
        margin: share of the champion's value in the slice, of recall_at_100 and weighted_pairwise_loss alike.
        at_least_users: a slice with fewer is not judged, and counted: `slices_of_too_few_users`.
        without_power: what a slice does whose harm is neither shown nor ruled out: `pass`, with the margin that the
            day could have shown, or `hold`.
        reason: why; shown with the outcome.
    """

    margin: float = Field(default=0.1, ge=0, lt=1)
    at_least_users: int = Field(default=1000, ge=2)
    without_power: Literal["pass", "hold"] = "hold"
    reason: str = "a mean over all hides harm to some"


class Improvement(Section):
    """What has to get better.

    Attributes:
        any_of: of these metrics one has to be shown to be better than the champion's; none: no worse is enough.
        reason: why; shown with the outcome.
    """

    any_of: list[Literal["recall_at_100", "weighted_pairwise_loss"]] = Field(default=[])
    reason: str = "a change that helps nobody is not worth its risk"


class Minimum(Section):
    """A check against a fixed bound."""

    minimum: float = Field(ge=0, le=1)
    reason: str


class Maximum(Section):
    """A check against a fixed bound, in the unit that its name ends with."""

    maximum: float = Field(gt=0)
    reason: str


class FinalSlates(Section):
    """The slates that serving would have given to requests of the gate day, after both stages.

    Attributes:
        requests: how many are asked again, spread evenly over the day.
        length: of the slates.
        latency_p50_ms: the median answer may take so long.
        margin: share of the champion's watch time captured that may be lost; fails only where the loss is shown, since
            few requests cannot rule it out.
        reason: why; shown with the outcome.
    """

    requests: int = Field(default=200, ge=1)
    length: int = Field(default=20, ge=1, le=500)
    latency_p50_ms: float = Field(default=500.0, gt=0)
    margin: float = Field(default=0.1, ge=0, lt=1)
    reason: str = "users see the slate of both stages, not the candidates of one"


class Checks(Section):
    """What a bundle has to pass, `promote.checks` in params.yaml.

    Attributes:
        confidence: how sure a day has to be, over all the challengers that it judges, that the harm of a check with
            a margin is below it, each for itself, and that what is called better is. Each of them spends a part of
            what may go wrong, see `decisions.ledger`.
    """

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    recall_at_100: Margin = Margin(margin=0.05, reason="candidates must not get worse for users")
    weighted_pairwise_loss: Margin = Margin(
        margin=0.05, reason="slates must not be ordered worse by watch time"
    )
    popular_7_days_recall_at_100: Margin = Margin(
        margin=0.0, reason="a model that the most popular videos beat is not worth serving"
    )
    co_watched_recall_at_100: Margin = Margin(
        margin=0.0, reason="two towers have to know no less than who watched what together"
    )
    size_mb: Maximum = Maximum(maximum=20_000.0, reason="a server has to load it beside the champion")
    final_slates: FinalSlates = FinalSlates()
    improvement: Improvement = Improvement()
    slices: Slices = Slices()
    index_recall_at_100: Minimum = Minimum(minimum=0.97, reason="what the index misses nobody can be shown")


@dataclass(frozen=True)
class Check:
    """One condition, and what came of it.

    Attributes:
        name: of the metric or the condition.
        value: what was measured, ready to print.
        bound: what was asked for.
        outcome: `not judged` where there is nothing to judge it by.
        reason: why the check is there.
        harm: of a comparison with a margin, as shares of the other model's value, worse is positive: `value`, `low`
            and `high` of the interval, `margin`, and `detectable`, the margin that the day shows of equal models.
    """

    name: str
    value: str
    bound: str
    outcome: Outcome
    reason: str
    harm: Mapping[str, float] | None = None


def against_the_champion(
    ours: Measured, theirs: Measured, changes: Mapping[str, "Change"], checks: Checks, confidence: float
) -> list[Check]:
    """Every check that needs the champion: no worse, no worse in slices, and better where that is asked for.

    Args:
        ours: of the candidate.
        theirs: of the champion, on the same examples.
        changes: from one to the other at `confidence`.
        checks: margins and reasons.
        confidence: that is left for this candidate.
    """
    return [
        *no_worse(
            ours.metrics,
            theirs.metrics,
            changes,
            checks.recall_at_100,
            checks.weighted_pairwise_loss,
            confidence=confidence,
            undecided="not judged",
        ),
        *no_worse_in_slices(ours, theirs, checks.slices, confidence),
        *better(ours, theirs, checks.improvement, confidence),
    ]


def no_worse(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    changes: Mapping[str, "Change"],
    recall: Margin,
    loss: Margin,
    *,
    confidence: float,
    undecided: Outcome,
) -> list[Check]:
    """Non-inferiority to another model: recall may fall, and loss may rise, by a share of the other's value.

    A check is passed when its harm is below the margin at `confidence`, by the end of the interval. It fails when
    harm is shown (the interval's other end is beyond 0) and is not shown to be below the margin. Of one user, or where
    there is no number, nothing is judged.

    Args:
        ours: metrics of the model in question.
        theirs: metrics of the other.
        changes: of both metrics, see `Measured.changes`.
        recall: margin of recall_at_100.
        loss: margin of weighted_pairwise_loss.
        confidence: of each end.
        undecided: the outcome where neither is shown: `not judged` where proof is asked for, `passed` where
            harm has to be shown.
    """
    return [
        no_worse_by(
            name,
            (ours[name], theirs[name]),
            (changes[name], changes[name]),
            check.margin,
            confidence=confidence,
            undecided=undecided,
            reason=check.reason,
        )
        for name, check in (("recall_at_100", recall), ("weighted_pairwise_loss", loss))
    ]


def slices_with_users(ours: Measured, at_least: int) -> list[tuple[str, str]]:
    """Name and metric of every slice that has so many users."""
    return [
        (name, metric)
        for name, by_metric in ours.slices.items()
        for metric, own in by_metric.items()
        if len(own.counts) >= at_least
    ]


def no_worse_in_slices(ours: Measured, theirs: Measured, asked: Slices, confidence: float) -> list[Check]:
    """Non-inferiority in every slice that has enough users.

    That harm is below the margin has to be shown at `confidence` in each slice, and nothing is corrected for there
    being many. Harm is shown at a level that all slices share (Bonferroni): of twenty slices of two equal models
    one would else look harmed in two of five cases.

    Args:
        ours: of the model in question.
        theirs: of the other, on the same examples.
        asked: margin, and what becomes of a slice without power.
        confidence: of what is shown.
    """
    from watchnext.evaluation.paired import paired_changes

    judged = [
        (name, metric, ours.slices[name][metric], theirs.slices[name][metric])
        for name, metric in slices_with_users(ours, asked.at_least_users)
    ]
    levels = [2 * each - 1 for each in (confidence, 1 - (1 - confidence) / max(1, len(judged)))]
    return [
        no_worse_by(
            f"{metric}.{name}",
            (own.mean, other.mean),
            tuple(paired_changes(own, other, levels=levels)),
            asked.margin,
            confidence=confidence,
            undecided="passed" if asked.without_power == "pass" else "not judged",
            reason=asked.reason,
        )
        for name, metric, own, other in judged
    ]


def no_worse_by(
    name: str,
    means: tuple[float, float],
    changes: Sequence["Change"],
    margin: float,
    *,
    confidence: float,
    undecided: Outcome,
    reason: str,
    worse: float | None = None,
) -> Check:
    """One of `no_worse`: `means` are ours and theirs, `changes` by which harm is ruled out, and by which it is shown.

    `worse` is the sign of what is worse; None: of recalls a fall, else a rise.
    """
    if worse is None:
        worse = -1.0 if name.startswith("recall") else 1.0
    change, shown = changes
    low, high = sorted((worse * change.low, worse * change.high))
    outcome = undecided
    if math.isnan(change.value) or math.isinf(change.standard_error):
        outcome = "not judged"  # no number, or of one user, who tells nothing of others
    elif high <= margin:
        outcome = "passed"
    elif min(worse * shown.low, worse * shown.high) > 0:
        outcome = "failed"
    value = f"{readable(means[0])}, {change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
    bound = (
        f"{'no lower' if worse < 0 else 'no higher'} than the champion's {readable(means[1])} by"
        f" {margin:.1%} at {percent(confidence)}"
    )
    detectable = change.detectable(confidence)
    if not high <= margin and math.isfinite(detectable):
        bound += f"; this day shows {detectable:.1%} of equal models"
    harm = {
        "value": worse * change.value,
        "low": low,
        "high": high,
        "margin": margin,
        "detectable": detectable,
    }
    return Check(name, value, bound, outcome, reason, harm)


def better(ours: Measured, theirs: Measured, asked: Improvement, confidence: float) -> list[Check]:
    """Whether one of the metrics that may is shown to be better; no check where none is asked for.

    Of m metrics each is judged at an m-th of the error rate, Holm's first step: more is not asked.

    Args:
        ours: of the model in question.
        theirs: of the other.
        asked: which metrics.
        confidence: that what is called better is, over all of them.
    """
    names = tuple(dict.fromkeys(asked.any_of))
    if not names:
        return []
    each = 1 - (1 - confidence) / len(names)
    changes = {name: change for name, change in ours.changes(theirs, each).items() if name in names}
    gains = {
        name: (-change.high, -change.low) if name == "weighted_pairwise_loss" else (change.low, change.high)
        for name, change in changes.items()
    }
    outcome: Outcome = "not judged"
    if any(low > 0 for low, _ in gains.values()):
        outcome = "passed"
    elif all(high < 0 for _, high in gains.values()):
        outcome = "failed"
    value = ", ".join(
        f"{name} {change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
        for name, change in changes.items()
    )
    bound = f"{' or '.join(names)} better than the champion's at {percent(each)}"
    if outcome != "passed":
        seen = min(change.detectable(each) for change in changes.values())
        bound += f"; this day shows {seen:.1%}"
    return [Check("improvement", value, bound, outcome, asked.reason)]


def percent(share: float) -> str:
    """
    >>> percent(0.95), percent(0.9917)
    ('95%', '99.17%')
    """
    return f"{100 * share:.4g}%" if share < 0.999 else f"{100 * share:.6g}%"


def outcome_of(value: float, bound: float, *, at_least: bool) -> Outcome:
    if not (math.isfinite(value) and math.isfinite(bound)):
        return "not judged"
    return "passed" if (value >= bound if at_least else value <= bound) else "failed"


def readable(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "none"
