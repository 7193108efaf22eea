"""The tasks that are measured, each in a process of its own, which has the machine's memory for itself."""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb

from benchmarks import CannotMeasure
from benchmarks.features import plain
from benchmarks.features.logs import SPLIT, write_logs
from watchnext.console import say
from watchnext.engine import EngineParams, connect
from watchnext.features import ranking_features
from watchnext.features.day_parts import DayParts
from watchnext.features.history import Logs, make_streams, read_logs, read_once, user_buckets
from watchnext.features.vocabulary import SPACES
from watchnext.stages.featurize import Params

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
MEMORY_LIMIT_GB = 4.0
CLUSTER = "spark://127.0.0.1:7077"


def declared(logs: Logs) -> tuple[ranking_features.Feature, ...]:
    """Every declared feature that the logs have columns for."""
    sizes = {space.name: 1 for space in SPACES} | {"user_plan": 1}
    return ranking_features.possible_features(logs, sizes)


def prepare(rows: int, work: Path) -> None:
    """The logs, and the statistics of videos, which both read."""
    write_logs(rows, work / "tables")
    params = EngineParams(threads=THREADS, memory_limit_gb=MEMORY_LIMIT_GB)
    with connect(params, _spill(work)) as engine:
        logs = read_logs(engine, work / "tables")
        ranking_features.write_video_statistics(engine, logs, SPLIT, work / "features")


def measure_ours(work: Path, params: EngineParams | None = None) -> float:
    """Seconds from the validated tables to the stored examples of every split, users in buckets as the stage has them."""
    params = params or EngineParams(threads=THREADS, memory_limit_gb=MEMORY_LIMIT_GB)
    with connect(params, _spill(work)) as engine:
        logs = read_logs(engine, work / "tables")
        features = declared(logs)
        began = time.perf_counter()
        buckets = user_buckets(engine, logs, Params().events_per_bucket)
        parts = DayParts(engine, work / "features", buckets=len(buckets))
        for part, own in enumerate(buckets):
            with engine.scope():
                if len(buckets) > 1:
                    own = read_once(engine, own)
                streams = make_streams(engine, own)
                ranking_features.write_ranking_examples(
                    engine,
                    own,
                    streams,
                    SPLIT,
                    features,
                    work / "features",
                    pageless=frozenset(),
                    part=part,
                    parts=parts,
                )
        parts.finish()
        return time.perf_counter() - began


def measure_plain(work: Path) -> float:
    """Seconds of the same by hand, all users at once."""
    with duckdb.connect() as connection:
        connection.execute(f"SET threads = {THREADS}; SET memory_limit = '{MEMORY_LIMIT_GB}GB'")
        connection.execute(f"SET TimeZone = 'UTC'; SET temp_directory = '{_spill(work)}'")
        began = time.perf_counter()
        plain.make_features(
            connection, work / "tables", work / "features" / "video_statistics", work / "plain.parquet"
        )
        return time.perf_counter() - began


def _spill(work: Path) -> Path:
    folder = work / "spill"
    folder.mkdir(exist_ok=True)
    return folder


def measure_spark(work: Path) -> float:
    """Seconds of ours on the cluster that `watchnext cluster up` has started."""
    return measure_ours(work, EngineParams(kind="spark", master=CLUSTER, memory_limit_gb=1.0))


TASKS = {"ours": measure_ours, "plain": measure_plain, "spark": measure_spark}


def in_process(task: str, work: Path) -> dict[str, float]:
    """A task in a process of its own.

    Returns:
        seconds, cpu_s and peak_rss_gb of that process; spill_gb, the most that lay on the disk to make room in memory;
        stored_gb, what it left there.

    Raises:
        CannotMeasure: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.features.measures", task, str(work)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    spilled = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            spilled.append(_bytes_below(_spill(work)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        told, _ = process.communicate()
    finally:
        ended.set()
        watcher.join()
    if process.returncode != 0:
        raise CannotMeasure(f"{task} ended with exit code {process.returncode}")
    answer: dict[str, float] = json.loads(told.splitlines()[-1])
    answer |= {"spill_gb": max(spilled) / 1e9, "stored_gb": _bytes_below(work / "features") / 1e9}
    say(
        f"{task}: {answer['seconds']:.1f} s, {answer['peak_rss_gb']:.1f} GB, {answer['spill_gb']:.1f} GB spilled"
    )
    return answer


def _bytes_below(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # deleted since it was listed
            continue
    return total


def main() -> None:
    """One task, and what it took as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features.measures", description=__doc__)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    seconds = TASKS[arguments.task](arguments.work)
    used = resource.getrusage(resource.RUSAGE_SELF)
    answer = {
        "seconds": seconds,
        "cpu_s": used.ru_utime + used.ru_stime,
        "peak_rss_gb": used.ru_maxrss / 2**20,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
