"""What several unit tests need: project folders whose runs and registry are their own."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from watchnext.bundle import Bundle
from watchnext.tracking import DATABASE, open_client

# The same examples at every run: a draw that nobody has seen must not decide whether a change lands. To search on,
# take the second line out.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs. Copied, because making one takes MLflow more than a second."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_client(f"sqlite:///{database}", f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def project_root(empty_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder (with a space in its path) that nothing was logged in."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "my project"
    (root / DATABASE).parent.mkdir(parents=True)
    shutil.copy2(empty_mlflow_database, root / DATABASE)
    return root


@pytest.fixture(scope="session")
def world_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validated tables of the tiny world (see tiny_world)."""
    import tiny_world

    return tiny_world.write_tables(tmp_path_factory.mktemp("world") / "validated")


@pytest.fixture(scope="session")
def world_features(world_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the tiny world."""
    import tiny_world

    return tiny_world.write_features(world_tables, tmp_path_factory.mktemp("world") / "features")


@pytest.fixture(scope="session")
def right_bundle(world_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Both models are right about the tiny world."""
    import tiny_world

    return tiny_world.make_bundle(tmp_path_factory.mktemp("right"), world_features)


@pytest.fixture(scope="session")
def wrong_bundle(world_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Candidates are from elsewhere on the ring, and the ranking is upside down."""
    import tiny_world

    return tiny_world.make_bundle(
        tmp_path_factory.mktemp("wrong"), world_features, steps=150, watch_time_sign=-1.0
    )
