"""The stage that two workers share: what the chief leaves, what the other does not, and what a kill costs."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from watchnext.errors import InputError
from watchnext.models.warm_start import WarmStart
from watchnext.registry import DATABASE
from watchnext.stages._workers import LOGS, stage_command, train_on_loopback
from watchnext.tracking import Tracker

ROOT = Path(__file__).parents[2]
STAGE = "train_retrieval"
LONG_S = 300.0


@pytest.fixture
def make_project(
    tmp_path: Path, world_features: Path, empty_mlflow_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Projects that have the features of the tiny world, and a checkpoint as often as there can be one."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "TF_CONFIG", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)

    def make(name: str) -> Path:
        root = tmp_path / name
        (root / DATABASE).parent.mkdir(parents=True)
        shutil.copy2(empty_mlflow_database, root / DATABASE)
        shutil.copytree(world_features, root / "data" / "features")
        WarmStart.write_none(root / "data" / "start")
        shutil.copy2(ROOT / "dvc.yaml", root / "dvc.yaml")
        (root / "src").symlink_to(ROOT / "src")
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
        params["training"]["checkpoint_every_s"] = 0.0
        params[STAGE] |= {"batch_size": 16, "negatives": 20, "embedding_dim": 8, "epochs": 4, "patience": 4}
        yaml.dump(params, root / "params.yaml")
        return root

    return make


def train(root: Path) -> None:
    train_on_loopback(stage_command(STAGE, root), workers=2, name=STAGE, root=root)


def manifest(root: Path) -> dict:
    return json.loads((root / "data" / "retrieval" / "manifest.json").read_text())


def said(root: Path, worker: int) -> str:
    return (root / LOGS / f"{STAGE}.worker-{worker}.log").read_text()


def half_written(root: Path) -> list[Path]:
    return [*root.rglob("*.staging"), *(root / ".checkpoints").glob("*/*/*.staging")]


@pytest.mark.slow
def test_a_killed_worker_stops_the_other_and_both_go_on_from_their_checkpoints(make_project):
    """The weights are those, to the bit, of two workers that were left alone."""
    left_alone, killed = make_project("left alone"), make_project("killed")
    train(left_alone)
    digest = manifest(left_alone)["weights_digest"]
    assert all(f"worker {index} of 2: weights {digest}" in said(left_alone, index) for index in range(2))
    assert json.loads((left_alone / "metrics" / f"{STAGE}.json").read_text())["workers"] == 2
    assert not half_written(left_alone)
    assert not list((left_alone / ".checkpoints").rglob("*.json"))
    # The chief alone logs.
    runs = Tracker.open(left_alone)._search("")
    assert [run.info.run_name for run in runs].count(STAGE) == 1

    caught: list[InputError] = []

    def until_killed() -> None:
        try:
            train(killed)
        except InputError as error:
            caught.append(error)

    launcher = threading.Thread(target=until_killed)
    launcher.start()
    second = worker_with_checkpoints(killed, 1)
    second.kill()
    launcher.join(LONG_S)
    (error,) = caught
    assert "worker 1 of 2 was ended by signal SIGKILL" in str(error)
    assert f"{STAGE}.worker-1.log" in error.where
    assert not (killed / "data" / "retrieval").exists()
    assert not (killed / "metrics" / f"{STAGE}.json").exists()
    assert not workers(), "a worker outlived the launcher"

    train(killed)
    assert all("goes on from its checkpoint" in said(killed, index) for index in range(2))
    assert manifest(killed)["weights_digest"] == digest
    assert not half_written(killed)


def worker_with_checkpoints(root: Path, index: int) -> psutil.Process:
    """The process of a worker, once both have a checkpoint."""
    folders = [root / ".checkpoints" / name for name in (STAGE, f"{STAGE}.worker-1")]
    ends_at = time.monotonic() + LONG_S
    while not all(complete(folder) for folder in folders):
        assert time.monotonic() < ends_at, f"no checkpoints: {said(root, index)}"
        time.sleep(0.01)
    assert index in workers(), "it ended before it could be killed"
    return workers()[index]


def workers() -> dict[int, psutil.Process]:
    """Those that run, by index; what other tests keep running has no TF_CONFIG."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            told = process.environ().get("TF_CONFIG")
        except psutil.Error:  # it has ended meanwhile
            continue
        if told:
            found[json.loads(told)["task"]["index"]] = process
    return found


def complete(folder: Path) -> bool:
    """Whether there is a checkpoint, written to its end."""
    return any(not path.parent.name.endswith(".staging") for path in folder.glob("*/step-*/progress.json"))


@pytest.mark.slow
def test_the_command_trains_and_tells_dvc_so(make_project):
    """One worker: what several do is above. Then DVC has nothing to do for the stage; fails where it is not told."""
    root = make_project("with dvc")

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=root,
            check=False,
            capture_output=True,
            text=True,
            env=os.environ,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("dvc", "init", "--no-scm", "--quiet")
    run("watchnext.cli", "train-distributed", "--workers", "1", STAGE)
    assert manifest(root)["weights_digest"]
    assert json.loads(run("dvc", "status", "--json", STAGE)) == {}


def test_who_trains_has_to_be_said_once(make_project, monkeypatch):
    from typer.testing import CliRunner

    from watchnext.cli import app

    root = make_project("nobody")
    monkeypatch.chdir(root)
    asked = CliRunner().invoke(app, ["train-distributed"])
    assert isinstance(asked.exception, InputError)
    assert "nothing says who trains" in str(asked.exception)
    asked = CliRunner().invoke(app, ["train-distributed", "featurize", "--workers", "2"])
    assert isinstance(asked.exception, InputError)
    assert "only the training of models" in str(asked.exception)


def test_a_worker_that_fails_is_named_with_the_end_of_its_log(tmp_path):
    """The other waits for ever: it is stopped, and is not the one to blame."""
    program = (
        "import json, os, sys, time\n"
        "if json.loads(os.environ['TF_CONFIG'])['task']['index'] == 1:\n"
        "    sys.exit('no such column: colour')\n"
        "time.sleep(3600)\n"
    )
    with pytest.raises(InputError, match=r"worker 1 of 2 failed \(exit status 1\)") as caught:
        train_on_loopback([sys.executable, "-c", program], workers=2, name="made up", root=tmp_path)
    assert "no such column: colour" in str(caught.value)
    assert caught.value.where == str(LOGS / "made up.worker-1.log")
    assert not workers()
