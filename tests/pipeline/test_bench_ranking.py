"""`make bench-ranking`'s program on a tiny world, with the peer that needs nothing but NumPy, in this environment."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks import programs
from benchmarks.ranking import __main__ as program

from conftest import Project, copy_project

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

PEER = "past_mean_watch_time"


def bench_ranking(project: Project, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.ranking", "--quick", *flags],
        cwd=project.root,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def benchmark_here(
    finished: Project, project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The program in this process, on tables that are validated already: exit code, standard output and error."""

    def run(*flags: str) -> tuple[int, str, str]:
        monkeypatch.chdir(project.root)
        monkeypatch.setattr(programs, "ROOT", project.root)
        monkeypatch.setattr(program, "validated_tables", lambda *given: finished.root / "data/validated")
        monkeypatch.setattr(sys, "argv", ["benchmarks.ranking", "--quick", *flags])
        code = program.main()
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return copy_project(tmp_path_factory.mktemp("bench-ranking") / "project")


def test_the_last_line_is_one_json_object_with_losses_their_ratio_and_times(
    finished: Project, project: Project
) -> None:
    logs = str(finished.root / "data/simulated/logs")
    done = bench_ranking(
        project, "--test-days", "2", "--data", logs, "--peers", PEER, "--peers-python", sys.executable
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])

    assert result["validation_days"] == ["2026-03-06", "2026-03-07"]
    assert result["test_days"] == ["2026-03-08", "2026-03-09"]
    assert set(result["models"]) == {"watchnext", PEER}
    for model in result["models"].values():
        assert 0 < model["weighted_pairwise_loss"] < 0.6
        assert 0.4 < model["auc"] < 1
        # The loss of several days is between those of each.
        assert min(model["by_day"]) <= model["weighted_pairwise_loss"] <= max(model["by_day"])
        assert {"weighted_pairwise_loss", "auc", "xauc"} <= set(model["estimates"])
        for name in ("weighted_pairwise_loss", "auc"):
            found = model["estimates"][name]
            assert found["value"] == pytest.approx(model[name])
            assert found["low"] < found["value"] < found["high"]
    ours = result["models"]["watchnext"]["estimates"]
    assert ours["weighted_log_loss"]["value"] > 0
    assert ours["watch_time_mae_s"]["value"] > 0
    assert "fresh_videos" in result["slices"]
    assert any(name.startswith("surface_") for name in result["slices"])
    losses = {name: model["weighted_pairwise_loss"] for name, model in result["models"].items()}
    assert result["best_peer"] == PEER
    assert result["ratio_loss"] == pytest.approx(losses["watchnext"] / losses[PEER])
    assert result["ratio_loss_low"] < result["ratio_loss"] < result["ratio_loss_high"]
    assert result["leak_check_loss"] == pytest.approx(0.5)
    assert 0 < result["score_200_ms_p50"] <= result["score_200_ms_p99"]
    for share in ("score_share_of_peak", "train_share_of_peak"):
        assert 0 < result[share] < 20
    assert result["matmul_peak_gflops"] > 1


def test_without_the_peers_environment_it_says_so_and_fails(project: Project, tmp_path: Path) -> None:
    done = bench_ranking(project, "--peers", PEER, "--peers-python", str(tmp_path / "python"))

    assert done.returncode == 1
    assert done.stdout == ""
    assert "make bench-ranking" in done.stderr


def test_a_peer_that_fails_fails_the_benchmark(benchmark_here: Callable[..., tuple[int, str, str]]) -> None:
    # This environment lacks LightGBM.
    code, out, told = benchmark_here(
        *("--test-days", "1", "--validation-days", "1"),
        *("--peers", "lightgbm_clicks", "--peers-python", sys.executable),
    )

    assert code == 1
    assert out == ""
    assert "lightgbm_clicks ended with exit code 1" in told


def test_too_few_days_are_refused(benchmark_here: Callable[..., tuple[int, str, str]]) -> None:
    code, out, told = benchmark_here("--test-days", "30", "--peers", PEER, "--peers-python", sys.executable)

    assert code == 1
    assert out == ""
    assert "too few" in told
