"""The shadow comparison: champion and challenger answer the same requests of the shadow day.

Every request is answered by both from what was known at its instant. Overlap of the slates, their hits, errors and
latency can veto a challenger, and so can what a server's live shadow saw of them. They cannot show that users would watch
more: that takes causal evidence (see `causal` and `experiment`).
The setting `evidence: offline` crowns a challenger that nothing vetoes all the same, and the version says so.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from watchnext.bundle import read_digest
from watchnext.config import Exclude, Section
from watchnext.console import say
from watchnext.data.split import day_begins_at
from watchnext.decisions.assortment import Catalogue, assortment
from watchnext.decisions.causal import CHECK as PROPENSITIES
from watchnext.decisions.causal import (
    RANDOM_CHECK,
    Page,
    not_told,
    pool_of,
    random_exposure_check,
    watch_time_check,
)
from watchnext.decisions.checks import Check, Margin, no_worse
from watchnext.decisions.experiment import experiment_check, read_experiment
from watchnext.decisions.experiment import not_told as experiment_not_told
from watchnext.decisions.kept import checks_of, digest_of, finite, judged_triple, metrics_of
from watchnext.decisions.live_log import digest_of_log, live_figures
from watchnext.decisions.measuring import (
    Measured,
    NotComparableError,
    about_the_champion,
    change_metrics,
    measure,
)
from watchnext.decisions.page import html_page
from watchnext.decisions.replay_report import write_report
from watchnext.decisions.slates import (
    Paired,
    Request,
    random_exposures,
    read_requests,
    replay,
    statistics_of,
    summarize,
)
from watchnext.errors import InputError
from watchnext.features.history import Id
from watchnext.recommend.recommender import Recommender
from watchnext.registry import Registry, UnusableBundleError, Version
from watchnext.tracking import Tracker

if TYPE_CHECKING:
    from watchnext.evaluation.intervals import Change

Verdict = Literal["crown", "keep", "continue"]
Evidence = Literal["offline", "causal"]

_FORMAT = 8
"""Raise it when a change of this code changes what a comparison means: the same two are then compared anew."""

SLICE_USERS = 30
"""A slice with fewer is not shown: its interval would say nothing."""

T = TypeVar("T")


class Floor(Section):
    """A veto below a bound."""

    minimum: float = Field(ge=0, le=1)
    reason: str


class Share(Section):
    """A veto above a share."""

    maximum_share: float = Field(ge=0, le=1)
    reason: str


class Slower(Section):
    """A veto for a challenger that answers much slower; never for one that answers within `at_least_ms`."""

    maximum_ratio: float = Field(gt=0)
    at_least_ms: float = Field(ge=0)
    reason: str


class Vetoes(Section):
    """What keeps a challenger from the crown, `compare_shadow.vetoes` in params.yaml.

    Attributes:
        confidence: of the intervals of what has a margin; there harm has to be shown, the gate asked for the contrary.
    """

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    recall_at_100: Margin = Margin(margin=0.05, reason="no worse on the day after the gate day either")
    weighted_pairwise_loss: Margin = Margin(
        margin=0.05, reason="no worse on the day after the gate day either"
    )
    slate_overlap: Floor = Floor(minimum=0.0, reason="slates that share nothing deserve a look; 0 = no veto")
    errors: Share = Share(maximum_share=0.0, reason="every request has to be answered")
    latency_p50_ms: Slower = Slower(maximum_ratio=3.0, at_least_ms=100.0, reason="answers must stay quick")


class Live(Section):
    """What a server saw of both, `compare_shadow.live` in params.yaml. Folders are relative to the project.

    Attributes:
        shadow_log: folder of the challenger's answers to live requests; None: replay alone. Given, it is asked for: where
            it is of other versions, or there is none, the challenger waits.
        experiment: folder with the log of a live experiment, the causal evidence in place of logged propensities.
        planned_users: of both arms together, when the experiment's interval is to be narrowest; fixed before it begins.
        error_rate: of the experiment, over all looks.
    """

    shadow_log: str | None = None
    experiment: str | None = None
    planned_users: int = Field(default=20_000, ge=200)
    error_rate: float = Field(default=0.05, gt=0, lt=0.5)


@dataclass(frozen=True)
class SliceChange:
    """Both models in one part of the shadow day.

    Attributes:
        name: of the slice.
        metric: recall_at_100 or weighted_pairwise_loss.
        users: how many it has.
        champion: its metric.
        challenger: its metric.
        value: the challenger's over the champion's, less 1.
        low: end of the interval over users, which alone holds at the confidence of the vetoes.
        high: the other end.
    """

    name: str
    metric: str
    users: int
    champion: float
    challenger: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What the shadow day says.

    Attributes:
        verdict: `crown`, `keep`, or `continue` where the evidence asked for is not there yet.
        reason: one sentence.
        evidence: what the verdict rests on.
        checks: every veto, and whether it was raised (`failed`).
        metrics: champion_*, challenger_* and what belongs to the pair.
        judged: digests of `challenger`, `champion` and `evidence`.
        slices: both in each part of the day; shown, and vetoing nothing, since the gate has judged them.
        compare_url: where the MLflow UI shows the runs of both side by side.
    """

    verdict: Verdict
    reason: str
    evidence: Evidence
    checks: tuple[Check, ...]
    metrics: Mapping[str, float]
    judged: Mapping[str, str | None] = field(default_factory=dict)
    slices: tuple[SliceChange, ...] = ()
    compare_url: str = ""


