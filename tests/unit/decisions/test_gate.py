"""The gate: what passes, what does not, and a registry that ends the same however often it was killed."""

import hashlib
import inspect
import json
import math
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_mlflow import Killed, KilledAtWrite
from tiny_world import as_format_1, make_bundle

from watchnext.bundle import Bundle
from watchnext.config import RecommendParams
from watchnext.decisions import gate
from watchnext.decisions.checks import (
    Check,
    Checks,
    FinalSlates,
    Improvement,
    Margin,
    Maximum,
    Minimum,
    Slices,
    against_the_champion,
    better,
    no_worse,
    no_worse_in_slices,
)
from watchnext.decisions.gate import Decision, judge, promote_bundle
from watchnext.decisions.gate_report import metric_rows, recipe_tables, seed_tables, write_report
from watchnext.decisions.measuring import Measured
from watchnext.errors import InputError
from watchnext.evaluation.intervals import Change, PerUser
from watchnext.registry import Registry
from watchnext.stages import compare_shadow, evaluate, package, promote
from watchnext.tracking import Tracker

PASSED = Decision("challenger", "passed all checks", (), {"recall_at_100": 0.5}, "none")
REJECTED = Decision("rejected", "failed: recall_at_100", (), {"recall_at_100": 0.1}, "version 1 of watchnext")


def outcomes(decision: Decision) -> dict[str, str]:
    return {check.name: check.outcome for check in decision.checks}


SAME = {"recall_at_100": 0.2, "weighted_pairwise_loss": 0.3}
NONE = Change(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("low", "high", "proof_asked", "harm_asked"),
    [
        (-0.01, 0.02, "passed", "passed"),  # shown to be within the margin, and no harm shown
        (-0.049, -0.01, "passed", "passed"),  # shown to be worse, and by less than the margin
        (-0.051, -0.01, "failed", "failed"),  # shown to be worse, not shown to be within the margin
        (-0.20, -0.10, "failed", "failed"),
        (-0.051, 0.01, "not judged", "passed"),  # neither is shown
        (math.nan, math.nan, "not judged", "not judged"),
    ],
)
@pytest.mark.parametrize("metric", ["recall_at_100", "weighted_pairwise_loss"])
def test_harm_has_to_be_below_its_margin(
    low: float, high: float, proof_asked: str, harm_asked: str, metric: str
) -> None:
    """Ends as of recall, which is worse when it falls; of a loss the ends swap signs and places."""
    if metric == "weighted_pairwise_loss":
        low, high = -high, -low
    changes = {**dict.fromkeys(SAME, NONE), metric: Change((low + high) / 2, low, high, 0.01)}
    for undecided, expected in (("not judged", proof_asked), ("passed", harm_asked)):
        checks = no_worse(
            SAME,
            SAME,
            changes,
            Margin(margin=0.05, reason=""),
            Margin(margin=0.05, reason=""),
            confidence=0.95,
            undecided=undecided,
        )
        found = {check.name: check for check in checks}
        assert found.pop(metric).outcome == expected
        (other,) = found.values()
        assert other.outcome == "passed"


def test_without_power_the_check_says_what_could_have_been_seen() -> None:
    """(z of 0.95 + z of 0.8) standard errors: (1.645 + 0.842) * 0.04."""
    changes = {**dict.fromkeys(SAME, NONE), "recall_at_100": Change(-0.01, -0.08, 0.06, 0.04)}
    margins = Margin(margin=0.05, reason=""), Margin(margin=0.05, reason="")
    recall, loss = no_worse(SAME, SAME, changes, *margins, confidence=0.95, undecided="not judged")
    assert pytest.approx(0.0995, abs=1e-4) == (1.645 + 0.842) * 0.04
    assert "this day shows 9.9% of equal models" in recall.bound
    assert "this day" not in loss.bound


@pytest.mark.parametrize(
    ("hits", "outcome"),
    [
        ([1.0], "not judged"),  # one user tells nothing of others
        ([math.nan, 1.0, 1.0], "not judged"),
        ([1.0, 1.0, 1.0], "passed"),  # the same on every user
        ([0.0, 0.0, 0.0], "failed"),
    ],
)
def test_days_that_hardly_are_one(hits: list[float], outcome: str) -> None:
    """Meant to fail where one user's interval had no width."""
    counts = np.full(len(hits), 2.0)
    ours = Measured(SAME, {"recall_at_100": PerUser(np.array(hits), counts)})
    theirs = Measured(SAME, {"recall_at_100": PerUser(np.ones(len(hits)), counts)})
    changes = {**dict.fromkeys(SAME, NONE), **ours.changes(theirs, 0.95)}
    margin = Margin(margin=0.05, reason="for users")
    check, _ = no_worse(SAME, SAME, changes, margin, margin, confidence=0.95, undecided="not judged")
    assert check.outcome == outcome
    assert ("this day shows" in check.bound) == (outcome == "failed")


