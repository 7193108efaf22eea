"""Vocabularies: what is counted, how it is ordered and cut, and that only training is seen."""

import datetime as dt
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from random_logs import BEGIN, Rows, make_rows, write_rows

from watchnext.data.split import SplitDays
from watchnext.engine import EngineParams, connect
from watchnext.features.history import normalize_query, read_logs, tokenize
from watchnext.features.vocabulary import SPACES, training_tables, user_spaces, write_vocabularies

LAST_TRAINING_DAY = BEGIN.date() + dt.timedelta(days=2)
END = BEGIN + dt.timedelta(days=3)
SPLIT = SplitDays(training=(BEGIN.date(), LAST_TRAINING_DAY), tuning=None, gate=END.date(), shadow=None)
LARGEST = {space.name: 1000 for space in SPACES}


def written(rows: Rows, directory: Path, largest: Mapping[str, int] = LARGEST) -> dict[str, dict]:
    with connect(EngineParams()) as engine:
        logs = read_logs(engine, write_rows(rows, directory / "logs"))
        sizes = write_vocabularies(
            engine, training_tables(engine, logs, SPLIT), logs, largest, directory / "out"
        )
    read = {
        folder.name: pq.read_table(folder / "part-00000.parquet") for folder in (directory / "out").iterdir()
    }
    assert {name: table.num_rows for name, table in read.items()} == {
        name: n for name, n in sizes.items() if n
    }
    return {
        name: dict(zip(table["token"].to_pylist(), table["frequency"].to_pylist(), strict=True))
        for name, table in read.items()
        if table["index"].to_pylist() == list(range(1, table.num_rows + 1))
    }


def test_frequencies_are_those_of_training(tmp_path: Path) -> None:
    """Seen to fail on mutants that count all days, or impressions without a click."""
    rows = make_rows(3)
    found = written(rows, tmp_path)
    videos = {row["video_id"]: row for row in rows["videos"]}
    people = {row["user_id"]: row for row in rows["users"]}
    shown = [row for row in rows["impressions"] if row["shown_at"] < END]
    clicked = [videos[row["video_id"]] for row in shown if row["clicked"]]
    completed = [row for row in rows["watches"] if row["completed"] and row["watched_at"] < END]
    searched = [row for row in rows["searches"] if row["searched_at"] < END]
    earlier = [row for row in rows["history"] if row["completed"]]
    assert earlier

    def last_query(impression: Mapping[str, Any]) -> str | None:
        earlier = [
            (row["searched_at"], normalize_query(row["query"]))
            for row in searched
            if row["user_id"] == impression["user_id"] and row["searched_at"] < impression["shown_at"]
        ]
        return max((one for one in earlier if one[1]), default=(None, None))[1]

    expected = {
        "video": Counter(row["video_id"] for row in (*completed, *earlier)),
        "channel": Counter(video["channel_id"] for video in clicked),
        "topic": Counter(topic for video in clicked for topic in video["topics"] or ()),
        "language": Counter(video["language"] for video in clicked),
        "region": Counter(people[row["user_id"]]["region"] for row in completed),
        "gender": Counter(people[row["user_id"]]["gender"] for row in completed),
        "surface": Counter(row["surface"] for row in shown if row["clicked"]),
        "position": Counter(row["position"] for row in shown if row["clicked"]),
        "search_query": Counter(last_query(row) for row in shown if row["clicked"]),
        "device": Counter(row["device"] for row in shown),
        "search_token": Counter(token for row in searched for token in tokenize(row["query"])),
    }
    assert found.keys() == expected.keys()
    for name, counter in expected.items():
        counter.pop(None, None)
        ordered = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
        assert list(found[name].items()) == ordered, name


def test_the_most_frequent_are_kept(tmp_path: Path) -> None:
    rows = make_rows(3)
    everything = written(rows, tmp_path / "all")
    three = written(rows, tmp_path / "three", {**LARGEST, "video": 3})
    assert list(three["video"].items()) == list(everything["video"].items())[:3]
    assert three["topic"] == everything["topic"]


def test_what_happens_after_training_is_not_seen(tmp_path: Path) -> None:
    rows = make_rows(3)
    changed = {
        "impressions": [r for r in rows["impressions"] if r["shown_at"] < END],
        "watches": [r for r in rows["watches"] if r["watched_at"] < END],
        "searches": [r for r in rows["searches"] if r["searched_at"] < END],
    }
    assert written(rows, tmp_path / "all") == written({**rows, **changed}, tmp_path / "cut")


def test_a_space_without_a_value_has_no_vocabulary(tmp_path: Path) -> None:
    rows = make_rows(3)
    for row in rows["impressions"]:
        row["device"] = "tv" if row["shown_at"] >= END else None
    assert "device" not in written(rows, tmp_path)


def test_further_columns_of_users_are_categories_if_they_have_few_values_and_more_than_one(
    tmp_path: Path,
) -> None:
    """Counted over users who completed a watch in training: others bring neither values nor frequencies."""
    rows = make_rows(3, users=7)
    completed = Counter(
        row["user_id"] for row in rows["watches"] if row["completed"] and row["watched_at"] < END
    )
    assert len(completed) == 7
    for number, row in enumerate(rows["users"]):
        row["plan"] = ("free", "paid", None)[number % 3]
        row |= {"alone": "x", "code": str(number), "born": f"199{number % 2}-01-31", "few": str(number % 2)}
    stranger = {**rows["users"][0], "user_id": 99, "alone": "y", "few": "never seen"}
    rows["users"].append(stranger)
    with connect(EngineParams()) as engine:
        logs = read_logs(engine, write_rows(rows, tmp_path / "logs"))
        training = training_tables(engine, logs, SPLIT)
        spaces, left_out = user_spaces(logs, training, most_values=6)
        assert {space.name for space in spaces} == {"user_plan", "user_few"}
        assert left_out == {
            "alone": "one value",
            "code": "7 different values",
            "born": "dates",
        }
        largest = {**LARGEST, "user_column": 6}
        sizes = write_vocabularies(engine, training, logs, largest, tmp_path / "out", spaces)
        assert "code" in {space.name[5:] for space in user_spaces(logs, training, most_values=7)[0]}
    assert (sizes["user_plan"], sizes["user_few"]) == (2, 2)
    table = pq.read_table(tmp_path / "out" / "user_few" / "part-00000.parquet")
    expected = Counter()
    for row in rows["users"][:-1]:
        expected[row["few"]] += completed[row["user_id"]]
    assert dict(zip(table["token"].to_pylist(), table["frequency"].to_pylist(), strict=True)) == expected
