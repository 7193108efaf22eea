"""A project in which a champion and a challenger that is as good stand, for the stages that decide."""

import shutil
from pathlib import Path

import pytest
from decision_stages import Stages
from fake_mlflow import Snapshot
from tiny_world import make_bundle, video_at

from watchnext.bundle import Bundle
from watchnext.decisions import gate
from watchnext.decisions.gate import Decision
from watchnext.tracking import DATABASE

PASSED = Decision("challenger", "passed", (), {}, "")


@pytest.fixture(scope="session")
def equal_bundle(world_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As good as `right_bundle`, with a video first in every slate that is not first there."""
    return make_bundle(tmp_path_factory.mktemp("equal"), world_features, first=video_at(0))


@pytest.fixture(scope="session")
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
