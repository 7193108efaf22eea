"""`make bench-train`'s arithmetic, and that it fails where it cannot measure. Nothing here is timed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.train.__main__ import summarise
from benchmarks.train.data import Size, make_examples, multiply_adds

ROOT = Path(__file__).parents[2]


def test_model_arithmetic_by_hand():
    """257 inputs, 1024-512-256, and 8,096 logits; at 64 the tower goes on to 128 and 64."""
    by_hand = 257 * 1024 + 1024 * 512 + 512 * 256 + 8096 * 256
    assert multiply_adds(Size(1_000_000, 256), 257, 8096) == by_hand
    assert Size(100_000, 64).widths == [1024, 512, 256, 128, 64]


def test_ratios_are_of_medians():
    rates = {
        "ours train-4000": [10.0, 20.0, 900.0],
        "ours train-2000": [30.0] * 3,
        "ours train-0": [60.0] * 3,
        "ours pipeline": [100.0] * 3,
        "ours peak-a": [1e9] * 3,
        "ours peak-b": [2e9, 1.0, 3e9],
        "ours-small train-4000": [50.0] * 3,
        "ours-few train-4000": [26.0] * 3,
        "tfrs train": [15.0, 20.0, 25.0],
    }
    beside_rechub = {
        "ours train-4000": [22.0],
        "ours-small train-4000": [40.0],
        "rechub train": [2.0],
        "rechub-small train": [5.0],
    }
    beside_full = {"ours train-4000": [40.0], "full float32": [0.2], "full bfloat16": [0.4]}
    large, small = Size(1_000_000, 256), Size(100_000, 64)
    result = summarise(rates, beside_rechub, beside_full, large=large, small=small, tower_inputs=257)
    assert result["ratio_to_tfrs_tutorial"] == pytest.approx(3.0)
    assert result["ratio_to_tfrs_tutorial_with_negatives"] == pytest.approx(1.5)
    assert result["ratio_to_torch_rechub"] == pytest.approx(11.0)
    assert result["ratio_to_torch_rechub_100000x64"] == pytest.approx(8.0)
    assert result["sampled_softmax_speedup"] == pytest.approx(100.0)
    assert result["step_time_ratio_vocabulary"] == pytest.approx(1.3)
    assert result["share_of_matmul_peak"] == pytest.approx(6 * multiply_adds(large, 257, 8096) * 20.0 / 2e9)


def test_examples_follow_zipf_and_lie_in_the_vocabulary():
    examples = make_examples(Size(1000, 64), 2)
    assert examples["history"].shape == (8192, 50)
    counts = np.bincount(examples["history"].ravel(), minlength=1001)
    assert counts[0] == 0
    assert len(counts) == 1001
    assert counts[1] / counts[10] == pytest.approx(np.log(2) / np.log(11 / 10), rel=0.05)


def test_without_the_peers_environment_it_says_so_and_fails(tmp_path: Path):
    small = ["--large", "300x64", "--small", "200x64", "--few", "100"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", *small, "--peers-python", str(tmp_path / "python")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "make bench-train" in done.stderr
