"""The gate: may this bundle challenge the champion?

Candidate and champion are measured in one run on the same examples of the gate day, each with its own encoder,
and every check states its value, its bound and why it is there. Nothing here depends on what an earlier run of
the champion recorded.
"""

import contextlib
import hashlib
import html
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from watchnext.bundle import Bundle, read_digest
from watchnext.config import Exclude, Section
from watchnext.console import print_table, say
from watchnext.data.split import day_begins_at
from watchnext.decisions.forest import forest_plot
from watchnext.decisions.ledger import spent_on
from watchnext.errors import InputError
from watchnext.registry import Registry, UnusableBundleError, Version
from watchnext.tracking import Tracker

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from watchnext.evaluation.intervals import Change, PerUser

Verdict = Literal["challenger", "rejected", "held"]
Outcome = Literal["passed", "failed", "not judged"]
NotComparable = Literal["hold", "replace"]
"""What becomes of a candidate whose champion cannot be measured on its data: see `judge`."""

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table of a report: caption, header, rows."""

HEADLINES = (
    "recall_at_100",
    "popular_7_days_recall_at_100",
    "map",
    "weighted_pairwise_loss",
    "index_recall_at_100",
)
"""What `watchnext status` shows of a version; the run that it leads back to has the rest."""

SEED_METRICS = ("recall_at_100", "weighted_pairwise_loss")
"""Whose variation by seed is shown."""

SMOKE_SLATE = 20

_BASELINE_EVENTS = 5_000

_AS_PACKAGED = "what was judged is what will be served"

_FORMAT = 7
"""Raise it when a change of this code changes what a decision means: bundles are then judged anew."""
_PYFUNC = Path(__file__).parents[1] / "serving" / "pyfunc.py"
"""The script that MLflow stores with a version. A path, since what it is made of lies above this layer."""


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
        at_least_users: a slice with fewer is neither judged nor shown.
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


@dataclass(frozen=True)
class Decision:
    """What the gate says of a bundle.

    Attributes:
        verdict: `challenger` passed, `rejected` failed a check, `held` could not be judged.
        reason: one sentence.
        checks: every check.
        metrics: of the candidate on the gate day, and of the champion with the prefix `champion_`.
        against: the champion it was judged against, as name and version number, or "none".
        replaces: it was judged without its champion, which cannot be compared with any more, and takes its place.
        judged: digests of `challenger`, `champion` (None without one) and `evidence`: what `judged_triple` gives.
        over_seeds: what `evaluate` measured of the same settings on the same data with each seed that was run; shown,
            since intervals over users do not hold what another seed would have changed.
    """

    verdict: Verdict
    reason: str
    checks: tuple[Check, ...]
    metrics: Mapping[str, float]
    against: str
    replaces: bool = False
    judged: Mapping[str, str | None] = field(default_factory=dict)
    over_seeds: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Unopened:
    """A champion whose bundle cannot be opened.

    Attributes:
        source: of its logs, as the registry has it.
        problem: why not, in one sentence.
    """

    source: str
    problem: str


class NotComparableError(Exception):
    """A champion cannot be measured on the present data; says why in one sentence."""


def judge(
    candidate: Bundle,
    champion: Bundle | Unopened | None,
    features: Path,
    checks: Checks,
    *,
    exclude: Exclude = "none",
    champion_not_comparable: NotComparable = "hold",
    against: str = "none",
    place: int = 1,
    tables: Path | None = None,
    validated: Path | None = None,
    recipe: Bundle | None = None,
) -> Decision:
    """Measure a candidate, and the champion on the same examples, and check the one against the other.

    Args:
        candidate: the bundle in question, verified.
        champion: the champion's bundle; None when there is none yet.
        features: outputs of the stage featurize that hold the gate day.
        checks: bounds and reasons.
        exclude: as for `evaluate`.
        champion_not_comparable: what becomes of the candidate if the champion cannot be measured on these
            examples: `hold` it, or let it `replace` the champion if it passes every check that needs none.
        against: what to call the champion in the decision.
        place: of the candidate among those that this day judges, from 1.
        tables: validated tables, whose requests are asked again; None: no slates are judged.
        validated: metrics of the stage validate about these tables; None with them.
        recipe: the champion's settings trained on the candidate's window, whose two steps, champion to recipe (fresher data)
            and recipe to candidate (another recipe), are shown and judge nothing; None: not asked for.

    Raises:
        InputError: the candidate cannot be measured.
    """
    manifest = json.loads((features / "manifest.json").read_text(encoding="utf-8"))
    if champion is not None and champion.source != candidate.source:
        reason = f"the champion is of the source {champion.source}, and models of different sources are not compared"
        return Decision("held", reason, (), {}, against)
    gate = manifest["days"]["gate"]
    if not gate:
        return Decision("held", "the logs have too few days for a gate day", (), {}, against)
    begins = day_begins_at(date.fromisoformat(gate), manifest["time_zone"])
    ours = measure(candidate, features, "gate", exclude=exclude)
    measured = dict(ours.metrics)
    day = date.fromisoformat(gate)
    measured |= _popular(features, day, exclude) | _co_watched(candidate, features, day, exclude)
    found = [
        _trained_before("trained_until_at", candidate, begins),
        Check(
            "digests",
            f"{len(candidate.manifest['files'])} files",
            "every file as packaged",
            "passed",
            _AS_PACKAGED,
        ),
        smoke_request(candidate),
        _at_least_index(measured, checks.index_recall_at_100),
        _beats(
            measured,
            "popular_7_days",
            "most popular of the last 7 days",
            checks.popular_7_days_recall_at_100,
            or_equals=False,
        ),
        *(
            [
                _beats(
                    measured,
                    "co_watched",
                    "co-watched videos alone",
                    checks.co_watched_recall_at_100,
                    or_equals=True,
                )
            ]
            if "co_watched_recall_at_100" in measured
            else []
        ),
        _small_enough(candidate, checks.size_mb),
    ]
    if validated is not None and tables is not None:
        found.append(_validated(candidate, manifest, tables, validated))
    problem = ""
    opponent: Bundle | None = None
    confidence = 1 - spent_on(place, 1 - checks.confidence)
    if champion is not None:
        # The candidate has just been measured by the same code on the same examples: what fails now is the champion.
        try:
            if isinstance(champion, Unopened):
                raise NotComparableError(champion.problem)
            with about_the_champion():
                theirs = measure(champion, features, "gate", exclude=exclude)
            changes = ours.changes(theirs, confidence)
            opponent = champion
        except NotComparableError as error:
            problem = str(error)
        else:
            found.append(_trained_before("champion_trained_until_at", champion, begins))
            found.append(_place_of_day(gate, place, checks.confidence, confidence))
            found += against_the_champion(ours, theirs, changes, checks, confidence)
            measured |= {"challengers_of_the_day": place, "confidence": confidence}
            measured |= {f"champion_{name}": value for name, value in theirs.metrics.items()}
            measured |= change_metrics(changes)
            measured |= ours.second_look(theirs, confidence)
            if recipe is not None:
                third = measure(recipe, features, "gate", exclude=exclude)
                measured |= {f"champions_recipe_{name}": third.metrics[name] for name in SEED_METRICS}
                for why, steps in (
                    ("data", third.changes(theirs, confidence)),
                    ("recipe", ours.changes(third, confidence)),
                ):
                    measured |= change_metrics({f"by_{why}_{name}": change for name, change in steps.items()})
        found.append(_comparable(problem, champion_not_comparable))
    if champion is None or problem:
        for name, check in (
            ("recall_at_100", checks.recall_at_100),
            ("weighted_pairwise_loss", checks.weighted_pairwise_loss),
        ):
            bound = "a number: there is no other model to compare with"
            outcome: Outcome = "passed" if math.isfinite(measured[name]) else "not judged"
            found.append(Check(name, _shown(measured[name]), bound, outcome, check.reason))
    if tables is not None:
        more, figures = _final_slates(
            candidate, opponent, tables, features, day, manifest, checks, confidence
        )
        found += more
        measured |= figures
    verdict, reason = sum_up(found)
    replaces = bool(problem) and verdict == "challenger"
    if verdict == "held" and problem:
        reason += f": {problem}. To judge without the champion: promote.champion_not_comparable: replace"
    elif replaces:
        reason += (
            f"; replaces {against} without a comparison, as promote.champion_not_comparable allows: {problem}"
        )
    return Decision(verdict, reason, tuple(found), measured, against, replaces)


@contextlib.contextmanager
def about_the_champion() -> Iterator[None]:
    """Whatever fails in here is the champion's fault, and says that it cannot be compared with.

    Raises:
        NotComparableError: in place of what was raised.
    """
    try:
        yield
    except MemoryError:
        raise
    except InputError as error:
        offenders = ", ".join(str(offender) for offender in error.offenders)
        raise NotComparableError(error.what + (f" ({offenders})" if offenders else "")) from error
    except (
        Exception
    ) as error:  # TensorFlow and ScaNN raise what they like on files of other versions of theirs
        first = next(iter(str(error).splitlines()), "")
        raise NotComparableError(f"{type(error).__name__}: {first}") from error


def _comparable(problem: str, rule: NotComparable) -> Check:
    outcome: Outcome = "passed" if not problem or rule == "replace" else "not judged"
    return Check(
        "champion_comparable",
        f"no: {problem}" if problem else "yes",
        "measured on the same examples, or champion_not_comparable: replace",
        outcome,
        "a champion that the present logs cannot be read with must not stand in the way unnoticed",
    )


@dataclass(frozen=True)
class Events:
    """What a metric is the mean of, event by event.

    Attributes:
        values: float64 [num_events].
        weights: float64 [num_events]; the metric is sum(values) / sum(weights).
        user_ids: [num_events].
        video_ids: [num_events].
    """

    values: "np.ndarray"
    weights: "np.ndarray"
    user_ids: "pa.Array"
    video_ids: "pa.Array"


@dataclass(frozen=True)
class Measured:
    """A bundle on the examples of a day.

    Attributes:
        metrics: recall_at_K, map, weighted_pairwise_loss, auc and index_recall_at_100.
        per_user: what recall_at_100 and weighted_pairwise_loss are the means of, by user.
        slices: the same in each part of the day, by its name and then the metric's.
        events: the same by event, for intervals over users and videos.
    """

    metrics: Mapping[str, float]
    per_user: Mapping[str, "PerUser"]
    slices: Mapping[str, Mapping[str, "PerUser"]] = field(default_factory=dict)
    events: Mapping[str, Events] = field(default_factory=dict)

    def second_look(self, other: "Measured", confidence: float) -> dict[str, float]:
        """Ends of the intervals of `changes` where other videos would have been drawn as well as other users.

        Returns:
            change_NAME_users_by_videos_low and _high.
        """
        from watchnext.evaluation.intervals import two_way_change

        found: dict[str, float] = {}
        for name, own in self.events.items():
            ends = two_way_change(
                own.values,
                other.events[name].values,
                own.user_ids,
                own.video_ids,
                level=2 * confidence - 1,
            )
            found |= dict(
                zip(
                    (f"change_{name}_users_by_videos_low", f"change_{name}_users_by_videos_high"),
                    ends,
                    strict=True,
                )
            )
        return found

    def changes(self, other: "Measured", confidence: float) -> dict[str, "Change"]:
        """How much it differs from another bundle on the same examples: each end alone holds at `confidence`.

        Raises:
            NotComparableError: they were not judged on the same examples.
        """
        from watchnext.evaluation.intervals import paired_change

        try:
            return {
                name: paired_change(own, other.per_user[name], level=2 * confidence - 1)
                for name, own in self.per_user.items()
            }
        except ValueError as error:
            raise NotComparableError(str(error)) from error


def measure(bundle: Bundle, features: Path, split: str, *, exclude: Exclude = "none") -> Measured:
    """Measure a bundle on the examples of a day.

    Args:
        bundle: whose models, index and vocabularies to use.
        features: outputs of featurize.
        split: `gate` or `shadow`.
        exclude: as for `evaluate`.
    """
    import numpy as np
    import pyarrow as pa

    from watchnext.evaluation import offline
    from watchnext.evaluation.candidates import nominated_by, stored_scorer
    from watchnext.evaluation.intervals import PerUser, per_user
    from watchnext.evaluation.metrics import calibration_ratios, pairwise_losses
    from watchnext.features.batches import Encoder
    from watchnext.index.scann import ScannSearcher
    from watchnext.models.candidate_sources import Corpus, read_videos
    from watchnext.models.final_score import FinalScore
    from watchnext.models.towers import load_signature

    encoder = Encoder.load(bundle.features)
    signature = load_signature(str(bundle.query_tower))
    candidates = np.load(bundle.index / "candidate_embeddings.npy", allow_pickle=False)
    events = features / "retrieval_examples" / split

    def query_tower(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return signature(arrays)["embedding"]

    # Of a bundle whose index ends with the vocabulary, labels beyond it are unranked, as it would serve them.
    corpus = Corpus(encoder.vocabularies["video"], read_videos(bundle.features / "videos"))
    retrieval = offline.evaluate_retrieval(
        query_tower, candidates, encoder, events, corpus=corpus, exclude=exclude
    )
    scorer = stored_scorer(
        encoder, corpus, bundle.recommend["sources"], bundle.path, bundle.index, bundle.sources
    )
    ranking, predicted = offline.evaluate_ranking(
        load_signature(str(bundle.ranker)),
        encoder,
        features / "ranking_examples" / split,
        nominated_by(scorer, features, split),
        FinalScore.of(bundle.recommend, encoder.quantiles),
    )
    searcher = ScannSearcher.load(bundle.index / "scann")
    values = {
        **retrieval.metrics((10, 100)),
        **ranking.metrics(),
        "calibration": calibration_ratios(
            predicted["expected_watch_time_s"], ranking.clicked, ranking.watch_time_s
        )["calibration"],
        "index_recall_at_100": offline.index_recall(query_tower, searcher, candidates, encoder, events, 100),
    }
    mispredicted, total = pairwise_losses(
        ranking.pair_scores, ranking.clicked, ranking.watch_time_s, ranking.groups
    )
    found = (retrieval.ranks <= 100).astype(np.float64)

    def hits(of: np.ndarray) -> PerUser:
        return per_user(found[of], retrieval.user_ids.filter(pa.array(of)))

    def loss(of: np.ndarray) -> PerUser:
        of = of & (total > 0)
        users = ranking.user_ids.filter(pa.array(of))
        return PerUser(per_user(mispredicted[of], users).totals, per_user(total[of], users).totals)

    slices: dict[str, dict[str, PerUser]] = {}
    for name, of in offline.event_slices(events, features / "videos").items():
        slices.setdefault(name, {})["recall_at_100"] = hits(of)
    for name, of in ranking.slices.items():
        slices.setdefault(name, {})["weighted_pairwise_loss"] = loss(of)
    everything = {
        "recall_at_100": hits(np.ones(len(found), bool)),
        "weighted_pairwise_loss": loss(np.ones(len(total), bool)),
    }
    pairs = total > 0
    labels, shown = (
        pa.concat_tables(offline.tables_of(features / kind / split, ["video_id"]))[
            "video_id"
        ].combine_chunks()
        for kind in ("retrieval_examples", "ranking_examples")
    )
    both = {
        "recall_at_100": Events(found, np.ones(len(found)), retrieval.user_ids, labels),
        "weighted_pairwise_loss": Events(
            mispredicted[pairs],
            total[pairs],
            ranking.user_ids.filter(pa.array(pairs)),
            shown.filter(pa.array(pairs)),
        ),
    }
    return Measured(values, everything, slices, both)


def change_metrics(changes: Mapping[str, "Change"]) -> dict[str, float]:
    """`change_` of each metric with the ends of its interval, as metrics of a stage."""
    return {
        f"change_{name}{end}": value
        for name, change in changes.items()
        for end, value in (("", change.value), ("_low", change.low), ("_high", change.high))
    }


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
        _no_worse(
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
    from watchnext.evaluation.intervals import paired_changes

    judged = [
        (name, metric, own, theirs.slices[name][metric])
        for name, by_metric in ours.slices.items()
        for metric, own in by_metric.items()
        if len(own.counts) >= asked.at_least_users
    ]
    levels = [2 * each - 1 for each in (confidence, 1 - (1 - confidence) / max(1, len(judged)))]
    return [
        _no_worse(
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


def _no_worse(
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
    value = f"{_shown(means[0])}, {change.value:+.1%} [{change.low:+.1%}, {change.high:+.1%}]"
    bound = (
        f"{'no lower' if worse < 0 else 'no higher'} than the champion's {_shown(means[1])} by"
        f" {margin:.1%} at {_percent(confidence)}"
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
    bound = f"{' or '.join(names)} better than the champion's at {_percent(each)}"
    if outcome != "passed":
        seen = min(change.detectable(each) for change in changes.values())
        bound += f"; this day shows {seen:.1%}"
    return [Check("improvement", value, bound, outcome, asked.reason)]


def _place_of_day(day: str, place: int, asked: float, confidence: float) -> Check:
    return Check(
        "challengers_of_the_day",
        f"{place} on {day}",
        f"{_percent(asked)} over all of them: {_percent(confidence)} for this one",
        "passed",
        "a day that judges many is bound to flatter one",
    )


def _percent(share: float) -> str:
    """
    >>> _percent(0.95), _percent(0.9917)
    ('95%', '99.17%')
    """
    return f"{100 * share:.4g}%" if share < 0.999 else f"{100 * share:.6g}%"


def smoke_request(bundle: Bundle) -> Check:
    """Ask the bundle as serving would: for somebody unknown, and for somebody with a past."""
    from watchnext.features.history import UserHistory
    from watchnext.features.ranking_features import RequestContext
    from watchnext.recommend.recommender import Recommender

    recommender = Recommender.open(bundle)
    now = datetime.fromisoformat(bundle.manifest["trained_until_at"])
    somebody = UserHistory()
    for video_id in recommender.row_to_video[:3]:
        somebody.add_watch(
            video_id, 0, completed=True, channel_id=recommender.videos.facts(video_id).channel_id
        )
    problems = []
    corpus = len(recommender.row_to_video)
    for who, history in (("somebody unknown", None), ("somebody with a past", somebody)):
        slate = recommender.recommend(history, RequestContext(user_id=0, at=now), SMOKE_SLATE)
        scores = [video.expected_watch_time_s for video in slate.videos]
        if len(slate.videos) < min(SMOKE_SLATE, corpus - 3):
            problems.append(f"{who}: {len(slate.videos)} videos")
        if not all(math.isfinite(score) and score >= 0 for score in scores):
            problems.append(f"{who}: expected watch time is not a number of seconds")
    return Check(
        "smoke_request",
        "; ".join(problems) or f"slates of {SMOKE_SLATE}",
        "full slates, finite scores",
        "failed" if problems else "passed",
        "a bundle that cannot answer must not be served",
    )


def promote_bundle(
    registry: Registry,
    *,
    name: str,
    bundle: Path,
    features: Path,
    checks: Checks,
    exclude: Exclude,
    pipeline_run: Any,
    champion_not_comparable: NotComparable = "hold",
    previous_metrics: Mapping[str, Any] | None,
    out_report: Path,
    tables: Path | None = None,
    validated: Path | None = None,
    champions_recipe: Path | None = None,
) -> dict[str, float | int | str] | None:
    """Judge the bundle, register it, and give its version the role that it earned.

    A version that passes becomes challenger, or champion where there is none yet. One that is rejected or held
    is registered too, without a role, so that it and the reason can be looked up.

    Args:
        registry: where to.
        name: registered model.
        bundle: directory of the bundle.
        features: outputs of featurize.
        checks: bounds and reasons.
        exclude: as for `evaluate`.
        pipeline_run: gives the id of this execution's MLflow run.
        champion_not_comparable: see `judge`.
        previous_metrics: what this stage returned last, if its outputs still stand; else None.
        out_report: where decision.json and decision.html go.
        tables: see `judge`.
        validated: see `judge`.
        champions_recipe: directory of a bundle with the champion's settings, trained on this one's window.

    Returns:
        metrics, or None when this bundle was judged against this champion by these checks before. A bundle with damaged
        files is rejected without `model_version`: it is not registered.
    """
    digest = read_digest(bundle)
    registry.tidy(name)
    champion = registry.role(name, "champion")
    version = registry.find(name, digest)
    is_champion = version is not None and champion is not None and version.number == champion.number
    opponent = None if is_champion else champion
    rules: dict[str, object] = {
        "format": _FORMAT,
        "day": "gate",
        "exclude": exclude,
        "champion_not_comparable": champion_not_comparable,
        "checks": checks.model_dump(),
    }
    if champions_recipe is not None:
        rules["champions_recipe"] = read_digest(champions_recipe)
    rolled_back = "" if version is None or is_champion else version.rolled_back_because
    if rolled_back:
        rules["rolled_back_because"] = rolled_back
    judged = judged_triple(digest, opponent, features, rules)
    key = digest_of(judged)
    settled = version is not None and (is_champion or version.tags.get("gate_key") == key)
    written = previous_metrics or {}
    if settled and (written.get("bundle_digest"), written.get("model_name")) == (digest, name):
        return None

    try:
        candidate = Bundle.open(bundle)
    except InputError as error:
        return _report_damaged(error, name, digest, out_report)
    against = "none" if opponent is None else f"version {opponent.number} of {name}"
    decision = None
    if version is not None:
        decision = _recalled(registry, version, None if is_champion else key)
    is_new = decision is None
    if decision is None and rolled_back:
        decision = _refused(rolled_back, against)
    if decision is None:
        day = json.loads((features / "manifest.json").read_text(encoding="utf-8"))["days"]["gate"]
        place = 1
        if opponent is not None and day:
            place = registry.take_place(name, candidate.source, day, key)
        decision = judge(
            candidate,
            None if opponent is None else _opened(registry, opponent),
            features,
            checks,
            exclude=exclude,
            champion_not_comparable=champion_not_comparable,
            against=against,
            place=place,
            tables=tables,
            validated=validated,
            recipe=None if champions_recipe is None else _recipe(champions_recipe, candidate, opponent),
        )
    if is_champion:
        say(f"promote: this bundle is the champion already, version {champion.number if champion else ''}")
    run_id = pipeline_run()
    version = version or _register(registry, name, candidate, run_id)
    if is_new and not is_champion:
        decision = replace(decision, judged=judged, over_seeds=_over_seeds(registry, run_id, candidate))
        registry.keep(version, "gate", key, finite(asdict(decision)))
    role = _give_role(registry, version, opponent, decision, key, run_id, is_champion=is_champion)
    write_report(decision, out_report, title=f"The gate: version {version.number} of {name}", role=role)
    return {
        "verdict": decision.verdict,
        "role": role,
        "reason": decision.reason,
        "judged_against": decision.against,
        "model_name": name,
        "model_version": version.number,
        "bundle_digest": digest,
        "checks_failed": sum(check.outcome == "failed" for check in decision.checks),
        **{metric: value for metric, value in decision.metrics.items() if math.isfinite(value)},
    }


def _recipe(path: Path, candidate: Bundle, champion: Version | None) -> Bundle | None:
    """The champion's recipe on the candidate's window; None where there is no champion.

    Raises:
        InputError: it is damaged, or of other settings or another window.
    """
    if champion is None:
        return None
    recipe = Bundle.open(path)
    others = {
        "the champion's settings": (recipe.params_digest, champion.tags.get("params_digest", "")),
        "the candidate's data": (recipe.data_digest, candidate.data_digest),
        "the candidate's window": (recipe.trained_until_at, candidate.trained_until_at),
    }
    wrong = [f"not of {what}" for what, (its, wanted) in others.items() if its != wanted]
    if wrong:
        raise InputError(
            "this is not the champion's recipe on the candidate's window",
            where=str(path),
            offenders=wrong,
            remedy="`watchnext retrain-champion` makes it anew; or set promote.champions_recipe to null",
        )
    return recipe


def _over_seeds(registry: Registry, run_id: str, candidate: Bundle) -> tuple[Mapping[str, float], ...]:
    tracker = Tracker.open(registry.root)
    return tuple(tracker.over_seeds(run_id, candidate.data_digest, SEED_METRICS))


def _report_damaged(
    error: InputError, name: str, digest: str, out_report: Path
) -> dict[str, float | int | str]:
    """Reject a bundle whose files are not those of its manifest, without registering it: its digest is another's.

    Where the files are mended, the bundle is judged as if nothing had been.
    """
    told = f"{error.what}: {', '.join(str(offender) for offender in error.offenders[:3])}"
    check = Check("digests", told, "every file as packaged", "failed", _AS_PACKAGED)
    decision = Decision("rejected", f"failed: digests; {told}", (check,), {}, "none")
    write_report(decision, out_report, title=f"The gate: a damaged bundle, for {name}", role="none")
    say(f"what to do: {error.remedy}")
    return {
        "verdict": decision.verdict,
        "role": "none",
        "reason": decision.reason,
        "judged_against": decision.against,
        "model_name": name,
        "bundle_digest": digest,
        "checks_failed": 1,
    }


def _refused(rolled_back_because: str, against: str) -> Decision:
    """Of a bundle that somebody rolled back: else the next run would undo the undo."""
    check = Check(
        "rolled_back",
        rolled_back_because,
        "not rolled back",
        "failed",
        "what was taken back by hand comes back by hand alone: `watchnext rollback --to`",
    )
    return Decision(
        "rejected", f"it was champion and was rolled back: {rolled_back_because}", (check,), {}, against
    )


def judged_triple(
    challenger: str, champion: Version | None, features: Path, rules: Mapping[str, object]
) -> dict[str, str | None]:
    """Digests of who is judged, against whom, and by what evidence: the data of these features, and the rules."""
    data = json.loads((features / "manifest.json").read_text(encoding="utf-8"))["data_digest"]
    return {
        "challenger": challenger,
        "champion": None if champion is None else champion.bundle_digest,
        "evidence": digest_of({"data": data, **rules}),
    }


def digest_of(content: Mapping[str, object]) -> str:
    """sha256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _recalled(registry: Registry, version: Version, key: str | None) -> Decision | None:
    """What was decided of these by this evidence, never to be judged again; of the champion (no key), last.

    Of a version that could not be measured beside its champion nothing was decided: what stood in the way may be gone.
    """
    kept = registry.recall(version, "gate", key)
    if kept is None or (kept["verdict"] == "held" and "champion_recall_at_100" not in kept["metrics"]):
        return None
    return Decision(**{**kept, "checks": checks_of(kept), "metrics": metrics_of(kept)})


