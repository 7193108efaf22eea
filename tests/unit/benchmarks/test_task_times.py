"""Task times as Spark writes them down, and logs that are as skewed as they are said to be."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from benchmarks.scale.task_times import (
    HEAVY_USER,
    POPULAR_VIDEO,
    StageTimes,
    most_sent,
    read_times,
    write_skewed_logs,
)


def task(stage: int, took_ms: int, reason: str = "Success", result_bytes: int = 1_000) -> dict[str, object]:
    return {
        "Event": "SparkListenerTaskEnd",
        "Stage ID": stage,
        "Task End Reason": {"Reason": reason},
        "Task Info": {"Launch Time": 1_000_000, "Finish Time": 1_000_000 + took_ms},
        "Task Metrics": {"Result Size": result_bytes},
    }


def submitted(stage: int, name: str, purpose: str | None = None) -> dict[str, object]:
    properties = {} if purpose is None else {"spark.job.description": purpose}
    return {
        "Event": "SparkListenerStageSubmitted",
        "Stage Info": {"Stage ID": stage, "Stage Name": name},
        "Properties": properties,
    }


def completed(stage: int, *operators: str) -> dict[str, object]:
    """Each operator as Spark writes it: RDDs, of which it may have several, name the scope that they were made in."""
    scopes = [json.dumps({"id": str(number), "name": name}) for number, name in enumerate(operators)]
    rdds: list[dict[str, object]] = [
        {"RDD ID": number, "Scope": scope} for number, scope in enumerate(scopes)
    ]
    info = {"Stage ID": stage, "RDD Info": [*reversed(rdds), {"RDD ID": len(rdds)}]}
    return {"Event": "SparkListenerStageCompleted", "Stage Info": info}


def test_of_each_stage_the_median_and_the_longest_task_are_told(tmp_path: Path) -> None:
    """A task that failed tells nothing of how long it takes; each application numbers its stages anew."""
    one = [
        {"Event": "SparkListenerLogStart"},
        submitted(0, "save at Some.java:0", "write features/gate"),
        *(task(0, took_ms) for took_ms in (90, 2100, 110)),
        completed(0, "Exchange", "WholeStageCodegen (5)", "Window\n", "Window"),
    ]
    other = [
        submitted(0, "count at Some.java:0"),
        task(0, 9000, "ExecutorLostFailure"),
        task(0, 400, result_bytes=70_000),
        completed(0),
    ]
    for name, events in (("app-1", one), ("app-2", other)):
        (tmp_path / name).write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    stages = read_times(tmp_path)
    assert stages == [
        StageTimes("write features/gate: Exchange, Window", 3, 0.11, 2.1, result_bytes=3_000),
        StageTimes("count at Some.java:0", 1, 0.4, 0.4, result_bytes=70_000),
    ]
    assert most_sent(stages) is stages[1]


def test_one_video_has_a_third_of_all_events_and_one_user_a_twentieth(tmp_path: Path) -> None:
    write_skewed_logs(tmp_path / "logs", pages=6_000)
    impressions = pq.read_table(tmp_path / "logs" / "impressions.parquet")
    watches = pq.read_table(tmp_path / "logs" / "watches.parquet")
    assert pc.sum(pc.equal(impressions["video_id"], POPULAR_VIDEO)).as_py() * 3 == impressions.num_rows
    for table in (impressions, watches):
        popular = pc.mean(pc.equal(table["video_id"], POPULAR_VIDEO)).as_py()
        assert popular == pytest.approx(1 / 3, abs=0.03)
        assert pc.mean(pc.equal(table["user_id"], HEAVY_USER)).as_py() == pytest.approx(0.05, abs=0.01)
    keys = impressions.group_by(["request_id", "video_id"]).aggregate([([], "count_all")])
    assert keys.num_rows == impressions.num_rows
