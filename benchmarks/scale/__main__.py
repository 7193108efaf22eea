"""Measure each slope once and print one JSON object last."""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import CannotMeasure
from benchmarks.features.measures import in_process, prepare
from benchmarks.programs import ROOT, print_measured
from benchmarks.train.contender import Contender, interleave
from benchmarks.train.data import Size
from watchnext.console import say
from watchnext.engine import CLUSTER_DIR

NEGATIVES = 4000
STEPS = 6


def featurize(sizes: list[int], work: Path) -> dict[str, Any]:
    """What the features of each size take, and the largest ratio of seconds from one size to ten times its rows."""
    taken = []
    for rows in sizes:
        folder = work / f"rows-{rows}"
        folder.mkdir()
        say(f"drawing logs of {rows:,} impressions")
        prepare(rows, folder)
        taken.append({"rows": rows, **in_process("ours", folder)})
        shutil.rmtree(folder)
    # Sizes may be chosen by hand: a ratio is always brought to ten times the rows.
    slopes = [
        (later["seconds"] / earlier["seconds"]) * 10 / (later["rows"] / earlier["rows"])
        for earlier, later in itertools.pairwise(taken)
    ]
    return {
        "featurize_slope": max(slopes),
        "featurize_slopes": slopes,
        "featurize": taken,
        "rows_per_s_largest": taken[-1]["rows"] / taken[-1]["seconds"],
        "peak_rss_gb": max(one["peak_rss_gb"] for one in taken),
        "spill_gb": max(one["spill_gb"] for one in taken),
    }


def train(large: Size, small: Size, rounds: int) -> dict[str, Any]:
    """Seconds of a training step of retrieval with a vocabulary of one size over those with another, in turns."""
    contenders: list[Contender] = []
    task = f"train-{NEGATIVES}"
    try:
        for name, size in (("large", large), ("small", small)):
            command = [sys.executable, "-m", "benchmarks.train.ours", str(size), str(NEGATIVES)]
            contenders.append(Contender(name, command, {task: STEPS}))
        rates = interleave(contenders, rounds, "bench-scale")
    finally:
        for contender in contenders:
            contender.process.kill()
    ratios = [
        small_rate / large_rate
        for large_rate, small_rate in zip(rates[f"large {task}"], rates[f"small {task}"], strict=True)
    ]
    return {
        "train_slope_vocabulary": median(ratios),
        "train_slope_vocabulary_rounds": ratios,
        "train_peak_rss_gb": contenders[0].peak_rss_gb,
    }


def workers() -> dict[str, Any]:
    """What `benchmarks.scale.workers` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale.workers"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotMeasure(f"benchmarks.scale.workers ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def spark(rows: int, work: Path) -> dict[str, Any]:
    """Impressions a second of the same features on a cluster of a master and two workers of one core."""
    folder = work / "spark"
    folder.mkdir()
    say(f"drawing logs of {rows:,} impressions")
    prepare(rows, folder)
    with cluster(work / "cluster"):
        seconds = in_process("spark", folder)["seconds"]
    here = in_process("ours", folder)["seconds"]
    shutil.rmtree(folder)
    return {
        "spark_rows_per_s": rows / seconds,
        "spark_rows": rows,
        "spark_time_ratio_to_duckdb": seconds / here,
    }


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """The cluster that `make cluster-up` starts, from a folder of its own, for as long as it is needed."""
    folder.mkdir()

    def run(what: str) -> None:
        done = subprocess.run(["watchnext", "cluster", what], cwd=folder, stdout=sys.stderr, check=False)
        if done.returncode != 0:
            raise CannotMeasure(f"`watchnext cluster {what}` ended with exit code {done.returncode}")

    run("up")
    # What is measured runs in another folder, and would not find the secret of this cluster.
    os.environ["SPARK_CONF_DIR"] = str((folder / CLUSTER_DIR / "conf").absolute())
    try:
        yield
    finally:
        del os.environ["SPARK_CONF_DIR"]
        run("down")


def main() -> int:
    """0 when everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--rows",
        type=int,
        nargs="+",
        default=[1_000_000, 10_000_000, 100_000_000],
        help="impressions that features are made of, each size once",
    )
    parser.add_argument("--spark-rows", type=int, default=1_000_000)
    parser.add_argument("--large", type=Size.parse, default=Size(1_000_000, 256))
    parser.add_argument("--small", type=Size.parse, default=Size(10_000, 256))
    parser.add_argument("--rounds", type=int, default=5, help="of training steps")
    parser.add_argument("--work", type=Path, help="where logs and features go; default: a temporary folder")
    options = parser.parse_args()
    if len(options.rows) < 2:
        parser.error("--rows: a slope needs two sizes")

    def measure(work: Path) -> dict[str, Any]:
        return {
            **train(options.large, options.small, options.rounds),
            **workers(),
            **spark(options.spark_rows, work),
            **featurize(sorted(options.rows), work),
            "cores": len(os.sched_getaffinity(0)),
        }

    return print_measured("bench-scale", measure, options.work)


if __name__ == "__main__":
    sys.exit(main())
