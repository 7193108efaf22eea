"""The registry: one version per bundle, one champion whatever happens, and a past that can be read."""

import json
import sqlite3
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from fake_mlflow import Killed, KilledAtWrite
from test_bundle import make_parts, packaged

from watchnext import tracking
from watchnext.bundle import Bundle
from watchnext.errors import InputError
from watchnext.registry import DATABASE, ROLES, Registry, Version, model_name
from watchnext.tracking import Tracker

SCRIPT = """
import hashlib
import json
import mlflow
from pathlib import Path

class Counts(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        manifest = Path(context.artifacts["bundle"], "manifest.json").read_text()
        canonical = json.dumps(json.loads(manifest), sort_keys=True, separators=(",", ":"))
        assert context.model_config["bundle_digest"] == hashlib.sha256(canonical.encode()).hexdigest()
        self.files = [path for path in Path(context.artifacts["bundle"]).rglob("*") if path.is_file()]

    def predict(self, context, model_input, params=None):
        return [len(self.files)] * len(model_input)

mlflow.models.set_model(Counts())
"""


class Project:
    """A project folder with bundles to register."""

    def __init__(self, root: Path, name: str = "watchnext") -> None:
        self.root = root
        self.name = name
        self.tracker = Tracker.open(root)
        self.run_id = self.tracker.pipeline_run("1-1.00")
        self.script = root / "script.py"
        self.script.write_text(SCRIPT, encoding="utf-8")

    def bundle(self, number: int) -> Bundle:
        path = self.root / f"bundle-{number}"
        if path.exists():
            return Bundle.open(path)
        parts = make_parts(self.root / f"parts-{number}")
        (parts["ranking"] / "ranker" / "saved_model.pb").write_bytes(f"ranker {number}".encode())
        return packaged(path, **parts)

    def register(self, registry: Registry, number: int) -> Version:
        from mlflow.models import ModelSignature
        from mlflow.types.schema import ColSpec, Schema

        return registry.register(
            self.name,
            self.bundle(number),
            script=self.script,
            signature=ModelSignature(Schema([ColSpec("long", "user_id")]), Schema([ColSpec("long")])),
            input_example={"user_id": [1]},
            run_id=self.run_id,
        )

    def crown(self, registry: Registry, number: int, over: int | None = None, **changes: str) -> None:
        judged = {"reason": f"version {number} passed", "evidence": "offline", "run_id": self.run_id}
        registry.crown(
            registry.version(self.name, number),
            over=None if over is None else registry.version(self.name, over),
            **{**judged, **changes},
        )


@pytest.fixture
def project(project_root: Path) -> Project:
    return Project(project_root)


@pytest.fixture
def registry(project: Project) -> Registry:
    return Registry.open(project.root)


def roles(registry: Registry) -> dict[str, int]:
    return registry._aliases("watchnext")


def test_names() -> None:
    assert model_name("auto", "simulated") == "watchnext"
    assert model_name("auto", "kuairand") == "watchnext-kuairand"
    assert model_name("mine", "kuairand") == "mine"


