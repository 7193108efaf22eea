"""Examples beside the watches of the logs, against a slow reference."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from random_logs import Rows, make_rows, write_rows

from watchnext.data.split import SplitDays
from watchnext.engine import Engine, EngineParams, connect
from watchnext.features.batches import read_examples
from watchnext.features.further_examples import logs_begin_at, write_further_examples
from watchnext.features.history import make_streams, read_logs
from watchnext.features.retrieval_examples import (
    newest_label_at,
    possible_inputs,
    retrieval_examples,
)

SPLIT = SplitDays(
    training=(dt.date(2026, 3, 1), dt.date(2026, 3, 3)),
    tuning=dt.date(2026, 3, 4),
    gate=dt.date(2026, 3, 5),
    shadow=dt.date(2026, 3, 6),
)
UNTIL = dt.datetime(2026, 3, 4, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with connect(EngineParams(), tmp_path_factory.mktemp("scratch")) as opened:
        yield opened


def written(
    engine: Engine, rows: Rows, directory: Path, *, most: int = 10**6, known: int = 10**6
) -> tuple[dict[str, list[dict[str, Any]]], dict[Any, dict[str, Any]], int]:
    """The examples by name, what `retrieval_examples` has for the same impressions, and the newest label's instant."""
    spaces = dict.fromkeys(("video", "region", "gender", "device", "search_token", "user_plan"), 9)
    with engine.scope():
        logs = read_logs(engine, write_rows(rows, directory / "logs"))
        tokens = sorted({row["video_id"] for row in rows["videos"]})[:known]
        (directory / "vocabularies" / "video").mkdir(parents=True)
        pq.write_table(
            pa.table({"token": tokens}), directory / "vocabularies" / "video" / "part-00000.parquet"
        )
        inputs = possible_inputs(logs, spaces)
        streams, newest = make_streams(engine, logs), newest_label_at(engine, logs.tables)
        counts = write_further_examples(
            engine, logs, streams, SPLIT, inputs, directory,
            newest_at=newest, begin_at=logs_begin_at(engine, logs), seed=1, examples_per_user=most, part=0,
        )  # fmt: skip
        impressions = logs.tables["impressions"]
        labels = impressions.select(
            "user_id", "video_id", watched_at="shown_at", at=engine.microseconds(impressions.shown_at)
        ).distinct()
        expected = retrieval_examples(engine, logs.tables, streams, labels, inputs).to_pyarrow().to_pylist()
    found = {
        name: [
            row
            for table in read_examples(directory / "retrieval_examples" / name)
            for row in table.to_pylist()
        ]
        for name in ("history", "shown")
    }
    assert counts == {f"retrieval_examples_{name}": len(of) for name, of in found.items()}
    by_key = {(row["user_id"], row["video_id"], row["watched_at"]): row for row in expected}
    return found, by_key, newest


@pytest.mark.parametrize("strings", [False, True])
def test_tables_equal_the_reference(engine: Engine, tmp_path: Path, strings: bool) -> None:
    """Seen to fail where the label stays in its own bag, where clicks or days after training are labels, and where
    what `history` has as completed is one."""
    rows = make_rows(11, users=9, videos=14, days=6, events_per_day=30, strings=strings)
    found, as_shown, newest = written(engine, rows, tmp_path)
    begin = min(
        [row["shown_at"] for row in rows["impressions"]] + [row["watched_at"] for row in rows["watches"]]
    )
    newest_at = max(row["watched_at"] for row in rows["watches"] if row["completed"])
    assert newest == (newest_at - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)

    def earlier(user_id: Any, completed: bool, but: Any) -> list[Any]:
        own = [r for r in rows["history"] if r["user_id"] == user_id and r["completed"] is completed]
        return [r["video_id"] for r in sorted(own, key=lambda r: r["position"]) if r["video_id"] != but]

    watched = {(r["user_id"], r["video_id"]) for r in rows["history"] if r["completed"]}
    assert {(r["user_id"], r["video_id"]) for r in found["history"]} == watched
    assert len(found["history"]) == len(watched) > 8
    first_shown: dict[Any, dt.datetime] = {}
    for row in sorted(rows["impressions"], key=lambda r: r["shown_at"]):
        key = (row["user_id"], row["video_id"])
        if row["shown_at"] < UNTIL and not row["clicked"] and key not in watched:
            first_shown.setdefault(key, row["shown_at"])
    before = {
        key
        for r in rows["history"]
        if not r["completed"] and (key := (r["user_id"], r["video_id"])) not in watched
    }
    expected = {(*key, at) for key, at in first_shown.items()} | {(*key, begin) for key in before}
    held_out = [
        r for r in found["shown"] if (r["user_id"], r["video_id"]) in before and r["watched_at"] == begin
    ]
    assert {(r["user_id"], r["video_id"], r["watched_at"]) for r in found["shown"]} == expected
    assert len(first_shown) > 20
    assert len(held_out) == len(before) > 3
    people = {row["user_id"]: row for row in rows["users"]}
    for row in (*found["history"], *held_out):
        assert row["history"] == earlier(row["user_id"], True, row["video_id"])
        assert row["shown_unwatched"] == earlier(row["user_id"], False, row["video_id"])
        assert (row["search_tokens"], row["device"], row["logged_in"]) == ([], None, None)
        assert row["region"] == people[row["user_id"]]["region"]
        assert row["user_plan"] == people[row["user_id"]]["plan"]
        assert row["watched_at"] == row["asked_at"] == begin
        assert row["example_age_s"] == (newest_at - begin) / dt.timedelta(seconds=1)
    for row in found["shown"]:
        if row not in held_out:
            age = (newest_at - row["watched_at"]) / dt.timedelta(seconds=1)
            reference = as_shown[(row["user_id"], row["video_id"], row["watched_at"])]
            assert row["example_age_s"] == age
            assert all(row[name] == reference[name] for name in row if name != "example_age_s")


def test_at_most_so_many_of_a_user_and_of_known_videos_alone(engine: Engine, tmp_path: Path) -> None:
    rows = make_rows(12, users=4, videos=30)
    everything, _, _ = written(engine, rows, tmp_path / "all")
    found, _, _ = written(engine, rows, tmp_path / "few", most=2, known=20)
    for name, of in found.items():
        keys = {(r["user_id"], r["video_id"]) for r in of}
        assert 0 < len(of) < len(everything[name])
        assert max(sum(user_id == r["user_id"] for r in of) for user_id in range(4)) == 2
        assert keys <= {(r["user_id"], r["video_id"]) for r in everything[name]}
        assert all(video_id < 120 for _, video_id in keys)


def test_bags_hold_the_last_fifty(engine: Engine, tmp_path: Path) -> None:
    rows = make_rows(13, users=1, videos=80)
    rows["history"] = [
        {"user_id": 0, "position": place, "video_id": 100 + place, "completed": True} for place in range(70)
    ]
    found, _, _ = written(engine, rows, tmp_path)
    bags = {row["video_id"]: row["history"] for row in found["history"]}
    assert bags[105] == list(range(120, 170))
    assert bags[150] == [video_id for video_id in range(119, 170) if video_id != 150]


def test_without_the_table_history_there_are_impressions_alone(engine: Engine, tmp_path: Path) -> None:
    rows = make_rows(14)
    rows["history"] = []
    found, _, _ = written(engine, rows, tmp_path)
    assert found["history"] == []
    assert len(found["shown"]) > 5
