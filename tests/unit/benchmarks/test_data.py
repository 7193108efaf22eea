"""What the benchmark lets a model know of each event, on logs of three days."""

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.quality.data import Logs

from watchnext.errors import InputError

DAY_1, DAY_2, DAY_3 = (dt.date(2026, 3, day) for day in (1, 2, 3))
ANN, BEN = 7, 5
VIDEOS = [10, 20, 30, 40, 50]
"""Their codes are 0 to 4; Ben's code is 0 and Ann's 1."""


def at(day: dt.date, hour: int, second: int = 0) -> dt.datetime:
    return dt.datetime(day.year, day.month, day.day, hour, 0, second, tzinfo=dt.UTC)


def shown(user: int, video: int, when: dt.datetime, clicked: bool = True) -> dict[str, object]:
    return {
        "request_id": f"{user}-{when}",
        "video_id": video,
        "user_id": user,
        "shown_at": when,
        "clicked": clicked,
        "watch_time_s": 0.0,
    }


def watched(
    user: int,
    video: int,
    when: dt.datetime,
    *,
    completed: bool = True,
    lasted: float | None = 10.0,
    origin: str = "home",
) -> dict[str, object]:
    return {
        "user_id": user,
        "video_id": video,
        "watched_at": when,
        "watch_time_s": lasted,
        "completed": completed,
        "origin": origin,
    }


IMPRESSIONS = [
    shown(ANN, 10, at(DAY_1, 9)),
    shown(ANN, 20, at(DAY_1, 9), clicked=False),
    shown(BEN, 10, at(DAY_1, 9)),
    # Ann's page of day 2: 40 and 50, of which she watches 40 first.
    shown(ANN, 50, at(DAY_2, 8)),
    shown(ANN, 40, at(DAY_2, 8)),
    shown(BEN, 20, at(DAY_2, 9)),
    shown(BEN, 30, at(DAY_3, 9), clicked=False),
]
WATCHES = [
    watched(ANN, 10, at(DAY_1, 9)),
    watched(BEN, 10, at(DAY_1, 9), completed=False),
    watched(ANN, 40, at(DAY_2, 8, 2)),
    watched(ANN, 50, at(DAY_2, 8, 30)),
    # Not over when he looks for the next one.
    watched(BEN, 20, at(DAY_2, 9), lasted=7200.0),
    watched(BEN, 50, at(DAY_2, 10), origin="search", lasted=None),
    watched(BEN, 30, at(DAY_3, 9)),
]
HISTORY = [
    {"user_id": ANN, "position": 4, "video_id": 30, "completed": True},
    {"user_id": ANN, "position": 3, "video_id": 20, "completed": True},
    {"user_id": BEN, "position": 0, "video_id": 40, "completed": False},
]


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    rows = {
        "videos": [{"video_id": video} for video in VIDEOS],
        "users": [
            {"user_id": ANN, "age_years": 30.0, "plan": "free"},
            {"user_id": BEN, "age_years": 31.0, "plan": None},
        ],
        "impressions": IMPRESSIONS,
        "watches": WATCHES,
        "history": HISTORY,
    }
    for name, of_table in rows.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.Table.from_pylist(of_table), tmp_path / name / "part-00000.parquet")
    (tmp_path / "source.json").write_text(json.dumps({"source": "test", "time_zone": "UTC"}))
    return tmp_path


def test_training_is_what_was_completed_before_the_day_user_by_user_history_first(tables: Path) -> None:
    fold = Logs(tables).fold(DAY_2)

    assert fold.train_user.tolist() == [1, 1, 1]
    assert fold.train_item.tolist() == [1, 2, 0]
    assert str(fold.train_age_days.tolist()) == f"[nan, nan, {15 / 24}]"


def test_events_are_the_completed_watches_of_the_day_in_their_order(tables: Path) -> None:
    fold = Logs(tables).fold(DAY_2)

    assert list(zip(fold.event_user.tolist(), fold.event_item.tolist(), strict=True)) == [
        (1, 3),
        (1, 4),
        (0, 1),
        (0, 4),
    ]


def test_an_event_knows_what_lies_strictly_before_it_was_asked_for(tables: Path) -> None:
    fold = Logs(tables).fold(DAY_2)
    known = [
        {name: getattr(fold, name)[event].tolist() for name in ("context", "watched", "shown")}
        for event in range(4)
    ]

    assert known == [
        # Ann's page is asked for before anything on it is shown or watched.
        {"context": [1, 2, 0], "watched": [0, 1, 2], "shown": [0, 1, 2]},
        {"context": [1, 2, 0], "watched": [0, 1, 2], "shown": [0, 1, 2]},
        # Ben: 10 was begun and not completed, 40 was only shown, before the logs.
        {"context": [], "watched": [0], "shown": [0, 3]},
        # A search is asked for when its watch begins: 20 is begun, its end is not known yet.
        {"context": [], "watched": [0, 1], "shown": [0, 1, 3]},
    ]
    page = int(at(DAY_2, 8).timestamp() * 1e6)
    assert fold.event_asked_at_us.tolist()[:2] == [page, page]
    assert fold.event_asked_at_us[3] == fold.event_at_us[3]


def test_a_history_without_the_column_completed_is_all_completed(tables: Path) -> None:
    path = tables / "history" / "part-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["completed"]), path)

    assert Logs(tables).fold(DAY_2).train_item.tolist() == [3, 1, 2, 0]


def test_columns_of_users_become_codes_and_numbers_are_left_out(tables: Path) -> None:
    assert Logs(tables).fold(DAY_2).user_features.tolist() == [[0], [1]]


def test_fewer_events_are_spread_over_the_day(tables: Path) -> None:
    assert Logs(tables).fold(DAY_2, max_events=2).event_item.tolist() == [3, 4]


def test_a_day_without_anything_to_predict_is_refused(tables: Path) -> None:
    with pytest.raises(InputError, match="no watch was completed on"):
        Logs(tables).fold(dt.date(2026, 3, 9))
