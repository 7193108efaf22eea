"""`make bench-serve`, from a world to its last line, over a corpus that is small enough for a test."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_last_line_has_every_figure(tmp_path: Path, in_full: bool) -> None:
    """Of what is as fast as the machine is idle, only that it was measured. It takes five minutes of two cores."""
    if not in_full:
        pytest.skip("bench-serve is NOT run here: it is with --in-full")
    command = [sys.executable, "-m", "benchmarks.serve", "--work", str(tmp_path), "--videos", "1000"]
    done = subprocess.run(
        [*command, "--users", "20", "--seconds", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=900,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["videos"], result["users"], result["candidates"]) == (1000, 20, 200)
    steps = ("state", "tower", "index", "features", "ranker", "slate", "record", "encoding")
    for name in (
        *(f"{step}_ms" for step in steps),
        "rss_gb",
        "mlflow_serve_trivial_p50_ms",
        "matmul_floor_ms",
    ):
        assert 0.0 < result[name] < math.inf, name
    assert 0.0 < result["p50_ms"] <= result["p99_ms"]
    assert 0.0 < result["two_servers_p50_ms"] <= result["two_servers_p99_ms"]
    for name in ("max_rps_p99_under_50ms", "two_servers_max_rps_p99_under_50ms"):
        assert 0.0 <= result[name] <= 400.0
    assert result["shadow_offered"] > 0
    assert result["shadow_failed"] == 0
    assert result["shadow_p99_ratio"] > 0.0
