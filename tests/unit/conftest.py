"""What several unit tests need: project folders whose runs and registry are their own."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from watchnext.tracking import DATABASE

# The same examples at every run: a draw that nobody has seen must not decide whether a change lands. To search on,
# take the second line out.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture
def project_root(empty_mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder (with a space in its path) that nothing was logged in."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "my project"
    (root / DATABASE).parent.mkdir(parents=True)
    shutil.copy2(empty_mlflow_database, root / DATABASE)
    return root