def in_slices(users: int, shares: dict[str, float], seed: int) -> tuple[Measured, Measured]:
    """Two models of which ours hits a share of theirs in each slice, and as many users in each."""
    rng = np.random.default_rng(seed)
    ours, theirs = {}, {}
    for name, share in shares.items():
        base = rng.uniform(0.2, 0.6, users)
        for model, scale in ((ours, share), (theirs, 1.0)):
            hits = scale * base + rng.normal(0, 0.05, users)
            model[name] = {"recall_at_100": PerUser(hits, np.ones(users))}
    return Measured({}, {}, ours), Measured({}, {}, theirs)


@pytest.mark.parametrize(
    ("users", "share", "passing", "holding"),
    [
        (400, 1.0, "passed", "passed"),
        (400, 0.95, "passed", "passed"),  # harm, and shown to be below the margin
        (400, 0.85, "failed", "failed"),
        (6, 1.0, "passed", "not judged"),  # too few users to tell
    ],
)
def test_harm_to_one_slice_is_not_hidden_by_the_others(
    users: int, share: float, passing: str, holding: str
) -> None:
    """Meant to fail with the outcome of a mean over slices."""
    measured = in_slices(users, {"new_users": share, "surface_home": 1.2}, seed=5)
    for rule, expected in (("pass", passing), ("hold", holding)):
        asked = Slices(without_power=rule, at_least_users=5)
        new, home = no_worse_in_slices(*measured, asked, 0.975)
        assert (new.name, new.outcome, home.outcome) == ("recall_at_100.new_users", expected, "passed")
    if users < 10:
        assert "this day shows" in new.bound
        assert new.harm is not None
        assert new.harm["detectable"] > new.harm["margin"]
    assert not no_worse_in_slices(*measured, Slices(at_least_users=500), 0.975), "too small to be judged"


def test_many_equal_slices_look_harmed_no_more_often_than_one() -> None:
    """Eight days of twenty. Meant to fail with each slice at a level of its own: 160 / 40 = 4 of them look harmed."""
    failed = 0
    for seed in range(8):
        measured = in_slices(40, {f"surface_{number}": 1.0 for number in range(20)}, seed)
        checks = no_worse_in_slices(*measured, Slices(margin=0.0, at_least_users=5), 0.975)
        failed += sum(check.outcome == "failed" for check in checks)
    assert failed <= 1


def test_a_challenger_is_compared_as_a_whole_and_in_slices_and_has_to_be_better_where_asked() -> None:
    """Seen to fail without the slices, whose own tests passed."""
    ours, theirs = in_slices(20, {"new_users": 0.8}, seed=1)
    whole = {name: PerUser(np.full(20, mean), np.ones(20)) for name, mean in SAME.items()}
    ours, theirs = (Measured(SAME, whole, one.slices) for one in (ours, theirs))
    checks = Checks(slices=Slices(at_least_users=5), improvement=Improvement(any_of=["recall_at_100"]))
    found = against_the_champion(ours, theirs, ours.changes(theirs, 0.95), checks, 0.95)
    assert [(check.name, check.outcome) for check in found] == [
        ("recall_at_100", "passed"),
        ("weighted_pairwise_loss", "passed"),
        ("recall_at_100.new_users", "failed"),
        ("improvement", "not judged"),
    ]


@pytest.mark.parametrize(
    ("recall_gain", "loss_gain", "any_of", "outcome"),
    [
        (0.1, 0.0, ("recall_at_100",), "passed"),
        (0.1, 0.0, ("weighted_pairwise_loss",), "not judged"),
        (0.0, 0.1, ("recall_at_100", "weighted_pairwise_loss"), "passed"),
        (0.0, 0.0, ("recall_at_100", "weighted_pairwise_loss"), "not judged"),
        (-0.1, -0.1, ("recall_at_100", "weighted_pairwise_loss"), "failed"),
        (0.0, 0.0, (), None),
    ],
)
def test_an_improvement_has_to_be_shown_where_it_is_asked_for(
    recall_gain: float, loss_gain: float, any_of: tuple[Any, ...], outcome: str | None
) -> None:
    """A gain of a loss is a fall. Meant to fail with the sign of either turned."""
    rng = np.random.default_rng(3)
    users = 2_000

    def measured(recall: float, loss: float) -> Measured:
        means = {"recall_at_100": 0.4 * (1 + recall), "weighted_pairwise_loss": 0.3 * (1 - loss)}
        return Measured(
            means,
            {name: PerUser(rng.normal(mean, 0.2, users), np.ones(users)) for name, mean in means.items()},
        )

    checks = better(
        measured(recall_gain, loss_gain), measured(0.0, 0.0), Improvement(any_of=list(any_of)), 0.95
    )
    assert [check.outcome for check in checks] == ([] if outcome is None else [outcome])


