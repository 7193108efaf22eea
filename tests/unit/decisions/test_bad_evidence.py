"""Evidence that cannot carry a decision, put before the stages themselves: a clear refusal, and the champion untouched."""

import datetime as dt
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from decision_stages import Stages
from experiment_logs import experiment_rows, write_log, write_shadow_log
from tiny_world import make_bundle

from watchnext.bundle import Bundle
from watchnext.decisions.replay import Live
from watchnext.errors import InputError

Change = Callable[[pa.Table], pa.Table]


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


def test_slates_that_are_all_the_same_crown_nobody(
    stages: Stages, world_features: Path, tmp_path: Path
) -> None:
    """Other files, the champion's answers. Meant to fail where no veto is enough for the crown."""
    stages.promote(make_bundle(tmp_path / "twin", world_features))
    before = stages.standing()
    assert before[0] == {"champion": 1, "challenger": 3}
    found = stages.compare()
    assert (found["verdict"], found["reason"]) == ("continue", "could not be judged: same_slates")
    assert found["same_slates"] == 1.0
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
