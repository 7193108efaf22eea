"""Features after one more day of logs: what an earlier run left is taken, and nothing comes out differently."""

import datetime as dt
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "features"))

from random_logs import BEGIN, Rows, make_rows, write_rows
from test_featurize import digests

from watchnext.engine import EngineParams, connect
from watchnext.features import ranking_features, retrieval_examples
from watchnext.features.batches import read_examples
from watchnext.features.day_parts import DAYS_FILE, day_digests, find_earlier
from watchnext.features.history import read_logs, to_microseconds
from watchnext.stages.featurize import Params, featurize

INSTANTS = {"impressions": "shown_at", "watches": "watched_at", "searches": "searched_at"}
DAYS = 6


def logs(days: int) -> Rows:
    """The first days of logs in which users have more events than a bag holds."""
    rows = make_rows(3, users=4, days=DAYS, events_per_day=140)
    end = BEGIN + dt.timedelta(days=days)
    return {
        name: [row for row in own if name not in INSTANTS or row[INSTANTS[name]] < end]
        for name, own in rows.items()
    }


def features(
    rows: Rows, directory: Path, earlier: Path | None = None, params: Params | None = None
) -> dict[str, Any]:
    """Featurize rows into `directory`/features; returns the metrics."""
    tables = write_rows(rows, directory / "logs")
    return featurize(
        params or Params(), EngineParams(), 7, tables, directory / "features", directory / "report", earlier
    )


@pytest.fixture(scope="module")
def yesterday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of all days but the last."""
    directory = tmp_path_factory.mktemp("yesterday")
    features(logs(DAYS - 1), directory)
    return directory / "features"


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of all days, made at once."""
    directory = tmp_path_factory.mktemp("today")
    features(logs(DAYS), directory)
    return directory / "features"


def test_a_new_day_gives_to_the_byte_what_all_days_at_once_give(
    yesterday: Path,
    today: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And only its impressions and labels are looked back from."""
    last = (BEGIN + dt.timedelta(days=DAYS - 1)).date()
    # A watch of this morning may come from a page of yesterday.
    begins_at = to_microseconds(BEGIN + dt.timedelta(days=DAYS - 2))
    points: Counter[str] = Counter()

    def watched(engine: Any, asked: Any, *more: Any) -> Any:
        points["all"] += asked.count().to_pyarrow().as_py()
        points["old"] += asked.filter(asked["at"] < begins_at).count().to_pyarrow().as_py()
        return as_of(engine, asked, *more)

    as_of = ranking_features.as_of
    for module in (ranking_features, retrieval_examples):
        monkeypatch.setattr(module, "as_of", watched)
    metrics = features(logs(DAYS), tmp_path, yesterday)
    assert digests(tmp_path / "features") == digests(today)
    assert metrics["days_made"] == 1
    # What bears the first instant of the logs cannot be told from what was before them, and is made again.
    assert points["old"] < 0.25 * points["all"]
    assert (
        f"5 days are as they were, and so are their examples; made are those of {last}"
        in capsys.readouterr().err
    )


def test_a_late_event_makes_its_day_and_all_after_it_anew(
    yesterday: Path, today: Path, tmp_path: Path
) -> None:
    rows = logs(DAYS)
    late = {**rows["impressions"][0], "request_id": 10_000, "shown_at": BEGIN + dt.timedelta(days=2, hours=9)}
    rows["impressions"].append(late)
    metrics = features(rows, tmp_path / "next", yesterday)
    features(rows, tmp_path / "at once")
    assert digests(tmp_path / "next/features") == digests(tmp_path / "at once/features")
    assert metrics["days_made"] == 4
    assert digests(tmp_path / "next/features") != digests(today)


def test_users_in_several_buckets_make_the_same_examples_of_a_day(
    yesterday: Path, today: Path, tmp_path: Path
) -> None:
    metrics = features(logs(DAYS), tmp_path, yesterday, Params(events_per_bucket=500))
    assert metrics["days_made"] == 1
    for table in ("ranking_examples", "ranking_requests"):
        assert digests(tmp_path / "features" / table) == digests(today / table)
    assert len(list((tmp_path / "features/retrieval_examples/training").glob("*.parquet"))) > 1
    for split in ("training", "tuning", "gate", "shadow", "history", "shown"):
        folders = [root / "retrieval_examples" / split for root in (tmp_path / "features", today)]
        found = [pa.concat_tables(read_examples(folder)) for folder in folders]
        order = [(name, "ascending") for name in ("watched_at", "user_id", "video_id")]
        assert found[0].sort_by(order).equals(found[1].sort_by(order)), split


def first_day_made(rows: Rows, directory: Path, earlier: Path, settings: str = "") -> dt.date | None:
    """From which day on examples would have to be made; None: all of them."""
    with connect(EngineParams()) as engine:
        logs = read_logs(engine, write_rows(rows, directory))
        stored = json.loads((earlier / DAYS_FILE).read_text())["made_by"]
        found = find_earlier(earlier, stored + settings, day_digests(engine, logs), WANTED)
    return found.before if found else None


WANTED = [(BEGIN + dt.timedelta(days=day)).date() for day in range(DAYS)]


def test_what_makes_days_anew(yesterday: Path, tmp_path: Path) -> None:
    """A fact of a user or video does from the first day on that names them; somebody new, to whom nothing happened, not."""
    same = logs(DAYS)
    same["users"].append({**same["users"][0], "user_id": 77})
    assert first_day_made(same, tmp_path / "new user", yesterday) == WANTED[-1]
    assert first_day_made(same, tmp_path / "settings", yesterday, "other") is None

    moved = logs(DAYS)
    moved["users"][0]["region"] = "south" if moved["users"][0]["region"] == "north" else "north"
    first = min(row["shown_at"].date() for row in moved["impressions"] if row["user_id"] == 0)
    assert first_day_made(moved, tmp_path / "moved", yesterday) in (first, None)

    shorter = logs(DAYS)
    shorter["watches"] = [row for row in shorter["watches"] if row["watched_at"].date() != WANTED[3]]
    assert first_day_made(shorter, tmp_path / "shorter", yesterday) == WANTED[3]

    known_before = logs(DAYS)
    known_before["history"].append({**known_before["history"][0], "position": 99})
    assert first_day_made(known_before, tmp_path / "history", yesterday) in (None, WANTED[1])


def test_a_damaged_file_is_not_taken(yesterday: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(yesterday, tmp_path / "damaged")
    part = next((damaged / "ranking_examples/training").glob("part-*.parquet"))
    assert first_day_made(logs(DAYS), tmp_path / "whole", damaged) == WANTED[-1]
    part.write_bytes(part.read_bytes() + b"\0")
    assert first_day_made(logs(DAYS), tmp_path / "logs", damaged) is None