def checks_of(kept: Mapping[str, Any]) -> tuple[Check, ...]:
    """The checks of a decision that was kept as JSON."""
    return tuple(Check(**check) for check in kept["checks"])


def metrics_of(kept: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a decision that was kept as JSON, which has no NaN."""
    return {name: math.nan if value is None else value for name, value in kept["metrics"].items()}


def _opened(registry: Registry, champion: Version) -> Bundle | Unopened:
    try:
        return registry.bundle(champion)
    except UnusableBundleError as error:
        return Unopened(champion.source, error.what)


def _register(registry: Registry, name: str, bundle: Bundle, run_id: str) -> Version:
    from watchnext.recommend.signature import example_of, signature_of

    return registry.register(
        name,
        bundle,
        script=_PYFUNC,
        signature=signature_of(bundle),
        input_example=example_of(bundle),
        run_id=run_id,
    )


def _give_role(
    registry: Registry,
    version: Version,
    opponent: Version | None,
    decision: Decision,
    key: str,
    run_id: str,
    *,
    is_champion: bool,
) -> str:
    """Record the decision, then the role, then that all is done: killed anywhere, the next run does it again."""
    role = "none"
    if is_champion:
        return "champion"
    tags = {
        f"check.{check.name}": f"{check.outcome}: {check.value}, {check.bound}" for check in decision.checks
    }
    tags |= {"verdict": decision.verdict, "reason": decision.reason, "judged_against": decision.against}
    metrics = {
        name: decision.metrics[name]
        for name in HEADLINES
        if math.isfinite(decision.metrics.get(name, math.nan))
    }
    version = registry.record(version, tags, metrics)
    if decision.verdict == "challenger" and opponent is None:
        reason = "there was no champion yet, and it passed the gate"
        registry.crown(version, over=None, reason=reason, evidence="gate", run_id=run_id)
        role = "champion"
    elif decision.replaces:
        registry.crown(version, over=opponent, reason=decision.reason, evidence="gate", run_id=run_id)
        role = "champion"
    elif decision.verdict == "challenger":
        registry.challenge(version, reason=decision.reason, evidence="gate", run_id=run_id)
        role = "challenger"
    else:
        registry.dismiss(version, reason=decision.reason, evidence="gate", run_id=run_id)
    registry.record(version, {"judged_at": _now(), "gate_key": key})
    return role


def write_report(decision: Decision, out_report: Path, *, title: str, role: str) -> None:
    """Write decision.json and decision.html, and print the checks."""
    out_report.mkdir(parents=True, exist_ok=True)
    content = {**asdict(decision), "role": role}
    (out_report / "decision.json").write_text(json.dumps(finite(content), indent=1) + "\n", encoding="utf-8")
    rows = [(check.name, check.value, check.bound, check.outcome, check.reason) for check in decision.checks]
    header = ("check", "value", "bound", "outcome", "why")
    further = [*recipe_tables(decision.metrics), *seed_tables(decision.over_seeds)]
    page = html_page(
        title,
        f"{decision.verdict}: {decision.reason}",
        [
            ("Checks", header, rows),
            *further,
            (
                "Metrics, and the change from champion to candidate",
                ("metric", "champion", "candidate", "change", "over users by videos"),
                metric_rows(decision.metrics),
            ),
        ],
        before=forest_plot(decision.checks),
    )
    (out_report / "decision.html").write_text(page, encoding="utf-8")
    print_table(title, header[:4], [row[:4] for row in rows])
    for table in further:
        print_table(*table)
    say(f"verdict: {decision.verdict} ({decision.reason})")


def html_page(
    title: str,
    verdict: str,
    tables: Sequence[Table],
    body: str = "",
    *,
    before: str = "",
) -> str:
    """One page that reads well offline: title, verdict, `before`, tables, and `body`, both as they are."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
        "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;"
        "border-bottom:1px solid #ddd;vertical-align:top}td.failed{color:#a40000;font-weight:600}"
        "td.passed{color:#0a6b2d}td.not{color:#8a6d00}td.failed,td.passed,td.not{white-space:nowrap}p.verdict{font-size:1.2rem;font-weight:600}img{max-width:100%}"
    )
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="verdict">{html.escape(verdict)}</p>', before]
    for caption, header, rows in tables:
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        lines = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
        parts.append(f"<h2>{html.escape(caption)}</h2><table><tr>{heads}</tr>{lines}</table>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{style}</style><body>{''.join(parts)}{body}</body></html>\n"
    )


