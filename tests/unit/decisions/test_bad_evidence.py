"""Evidence that cannot carry a decision, put before the stages themselves: a clear refusal, and the champion untouched."""

import datetime as dt
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from experiment_logs import experiment_rows, write_log, write_shadow_log
from fake_mlflow import Snapshot
from tiny_world import make_bundle

from watchnext.bundle import Bundle
from watchnext.config import RecommendParams
from watchnext.decisions import gate
from watchnext.decisions.gate import Decision
from watchnext.decisions.replay import Live, Slower, Vetoes
from watchnext.errors import InputError
from watchnext.registry import Event, Registry
from watchnext.stages.compare_shadow import Params as CompareParams
from watchnext.stages.compare_shadow import compare_shadow
from watchnext.stages.promote import Params as PromoteParams
from watchnext.stages.promote import promote
from watchnext.tracking import DATABASE, Tracker

PASSED = Decision("challenger", "passed", (), {}, "")
UNHURRIED = Vetoes(latency_p50_ms=Slower(maximum_ratio=1e3, at_least_ms=6e4, reason="timings decide no test"))
RECOMMEND = RecommendParams(exclude="none")

Change = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True)
class Stages:
    """The two stages in a project whose version 1 is champion and whose version 2 challenges it.

    Attributes:
        root: the project's folder, and the working directory.
        champion: bundle of version 1.
        challenger: bundle of version 2, with the same answers.
        features: of the world.
        tables: of the world.
    """

    root: Path
    champion: Bundle
    challenger: Bundle
    features: Path
    tables: Path

    def promote(
        self, bundle: Bundle, features: Path | None = None, tables: Path | None = None
    ) -> Mapping[str, Any]:
        validated = self.root / "validate.json"
        validated.write_text(json.dumps({"expectations_failed": 0}), encoding="utf-8")
        found = promote(
            PromoteParams(),
            RECOMMEND,
            bundle.path,
            features or self.features,
            tables or self.tables,
            validated,
            lambda: Tracker.open(self.root).pipeline_run("1-1.00"),
            self.root / "reports" / "promote",
        )
        assert found is not None
        written = self.decision("promote")
        assert (written["verdict"], written["reason"]) == (found["verdict"], found["reason"])
        return found

    def compare(
        self, features: Path | None = None, tables: Path | None = None, **params: Any
    ) -> Mapping[str, Any]:
        promoted = self.root / "promote.json"
        promoted.write_text(json.dumps({"model_name": "watchnext"}), encoding="utf-8")
        found = compare_shadow(
            CompareParams(requests=30, vetoes=UNHURRIED, **params),
            RECOMMEND,
            self.challenger.path,
            features or self.features,
            tables or self.tables,
            promoted,
            lambda: Tracker.open(self.root).pipeline_run("1-1.00"),
            self.root / "reports" / "compare_shadow",
        )
        assert found is not None
        assert self.decision("compare_shadow")["verdict"] == found["verdict"]
        return found

    def decision(self, stage: str) -> Mapping[str, Any]:
        return json.loads((self.root / "reports" / stage / "decision.json").read_text(encoding="utf-8"))

    def standing(self) -> tuple[dict[str, int], list[Event]]:
        """Who has which role, and how that came about."""
        registry = Registry.open(self.root)
        return registry._aliases("watchnext"), registry.history("watchnext")


