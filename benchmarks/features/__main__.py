"""Make the features of generated logs, and print one JSON object last."""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

from benchmarks import CannotMeasure
from benchmarks.features import plain
from benchmarks.features.logs import SPLIT, write_logs
from watchnext.console import say
from watchnext.engine import EngineParams, connect
from watchnext.features import ranking_features
from watchnext.features.history import Logs, make_streams, read_logs, read_once, user_buckets
from watchnext.features.vocabulary import SPACES
from watchnext.stages.featurize import Params

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
MEMORY_LIMIT_GB = 4.0


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


def measure_ours(work: Path) -> float:
    """Seconds from the validated tables to the stored examples of every split, users in buckets as the stage has them."""
    params = EngineParams(threads=THREADS, memory_limit_gb=MEMORY_LIMIT_GB)
    with connect(params, _spill(work)) as engine:
        logs = read_logs(engine, work / "tables")
        features = declared(logs)
        began = time.perf_counter()
        buckets = user_buckets(logs, Params().events_per_bucket)
        for part, own in enumerate(buckets):
            with engine.scope():
                if len(buckets) > 1:
                    own = read_once(engine, own)
                streams = make_streams(engine, own)
                ranking_features.write_ranking_examples(
                    engine, own, streams, SPLIT, features, work / "features", pageless=frozenset(), part=part
                )
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


def in_process(task: str, work: Path) -> dict[str, float]:
    """A task in a process of its own, which has the machine's memory for itself: seconds, cpu_s, peak_rss_gb."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.features", "--task", task, "--work", str(work)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CannotMeasure(f"{task} ended with exit code {done.returncode}")
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    say(f"{task}: {answer['seconds']:.1f} s, {answer['peak_rss_gb']:.1f} GB")
    return answer


def run(rows: int, large_rows: int, folder: Path) -> dict[str, Any]:
    """Both at `rows` impressions, ours at `large_rows` too unless that is 0."""
    result: dict[str, Any] = {"rows": rows, "large_rows": large_rows}
    small = folder / "small"
    small.mkdir()
    say(f"drawing logs of {rows} impressions")
    prepare(rows, small)
    ours, by_hand = in_process("ours", small), in_process("plain", small)
    shutil.rmtree(small)
    result |= {
        "rows_per_s_10m": rows / ours["seconds"],
        "plain_rows_per_s": rows / by_hand["seconds"],
        "ratio_to_plain_duckdb": by_hand["seconds"] / ours["seconds"],
        # On a busy machine seconds say little, and the processor's own seconds more.
        "rows_per_cpu_s_10m": rows / ours["cpu_s"],
        "ratio_to_plain_duckdb_in_cpu_s": by_hand["cpu_s"] / ours["cpu_s"],
        "peak_rss_gb_10m": ours["peak_rss_gb"],
        "rows_per_s_100m": None,
        "peak_rss_gb_100m": None,
    }
    if large_rows:
        large = folder / "large"
        large.mkdir()
        say(f"drawing logs of {large_rows} impressions")
        prepare(large_rows, large)
        at_large = in_process("ours", large)
        result |= {
            "rows_per_s_100m": large_rows / at_large["seconds"],
            "peak_rss_gb_100m": at_large["peak_rss_gb"],
            # 1: time per row does not depend on the number of rows.
            **{
                f"{name}_per_row_large_over_small": at_large[unit] / large_rows / (ours[unit] / rows)
                for name, unit in (("time", "seconds"), ("cpu", "cpu_s"))
            },
        }
    return result


def main() -> int:
    """Parse the flags; a task is one measurement of a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="impressions that both are measured on")
    parser.add_argument(
        "--large-rows",
        type=int,
        default=100_000_000,
        help="impressions that ours is measured on too; 0: none",
    )
    parser.add_argument("--work", type=Path, help="where logs and features go; default: a temporary folder")
    parser.add_argument("--task", choices=("ours", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        seconds = {"ours": measure_ours, "plain": measure_plain}[arguments.task](arguments.work)
        used = resource.getrusage(resource.RUSAGE_SELF)
        answer = {
            "seconds": seconds,
            "cpu_s": used.ru_utime + used.ru_stime,
            "peak_rss_gb": used.ru_maxrss / 2**20,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-features-", dir=arguments.work) as folder:
        try:
            result = run(arguments.rows, arguments.large_rows, Path(folder))
        except CannotMeasure as problem:
            say(f"bench-features: {problem}")
            return 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
