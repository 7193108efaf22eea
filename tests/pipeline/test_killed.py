"""`kill -9` of dvc in the middle of every stage, and the `dvc repro` after it."""

import json
import time
from pathlib import Path

import psutil
import pytest

from conftest import TABLES, Project, copy_project, wait_for
from watchnext import config

pytestmark = pytest.mark.pipeline


def test_killed_in_every_stage_a_pipeline_ends_as_if_it_never_was(finished: Project, tmp_path: Path) -> None:
    """`kill -9` of dvc in the middle of each stage: nobody goes on writing, and the next `dvc repro` takes it from there."""
    project = copy_project(tmp_path / "project")
    for stage in config.STAGES:
        process = project.kill_in_stage(stage)
        _, alive = psutil.wait_procs([process], timeout=5)
        assert not alive, f"{stage} went on after its dvc was killed"
        left = project.digests("data")
        time.sleep(0.3)
        assert project.digests("data") == left, f"{stage}: somebody still writes"

    project.run("dvc", "repro")
    assert "up to date" in project.run("dvc", "status", "validate")
    assert project.digests(*TABLES) == finished.digests(*TABLES)
    assert all((project.root / "reports" / stage).is_dir() for stage in config.STAGES)
    assert not project.half_written()
    (model,) = project.status()
    assert model["roles"]["champion"] is not None
    weights = [
        json.loads((p.root / "data/retrieval/manifest.json").read_text())["weights_digest"]
        for p in (project, finished)
    ]
    assert weights[0] == weights[1]
    for name in ("recall_at_100", "weighted_pairwise_loss"):
        assert project.metrics("evaluate")[name] == pytest.approx(
            finished.metrics("evaluate")[name], abs=0.02
        )
    assert all(run["status"] != "RUNNING" for run in project.runs())


def test_a_training_killed_after_a_checkpoint_goes_on_from_it_and_says_so(copy_of_finished: Project) -> None:
    """`kill -9` of dvc once there is a checkpoint; the next run ends with the weights of one that was left alone."""
    project = copy_of_finished
    project.set_params(
        {
            "training.checkpoint_every_s": 0.0,
            "train_retrieval.epochs": 8,
            "train_retrieval.patience": 8,
        }
    )
    command = ("dvc", "repro", "--force", "--single-item", "train_retrieval")

    def checkpoint() -> list[Path]:
        return list((project.root / ".checkpoints" / "train_retrieval").glob("*/step-*/progress.json"))

    with project.start(*command) as dvc:
        wait_for(checkpoint, "a checkpoint", timeout_s=300)
        assert dvc.poll() is None, "train_retrieval ended before it could be killed"
        dvc.kill()
        dvc.communicate()
    wait_for(lambda: not _runs_in(project.root), "the end of the stage whose dvc was killed")
    assert checkpoint(), "what DVC does to outputs must not reach the checkpoints"

    said = project.run(*command)
    assert "train_retrieval: goes on from its checkpoint" in said
    assert not (project.root / ".checkpoints" / "train_retrieval").exists()
    resumed = project.metrics("train_retrieval")
    said = project.run(*command)
    assert "goes on from its checkpoint" not in said
    assert resumed["weights_digest"] == project.metrics("train_retrieval")["weights_digest"]


def _runs_in(root: Path) -> bool:
    """Whether a stage is at work in this folder."""
    for process in psutil.process_iter():
        try:
            if "watchnext.stages._runner" in process.cmdline() and process.cwd() == str(root):
                return process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
    return False