@pytest.fixture(scope="module")
def equal_bundle(world_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Other files than those of `right_bundle`, the same answers."""
    return make_bundle(tmp_path_factory.mktemp("equal"), world_features)


@pytest.fixture(scope="module")
def registered(
    empty_mlflow_database: Path,
    right_bundle: Bundle,
    equal_bundle: Bundle,
    world_features: Path,
    world_tables: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Stages, Snapshot]:
    """What every test begins with."""
    root = tmp_path_factory.mktemp("project")
    (root / DATABASE).parent.mkdir(parents=True)
    shutil.copy2(empty_mlflow_database, root / DATABASE)
    made = Stages(root, right_bundle, equal_bundle, world_features, world_tables)
    with pytest.MonkeyPatch.context() as here:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            here.delenv(name, raising=False)
        here.chdir(root)
        here.setattr(gate, "judge", lambda *_, **__: PASSED)
        for bundle in (right_bundle, equal_bundle):
            made.promote(bundle)
    return made, Snapshot(root / DATABASE)


@pytest.fixture
def stages(registered: tuple[Stages, Snapshot], monkeypatch: pytest.MonkeyPatch) -> Stages:
    made, snapshot = registered
    snapshot.restore()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(made.root)
    assert made.standing()[0] == {"champion": 1, "challenger": 2}
    return made


def changed(folder: Path, copy: Path, places: Mapping[str, Change]) -> Path:
    """A copy of features or tables, with the tables at some places below it changed."""
    shutil.copytree(folder, copy)
    for place, change in places.items():
        for part in sorted((copy / place).glob("*.parquet")):
            pq.write_table(change(pq.read_table(part)), part)
    return copy


def no_rows(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


def of_one_user(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["user_id"], 0))


def without_clicks(table: pa.Table) -> pa.Table:
    nobody = pa.array([False] * table.num_rows)
    return table.set_column(table.schema.get_field_index("clicked"), "clicked", nobody)


def examples_of(day: str, change: Change) -> dict[str, Change]:
    return {f"{kind}/{day}": change for kind in ("retrieval_examples", "ranking_examples")}


def test_a_gate_day_without_examples_is_refused(stages: Stages, wrong_bundle: Bundle, tmp_path: Path) -> None:
    empty = changed(stages.features, tmp_path / "features", examples_of("gate", no_rows))
    before = stages.standing()
    with pytest.raises(InputError, match="no examples"):
        stages.promote(wrong_bundle, empty)
    assert stages.standing() == before


def test_a_shadow_day_without_examples_is_refused(stages: Stages, tmp_path: Path) -> None:
    empty = changed(stages.features, tmp_path / "features", examples_of("shadow", no_rows))
    before = stages.standing()
    with pytest.raises(InputError, match="no examples"):
        stages.compare(empty)
    assert stages.standing() == before


def test_days_without_requests_are_refused(stages: Stages, wrong_bundle: Bundle, tmp_path: Path) -> None:
    tables = changed(stages.tables, tmp_path / "tables", {"impressions": no_rows})
    before = stages.standing()
    with pytest.raises(InputError, match="no requests on"):
        stages.promote(wrong_bundle, tables=tables)
    with pytest.raises(InputError, match="no requests on"):
        stages.compare(tables=tables)
    assert stages.standing() == before


def test_one_user_holds_a_bundle(stages: Stages, world_features: Path, tmp_path: Path) -> None:
    one = changed(stages.features, tmp_path / "features", examples_of("gate", of_one_user))
    tables = changed(stages.tables, tmp_path / "tables", {"impressions": of_one_user})
    another = make_bundle(tmp_path / "another", world_features)
    roles, _ = stages.standing()
    found = stages.promote(another, one, tables)
    assert found["verdict"] == "held", found["reason"]
    assert "recall_at_100" in found["reason"]
    assert "weighted_pairwise_loss" in found["reason"]
    assert stages.standing()[0] == roles


def test_one_user_crowns_nobody(stages: Stages, tmp_path: Path) -> None:
    one = changed(stages.features, tmp_path / "features", examples_of("shadow", of_one_user))
    tables = changed(stages.tables, tmp_path / "tables", {"impressions": of_one_user})
    before = stages.standing()
    found = stages.compare(one, tables)
    assert (found["verdict"], "could not be judged: recall_at_100" in found["reason"]) == ("continue", True)
    assert stages.standing() == before


def test_a_metric_that_is_no_number_holds_a_bundle(
    stages: Stages, world_features: Path, tmp_path: Path
) -> None:
    """Nobody clicked on the gate day: there is no pair to take a loss of."""
    features = changed(stages.features, tmp_path / "features", {"ranking_examples/gate": without_clicks})
    another = make_bundle(tmp_path / "another", world_features)
    roles, _ = stages.standing()
    found = stages.promote(another, features)
    assert (found["verdict"], found["reason"]) == ("held", "could not be judged: weighted_pairwise_loss")
    assert stages.decision("promote")["metrics"]["weighted_pairwise_loss"] is None
    assert stages.standing()[0] == roles


def test_a_model_that_answers_no_numbers_is_refused(
    stages: Stages, world_features: Path, tmp_path: Path
) -> None:
    broken = make_bundle(tmp_path / "broken", world_features, watch_time_sign=float("nan"))
    before = stages.standing()
    with pytest.raises(InputError, match="scores are not a number"):
        stages.promote(broken)
    assert stages.standing() == before


def test_a_metric_that_is_no_number_crowns_nobody(stages: Stages, tmp_path: Path) -> None:
    features = changed(stages.features, tmp_path / "features", {"ranking_examples/shadow": without_clicks})
    before = stages.standing()
    found = stages.compare(features)
    assert (found["verdict"], found["reason"]) == (
        "continue",
        "could not be judged: weighted_pairwise_loss",
    )
    assert stages.standing() == before


@pytest.mark.parametrize(
    ("propensity", "words"),
    [
        (None, "rows have impressions without a propensity"),
        (0.0, "propensities that are not above 0 and at most 1"),
        (1.5, "propensities that are not above 0 and at most 1"),
        (0.5, "the same on every row"),  # sound, but all slates of both models are
    ],
)
def test_propensities_that_tell_nothing_crown_nobody(
    stages: Stages, tmp_path: Path, propensity: float | None, words: str
) -> None:
    def with_propensity(table: pa.Table) -> pa.Table:
        return table.append_column("propensity", pa.array([propensity] * table.num_rows, pa.float64()))

    tables = changed(stages.tables, tmp_path / "tables", {"impressions": with_propensity})
    before = stages.standing()
    found = stages.compare(tables=tables, evidence="causal")
    assert (found["verdict"], words in found["reason"]) == ("continue", True), found["reason"]
    assert stages.standing() == before


def test_random_exposures_that_are_too_few_crown_nobody(stages: Stages, tmp_path: Path) -> None:
    """240 impressions of the shadow day cannot be seen to be a uniform draw of some hundred videos."""

    def at_random(table: pa.Table) -> pa.Table:
        return table.append_column("sources", pa.array([["random"]] * table.num_rows, pa.list_(pa.string())))

    tables = changed(stages.tables, tmp_path / "tables", {"impressions": at_random})
    before = stages.standing()
    found = stages.compare(tables=tables, evidence="causal")
    assert found["verdict"] == "continue"
    assert "240 random exposures of" in found["reason"]
    assert "too few to see what they were drawn from" in found["reason"]
    assert stages.standing() == before


def test_live_logs_of_other_versions_or_of_a_wrong_clock_crown_nobody(stages: Stages, tmp_path: Path) -> None:
    """A log that is asked for and cannot be used is no evidence: each time the challenger waits."""
    other = write_shadow_log(tmp_path / "other", versions=(1, 7))
    back = write_shadow_log(tmp_path / "back", versions=(1, 2), changes={"challenger_took_ms": -3.0})
    served, watched = experiment_rows(users=300, gain=2.0)
    watched[0]["at"] -= dt.timedelta(hours=1)
    experiment = write_log(tmp_path / "experiment", served, watched)
    before = stages.standing()
    for live, evidence, words in (
        (Live(shadow_log=str(other)), "offline", "not of version 2 beside version 1"),
        (Live(shadow_log=str(back)), "offline", "a clock went backwards"),
        (Live(experiment=str(experiment)), "causal", "a clock went backwards"),
    ):
        found = stages.compare(live=live, evidence=evidence)
        assert found["verdict"] == "continue"
        values = [check["value"] for check in stages.decision("compare_shadow")["checks"]]
        assert any(words in value for value in values), values
        assert stages.standing() == before


def test_a_clock_that_went_back_crowns_nobody(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages: of what the gate and the comparison would do next, nothing comes about."""

    class Yesterday(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return dt.datetime.now(tz) - dt.timedelta(days=1)

    before = stages.standing()
    monkeypatch.setattr("watchnext.registry.datetime", Yesterday)
    with pytest.raises(InputError, match="clock of this machine is behind"):
        stages.compare()
    assert stages.standing() == before
    monkeypatch.setattr("watchnext.registry.datetime", dt.datetime)
    assert stages.compare()["verdict"] == "crown", "the rerun finishes the job"
    assert stages.standing()[0] == {"champion": 2, "previous": 1}