def decide(
    metrics: Mapping[str, float],
    changes: Mapping[str, "Change"],
    vetoes: Vetoes,
    *,
    length: int,
    evidence: Evidence,
    causal: Check | None = None,
    live: Sequence[Check] = (),
) -> Comparison:
    """Weigh the figures of the shadow day.

    Args:
        metrics: of `summarize`, and of `measure` of both with the prefixes champion_ and challenger_.
        changes: from champion to challenger, see `Measured.changes`.
        vetoes: bounds and reasons.
        length: of the slates.
        evidence: what it takes to crown.
        causal: whether users would watch more, where that is asked for.
        live: of the server's shadow log, where that is asked for, see `answering`.
    """
    ours, theirs = (
        {name.removeprefix(who): value for name, value in metrics.items() if name.startswith(who)}
        for who in ("challenger_", "champion_")
    )
    checks = no_worse(
        ours,
        theirs,
        changes,
        vetoes.recall_at_100,
        vetoes.weighted_pairwise_loss,
        confidence=vetoes.confidence,
        undecided="passed",
    )
    checks += answering(
        metrics[f"slate_overlap_at_{length}"], ours, theirs, vetoes, f"slate_overlap_at_{length}"
    )
    checks.append(_something_to_compare(metrics["same_slates"]))
    checks += live
    if causal is not None:
        checks.append(causal)
    raised = [check.name for check in checks if check.outcome == "failed"]
    unjudged = [check.name for check in checks if check.outcome == "not judged" and check is not causal]
    if raised:
        return Comparison("keep", "vetoed: " + ", ".join(raised), evidence, tuple(checks), metrics)
    if unjudged:
        reason = "could not be judged: " + ", ".join(unjudged)
        return Comparison("continue", reason, evidence, tuple(checks), metrics)
    if evidence == "causal" and causal is not None and causal.outcome == "passed":
        how = {
            PROPENSITIES: "the logged propensities users would watch",
            RANDOM_CHECK: "the random exposures users would watch",
        }.get(causal.name, "the live experiment users watch")
        reason = f"no veto, and by {how} more"
        return Comparison("crown", reason, evidence, tuple(checks), metrics)
    if evidence == "causal":
        reason = "no veto, but there is no causal evidence yet that users would watch more"
        if causal is not None:
            reason += f": {causal.value}"
        return Comparison("continue", reason, evidence, tuple(checks), metrics)
    reason = "no veto on the shadow day; by offline evidence alone, as `evidence: offline` allows"
    return Comparison("crown", reason, evidence, tuple(checks), metrics)


def _something_to_compare(same_slates: float) -> Check:
    """Whether the two can be told apart at all by what users would have been shown."""
    return Check(
        "same_slates",
        f"{same_slates:.2%}",
        "< 100 % of the requests",
        "passed" if same_slates < 1 else "not judged",
        "where all slates are the same, nothing on this day tells one model from the other",
    )