def _cell(text: str) -> str:
    shade = f' class="{text.split()[0]}"' if text in get_args(Outcome) else ""
    return f"<td{shade}>{html.escape(text)}</td>"


def _popular(features: Path, day: date, exclude: Exclude) -> dict[str, float]:
    from watchnext.evaluation import offline
    from watchnext.models.candidate_sources import MostPopular

    popular = MostPopular.from_statistics(features / "video_statistics", day)
    result = offline.evaluate_most_popular(popular, features / "retrieval_examples" / "gate", exclude=exclude)
    return {"popular_7_days_recall_at_100": result.metrics((100,))["recall_at_100"]}


def _co_watched(bundle: Bundle, features: Path, day: date, exclude: Exclude) -> dict[str, float]:
    """Of the bundle's own table of what is watched together, which its own training days made; none without it."""
    import dataclasses

    from watchnext.evaluation.candidates import evaluate_blend, stored_scorer
    from watchnext.features.batches import Encoder
    from watchnext.models.candidate_sources import Corpus, read_videos
    from watchnext.models.nominations import statistics_of

    encoder = Encoder.load(bundle.features)
    corpus = Corpus(encoder.vocabularies["video"], read_videos(bundle.features / "videos"))
    scorer = stored_scorer(
        encoder, corpus, bundle.recommend["sources"], bundle.path, bundle.index, bundle.sources
    )
    found = evaluate_blend(
        dataclasses.replace(scorer, quotas={"co_watched": 1}),
        statistics_of(features / "video_statistics", day),
        features / "retrieval_examples" / "gate",
        exclude=exclude,
        ks=(100,),
        max_events=_BASELINE_EVENTS,
    )
    name = "co_watched_alone_recall_at_100"
    return {"co_watched_recall_at_100": found[name]} if name in found else {}