def test_one_of_two_improvements_has_to_be_surer_than_one_alone() -> None:
    """A gain of 1.8 standard errors, between 1.64 (5 %) and 1.96 (a half of it). Seen to fail without Holm's step."""
    users = 2_000
    noise = np.random.default_rng(3).normal(0.0, 0.1, users)
    noise -= noise.mean()
    gain = 1.8 * noise.std() / math.sqrt(users)
    ones, same = np.ones(users), {"weighted_pairwise_loss": PerUser(0.3 + noise, np.ones(users))}
    ours, theirs = (
        Measured({}, {"recall_at_100": PerUser(values, ones), **same})
        for values in (0.4 + gain + noise, np.full(users, 0.4))
    )
    both: list[Any] = ["recall_at_100", "weighted_pairwise_loss"]
    alone, of_two = (better(ours, theirs, Improvement(any_of=names), 0.95)[0] for names in (both[:1], both))
    assert (alone.outcome, of_two.outcome) == ("passed", "not judged")


def test_a_right_bundle_passes_without_a_champion(right_bundle: Bundle, world_features: Path) -> None:
    decision = judge(right_bundle, None, world_features, Checks())
    assert decision.verdict == "challenger", decision.reason
    assert set(outcomes(decision).values()) == {"passed"}
    assert decision.metrics["recall_at_100"] == 1.0, "one step forward finds every label first"
    assert 0.0 < decision.metrics["popular_7_days_recall_at_100"] < 0.3, "everything is about equally popular"
    assert decision.metrics["index_recall_at_100"] == 1.0
    assert decision.metrics["weighted_pairwise_loss"] < 0.45


def test_a_wrong_bundle_is_rejected_and_told_why(
    wrong_bundle: Bundle, right_bundle: Bundle, world_features: Path
) -> None:
    alone = judge(wrong_bundle, None, world_features, Checks())
    assert alone.verdict == "rejected"
    assert outcomes(alone)["popular_7_days_recall_at_100"] == "failed"
    decision = judge(wrong_bundle, right_bundle, world_features, Checks(), against="version 1 of watchnext")
    assert decision.verdict == "rejected"
    failed = {name for name, outcome in outcomes(decision).items() if outcome == "failed"}
    assert failed == {
        "recall_at_100",
        "weighted_pairwise_loss",
        "popular_7_days_recall_at_100",
        "co_watched_recall_at_100",
    }
    assert decision.metrics["weighted_pairwise_loss"] == pytest.approx(
        1 - decision.metrics["champion_weighted_pairwise_loss"], abs=0.02
    ), "upside down"
    assert judge(right_bundle, wrong_bundle, world_features, Checks()).verdict == "challenger"


def validation_metrics(path: Path, failed: int = 0) -> Path:
    path.write_text(json.dumps({"expectations": 9, "expectations_failed": failed}), encoding="utf-8")
    return path


