"""The gate: may this bundle challenge the champion?

Candidate and champion are measured in one run on the same examples of the gate day, each with its own encoder,
and every check states its value, its bound and why it is there. Nothing here depends on what an earlier run of
the champion recorded.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from watchnext.bundle import Bundle, read_digest
from watchnext.config import Exclude
from watchnext.console import say
from watchnext.data.split import day_begins_at
from watchnext.decisions.checks import (
    Check,
    Checks,
    Margin,
    Maximum,
    Minimum,
    Outcome,
    against_the_champion,
    no_worse_by,
    outcome_of,
    percent,
    readable,
    slices_with_users,
)
from watchnext.decisions.gate_report import SEED_METRICS, write_report
from watchnext.decisions.kept import checks_of, digest_of, finite, judged_triple, metrics_of
from watchnext.decisions.ledger import spent_on
from watchnext.decisions.measuring import (
    NotComparableError,
    about_the_champion,
    change_metrics,
    co_watched_recall,
    measure,
    popular_recall,
)
from watchnext.errors import InputError
from watchnext.registry import Registry, UnusableBundleError, Version
from watchnext.tracking import Tracker

if TYPE_CHECKING:
    pass

Verdict = Literal["challenger", "rejected", "held"]
NotComparable = Literal["hold", "replace"]
"""What becomes of a candidate whose champion cannot be measured on its data: see `judge`."""

HEADLINES = (
    "recall_at_100",
    "popular_7_days_recall_at_100",
    "map",
    "weighted_pairwise_loss",
    "index_recall_at_100",
)
"""What `watchnext status` shows of a version; the run that it leads back to has the rest."""

SMOKE_SLATE = 20

_RECIPE_REMEDY = "`watchnext retrain-champion` makes it anew; or set promote.champions_recipe to null"
_AS_PACKAGED = "what was judged is what will be served"

_FORMAT = 7
"""Raise it when a change of this code changes what a decision means: bundles are then judged anew."""
_PYFUNC = Path(__file__).parents[1] / "serving" / "pyfunc.py"
"""The script that MLflow stores with a version. A path, since what it is made of lies above this layer."""


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
    measured |= popular_recall(features, day, exclude) | co_watched_recall(candidate, features, day, exclude)
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
            judged = len(slices_with_users(ours, checks.slices.at_least_users))
            measured |= {"slices_judged": judged}
            measured |= {"slices_of_too_few_users": len(slices_with_users(ours, 0)) - judged}
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
            found.append(Check(name, readable(measured[name]), bound, outcome, check.reason))
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


def _comparable(problem: str, rule: NotComparable) -> Check:
    outcome: Outcome = "passed" if not problem or rule == "replace" else "not judged"
    return Check(
        "champion_comparable",
        f"no: {problem}" if problem else "yes",
        "measured on the same examples, or champion_not_comparable: replace",
        outcome,
        "a champion that the present logs cannot be read with must not stand in the way unnoticed",
    )


def _place_of_day(day: str, place: int, asked: float, confidence: float) -> Check:
    return Check(
        "challengers_of_the_day",
        f"{place} on {day}",
        f"{percent(asked)} over all of them: {percent(confidence)} for this one",
        "passed",
        "a day that judges many is bound to flatter one",
    )


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
    if champions_recipe is not None and opponent is not None:
        rules["champions_recipe"] = _recipes_digest(champions_recipe)
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
        # Refused, if it is, before a place of the day is spent: nothing has been looked at yet.
        recipe = None if champions_recipe is None else _recipe(champions_recipe, candidate, opponent)
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
            recipe=recipe,
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
            remedy=_RECIPE_REMEDY,
        )
    return recipe


def _recipes_digest(path: Path) -> str:
    try:
        return read_digest(path)
    except InputError as error:
        raise InputError(
            f"the champion's recipe cannot be read: {error.what}",
            where=error.where,
            offenders=error.offenders,
            remedy=_RECIPE_REMEDY,
        ) from error


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


def _recalled(registry: Registry, version: Version, key: str | None) -> Decision | None:
    """What was decided of these by this evidence, never to be judged again; of the champion (no key), last.

    Of a version that could not be measured beside its champion nothing was decided: what stood in the way may be gone.
    """
    kept = registry.recall(version, "gate", key)
    if kept is None or (kept["verdict"] == "held" and "champion_recall_at_100" not in kept["metrics"]):
        return None
    return Decision(**{**kept, "checks": checks_of(kept), "metrics": metrics_of(kept)})


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
    elif decision.verdict == "challenger" and opponent is not None:
        registry.challenge(version, over=opponent, reason=decision.reason, evidence="gate", run_id=run_id)
        role = "challenger"
    else:
        registry.dismiss(version, reason=decision.reason, evidence="gate", run_id=run_id)
    registry.record(version, {"judged_at": _now(), "gate_key": key})
    return role


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
        readable(value),
        f">= {check.minimum:.4g} of brute force",
        outcome_of(value, check.minimum, at_least=True),
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
    bound = f"{'>=' if or_equals else '>'} {readable(needed)}, {told}{by}"
    return Check(name, readable(ours), bound, outcome, asked.reason)


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
    from watchnext.evaluation.intervals import PerUser, per_user
    from watchnext.evaluation.paired import paired_change
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
            no_worse_by(
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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
