"""The `watchnext` command as a user types it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
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


def test_ui_points_to_the_server_that_keeps_the_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    done = watchnext(project, "ui")
    assert done.returncode == 0, done.stderr
    assert "https://mlflow.example.org" in done.stderr


def test_ui_answers_on_loopback(project: Path) -> None:
    """The real MLflow server, on a database that it makes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "watchnext.cli", "ui", "--port", str(port)]
    (project / "mlruns").mkdir()
    with subprocess.Popen(
        command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            ends = time.monotonic() + 240
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                        assert answer.status == 200
                    break
                except OSError:
                    assert server.poll() is None, "the server ended"
                    assert time.monotonic() < ends, "the server did not answer"
                    time.sleep(0.5)
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_help_teaches() -> None:
    done = watchnext(ROOT, "--help")
    for command in ("status", "history", "explain", "rollback", "ui", "use-source", "registry"):
        assert command in done.stdout