def answering(
    overlap: float,
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    vetoes: Vetoes,
    name: str,
    who: str = "",
) -> list[Check]:
    """The vetoes of how the challenger answers, beside the champion: overlap, errors and median latency.

    Args:
        overlap: of the slates.
        ours: `errors` and `latency_p50_ms` of the challenger.
        theirs: of the champion.
        vetoes: bounds and reasons.
        name: of the first check.
        who: before the names of the others.
    """
    floor, allowed, slower = vetoes.slate_overlap.minimum, vetoes.errors.maximum_share, vetoes.latency_p50_ms
    limit = max(slower.at_least_ms, slower.maximum_ratio * theirs["latency_p50_ms"])
    return [
        Check(
            name,
            f"{overlap:.4f}",
            f">= {floor:.4g}",
            "passed" if overlap >= floor else "failed",
            vetoes.slate_overlap.reason,
        ),
        Check(
            f"{who}errors",
            f"{ours['errors']:.2%}",
            f"<= {allowed:.2%} of the requests",
            "passed" if ours["errors"] <= allowed else "failed",
            vetoes.errors.reason,
        ),
        Check(
            f"{who}latency_p50_ms",
            f"{ours['latency_p50_ms']:.1f}",
            f"<= {limit:.1f} ({slower.maximum_ratio:g} times the champion's, at least {slower.at_least_ms:g})",
            "passed" if ours["latency_p50_ms"] <= limit else "failed",
            slower.reason,
        ),
    ]


def compare_and_crown(
    registry: Registry,
    *,
    name: str,
    bundle: Path,
    features: Path,
    tables: Path,
    evidence: Evidence,
    requests: int,
    slate_length: int,
    exclude: Exclude,
    vetoes: Vetoes,
    live: Live,
    pipeline_run: Callable[[], str],
    previous_metrics: Mapping[str, Any] | None,
    out_report: Path,
) -> dict[str, float | int | str] | None:
    """Compare champion and challenger on the shadow day and move the alias if the verdict says so.

    Args:
        registry: where they are.
        name: registered model, the one that `promote` made the bundle a version of.
        bundle: directory of the present bundle.
        features: outputs of featurize, for the shadow day's examples and statistics.
        tables: validated tables, for its requests.
        evidence: what it takes to crown.
        requests: how many requests to replay.
        slate_length: of the slates.
        exclude: as for `evaluate`.
        vetoes: bounds and reasons.
        live: what a server saw of both. What it logged since is new evidence, and the two are then judged anew.
        pipeline_run: gives the id of this execution's MLflow run.
        previous_metrics: what this stage returned last, if its outputs still stand; else None.
        out_report: where decision.json, decision.html and the plots go.

    Returns:
        metrics, or None when these two were compared on this data by these rules before, or nobody challenges.
    """
    present = read_digest(bundle)
    registry.tidy(name)
    champion, challenger = registry.role(name, "champion"), registry.role(name, "challenger")
    if champion is None or challenger is None:
        return _without_challenger(
            registry,
            registry.find(name, present),
            champion,
            present,
            slate_length,
            pipeline_run,
            previous_metrics or {},
            out_report,
        )
    manifest = json.loads((features / "manifest.json").read_text(encoding="utf-8"))
    rules = {
        "format": _FORMAT,
        "day": "shadow",
        "evidence": evidence,
        "requests": requests,
        "slate_length": slate_length,
        "exclude": exclude,
        "vetoes": vetoes.model_dump(),
        "live": live.model_dump(),
        "live_logs": [
            None if log is None else digest_of_log(Path(log)) for log in (live.shadow_log, live.experiment)
        ],
    }
    judged = judged_triple(challenger.bundle_digest, champion, features, rules)
    key = digest_of(judged)
    done = challenger.tags.get("shadow_key") == key
    if done and _stands(previous_metrics or {}, challenger, champion.number):
        return None

    kept = registry.recall(challenger, "shadow", key)
    if kept is not None and kept["verdict"] == "continue" and not kept["checks"]:
        kept = None  # they could not be compared: what stood in the way may be gone
    if kept is not None:
        comparison, paired = _restored(kept)
    else:
        comparison, paired = _compare(
            registry, champion, challenger, manifest, features, tables, rules, vetoes, live
        )
    run_id = pipeline_run()
    if kept is None:
        runs = [version.run_id for version in (champion, challenger)]
        comparison = replace(
            comparison, judged=judged, compare_url=Tracker.open(registry.root).compare_url(runs)
        )
        content = {**asdict(comparison), "paired": [asdict(pair) for pair in paired]}
        registry.keep(challenger, "shadow", key, finite(content))
    _settle(registry, champion, challenger, comparison, key, run_id)
    return _report(comparison, paired, challenger, champion.number, slate_length, out_report)


