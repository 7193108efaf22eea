"""Studies are found by name, run, written and logged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from watchnext.errors import InputError
from watchnext.studies import _runner
from watchnext.studies._lab import Lab, Settings
from watchnext.studies._report import Claim, Result, Row
from watchnext.tracking import STUDY_TAG, Tracker


def no_features(logs: Path, source: str, directory: Path, *, seed: int, examples_per_user: int) -> Path:
    raise AssertionError("this study makes no features")


def test_every_module_is_a_study_that_says_what_it_claims() -> None:
    names = _runner.study_names()
    assert {"figure5"} <= set(names)
    for name in names:
        study = _runner.load_study(name)
        assert study.name == name
        assert len(study.title) > 10, name
        assert "paper" in study.about, name
        assert study.claims, name
        assert callable(study.run), name


def test_a_slip_in_the_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match="did you mean `figure5`"):
        _runner.load_study("figure55")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"simulated": False}, "nothing to run the study on"),
        ({"data": Path("/nowhere/at/all")}, "no such folder"),
        ({"days": 3}, "leave none to train on"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**wrong)


def test_a_run_is_written_and_logged(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(lab: Lab) -> Result:
        assert lab.settings.seeds == 3
        return Result([Row("simulated", 1.0, "more (a+b)", "map", 0.2, 0.1, 0.3, "less")])

    study = _runner.Study(
        "wind", "Of wind", "The paper.", (Claim("it blows", "more (a+b)", "less", "map"),), run
    )
    monkeypatch.setattr(_runner, "load_study", lambda name: study)
    judgements = _runner.run_study("wind", Settings(), no_features, root=project_root)
    assert [one.verdict for one in judgements] == ["mechanism check passed"]
    assert (project_root / "docs/studies/wind.md").exists()

    client = Tracker.open(project_root)._client()
    experiment = client.get_experiment_by_name("watchnext")
    (logged,) = client.search_runs([experiment.experiment_id], f"tags.`{STUDY_TAG}` = 'wind'")
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == {
        "simulated/dial 1/map/more  a b  - less": 0.2,
        "simulated/dial 1/map/more  a b  - less/low": 0.1,
        "simulated/dial 1/map/more  a b  - less/high": 0.3,
    }
    assert logged.data.tags["watchnext.claim_1"] == "mechanism check passed: it blows"
    assert logged.data.params["users"] == "2000"
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == {
        "wind.md",
        "wind.png",
        "wind.json",
    }