def _trained_before(name: str, bundle: Bundle, begins: datetime) -> Check:
    passed = bundle.trained_until_at <= begins
    return Check(
        name,
        _instant(bundle.trained_until_at),
        f"<= {_instant(begins)}, when the judged day begins",
        # A champion that has seen the day is not at fault, but no comparison with it is fair.
        "passed" if passed else ("failed" if name == "trained_until_at" else "not judged"),
        "who has seen the day cannot be judged on it",
    )


def _at_least_index(measured: Mapping[str, float], check: Minimum) -> Check:
    value = measured["index_recall_at_100"]
    return Check(
        "index_recall_at_100",
        _shown(value),
        f">= {check.minimum:.4g} of brute force",
        _outcome(value, check.minimum, at_least=True),
        check.reason,
    )


def _beats(
    measured: Mapping[str, float], baseline: str, told: str, asked: Margin, *, or_equals: bool
) -> Check:
    name = f"{baseline}_recall_at_100"
    ours, needed = measured["recall_at_100"], measured[name] * (1 + asked.margin)
    outcome: Outcome = "not judged"
    if math.isfinite(ours) and math.isfinite(needed):
        outcome = "passed" if ours > needed or (or_equals and ours == needed) else "failed"
    by = f" by {asked.margin:.1%}" if asked.margin else ""
    bound = f"{'>=' if or_equals else '>'} {_shown(needed)}, {told}{by}"
    return Check(name, _shown(ours), bound, outcome, asked.reason)