def _without_challenger(
    registry: Registry,
    version: Version | None,
    champion: Version | None,
    present: str,
    slate_length: int,
    pipeline_run: Callable[[], str],
    written: Mapping[str, Any],
    out_report: Path,
) -> dict[str, float | int | str] | None:
    """Nobody challenges: write what was decided about this bundle, unless it is written, or that there is nothing.

    What was decided counts only as far as the registry agrees: it may be a new one, or the champion another.
    """
    against = _decided_against(version, champion)
    if version is not None and against is not None:
        key = str(version.decided("shadow"))
        finished = version.tags.get("shadow_key") == key
        if finished and _stands(written, version, against):
            return None
        kept = registry.recall(version, "shadow")
        if kept is not None:
            pipeline_run()
            if not finished:  # killed after the roles had changed
                _mark_done(registry, version, key)
            comparison, paired = _restored(kept)
            return _report(comparison, paired, version, against, slate_length, out_report)
    who = "there is no challenger" if champion is not None else "there is no champion yet"
    reason = f"{who}: nothing to compare"
    if (written.get("bundle_digest"), written.get("reason")) == (present, reason):
        return None
    return _nothing(reason, present, out_report)


def _decided_against(version: Version | None, champion: Version | None) -> int | None:
    """Number of the version that `version` was compared with, if the roles of now are what came of it; else None."""
    if version is None or champion is None or version.decided("shadow") is None:
        return None
    against = version.tags.get("shadow_against", "").removeprefix("version ")
    expected = str(version.number) if version.tags.get("shadow_verdict") == "crown" else against
    return int(against) if against and str(champion.number) == expected else None


def _stands(written: Mapping[str, Any], challenger: Version, champion: int) -> bool:
    """Whether the metrics of last time are about this comparison."""
    return (
        written.get("bundle_digest") == challenger.bundle_digest
        and written.get("model_name") == challenger.name
        and written.get("challenger_version") == challenger.number
        and written.get("champion_version") == champion
        and written.get("verdict") == challenger.tags.get("shadow_verdict")
    )


def _restored(kept: Mapping[str, Any]) -> tuple[Comparison, list[Paired]]:
    comparison = Comparison(
        kept["verdict"],
        kept["reason"],
        kept["evidence"],
        checks_of(kept),
        metrics_of(kept),
        kept["judged"],
        # Decisions that were kept before there were these have none.
        tuple(_slice_of(one) for one in kept.get("slices", ())),
        kept.get("compare_url", ""),
    )
    paired = [
        Paired(
            pair["overlap"],
            pair["rank_biased_overlap"],
            _two(math.nan if share is None else share for share in pair["hits"]),
            _two(math.nan if share is None else share for share in pair["captured"]),
            _two(pair["latency_ms"]),
            _two(pair["errors"]),
            _two(pair["slates"]),
            _two(
                math.nan if seconds is None else seconds
                for seconds in pair.get("own_expected_s", (None, None))
            ),
        )
        for pair in kept["paired"]
    ]
    return comparison, paired


def _slice_of(kept: Mapping[str, Any]) -> SliceChange:
    content: dict[str, Any] = {key: math.nan if value is None else value for key, value in kept.items()}
    return SliceChange(**content)


def _two(values: Iterable[T]) -> tuple[T, T]:
    first, second = values
    return first, second


def _report(
    comparison: Comparison,
    paired: Sequence[Paired],
    challenger: Version,
    champion: int,
    slate_length: int,
    out_report: Path,
) -> dict[str, float | int | str]:
    title = (
        f"Shadow day: version {challenger.number} against champion version {champion} of {challenger.name}"
    )
    write_report(comparison, paired, slate_length, out_report, title)
    return {
        "verdict": comparison.verdict,
        "reason": comparison.reason,
        "evidence": comparison.evidence,
        "model_name": challenger.name,
        "champion_version": champion,
        "challenger_version": challenger.number,
        "bundle_digest": challenger.bundle_digest,
        **{metric: value for metric, value in comparison.metrics.items() if math.isfinite(value)},
    }