def test_the_final_slates_are_judged_too(world_features: Path, world_tables: Path, tmp_path: Path) -> None:
    """Of towers alone, one that names what is watched next and one that does not, by slates of all that they name."""
    alone = RecommendParams().model_dump()
    alone["sources"] = {name: 120 if name == "tower" else 0 for name in alone["sources"]}
    right, wrong = (
        make_bundle(tmp_path / str(steps), world_features, steps=steps, recommend=alone) for steps in (1, 150)
    )
    checks = Checks(final_slates=FinalSlates(requests=40, length=120))
    validated = validation_metrics(tmp_path / "validate.json")
    decision = judge(wrong, right, world_features, checks, tables=world_tables, validated=validated)
    assert decision.metrics["champion_slate_watch_time_share_at_120"] > 0.95
    assert decision.metrics["slate_watch_time_share_at_120"] < 0.5
    assert decision.metrics["slate_recall_at_120"] == decision.metrics["slate_watch_time_share_at_120"]
    assert outcomes(decision)["slate_watch_time_share_at_120"] == "failed"
    assert {outcomes(decision)[name] for name in ("answers", "size_mb", "validated")} == {"passed"}
    assert decision.metrics["errors"] == 0.0
    low, high = (decision.metrics[f"change_recall_at_100_users_by_videos_{end}"] for end in ("low", "high"))
    assert low == high == -1.0, "every hit is lost, whoever and whatever is drawn"
    assert decision.metrics["slices_judged"] == 0 < decision.metrics["slices_of_too_few_users"]
    for name in ("map", "calibration"):
        change = decision.metrics[f"change_{name}"]
        assert change == pytest.approx(decision.metrics[name] / decision.metrics[f"champion_{name}"] - 1)
        for look in ("", "_users_by_videos"):
            low, high = (decision.metrics[f"change_{name}{look}_{end}"] for end in ("low", "high"))
            assert low <= change <= high, (name, look)
    better = judge(right, wrong, world_features, checks, tables=world_tables, validated=validated)
    assert better.verdict == "challenger", better.reason


def test_data_that_failed_or_is_other_data_is_not_judged_by(
    right_bundle: Bundle, world_features: Path, world_tables: Path, tmp_path: Path
) -> None:
    """Bounds of size and time, too, since each has to be able to fail."""
    failed = validation_metrics(tmp_path / "failed.json", failed=2)
    small = Checks(
        size_mb=Maximum(maximum=0.001, reason=""),
        final_slates=FinalSlates(requests=5, latency_p50_ms=1e-6),
    )
    decision = judge(right_bundle, None, world_features, small, tables=world_tables, validated=failed)
    assert {name for name, outcome in outcomes(decision).items() if outcome == "failed"} == {
        "size_mb",
        "latency_p50_ms",
        "validated",
    }
    other = shutil.copytree(world_tables, tmp_path / "other")
    source = json.loads((other / "source.json").read_text(encoding="utf-8"))
    (other / "source.json").write_text(json.dumps({**source, "digest": "b" * 64}), encoding="utf-8")
    passed = validation_metrics(tmp_path / "passed.json")
    decision = judge(right_bundle, None, world_features, Checks(), tables=other, validated=passed)
    (check,) = (check for check in decision.checks if check.name == "validated")
    assert (check.outcome, check.value.endswith("the features and the bundle of other data")) == (
        "failed",
        True,
    )


def test_a_champion_of_format_1_is_compared_with(
    right_bundle: Bundle, wrong_bundle: Bundle, world_features: Path, tmp_path: Path
) -> None:
    older = as_format_1(right_bundle, tmp_path / "older")
    decision = judge(right_bundle, older, world_features, Checks(), exclude="watched")
    assert decision.verdict == "challenger"
    for name in ("recall_at_100", "weighted_pairwise_loss"):
        assert decision.metrics[f"champion_{name}"] == decision.metrics[name]
    assert judge(wrong_bundle, older, world_features, Checks()).verdict == "rejected"


def test_models_of_different_sources_are_not_compared(
    right_bundle: Bundle, wrong_bundle: Bundle, world_features: Path
) -> None:
    elsewhere = Bundle(wrong_bundle.path, {**wrong_bundle.manifest, "source": "kuairand"})
    decision = judge(right_bundle, elsewhere, world_features, Checks())
    assert decision.verdict == "held"
    assert "source kuairand" in decision.reason
    assert decision.metrics == {}


def test_who_has_seen_the_gate_day_is_not_judged_on_it(
    right_bundle: Bundle, wrong_bundle: Bundle, world_features: Path
) -> None:
    later = {"trained_until_at": "2026-02-01T00:00:00+00:00"}
    candidate = Bundle(right_bundle.path, {**right_bundle.manifest, **later})
    assert outcomes(judge(candidate, None, world_features, Checks()))["trained_until_at"] == "failed"
    champion = Bundle(wrong_bundle.path, {**wrong_bundle.manifest, **later})
    decision = judge(right_bundle, champion, world_features, Checks())
    assert (decision.verdict, outcomes(decision)["champion_trained_until_at"]) == ("held", "not judged")


def without_the_input(bundle: Bundle, directory: Path) -> Bundle:
    """The same bundle, trained on logs that have an input which the world's lack."""
    path = shutil.copytree(bundle.path, directory / "bundle")
    features = json.loads((path / "features" / "manifest.json").read_text(encoding="utf-8"))
    device = {"name": "device", "kind": "categorical", "space": "video", "length": None, "side": "query"}
    features["ranking_features"].append(device)
    (path / "features" / "manifest.json").write_text(json.dumps(features), encoding="utf-8")
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    content = (path / "features" / "manifest.json").read_bytes()
    manifest["files"]["features/manifest.json"]["sha256"] = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Bundle.open(path)


