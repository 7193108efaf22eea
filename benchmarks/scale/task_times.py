"""Take skewed logs through the stages that compute tables on Spark, and show how long tasks take.

    watchnext cluster up && python -m benchmarks.scale.task_times

Draws logs in which one user has a twentieth of all pages and one video a third of all events, and prints one JSON object
last: of each stage of Spark that takes long its tasks, their median and their longest. Run it in the folder of the cluster.
"""

import argparse
import datetime
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.programs import print_measured
from benchmarks.scale.stages import run_stages
from watchnext.data.sources import Files, FileTable
from watchnext.engine import EngineParams
from watchnext.stages import ingest

DAYS = 10
FIRST_DAY = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
PAGE = 3
TABLES = ("videos", "users", "impressions", "watches")
HEAVY_USER, POPULAR_VIDEO = 0, 0
HEAVY_SHARE = 0.05
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class StageTimes:
    """How long the tasks of one of Spark's stages took.

    Attributes:
        name: what it was for, or where nobody said so what Spark calls it, and what its tasks did.
        tasks: how many ended well.
        median_s: of their seconds, from start to end.
        longest_s: of the slowest.
        result_bytes: that all of them sent to the driver: rows where it asked for rows, else a few kB of counts each.
    """

    name: str
    tasks: int
    median_s: float
    longest_s: float
    result_bytes: int


def recorded_in(folder: Path) -> dict[str, str | bool]:
    """Settings (`engine.spark_conf`) with which Spark writes down in `folder`, which exists, what each task took."""
    return {
        "spark.eventLog.enabled": True,
        "spark.eventLog.dir": folder.resolve().as_uri(),
        "spark.eventLog.compress": False,
        "spark.eventLog.rolling.enabled": False,
    }


def read_times(folder: Path) -> list[StageTimes]:
    """What Spark wrote down in `folder`, the stage with the longest task first."""
    found = []
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.startswith("."):
            continue
        with file.open(encoding="utf-8") as lines:
            found += _stages_of(json.loads(line) for line in lines)
    return sorted(found, key=lambda stage: -stage.longest_s)


def most_sent(stages: Iterable[StageTimes]) -> StageTimes:
    """The stage whose tasks sent most to the driver."""
    return max(stages, key=lambda stage: stage.result_bytes)


def _stages_of(events: Iterable[dict[str, Any]]) -> Iterator[StageTimes]:
    seconds: dict[int, list[float]] = {}
    sent: Counter[int] = Counter()
    purposes: dict[int, str] = {}
    names: dict[int, str] = {}
    for event in events:
        if event["Event"] == "SparkListenerTaskEnd" and event["Task End Reason"]["Reason"] == "Success":
            task = event["Task Info"]
            took_s = (task["Finish Time"] - task["Launch Time"]) / 1000
            seconds.setdefault(event["Stage ID"], []).append(took_s)
            sent[event["Stage ID"]] += event["Task Metrics"]["Result Size"]
        elif event["Event"] == "SparkListenerStageSubmitted":
            told = event["Properties"].get("spark.job.description")
            purposes[event["Stage Info"]["Stage ID"]] = told or event["Stage Info"]["Stage Name"]
        elif event["Event"] == "SparkListenerStageCompleted":
            info = event["Stage Info"]
            names[info["Stage ID"]] = ", ".join(_operators(info))
    for stage, taken in seconds.items():
        name = ": ".join(filter(None, (purposes.get(stage, f"stage {stage}"), names.get(stage))))
        yield StageTimes(name, len(taken), median(taken), max(taken), sent[stage])


def _operators(stage: dict[str, Any]) -> list[str]:
    """What the tasks of a stage did, in its order, as far as Spark tells: `Exchange`, `Window`, ..."""
    scopes = (
        (rdd["RDD ID"], json.loads(rdd["Scope"])["name"]) for rdd in stage["RDD Info"] if "Scope" in rdd
    )
    # Neighbours of one name are one operator's, generated code says nothing of what it is.
    named = [re.sub(r"WholeStageCodegen.*", "", name).strip() for _, name in sorted(scopes)]
    return [name for name, _ in itertools.groupby(filter(None, named))]


