"""`make bench-quality`'s program on a tiny world, with the peers that need nothing but NumPy, in this environment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Project, copy_project

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

FILTERS = ("none", "watched", "shown")
METRICS = {"recall_at_10", "recall_at_50", "recall_at_100", "map"}


def bench_quality(project: Project, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.quality", *flags],
        cwd=project.root,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(tmp_path_factory.mktemp("bench-quality") / "project")


def test_the_last_line_is_one_json_object_with_every_model_under_every_filter(
    finished: Project, project: Project
) -> None:
    peers = ["most_popular", "popular_7_days"]
    logs = str(finished.root / "data/simulated/logs")
    done = bench_quality(project, "--data", logs, "--peers", *peers, "--peers-python", sys.executable)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    assert result["validation_day"] == "2026-03-08"
    assert result["test_days"] == ["2026-03-09"]
    assert set(result["models"]) == {"watchnext", *peers}
    for model in result["models"].values():
        assert set(model["test"]) == set(FILTERS)
        for values in model["test"].values():
            assert set(values) == METRICS
            assert 0 <= values["recall_at_10"] <= values["recall_at_50"] <= values["recall_at_100"] <= 1
            # 1 / rank is at most 1, and at most 1/11 where the rank is above 10.
            assert values["map"] <= values["recall_at_10"] + (1 - values["recall_at_10"]) / 11
    ours = result["models"]["watchnext"]["test"][result["our_filter"]]
    theirs = result["models"][result["best_peer"]]["test"][result["best_peer_filter"]]
    assert result["ratio_recall_at_100"] == pytest.approx(ours["recall_at_100"] / theirs["recall_at_100"])
    assert 0 < result["ratio_recall_at_100_low"] < result["ratio_recall_at_100"]
    assert 0 < result["ratio_map_low"] < result["ratio_map"]


def test_without_the_peers_environment_it_says_so_and_fails(project: Project, tmp_path: Path) -> None:
    done = bench_quality(project, "--peers", "ease", "--peers-python", str(tmp_path / "python"))

    assert done.returncode == 1
    assert done.stdout == ""
    assert "make bench-quality" in done.stderr


def test_a_peer_that_fails_fails_the_benchmark(finished: Project, project: Project) -> None:
    # This environment lacks the library implicit.
    logs = str(finished.root / "data/simulated/logs")
    done = bench_quality(project, "--data", logs, "--peers", "bpr", "--peers-python", sys.executable)

    assert done.returncode == 1
    assert done.stdout == ""
    assert "bpr ended with exit code 1" in done.stderr


def test_logs_that_are_not_there_are_refused(project: Project) -> None:
    done = bench_quality(
        project, "--source", "kuairand", "--data", "nowhere", "--peers-python", sys.executable
    )

    assert done.returncode == 1
    assert "nowhere" in done.stderr
