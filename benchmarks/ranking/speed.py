"""How fast the saved ranker scores a request, and how fast a ranker trains, beside a plain matrix product.

python -m benchmarks.ranking.speed score|train --fold DIR --out FILE
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ranking import ours
from benchmarks.ranking.folds import Fold, Rows
from watchnext.console import say

CANDIDATES = 200
WIDEST: dict[str, Any] = {"hidden_units": [1024, 512, 256], "rows_per_embedded_id": 0.0}
"""The paper's widest network, alone, and every id embedded: the time is not to depend on how few rows a fold has."""
HIDDEN_UNITS = WIDEST["hidden_units"]
WARM_UP_CALLS = 50
BATCH_SIZE = 4096
PEAK_SHAPES = [(2048, 2048, 2048), (4096, 1024, 1024), (4096, 4096, 4096)]


def score(fold: Fold, calls: int) -> dict[str, float]:
    """Requests of CANDIDATES impressions, one after the other, through a ranker that was trained, saved and loaded.

    What is asked is what serving asks: one row of the query side, one per candidate of the other.

    Returns:
        score_200_ms_p50, score_200_ms_p99, matmul_peak_gflops (fp32, of this process's threads) and
        score_share_of_peak, the arithmetic that a request needs over its time at that peak.
    """
    from watchnext.models import ranking

    model = ours.train(_first(fold, BATCH_SIZE), WIDEST, 1, 1, lambda _: None)
    with tempfile.TemporaryDirectory(prefix="ranker-") as directory:
        ranking.save(model, Path(directory))
        rank = ranking.load_ranker(Path(directory) / "ranker")
    draw = np.random.default_rng(1)
    requests = []
    for _ in range(min(calls, 200)):
        candidates = draw.integers(0, len(fold.held), CANDIDATES)
        requests.append(
            {
                one.name: fold.held.inputs[one.name][candidates[:1] if one.side == "query" else candidates]
                for one in fold.inputs
            }
        )
    times_ms = []
    for number in range(WARM_UP_CALLS + calls):
        request = requests[number % len(requests)]
        begun = time.perf_counter()
        rank(request)
        times_ms.append(1000.0 * (time.perf_counter() - begun))
    median, slow = np.percentile(times_ms[WARM_UP_CALLS:], [50, 99])
    query, impression = model.tower.widths
    operations = 2.0 * (HIDDEN_UNITS[0] * (query + CANDIDATES * impression) + CANDIDATES * _above_first())
    peak = matmul_peak()
    return {
        "score_200_ms_p50": float(median),
        "score_200_ms_p99": float(slow),
        "matmul_peak_gflops": peak / 1e9,
        "score_share_of_peak": operations / (median / 1000.0) / peak,
    }


def train(fold: Fold, passes: int) -> dict[str, float]:
    """Whole passes of training at HIDDEN_UNITS: batches, step, Adagrad; the first one, which traces, is left out.

    Returns:
        train_examples_per_s, train_matmul_peak_gflops (fp32) and train_share_of_peak: 6 x the multiply-adds of the
        layers per example, over that peak.
    """
    ends: list[float] = []
    model = ours.train(
        fold,
        {**WIDEST, "batch_size": BATCH_SIZE},
        passes + 1,
        1,
        lambda _: ends.append(time.perf_counter()),
    )
    rows = len(fold.training)
    examples = rows // min(BATCH_SIZE, rows) * min(BATCH_SIZE, rows)
    rate = examples / float(np.median(np.diff(ends)))
    peak = matmul_peak()
    operations = 6.0 * (HIDDEN_UNITS[0] * sum(model.tower.widths) + _above_first())
    return {
        "train_examples_per_s": rate,
        "train_matmul_peak_gflops": peak / 1e9,
        "train_share_of_peak": operations * rate / peak,
    }


def matmul_peak(rounds: int = 5) -> float:
    """Floating-point operations per second of the fastest float32 product of PEAK_SHAPES."""
    import tensorflow as tf

    best = 0.0
    for rows, inner, columns in PEAK_SHAPES:
        left, right = tf.random.normal([rows, inner]), tf.random.normal([inner, columns])
        product = tf.function(lambda left=left, right=right: tf.reduce_sum(tf.matmul(left, right)[:1]))
        product()
        for _ in range(rounds):
            begun = time.perf_counter()
            product().numpy()
            best = max(best, 2.0 * rows * inner * columns / (time.perf_counter() - begun))
    return best


def _above_first() -> int:
    """Multiply-adds per impression of the layers above the first."""
    widths = (*HIDDEN_UNITS, 1)
    return sum(below * above for below, above in itertools.pairwise(widths))


def _first(fold: Fold, rows: int) -> Fold:
    """The fold with so many training rows."""
    learned = fold.training
    few = Rows(
        {name: array[:rows] for name, array in learned.inputs.items()},
        *(getattr(learned, name)[:rows] for name in ("clicked", "watch_time_s", "groups", "users")),
    )
    return Fold(fold.inputs, fold.sizes, fold.boundaries, few, fold.held)


WHAT: dict[str, Callable[[Fold, int], dict[str, Any]]] = {"score": score, "train": train}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("--fold", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--times", type=int, required=True, help="requests, or passes over the training rows")
    arguments = parser.parse_args()
    if arguments.what == "score":
        # One core: threads alone would still let the kernel move them.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    result = WHAT[arguments.what](Fold.load(arguments.fold), arguments.times)
    arguments.out.write_text(json.dumps(result) + "\n")
    say("; ".join(f"{name} {value:.4g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
