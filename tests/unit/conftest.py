"""What several unit tests need: project folders whose runs and registry are their own."""

import shutil
from pathlib import Path

import pytest

from watchnext.tracking import DATABASE, open_client


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
