"""`make bench-scale`'s arithmetic, and that it fails where it cannot measure. Nothing here is timed."""

import subprocess
from pathlib import Path

import pytest
from benchmarks import CannotMeasure
from benchmarks.scale import __main__ as scale


def test_slopes_are_brought_to_ten_times_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1_000: 2.0, 10_000: 21.0, 50_000: 120.0}

    def in_process(task: str, work: Path) -> dict[str, float]:
        rows = int(work.name.removeprefix("rows-"))
        return {
            "seconds": seconds[rows],
            "cpu_s": 1.0,
            "peak_rss_gb": rows / 10_000,
            "spill_gb": 0.0,
            "stored_gb": 0.0,
        }

    monkeypatch.setattr(scale, "prepare", lambda rows, folder: None)
    monkeypatch.setattr(scale, "in_process", in_process)
    found = scale.featurize([1_000, 10_000, 50_000], tmp_path)
    assert found["featurize_slopes"] == pytest.approx([10.5, 120.0 / 21.0 * 10 / 5])
    assert found["featurize_slope"] == pytest.approx(max(found["featurize_slopes"]))
    assert found["peak_rss_gb"] == 5.0
    assert found["rows_per_s_largest"] == pytest.approx(50_000 / 120.0)
    assert not list(tmp_path.iterdir())  # the logs of a size make room for the next


def test_features_of_two_sizes_are_really_made(tmp_path: Path) -> None:
    found = scale.featurize([2_000, 4_000], tmp_path)
    assert found["featurize_slope"] > 0
    assert all(one["stored_gb"] > 0 for one in found["featurize"])


def test_a_part_that_fails_fails_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 3, stdout="", stderr="")

    monkeypatch.setattr(scale.subprocess, "run", run)
    with pytest.raises(CannotMeasure, match="exit code 3"):
        scale.workers()
    with pytest.raises(CannotMeasure, match="cluster up"), scale.cluster(tmp_path / "cluster"):
        pass