def write_skewed_logs(directory: Path, pages: int, seed: int = 1) -> None:
    """Logs as files of a source, see the module: `pages` pages of PAGE videos, and a watch for each click.

    Args:
        directory: gets videos, users, impressions and watches.
        pages: how many; users are a tenth as many.
        seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    videos, users = max(100, pages // 50), max(20, pages // 10)
    duration_s = rng.uniform(30, 600, videos)
    at = np.sort(rng.integers(0, DAYS * _DAY_US, pages)) + int(FIRST_DAY.timestamp() * 1e6)
    user = np.where(rng.random(pages) < HEAVY_SHARE, HEAVY_USER, rng.integers(1, users, pages))
    # The popular one is on every page, and two others.
    others = rng.integers(1, videos - 1, pages)
    shown = np.stack([np.full(pages, POPULAR_VIDEO), others, others % (videos - 2) + 1], axis=1)
    shown[:, 2] = np.where(shown[:, 2] == shown[:, 1], videos - 1, shown[:, 2])
    clicked = rng.random((pages, PAGE)) < 0.4
    watch_time_s = np.where(clicked, duration_s[shown] * rng.uniform(0.2, 1.0, (pages, PAGE)), 0.0)
    was_clicked = clicked.ravel()
    each = np.repeat(np.arange(pages), PAGE)
    directory.mkdir(parents=True)
    tables = {
        "videos": {
            "video_id": np.arange(videos),
            "channel_id": rng.integers(0, max(2, videos // 10), videos),
            "topics": pa.array([[f"t{topic}"] for topic in rng.integers(0, 20, videos)]),
            "duration_s": duration_s,
            "uploaded_at": _instants(at[0] - rng.integers(3, 90, videos) * _DAY_US),
            "language": pa.array(rng.choice(["de", "en"], videos).tolist()),
        },
        "users": {
            "user_id": np.arange(users),
            "region": pa.array(rng.choice(["north", "south"], users).tolist()),
        },
        "impressions": {
            "request_id": each,
            "video_id": shown.ravel(),
            "user_id": user[each],
            "shown_at": _instants(at[each]),
            "surface": pa.array(np.full(pages * PAGE, "home").tolist()),
            "position": np.tile(np.arange(PAGE), pages),
            "device": pa.array(rng.choice(["phone", "tv"], pages)[each].tolist()),
            "clicked": was_clicked,
            "watch_time_s": watch_time_s.ravel(),
        },
        "watches": {
            "user_id": user[each][was_clicked],
            "video_id": shown.ravel()[was_clicked],
            "watched_at": _instants(at[each][was_clicked]),
            "watch_time_s": watch_time_s.ravel()[was_clicked],
            "completed": rng.random(int(was_clicked.sum())) < 0.6,
        },
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), directory / f"{name}.parquet")


def _instants(microseconds: np.ndarray) -> pa.Array:
    return pa.array(microseconds.astype(np.int64), pa.timestamp("us", tz="UTC"))


def main() -> int:
    """Print what was measured; 1 where it could not be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale.task_times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--pages", type=int, default=100_000, help="of the logs that are drawn, three impressions each"
    )
    parser.add_argument("--master", default="spark://127.0.0.1:7077")
    parser.add_argument("--shown", type=int, default=10, help="how many stages of Spark to show")
    parser.add_argument("--work", type=Path, help="where tables go; default: a temporary folder")
    options = parser.parse_args()

    def measure(work: Path) -> dict[str, Any]:
        write_skewed_logs(work / "logs", options.pages)
        events = work / "events"
        events.mkdir()
        engine = EngineParams(
            kind="spark",
            master=options.master,
            memory_limit_gb=1.0,
            spark_conf={"spark.sql.shuffle.partitions": 8, **recorded_in(events)},
        )
        tables = {name: FileTable(path=f"{name}.parquet") for name in TABLES}
        source = ingest.Params(source="files", files=Files(tables=tables))
        seconds = run_stages(source, work / "logs", engine, work / "spark")
        stages = read_times(events)
        several = [stage for stage in stages if stage.tasks > 1]
        return {
            "impressions": options.pages * PAGE,
            "seconds": seconds,
            "stages_of_spark": len(stages),
            "longest_task_s": stages[0].longest_s,
            "longest_task_of_several_s": several[0].longest_s,
            "most_sent_to_the_driver": vars(most_sent(stages)),
            "stages": [vars(stage) for stage in itertools.islice(stages, options.shown)],
        }

    return print_measured("task-times", measure, options.work)


if __name__ == "__main__":
    sys.exit(main())