def test_a_champion_that_cannot_read_these_logs_holds_or_is_replaced(
    right_bundle: Bundle, wrong_bundle: Bundle, world_features: Path, tmp_path: Path
) -> None:
    """Meant to fail when the champion's error was let through: nothing was ever registered again."""
    champion = without_the_input(wrong_bundle, tmp_path)
    held = judge(right_bundle, champion, world_features, Checks(), against="version 1 of watchnext")
    assert (held.verdict, held.replaces) == ("held", False)
    assert [name for name, outcome in outcomes(held).items() if outcome != "passed"] == [
        "champion_comparable"
    ]
    assert "(device)" in held.reason
    assert "promote.champion_not_comparable: replace" in held.reason
    passed = judge(
        right_bundle,
        champion,
        world_features,
        Checks(),
        champion_not_comparable="replace",
        against="version 1 of watchnext",
    )
    assert (passed.verdict, passed.replaces) == ("challenger", True)
    assert "replaces version 1 of watchnext without a comparison" in passed.reason
    rejected = judge(wrong_bundle, champion, world_features, Checks(), champion_not_comparable="replace")
    assert (rejected.verdict, rejected.replaces) == ("rejected", False)
    with pytest.raises(InputError, match="lack inputs"):
        judge(champion, right_bundle, world_features, Checks(), champion_not_comparable="replace")


def test_what_is_measured_by_default_is_what_is_served() -> None:
    """Slates never show what was watched. Meant to fail with `none`, which lets models recommend it."""
    for stage in (evaluate.evaluate, promote.promote, compare_shadow.compare_shadow, package.package):
        assert inspect.signature(stage).parameters["recommend"].annotation is RecommendParams
    assert RecommendParams().exclude == "watched"


class Stage:
    """What the runner does for `promote`, in a project folder."""

    def __init__(self, root: Path, features: Path) -> None:
        self.root = root
        self.features = features
        self.tracker = Tracker.open(root)
        self.metrics: dict[str, Any] | None = None

    def promote(
        self, bundle: Bundle, registry: Registry | None = None, checks: Checks | None = None, **settings: Any
    ) -> dict[str, Any] | None:
        metrics = promote_bundle(
            registry or Registry.open(self.root),
            bundle=bundle.path,
            features=self.features,
            checks=checks or Checks(),
            exclude="none",
            pipeline_run=lambda: self.tracker.pipeline_run("1-1.00"),
            previous_metrics=self.metrics,
            out_report=self.root / "report",
            **{"name": "watchnext", **settings},
        )
        self.metrics = metrics or self.metrics
        return metrics

    def roles(self) -> dict[str, int]:
        return Registry.open(self.root)._aliases("watchnext")


@pytest.fixture
def stage(project_root: Path, world_features: Path) -> Stage:
    return Stage(project_root, world_features)


def test_from_the_first_bundle_to_a_rejected_one(
    stage: Stage, right_bundle: Bundle, wrong_bundle: Bundle
) -> None:
    first = stage.promote(right_bundle)
    assert first is not None
    assert (first["verdict"], first["role"], first["model_version"]) == ("challenger", "champion", 1)
    assert stage.roles() == {"champion": 1}
    second = stage.promote(wrong_bundle)
    assert second is not None
    assert (second["verdict"], second["role"], second["model_version"]) == ("rejected", "none", 2)
    assert stage.roles() == {"champion": 1}
    version = Registry.open(stage.root).version("watchnext", 2)
    assert version.tags["verdict"] == "rejected"
    assert version.tags["reason"].startswith("failed: ")
    assert version.tags["check.recall_at_100"].startswith("failed: ")
    decision = json.loads((stage.root / "report" / "decision.json").read_text(encoding="utf-8"))
    assert decision["verdict"] == "rejected"
    page = (stage.root / "report" / "decision.html").read_text(encoding="utf-8")
    assert "rejected" in page
    assert "http" not in page, "reads well offline"