def test_an_unused_registry_is_empty_and_costs_nothing(tmp_path: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from watchnext.registry import Registry
        registry = Registry.open(Path({str(tmp_path)!r}))
        assert registry.status() == [] and registry.history("watchnext") == []
        assert registry.find("watchnext", "0" * 64) is None and registry.role("watchnext", "champion") is None
        assert "mlflow" not in sys.modules
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not list(tmp_path.iterdir())


def test_runs_and_registry_are_in_the_same_database(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Registry.open(project.root).tracking_uri == tracking.tracking_uri(project.root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    assert (
        Registry.open(project.root).tracking_uri == tracking.tracking_uri(project.root) == "http://tracking"
    )
    assert Registry.open(project.root).registry_uri == "http://tracking"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry")
    assert Registry.open(project.root).registry_uri == "http://registry"


def test_a_bundle_becomes_one_version_that_leads_back_to_what_made_it(
    project: Project, registry: Registry
) -> None:
    version = project.register(registry, 1)
    assert project.register(registry, 1) == version
    assert [version.number for version in (version, project.register(registry, 2))] == [1, 2]
    bundle = project.bundle(1)
    assert registry.find("watchnext", bundle.digest) == version
    assert registry.find("watchnext", "0" * 64) is None
    assert version.run_id == project.run_id
    assert dict(version.tags) == {
        "bundle_digest": bundle.digest,
        "source": "simulated",
        "data_digest": "d" * 64,
        "params_digest": bundle.params_digest,
        "trained_until_at": "2026-01-15T00:00:00+00:00",
        "git_commit": "",
        "pipeline_run_id": project.run_id,
    }
    assert registry.bundle(version).digest == bundle.digest
    assert registry.bundle(version).path.is_relative_to(project.root / "mlruns" / "artifacts")


def test_what_is_read_past_mlflow_is_what_mlflow_says(project: Project, registry: Registry) -> None:
    """Deleted versions included: MLflow keeps their rows. Seen to fail without looking at their stage."""
    for number in (1, 2, 3):
        project.register(registry, number)
    project.crown(registry, 1)
    first, second = (registry.version("watchnext", number) for number in (1, 2))
    registry.challenge(second, over=first, reason="", evidence="gate", run_id=project.run_id)
    registry._client().delete_model_version("watchnext", "3")
    through_mlflow = Registry.open(project.root)
    through_mlflow.registry_uri += "?"  # the same database, but not known to be this folder's own
    assert not through_mlflow._is_local
    assert registry._is_local
    for number in (1, 2, 3):
        digest = project.bundle(number).digest
        assert registry.find("watchnext", digest) == through_mlflow.find("watchnext", digest)
    assert registry.find("watchnext", project.bundle(3).digest) is None
    for role in ROLES:
        assert registry.role("watchnext", role) == through_mlflow.role("watchnext", role)
    assert registry.role("watchnext", "champion") is not None


def test_a_version_answers_through_mlflow(project: Project, registry: Registry) -> None:
    project.register(registry, 1)
    project.crown(registry, 1)
    code = (
        "import mlflow, pandas\n"
        f"mlflow.set_tracking_uri({registry.tracking_uri!r})\n"
        "model = mlflow.pyfunc.load_model('models:/watchnext@champion')\n"
        "assert model.predict(pandas.DataFrame({'user_id': [1, 2]})) == [13, 13]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project.root)


def test_files_that_were_changed_in_the_store_are_not_loaded(project: Project, registry: Registry) -> None:
    version = project.register(registry, 1)
    (registry.bundle(version).path / "ranker" / "saved_model.pb").write_bytes(b"another")
    with pytest.raises(InputError, match="changed after it was packaged"):
        registry.bundle(version)


def test_roles_over_the_life_of_three_versions(project: Project, registry: Registry) -> None:
    first, second, third = (project.register(registry, number) for number in (1, 2, 3))
    assert registry.role("watchnext", "champion") is None
    project.crown(registry, 1)
    assert roles(registry) == {"champion": 1}
    registry.challenge(second, over=first, reason="passed the gate", evidence="gate", run_id=project.run_id)
    assert roles(registry) == {"champion": 1, "challenger": 2}
    between = datetime.now(UTC)
    project.crown(registry, 2, over=1)
    assert roles(registry) == {"champion": 2, "previous": 1}
    registry.challenge(third, over=second, reason="passed the gate", evidence="gate", run_id=project.run_id)
    registry.dismiss(third, reason="the slates are worse", evidence="offline", run_id=project.run_id)
    assert roles(registry) == {"champion": 2, "previous": 1}

    seen = [(event.role, event.before, event.version) for event in registry.history("watchnext")]
    assert seen == [
        ("champion", None, 1),
        ("challenger", None, 2),
        ("champion", 1, 2),
        ("challenger", None, 3),
        ("challenger", 3, None),
    ]
    at = registry.champion_at
    assert at("watchnext", between - timedelta(days=1)) is None
    assert [
        event.version for event in (at("watchnext", between), at("watchnext", datetime.now(UTC))) if event
    ] == [
        1,
        2,
    ]
    assert registry.role("watchnext", "previous") == registry.version("watchnext", first.number)


def test_status_says_who_since_when_and_why(project: Project, registry: Registry) -> None:
    first = project.register(registry, 1)
    registry.record(first, {"verdict": "challenger", "reason": "good"}, {"recall_at_100": 0.25})
    project.crown(registry, 1, reason="no champion yet", evidence="gate")
    project.register(registry, 2)
    project.crown(registry, 2, over=1, reason="better slates")
    (model,) = Registry.open(project.root).status()
    json.dumps(model)
    assert (model["name"], model["source"], set(model["roles"])) == (
        "watchnext",
        "simulated",
        {"champion", "previous"},
    )
    champion, previous = model["roles"]["champion"], model["roles"]["previous"]
    assert (champion["version"], champion["reason"], champion["evidence"]) == (2, "better slates", "offline")
    assert (previous["version"], previous["metrics"]) == (1, {"recall_at_100": 0.25})
    assert previous["reason"] == "replaced by version 2: better slates"
    assert previous["since_at"] == champion["since_at"], "it is the way back since the other was crowned"
    assert champion["since_at"] == registry.history("watchnext")[-1].at
    assert champion["run_id"] == project.run_id


def test_the_same_change_after_a_rollback_by_hand_is_another_event(
    project: Project, registry: Registry
) -> None:
    """Meant to fail when an event equal to the last one was taken for one whose writer was killed."""
    for number in (1, 2):
        project.register(registry, number)
    project.crown(registry, 1)
    project.crown(registry, 2, over=1)
    registry._client().set_registered_model_alias("watchnext", "champion", "1")
    (model,) = registry.status()
    assert model["roles"]["champion"]["version"] == 1
    registry.tidy("watchnext")
    project.crown(registry, 2, over=1, reason="better after all")
    assert roles(registry) == {"champion": 2, "previous": 1}
    assert [(event.before, event.version, event.reason) for event in registry.history("watchnext")] == [
        (None, 1, "version 1 passed"),
        (1, 2, "version 2 passed"),
        (1, 2, "better after all"),
    ]


def test_every_page_of_versions_is_read(
    project: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meant to fail with the first page alone."""
    for number in (1, 2, 3):
        project.register(registry, number)
    client = registry._client()
    search = client.search_model_versions
    monkeypatch.setattr(
        client,
        "search_model_versions",
        lambda wanted, page_token=None: search(wanted, max_results=1, page_token=page_token),
    )
    assert sorted(int(entry.version) for entry in registry._search("name = 'watchnext'")) == [1, 2, 3]
    assert registry.status()[0]["latest"]["version"] == 3


def test_decisions_are_only_ever_added(project: Project, registry: Registry) -> None:
    """Meant to fail with one file per kind of decision: the second one took the first one's place."""
    project.register(registry, 1)

    def version() -> Version:
        return registry.version("watchnext", 1)

    assert registry.recall(version(), "shadow") is None
    passed, refused = {"verdict": "challenger", "value": None}, {"verdict": "rejected", "value": 1.0}
    registry.keep(version(), "gate", "by these", passed)
    registry.keep(version(), "gate", "by others", refused)
    assert registry.recall(version(), "gate") == refused
    assert registry.recall(version(), "gate", "by these") == passed
    assert registry.recall(version(), "gate", "by neither") is None
    assert registry.recall(version(), "shadow") is None
    killed = Registry.open(project.root)
    killed._mlflow_client = KilledAtWrite(registry._client(), 2)
    with pytest.raises(Killed):
        killed.keep(version(), "shadow", "by these", {"verdict": "crown"})
    assert registry.recall(version(), "shadow") is None, "the tag makes it a decision"
    registry.keep(version(), "shadow", "by these", {"verdict": "keep"})
    told = registry.explain("watchnext", 1)["decisions"]
    assert [(one["number"], one["kind"], one["verdict"]) for one in told] == [
        (1, "gate", "challenger"),
        (2, "gate", "rejected"),
        (3, "shadow", "keep"),
    ]


def test_a_clock_that_went_back_changes_no_role(
    project: Project, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meant to fail where the event was written all the same: the history is ordered by instants."""
    for number in (1, 2):
        project.register(registry, number)
    project.crown(registry, 1)

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr("watchnext.registry.datetime", Yesterday)
    with pytest.raises(InputError, match="clock of this machine is behind"):
        project.crown(registry, 2, over=1)
    assert roles(registry) == {"champion": 1}
    assert [event.version for event in registry.history("watchnext")] == [1]


def test_a_champion_that_changed_meanwhile_is_not_overwritten(project: Project, registry: Registry) -> None:
    """Seen to fail when `crown` did not look at the champion again, and when `challenge` did not."""
    for number in (1, 2, 3):
        project.register(registry, number)
    project.crown(registry, 1)
    judged_against = registry.version("watchnext", 1)
    project.crown(registry, 2, over=1)
    with pytest.raises(InputError, match="changed while this decision was being made"):
        registry.crown(
            registry.version("watchnext", 3),
            over=judged_against,
            reason="",
            evidence="",
            run_id=project.run_id,
        )
    with pytest.raises(InputError, match="changed while this decision was being made"):
        registry.challenge(
            registry.version("watchnext", 3), over=judged_against, reason="", evidence="", run_id=""
        )
    assert roles(registry) == {"champion": 2, "previous": 1}


def test_a_locked_database_is_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry.open(project.root)
    project.register(registry, 1)

    def locked(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(registry._client(), "set_model_version_tag", locked)
    with pytest.raises(InputError, match="database is locked"):
        registry.record(registry.version("watchnext", 1), {"verdict": "challenger"})


def test_versions_of_a_moved_project_open_after_the_mend(project: Project, registry: Registry) -> None:
    version = project.register(registry, 1)
    project.crown(registry, 1)
    moved = project.root.with_name("moved here")
    project.root.rename(moved)
    with pytest.raises(InputError, match="registry relocate"):
        Registry.open(moved).bundle(version)
    tracking.relocate(moved)
    opened = Registry.open(moved)
    assert opened.bundle(version).path.is_relative_to(moved)
    code = (
        "import mlflow, pandas\n"
        f"mlflow.set_tracking_uri({opened.tracking_uri!r})\n"
        "model = mlflow.pyfunc.load_model('models:/watchnext@champion')\n"
        "assert model.predict(pandas.DataFrame({'user_id': [1]})) == [13]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=moved)
    assert not project.root.exists()
    assert (moved / DATABASE).is_file()
