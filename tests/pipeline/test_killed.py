"""`kill -9` of dvc in the middle of every stage, and the `dvc repro` after it."""

import json
import shutil
import time

import psutil
import pytest
from conftest import TABLES, Project

from watchnext import config

pytestmark = pytest.mark.pipeline


@pytest.mark.parametrize("stage", config.STAGES)
def test_killed_in_any_stage_the_next_repro_ends_the_same(
    stage: str, finished: Project, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`kill -9` of dvc in the middle of `stage`: nobody goes on writing, and the next `dvc repro` mends it all.

    One copy serves all stages in turn: each begins with what the last one's repair left behind.
    """
    project = Project(tmp_path_factory.getbasetemp() / "killed")
    if not project.root.exists():
        shutil.copytree(finished.root, project.root, symlinks=True)
        project.run("watchnext", "registry", "relocate")
    # So that the stage has to be run again, and cannot be had from a cache.
    shutil.rmtree(project.root / ".dvc/cache/runs", ignore_errors=True)
    shutil.rmtree(project.root / "reports" / stage)
    if stage == "promote":
        shutil.rmtree(project.root / "mlruns")
    process = project.kill_in_stage(stage, "dvc", "repro", "--force", "--single-item", stage)
    _, alive = psutil.wait_procs([process], timeout=5)
    assert not alive, f"{stage} went on after its dvc was killed"
    left = project.digests("data")
    time.sleep(0.3)
    assert project.digests("data") == left, "somebody still writes"

    project.run("dvc", "repro")
    assert project.digests(*TABLES) == finished.digests(*TABLES)
    assert (project.root / "reports" / stage).is_dir()
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
    if stage == config.STAGES[-1]:
        assert all(run["status"] != "RUNNING" for run in project.runs())