def _small_enough(bundle: Bundle, asked: Maximum) -> Check:
    size_mb = sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()) / 1e6
    outcome: Outcome = "passed" if size_mb <= asked.maximum else "failed"
    return Check("size_mb", f"{size_mb:.1f}", f"<= {asked.maximum:g}", outcome, asked.reason)


def _validated(bundle: Bundle, features: Mapping[str, Any], tables: Path, validated: Path) -> Check:
    """The report of validation is about this very data: tables, features and bundle have its digest."""
    judged = json.loads((tables / "source.json").read_text(encoding="utf-8"))["digest"]
    digests = {
        "the tables": judged,
        "the features": features["data_digest"],
        "the bundle": bundle.manifest["data_digest"],
    }
    failures = json.loads(validated.read_text(encoding="utf-8")).get("expectations_failed")
    others = [who for who, digest in digests.items() if digest != judged]
    value = f"{'no' if failures == 0 else failures} failed expectations"
    if others:
        value += f", but {' and '.join(others)} of other data"
    return Check(
        "validated",
        value,
        f"no failed expectations of the data {judged[:12]}",
        "passed" if failures == 0 and not others else "failed",
        "what was judged on other data, or on data that failed, was not judged",
    )


def _final_slates(
    candidate: Bundle,
    champion: Bundle | None,
    tables: Path,
    features: Path,
    day: date,
    manifest: Mapping[str, Any],
    checks: Checks,
    confidence: float,
) -> tuple[list[Check], dict[str, float]]:
    """Requests of the gate day asked again: what the slates of both stages hold of what was watched later that day."""
    import numpy as np
    import pyarrow as pa

    from watchnext.decisions.slates import answer_all, captured, hits, read_requests
    from watchnext.evaluation.intervals import PerUser, paired_change, per_user
    from watchnext.recommend.recommender import Recommender

    asked = checks.final_slates
    requests = read_requests(tables, day, manifest["time_zone"], asked.requests)
    bundles = [candidate] if champion is None else [candidate, champion]
    answers = answer_all(
        [Recommender.open(bundle) for bundle in bundles],
        requests,
        tables,
        features,
        day,
        asked.length,
        "asking the gate day again",
    )
    watched = [number for number, request in enumerate(requests) if sum(request.watched_later.values()) > 0]
    users = pa.array([requests[number].user_id for number in watched])
    figures: dict[str, float] = {"slate_requests": len(requests)}
    shares: list[PerUser] = []
    for place, who in enumerate(("", "champion_")[: len(bundles)]):
        slates = [answers[number][place].slate for number in watched]
        found = [hits(slate, requests[number]) for slate, number in zip(slates, watched, strict=True)]
        seconds = [captured(slate, requests[number]) for slate, number in zip(slates, watched, strict=True)]
        figures[f"{who}slate_recall_at_{asked.length}"] = float(np.mean(found)) if found else math.nan
        figures[f"{who}slate_watch_time_share_at_{asked.length}"] = (
            float(np.mean(seconds)) if seconds else math.nan
        )
        figures[f"{who}latency_p50_ms"] = float(np.median([both[place].latency_ms for both in answers]))
        figures[f"{who}errors"] = float(np.mean([bool(both[place].error) for both in answers]))
        if watched:
            shares.append(per_user(np.array(seconds), users))
    failed = next((both[0].error for both in answers if both[0].error), "")
    found_checks = [
        Check(
            "answers",
            f"{figures['errors']:.2%} errors" + (f", the first: {failed}" if failed else ""),
            "no errors",
            "failed" if failed else "passed",
            "every request has to be answered",
        ),
        Check(
            "latency_p50_ms",
            f"{figures['latency_p50_ms']:.1f}",
            f"<= {asked.latency_p50_ms:g}",
            "passed" if figures["latency_p50_ms"] <= asked.latency_p50_ms else "failed",
            "people leave pages that do not come",
        ),
    ]
    if len(shares) > 1:
        name = f"slate_watch_time_share_at_{asked.length}"
        change = paired_change(*shares, level=2 * confidence - 1)
        found_checks.append(
            _no_worse(
                name,
                (figures[name], figures[f"champion_{name}"]),
                (change, change),
                asked.margin,
                confidence=confidence,
                undecided="passed",
                reason=asked.reason,
                worse=-1.0,
            )
        )
    return found_checks, figures


