"""The `watchnext` command as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest

from watchnext.config import read_params

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(
        (ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "logs").mkdir()
    return tmp_path


def watchnext(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "watchnext.cli", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def test_use_source_changes_two_values_and_no_comment(project: Path) -> None:
    before = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    done = watchnext(project, "use-source", "kuairand", "--path", "logs")
    assert done.returncode == 0, done.stderr
    after = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2, changed
    ingest = read_params(project / "params.yaml")["ingest"]
    assert (ingest["source"], ingest["path"]) == ("kuairand", "logs")
    assert watchnext(project, "use-source", "simulated").returncode == 0
    assert read_params(project / "params.yaml") == read_params(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kuairand"], "needs the folder of its logs"),
        (["kuairand", "--path", "nowhere"], "there is no such folder"),
        (["netflix", "--path", "logs"], "`ingest.source` is 'netflix'"),
    ],
)
def test_use_source_refuses_and_leaves_the_settings(
    project: Path, arguments: list[str], message: str
) -> None:
    before = (project / "params.yaml").read_bytes()
    done = watchnext(project, "use-source", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (project / "params.yaml").read_bytes() == before
    assert not list(project.glob("*.staging"))


def test_status_of_an_empty_project_says_what_to_do(project: Path) -> None:
    done = watchnext(project, "status")
    assert done.returncode == 0, done.stderr
    assert "dvc repro" in done.stderr
    assert watchnext(project, "status", "--json").stdout.strip() == "[]"
    assert not (project / "mlruns").exists(), "looking makes nothing"


def test_help_teaches() -> None:
    done = watchnext(ROOT, "--help")
    for command in ("status", "ui", "use-source", "registry"):
        assert command in done.stdout