def _compare(
    registry: Registry,
    champion: Version,
    challenger: Version,
    manifest: Mapping[str, Any],
    features: Path,
    tables: Path,
    rules: Mapping[str, Any],
    vetoes: Vetoes,
    live: Live,
) -> tuple[Comparison, list[Paired]]:
    evidence: Evidence = rules["evidence"]
    if champion.source != challenger.source:
        return Comparison("continue", "models of different sources are not compared", evidence, (), {}), []
    shadow = manifest["days"]["shadow"]
    if not shadow:
        reason = "the logs have too few days for a shadow day"
        return Comparison("continue", reason, evidence, (), {}), []
    day = date.fromisoformat(shadow)
    begins = day_begins_at(day, manifest["time_zone"])
    bundles = {"challenger": registry.bundle(challenger)}
    try:
        bundles["champion"] = registry.bundle(champion)
    except UnusableBundleError as error:
        return _not_comparable(error.what, evidence), []
    late = [who for who, bundle in bundles.items() if bundle.trained_until_at > begins]
    if late:
        reason = (
            f"{' and '.join(late)} has been trained on the shadow day {shadow}: no comparison on it is fair"
        )
        return Comparison("continue", reason, evidence, (), {}), []
    # The challenger first: what then fails by the same code on the same examples is the champion.
    ours = measure(bundles["challenger"], features, "shadow", exclude=rules["exclude"])
    second = Recommender.open(bundles["challenger"])
    try:
        with about_the_champion():
            theirs = measure(bundles["champion"], features, "shadow", exclude=rules["exclude"])
            first = Recommender.open(bundles["champion"])
        changes = ours.changes(theirs, vetoes.confidence)
    except NotComparableError as error:
        return _not_comparable(str(error), evidence), []
    asked = read_requests(tables, day, manifest["time_zone"], rules["requests"])
    paired = replay(first, second, asked, tables, features, day, rules["slate_length"])
    metrics = summarize(paired, rules["slate_length"]) | change_metrics(changes)
    catalogue = Catalogue.of(features, statistics_of(features, day))
    asked_at = [request.at for request in asked]
    for place, (who, measured) in enumerate((("champion", theirs), ("challenger", ours))):
        metrics |= {f"{who}_{metric}": value for metric, value in measured.metrics.items()}
        made_of = assortment([pair.slates[place] for pair in paired], asked_at, catalogue)
        metrics |= {f"{who}_{figure}": value for figure, value in made_of.items()}
    causal = None
    if evidence == "causal":
        if live.experiment is None:
            looked_at = {name: rules[name] for name in ("day", "requests", "slate_length", "exclude")}
            look = digest_of(judged_triple(challenger.bundle_digest, champion, features, looked_at))
            place = registry.take_place(challenger.name, challenger.source, f"shadow.{shadow}", look)
            causal, figures = _causal_check(
                asked, paired, (first, second), tables, features, day, manifest["time_zone"], rules, place
            )
        else:
            causal, figures = _experiment_check(live, champion.number, challenger.number)
        metrics |= figures
    seen: Sequence[Check] = ()
    if live.shadow_log is not None:
        seen, figures = _live_checks(Path(live.shadow_log), champion.number, challenger.number, vetoes)
        metrics |= figures
    comparison = decide(
        metrics, changes, vetoes, length=rules["slate_length"], evidence=evidence, causal=causal, live=seen
    )
    return replace(comparison, slices=slice_changes(ours, theirs, vetoes.confidence)), paired


def slice_changes(ours: Measured, theirs: Measured, confidence: float) -> tuple[SliceChange, ...]:
    """Both in every part of the day that has `SLICE_USERS`: to be looked at, since the gate judged its own day's.

    Args:
        ours: the challenger.
        theirs: the champion, on the same examples.
        confidence: of each end of an interval.
    """
    from watchnext.evaluation.paired import paired_change

    found = []
    for name, by_metric in sorted(ours.slices.items()):
        for metric, own in sorted(by_metric.items()):
            other = theirs.slices[name][metric]
            users = int((own.counts > 0).sum())
            if users < SLICE_USERS:
                continue
            change = paired_change(own, other, level=2 * confidence - 1)
            ends = (change.value, change.low, change.high)
            found.append(SliceChange(name, metric, users, other.mean, own.mean, *ends))
    return tuple(found)


def _experiment_check(live: Live, champion: int, challenger: int) -> tuple[Check, dict[str, float]]:
    try:
        experiment = read_experiment(Path(str(live.experiment)), champion=champion, challenger=challenger)
    except InputError as error:
        return experiment_not_told(error, live.error_rate), {}
    return experiment_check(experiment, planned_users=live.planned_users, error_rate=live.error_rate)