def _outcome(value: float, bound: float, *, at_least: bool) -> Outcome:
    if not (math.isfinite(value) and math.isfinite(bound)):
        return "not judged"
    return "passed" if (value >= bound if at_least else value <= bound) else "failed"


def sum_up(checks: Sequence[Check]) -> tuple[Verdict, str]:
    """The verdict of checks, and in one sentence why."""
    failed = [check.name for check in checks if check.outcome == "failed"]
    unjudged = [check.name for check in checks if check.outcome == "not judged"]
    if failed:
        return "rejected", "failed: " + ", ".join(failed)
    if unjudged:
        return "held", "could not be judged: " + ", ".join(unjudged)
    return "challenger", f"passed all {len(checks)} checks"


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str, str, str, str]]:
    """Every metric of a decision in one row: of champion and candidate, and the change with its intervals."""

    def of(name: str) -> str:
        return _shown(metrics[name]) if name in metrics else ""

    def ends(name: str) -> str:
        low, high = (metrics.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        return f"[{low:+.1%}, {high:+.1%}]" if math.isfinite(low) and math.isfinite(high) else ""

    rows = []
    for name in sorted(
        {name.removeprefix("champion_") for name in metrics if not name.startswith("change_")}
    ):
        change = metrics.get(f"change_{name}", math.nan)
        rows.append(
            (
                name,
                of(f"champion_{name}"),
                of(name),
                f"{change:+.1%} {ends(f'change_{name}')}" if math.isfinite(change) else "",
                ends(f"change_{name}_users_by_videos"),
            )
        )
    return rows


def recipe_tables(metrics: Mapping[str, float]) -> list[Table]:
    """What fresher data did and what another recipe did, as a table, where the champion's recipe was measured; else none."""

    def change(name: str) -> str:
        value, low, high = (metrics[f"change_{name}{end}"] for end in ("", "_low", "_high"))
        return f"{value:+.1%} [{low:+.1%}, {high:+.1%}]"

    rows = [
        (
            name,
            _shown(metrics[f"champion_{name}"]),
            change(f"by_data_{name}"),
            _shown(metrics[f"champions_recipe_{name}"]),
            change(f"by_recipe_{name}"),
            _shown(metrics[name]),
        )
        for name in SEED_METRICS
        if f"champions_recipe_{name}" in metrics
    ]
    header = (
        "metric",
        "champion",
        "fresher data",
        "its recipe on this window",
        "another recipe",
        "candidate",
    )
    return [("Recipe or data, judging nothing", header, rows)] if rows else []


def seed_tables(over_seeds: Sequence[Mapping[str, float]]) -> list[Table]:
    """How much a metric varies by seed, as a table, where more than one seed was run; else none."""
    rows = []
    for name in SEED_METRICS:
        values = [found[name] for found in over_seeds if math.isfinite(found.get(name, math.nan))]
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            deviation = statistics.stdev(values)
            share = f"{deviation / mean:.1%} of the mean" if mean else ""
            rows.append((name, str(len(values)), _shown(min(values)), _shown(max(values)), share))
    caption = "By seed: the same settings on the same data, judging nothing"
    return [(caption, ("metric", "seeds", "lowest", "highest", "standard deviation"), rows)] if rows else []


def _shown(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "none"


def finite(content: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
