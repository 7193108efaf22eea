"""A scratch copy of this project that runs the real pipeline on a tiny world."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from watchnext import tracking
from watchnext.registry import Registry
from watchnext.stages import _runner

ROOT = Path(__file__).parents[2]

KILLS_TO_TRY = 5

TABLES = ("data/ingested", "data/validated", "data/features")
"""Outputs that hold tables: equal to the byte for equal inputs."""


@dataclass(frozen=True)
class Project:
    """A project folder and what a user does in it."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))
        }
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = str(self.root / "src")
        return environment

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, succeeds: bool = True) -> str:
        """Run a command to its end and return what it printed."""
        with self.start(*command) as process:
            printed, _ = process.communicate()
        assert (process.returncode == 0) is succeeds, f"{' '.join(command)}: {process.returncode}\n{printed}"
        return printed

    def set_params(self, changes: Mapping[str, Any]) -> None:
        """Change settings given as `section.key`."""
        yaml = YAML()
        path = self.root / "params.yaml"
        content = yaml.load(path.read_text(encoding="utf-8"))
        for name, value in changes.items():
            *sections, key = name.split(".")
            place = content
            for section in sections:
                place = place[section]
            assert key in place, f"{name} is no setting"
            place[key] = value
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)

    def digests(self, *folders: str) -> dict[str, str]:
        """sha256 of every file below the folders."""
        return {
            path.relative_to(self.root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in folders
            for path in sorted((self.root / folder).rglob("*"))
            if path.is_file()
        }

    def metrics(self, stage: str) -> dict[str, Any]:
        return json.loads((self.root / "metrics" / f"{stage}.json").read_text(encoding="utf-8"))

    def run_here(self, stage: str) -> tuple[int, str]:
        """Run one stage as dvc.yaml asks for it, in this process: its exit status, and what it printed.

        For what is the stage's own affair. It spares the start of DVC and of the stage's libraries, most of the seconds.
        """
        yaml = YAML(typ="safe")
        params = yaml.load((self.root / "params.yaml").read_text(encoding="utf-8"))
        command = yaml.load((self.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["cmd"]

        def setting(found: re.Match[str]) -> str:
            section, key = found[1].split(".")
            return str(params[section][key])

        words = shlex.split(re.sub(r"\$\{([\w.]+)\}", setting, command))
        printed = io.StringIO()
        with contextlib.chdir(self.root), contextlib.redirect_stderr(printed):
            status = _runner.main(words[words.index(stage) :])
        return status, printed.getvalue()

    def relocate(self) -> None:
        """`watchnext registry relocate`."""
        tracking.relocate(self.root)

    def status(self) -> list[dict[str, Any]]:
        """What `watchnext status --json` says."""
        return json.loads(json.dumps(Registry.open(self.root).status()))

    def roles(self) -> dict[str, int]:
        """Role -> version of the one registered model."""
        (model,) = self.status()
        return {role: int(entry["version"]) for role, entry in model["roles"].items()}

    def runs(self) -> list[dict[str, Any]]:
        """Every MLflow run of the project: id, parent id, stage or None, status."""
        tracker = tracking.Tracker.open(self.root)
        client = tracking.open_client(tracker.tracking_uri, tracker.tracking_uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return [
            {
                "id": run.info.run_id,
                "name": run.info.run_name,
                "status": run.info.status,
                "parent": run.data.tags.get("mlflow.parentRunId"),
                "metrics": run.data.metrics,
                "tags": run.data.tags,
            }
            for run in client.search_runs(experiments, max_results=1000)
        ]

    def kill_in_stage(self, stage: str) -> psutil.Process:
        """Bring the pipeline up to `stage`, and `kill -9` dvc in the middle of it. Returns the stage's process.

        A stage that writes for a few milliseconds can end unseen: then it has to run again.
        """
        command: tuple[str, ...] = ("dvc", "repro", stage)
        for _ in range(KILLS_TO_TRY):
            with self.start(*command) as dvc:
                found = wait_for(
                    partial(self._stage_process, dvc.pid, stage), f"{stage} under {command}", timeout_s=600
                )
                # Into the middle of its work: past its imports, while an output is half written; or, where the work
                # is on the registry, a second into it.
                ends = time.monotonic() + (
                    1.0 if stage in ("choose_start", "promote", "compare_shadow") else 60.0
                )
                while time.monotonic() < ends and dvc.poll() is None and not self.half_written():
                    time.sleep(0.002)
                if dvc.poll() is None:
                    dvc.kill()
                    dvc.communicate()
                    return found
                dvc.communicate()
            command = ("dvc", "repro", "--force", "--single-item", stage)
        raise AssertionError(f"{stage} ended {KILLS_TO_TRY} times before it could be killed")

    def half_written(self) -> list[Path]:
        """Outputs that a stage is making, or was killed while making."""
        return [
            path
            for folder in ("data", "data/simulated", "reports", "metrics")
            for path in (self.root / folder).glob("*.staging")
        ]

    @staticmethod
    def _stage_process(dvc_pid: int, stage: str) -> psutil.Process | None:
        try:
            for child in psutil.Process(dvc_pid).children(recursive=True):
                words = child.cmdline()
                if "watchnext.stages._runner" in words and stage in words:
                    return child
        except psutil.NoSuchProcess:
            return None
        return None


def wait_for(probe: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Poll `probe` until it gives something."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        found = probe()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s:.0f} s in vain for {what}")


def copy_project(target: Path) -> Project:
    """The files that git tracks or would track, in a git repository of their own, with a tiny world's settings."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in listing.stdout.split("\0"):
        produced = name == "dvc.lock" or name.startswith("metrics/")
        if name and not produced and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    project = Project(target)
    tiny = YAML(typ="safe").load((Path(__file__).parent / "tiny_params.yaml").read_text(encoding="utf-8"))
    project.set_params(tiny)
    for command in (
        ("init", "--quiet", "--initial-branch", "main"),
        ("add", "--all"),
        ("-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "Begin"),
    ):
        subprocess.run(["git", *command], cwd=target, check=True)
    return project


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which `dvc repro` has run once. Tests that change it work on a `copy_of_finished`.

    It takes minutes, and so is made by one of the processes that share the tests, for all of them.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    done, target = shared / "finished.done", shared / "finished" / "project"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(target.parent, ignore_errors=True)
            copy_project(target).run("dvc", "repro")
            done.touch()
    return Project(target)


@pytest.fixture
def copy_of_finished(finished: Project, tmp_path: Path) -> Project:
    """The finished project's folder, copied, at another place; its registry is mended as a user would."""
    target = tmp_path / "project"
    shutil.copytree(finished.root, target, symlinks=True)
    project = Project(target)
    project.relocate()
    return project