def _live_checks(
    log: Path, champion: int, challenger: int, vetoes: Vetoes
) -> tuple[list[Check], dict[str, float]]:
    try:
        figures = live_figures(log, champion=champion, challenger=challenger)
    except InputError as error:
        offenders = ", ".join(str(offender) for offender in error.offenders)
        value = error.what + (f" ({offenders})" if offenders else "")
        return [Check("live_shadow_log", value, f"rows of both in {log}", "not judged", "asked for")], {}
    ours, theirs = (
        {name: figures[f"{who}_live_{name}"] for name in ("errors", "latency_p50_ms")}
        for who in ("challenger", "champion")
    )
    overlap = figures["live_slate_overlap"]
    return answering(overlap, ours, theirs, vetoes, "live_slate_overlap", "live_"), figures


def _causal_check(
    asked: Sequence[Request],
    paired: Sequence[Paired],
    both: tuple[Recommender, Recommender],
    tables: Path,
    features: Path,
    day: date,
    time_zone: str,
    rules: Mapping[str, Any],
    place: int,
) -> tuple[Check, dict[str, float]]:
    """By uniformly random exposures where the day has them, else by the propensities of the pages."""
    import pyarrow as pa

    from watchnext.features.ranking_features import COUNTS

    past = statistics_of(features, day).videos
    impressions, watch_time_ms = COUNTS.index("impressions"), COUNTS.index("watch_time_ms")

    def expected_s(video_id: Id) -> float:
        counts = past.of(pa.array([video_id]))[0]
        return float(counts[watch_time_ms] / 1000 / counts[impressions]) if counts[impressions] else 0.0

    exposed = random_exposures(tables, day, time_zone)
    if exposed:
        try:
            pool = pool_of(exposed)
        except InputError as error:
            return not_told(RANDOM_CHECK, error, place), {}
        asked = read_requests(tables, day, time_zone, rules["requests"], only_random=True)
        paired = replay(*both, asked, tables, features, day, rules["slate_length"])
        return random_exposure_check(_pages(asked, paired), pool, expected_s, place)
    return watch_time_check(_pages(asked, paired), expected_s, place)


def _pages(asked: Sequence[Request], paired: Sequence[Paired]) -> list[Page]:
    return [
        Page(request.user_id, request.shown, pair.slates) for request, pair in zip(asked, paired, strict=True)
    ]


def _not_comparable(problem: str, evidence: Evidence) -> Comparison:
    reason = (
        f"the champion cannot be measured on the shadow day: {problem}."
        " To have a bundle replace it that passes the gate alone: promote.champion_not_comparable: replace"
    )
    return Comparison("continue", reason, evidence, (), {})


def _settle(
    registry: Registry, champion: Version, challenger: Version, comparison: Comparison, key: str, run_id: str
) -> None:
    """Record the comparison, then move the roles, then that all is done."""
    tags = {
        f"shadow.{check.name}": f"{check.outcome}: {check.value}, {check.bound}"
        for check in comparison.checks
    }
    tags |= {
        "shadow_verdict": comparison.verdict,
        "shadow_reason": comparison.reason,
        "shadow_against": f"version {champion.number}",
        "evidence": comparison.evidence,
        "compare_url": comparison.compare_url,
    }
    version = registry.record(challenger, tags)
    why = {"reason": comparison.reason, "evidence": comparison.evidence, "run_id": run_id}
    if comparison.verdict == "crown":
        registry.crown(version, over=champion, **why)
    elif comparison.verdict == "keep":
        registry.dismiss(version, **why)
    _mark_done(registry, version, key)


def _mark_done(registry: Registry, version: Version, key: str) -> None:
    registry.record(
        version, {"shadow_at": datetime.now(UTC).isoformat(timespec="seconds"), "shadow_key": key}
    )


def _nothing(reason: str, bundle_digest: str, out_report: Path) -> dict[str, float | int | str]:
    out_report.mkdir(parents=True, exist_ok=True)
    content: dict[str, float | int | str] = {
        "verdict": "none",
        "reason": reason,
        "bundle_digest": bundle_digest,
    }
    (out_report / "decision.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out_report / "decision.html").write_text(html_page("Shadow day", reason, []), encoding="utf-8")
    say(f"compare_shadow: {reason}")
    return {**content}