def test_a_champion_whose_files_are_gone_does_not_block_for_good(
    stage: Stage, right_bundle: Bundle, wrong_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meant to fail when the registry's error was let through."""
    monkeypatch.setattr(gate, "judge", lambda *_, **__: PASSED)
    stage.promote(wrong_bundle)
    monkeypatch.undo()
    registry = Registry.open(stage.root)
    (registry.bundle(registry.version("watchnext", 1)).ranker / "saved_model.pb").unlink()
    held = stage.promote(right_bundle)
    assert held is not None
    assert (held["verdict"], held["role"], held["model_version"]) == ("held", "none", 2)
    assert "champion_comparable: the bundle lacks files" in str(held["reason"])
    assert stage.roles() == {"champion": 1}
    assert stage.promote(right_bundle) is None
    replaced = stage.promote(right_bundle, champion_not_comparable="replace")
    assert replaced is not None
    assert (replaced["verdict"], replaced["role"], replaced["model_version"]) == (
        "challenger",
        "champion",
        2,
    )
    assert stage.roles() == {"champion": 2, "previous": 1}
    event = Registry.open(stage.root).history("watchnext")[-1]
    assert (event.role, event.version, event.evidence) == ("champion", 2, "gate")
    assert "replaces version 1 of watchnext without a comparison" in event.reason
    assert stage.promote(right_bundle, champion_not_comparable="replace") is None


def test_a_bundle_that_was_rolled_back_is_not_promoted_again(
    stage: Stage, right_bundle: Bundle, wrong_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meant to fail without the veto: the next `dvc repro` undid the undo."""
    monkeypatch.setattr(gate, "judge", lambda *_, **__: PASSED)
    stage.promote(wrong_bundle)
    stage.promote(right_bundle)
    registry = Registry.open(stage.root)
    second = registry.version("watchnext", 2)
    registry.crown(
        second, over=registry.version("watchnext", 1), reason="no veto", evidence="offline", run_id=""
    )
    registry.roll_back("watchnext", reason="slates of one channel")
    refused = stage.promote(right_bundle)
    assert refused is not None
    assert (refused["verdict"], refused["role"]) == ("rejected", "none")
    assert "rolled back: slates of one channel" in str(refused["reason"])
    assert stage.roles() == {"champion": 1}
    assert stage.promote(right_bundle) is None, "and stays so"
    told = Registry.open(stage.root).explain("watchnext", 2)["decisions"]
    assert [one["verdict"] for one in told] == ["challenger", "rejected"], (
        "what was once decided stays to be read"
    )
    registry.roll_back("watchnext", to=2, reason="it was right after all")
    back = stage.promote(right_bundle)
    assert back is None or back["role"] == "champion"
    assert stage.roles()["champion"] == 2
    assert not Registry.open(stage.root).version("watchnext", 2).rolled_back_because


def test_nothing_to_do_is_done_without_tensorflow_and_mlflow(
    stage: Stage, right_bundle: Bundle, wrong_bundle: Bundle
) -> None:
    for bundle in (right_bundle, wrong_bundle):
        assert stage.promote(bundle) is not None
        before = stage.root.joinpath("mlruns/mlflow.db").read_bytes()
        code = textwrap.dedent(
            f"""
            import sys
            from pathlib import Path
            from watchnext.decisions.checks import Checks
            from watchnext.decisions.gate import promote_bundle
            from watchnext.registry import Registry
            metrics = promote_bundle(
                Registry.open(Path({str(stage.root)!r})), name="watchnext", bundle=Path({str(bundle.path)!r}),
                features=Path({str(stage.features)!r}), checks=Checks(), exclude="none", pipeline_run=None,
                previous_metrics={stage.metrics!r}, out_report=Path({str(stage.root)!r}) / "report",
            )
            assert metrics is None, metrics
            assert not {{"tensorflow", "mlflow"}} & set(sys.modules)
            """
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        assert stage.root.joinpath("mlruns/mlflow.db").read_bytes() == before


def test_what_was_judged_by_this_evidence_is_never_judged_again(
    stage: Stage, right_bundle: Bundle, wrong_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By other checks it is. Meant to fail when the last decision alone was looked at: by checks of before, anew."""
    stage.promote(right_bundle)
    first = stage.promote(wrong_bundle)
    lenient = Checks(index_recall_at_100=Minimum(minimum=0.5, reason="other checks"))
    again = stage.promote(wrong_bundle, checks=lenient)
    assert again is not None
    assert stage.promote(wrong_bundle, checks=lenient) is None
    monkeypatch.setattr(gate, "judge", None)
    assert stage.promote(wrong_bundle) == first
    stage.metrics = None
    for bundle, role in ((right_bundle, "champion"), (wrong_bundle, "none")):
        redone = stage.promote(bundle)
        assert redone is not None
        assert redone["role"] == role
    assert stage.roles() == {"champion": 1}
    registry = Registry.open(stage.root)
    assert len(registry._client().search_model_versions("name = 'watchnext'")) == 2
    judged = [one["judged"] for one in registry.explain("watchnext", 2)["decisions"]]
    assert [(one["challenger"], one["champion"]) for one in judged] == [
        (wrong_bundle.digest, right_bundle.digest)
    ] * 2
    assert len({one["evidence"] for one in judged}) == 2
    places = [
        (check["value"].split()[0], check["bound"].split()[-4])
        for one in registry.explain("watchnext", 2)["decisions"]
        for check in one["checks"]
        if check["name"] == "challengers_of_the_day"
    ]
    assert places == [("1", "98%"), ("2", "99.33%")], "other checks are another look at the day"


def test_back_to_an_earlier_bundle_the_decision_of_then_is_written_again(
    stage: Stage, right_bundle: Bundle, wrong_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meant to fail when every return to a bundle was judged again, with noise."""
    for bundle in (right_bundle, wrong_bundle):
        stage.promote(bundle)
    rejected, report = stage.metrics, (stage.root / "report" / "decision.json").read_bytes()
    monkeypatch.setattr(gate, "judge", None)
    back = stage.promote(right_bundle)
    assert back is not None
    assert (back["verdict"], back["role"], back["recall_at_100"]) == ("challenger", "champion", 1.0)
    assert stage.promote(wrong_bundle) == rejected
    assert (stage.root / "report" / "decision.json").read_bytes() == report


def test_another_model_name_is_acted_on_and_back_again(
    stage: Stage, right_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bundle, `promote.model_name` there and back. Meant to fail with metrics that named the other model."""
    monkeypatch.setattr(gate, "judge", lambda *_, **__: PASSED)
    for name in ("watchnext", "mine", "watchnext"):
        promoted = stage.promote(right_bundle, name=name)
        assert promoted is not None
        assert (promoted["model_name"], promoted["model_version"]) == (name, 1)
        assert stage.promote(right_bundle, name=name) is None


def test_a_damaged_bundle_is_rejected_until_it_is_mended(
    stage: Stage, world_features: Path, tmp_path: Path
) -> None:
    """Meant to fail where it was registered: the mended bundle has the same digest, and its version's files stay damaged."""
    bundle = make_bundle(tmp_path / "damaged", world_features)
    model = bundle.ranker / "saved_model.pb"
    sound = model.read_bytes()
    model.write_bytes(b"")
    rejected = stage.promote(bundle)
    assert rejected is not None
    assert (rejected["verdict"], rejected["role"]) == ("rejected", "none")
    (check,) = json.loads((stage.root / "report" / "decision.json").read_text(encoding="utf-8"))["checks"]
    assert (check["name"], check["outcome"]) == ("digests", "failed")
    assert "changed after it was packaged: ranker/saved_model.pb" in check["value"]
    assert stage.roles() == {}
    assert Registry.open(stage.root).find("watchnext", bundle.digest) is None
    model.write_bytes(sound)
    mended = stage.promote(bundle)
    assert mended is not None
    assert (mended["verdict"], mended["role"]) == ("challenger", "champion")


def test_killed_at_any_write_the_next_run_rejects(
    stage: Stage, right_bundle: Bundle, wrong_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever passes is killed in test_killed_decisions."""
    monkeypatch.setattr(gate, "judge", lambda *_, **__: REJECTED if champion_there else PASSED)
    for bundle, champion_there in ((right_bundle, False), (wrong_bundle, True)):
        for at_write in range(1, 100):
            registry = Registry.open(stage.root)
            client = KilledAtWrite(registry._client(), at_write)
            registry._mlflow_client = client
            try:
                stage.promote(bundle, registry)
            except Killed:
                assert stage.roles().get("champion") in ((1,) if champion_there else (None, 1))
                # The outputs of this run were lost with it; those of the second bundle under other checks stood.
                stage.metrics = {"bundle_digest": bundle.digest} if champion_there else None
                continue
            break
        assert at_write > 3
        assert client.left > 0
        assert stage.metrics is not None
        assert stage.metrics["role"] == ("none" if champion_there else "champion")
        assert stage.roles() == {"champion": 1}
        assert stage.promote(bundle) is None
    assert len(Registry.open(stage.root)._client().search_model_versions("name = 'watchnext'")) == 2


def test_a_report_without_checks_can_be_written(tmp_path: Path) -> None:
    held = Decision(
        "held", "too few days", (Check("a", "none", "b", "not judged", "<why>"),), {"x": math.nan}, "none"
    )
    write_report(held, tmp_path / "report", title="The gate", role="none")
    written = json.loads((tmp_path / "report" / "decision.json").read_text(encoding="utf-8"))
    assert written["metrics"] == {"x": None}
    assert "&lt;why&gt;" in (tmp_path / "report" / "decision.html").read_text(encoding="utf-8")


def test_variation_by_seed_is_shown_and_judges_nothing(tmp_path: Path) -> None:
    """Of 0.2 and 0.4 the mean is 0.3 and the standard deviation sqrt(2) / 10, 47.1 % of it. One seed varies nothing."""
    seeds = [
        {"seed": 1.0, "weighted_pairwise_loss": 0.2},
        {"seed": 2.0, "weighted_pairwise_loss": 0.4},
        {"seed": 3.0, "weighted_pairwise_loss": math.nan},
    ]
    ((_, _, rows),) = seed_tables(seeds)
    assert rows == [("weighted_pairwise_loss", "2", "0.2000", "0.4000", "47.1% of the mean")]
    assert seed_tables(seeds[:1]) == []
    write_report(
        Decision("challenger", "passed", (), {}, "none", over_seeds=seeds), tmp_path, title="t", role="none"
    )
    assert "47.1% of the mean" in (tmp_path / "decision.html").read_text(encoding="utf-8")


def test_champion_and_candidate_stand_in_one_row() -> None:
    metrics = {
        "auc": 0.5,
        "champion_auc": 0.25,
        "change_recall_at_100": -0.02,
        "change_recall_at_100_low": -0.05,
        "change_recall_at_100_high": 0.01,
        "change_recall_at_100_users_by_videos_low": -0.08,
        "change_recall_at_100_users_by_videos_high": 0.04,
        "recall_at_100": 0.49,
        "champion_recall_at_100": 0.5,
        "champions_recipe_recall_at_100": 0.52,
        "map": math.nan,
    }
    assert metric_rows(metrics) == [
        ("auc", "0.2500", "0.5000", "", ""),
        ("map", "", "none", "", ""),
        ("recall_at_100", "0.5000", "0.4900", "-2.0% [-5.0%, +1.0%]", "[-8.0%, +4.0%]"),
    ]


def test_fresher_data_and_another_recipe_are_told_apart(
    wrong_bundle: Bundle, right_bundle: Bundle, world_features: Path
) -> None:
    """What the recipe has already is not the candidate's doing. Meant to fail with the two steps exchanged."""
    decision = judge(right_bundle, wrong_bundle, world_features, Checks(), recipe=right_bundle)
    metrics = decision.metrics
    assert metrics["champions_recipe_recall_at_100"] == metrics["recall_at_100"] == 1.0
    assert metrics["change_by_data_recall_at_100"] == metrics["change_recall_at_100"] > 1.0
    assert metrics["change_by_recipe_recall_at_100"] == 0.0
    ((_, _, rows),) = recipe_tables(metrics)
    assert rows[0][1] == f"{metrics['champion_recall_at_100']:.4f}"
    assert rows[0][4] == "+0.0% [+0.0%, +0.0%]"
    other = judge(right_bundle, wrong_bundle, world_features, Checks(), recipe=wrong_bundle).metrics
    assert other["change_by_data_recall_at_100"] == 0.0
    assert other["change_by_recipe_recall_at_100"] == other["change_recall_at_100"]


def test_what_is_not_the_champions_recipe_is_refused_before_it_costs_anything(
    stage: Stage, wrong_bundle: Bundle, right_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail where the place of the day was taken first: the recipe made anew was judged as the second one's."""
    monkeypatch.setattr(gate, "judge", lambda *_, **__: PASSED)
    assert stage.promote(wrong_bundle, champions_recipe=tmp_path / "not made yet") is not None, (
        "none to compare"
    )
    places: list[int] = []
    monkeypatch.setattr(gate, "judge", lambda *_, place, **__: places.append(place) or REJECTED)
    with pytest.raises(InputError, match="not the champion's recipe") as refused:
        stage.promote(right_bundle, champions_recipe=right_bundle.path)
    assert refused.value.offenders == ("not of the champion's settings",)
    with pytest.raises(InputError, match="the champion's recipe cannot be read: there is no such file"):
        stage.promote(right_bundle, champions_recipe=tmp_path / "not made yet")
    assert stage.roles() == {"champion": 1}
    stage.promote(right_bundle, champions_recipe=wrong_bundle.path)
    assert places == [1]
