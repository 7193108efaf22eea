"""Histories: tokens, order of events, and what strictly before means."""

import datetime as dt
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import make_rows, write_rows

from watchnext.engine import EngineParams, connect
from watchnext.errors import InputError
from watchnext.features.history import (
    UserHistory,
    read_logs,
    search_tokens,
    to_microseconds,
    to_milliseconds,
    tokenize,
    user_buckets,
)


def test_instants_are_exact_microseconds() -> None:
    at = dt.datetime(2026, 3, 1, 5, 0, 0, 1001, tzinfo=dt.UTC)
    assert to_microseconds(at) == 1_772_341_200_001_001
    assert to_microseconds(7) == 7


def test_milliseconds_are_rounded_halves_up() -> None:
    assert [to_milliseconds(x) for x in (0.0, 0.0004, 0.0005, 1.4995, 2.0)] == [0, 0, 1, 1500, 2000]


def test_an_event_counts_from_the_microsecond_after_its_own() -> None:
    user = UserHistory()
    user.add_watch(1, 100, None, True, channel_id=7)
    user.add_impression(1, 7, shown_at=100, clicked=False, watch_time_s=0.0)
    user.add_search("piano", 100)
    for before, number in ((100, 0), (101, 1)):
        assert user.completed_watches(before) == number
        assert user.watches(before) == number
        assert user.channel_watches(7, before)[0] == number
        assert user.impressions(before)[0] == number
        assert user.impressions_of(1, before)[0] == number
        assert len(user.last_search_tokens(50, before)) == number
        assert len(user.last_shown_unwatched(50, before)) == number


def test_a_watch_counts_from_the_microsecond_after_its_end() -> None:
    """2.5 us from 100 on: it ends at 103. That it has begun is known before."""
    user = UserHistory()
    user.add_watch(1, 100, 0.0000025, True, channel_id=7)
    user.add_impression(1, 7, shown_at=100, clicked=True, watch_time_s=0.0000025)
    for before, number in ((101, 0), (103, 0), (104, 1)):
        assert user.completed_watches(before) == user.watches(before) == number
        assert user.last_watches(5, before) == user.last_completed(5, before) == [1] * number
        assert user.last_watched_at(before) == (103 if number else None)
        assert user.channel_watches(7, before) == ((1, 103) if number else (0, None))
        assert user.watches_of_clicks(before)[0] == number
        assert user.impressions(before) == (1, 1)
        assert user.begun_videos(before) == [1]


def test_watches_are_in_the_order_of_their_ends() -> None:
    user = UserHistory()
    user.add_watch("long", 0, 1.0, True)
    user.add_watch("short", 10, 0.1, True)
    assert user.last_completed(50, 2_000_000) == user.last_watches(50, 2_000_000) == ["short", "long"]
    assert user.begun_videos(2_000_000) == ["long", "short"]


def test_earlier_watches_come_first_in_their_order() -> None:
    user = UserHistory()
    user.add_watch("c", 5, None, True)
    user.add_earlier_watch("b", 9)
    user.add_earlier_watch("a", 4)
    assert user.last_completed(50, 6) == ["a", "b", "c"]
    assert user.last_completed(2, 6) == ["b", "c"]
    assert user.last_completed(50, 5) == ["a", "b"]
    assert user.watches(6) == 1


def test_what_was_shown_before_the_logs_and_not_completed_is_no_watch() -> None:
    user = UserHistory()
    user.add_impression("c", shown_at=5, clicked=False, watch_time_s=0.0)
    user.add_impression("d", shown_at=5, clicked=True, watch_time_s=0.0)
    user.add_earlier_watch("b", 9, completed=False)
    user.add_earlier_watch("a", 4, completed=False)
    user.add_earlier_watch("w", 7)
    assert user.last_shown_unwatched(50, 6) == ["a", "b", "c"]
    assert user.last_shown_unwatched(2, 6) == ["b", "c"]
    assert user.last_shown_unwatched(50, 5) == ["a", "b"]
    assert user.last_completed(50, 6) == ["w"]


def test_the_last_context_is_that_of_the_last_impression() -> None:
    """At one instant the greatest value counts, and an impression without one does not hide behind an older one."""
    user = UserHistory()
    for shown_at, device, logged_in in (
        (1, "tv", True),
        (2, "phone", None),
        (2, "tablet", False),
        (3, None, None),
    ):
        user.add_impression(
            1, shown_at=shown_at, clicked=False, watch_time_s=0.0, device=device, logged_in=logged_in
        )
    assert user.last_context(1) == (None, None)
    assert user.last_context(2) == ("tv", True)
    assert user.last_context(3) == ("tablet", False)
    assert user.last_context(4) == (None, None)


@given(st.integers(0, 2**32))
def test_the_order_in_which_events_arrive_does_not_matter(seed: int) -> None:
    events = make_rows(seed, users=1, days=2, events_per_day=12)
    shuffled = random.Random(seed)
    answers = []
    for _ in range(2):
        user = UserHistory()
        calls = [
            *(
                (user.add_watch, (r["video_id"], r["watched_at"], r["watch_time_s"], r["completed"], 1))
                for r in events["watches"]
            ),
            *((_add_impression, (user, r)) for r in events["impressions"]),
        ]
        shuffled.shuffle(calls)
        for call, arguments in calls:
            call(*arguments)
        middle = events["watches"][6]["watched_at"]
        answers.append(
            (
                user.last_completed(50, middle),
                user.last_watches(50, middle),
                user.impressions(middle),
                user.watches_of_clicks(middle),
                user.impressions_of(102, middle),
                user.channel_watches(1, middle),
                user.last_shown_unwatched(50, middle),
                user.last_context(middle),
            )
        )
    assert answers[0] == answers[1]


def _add_impression(user: UserHistory, row: dict) -> None:
    user.add_impression(
        row["video_id"],
        shown_at=row["shown_at"],
        clicked=row["clicked"],
        watch_time_s=row["watch_time_s"],
        device=row["device"],
        logged_in=row["logged_in"],
    )


@pytest.mark.parametrize(
    ("query", "tokens"),
    [
        ("Piano lesson one", ["piano", "piano lesson", "lesson", "lesson one", "one"]),
        ("  how-to: knit! ", ["how", "how to", "to", "to knit", "knit"]),
        ("a b a b", ["a", "a b", "b", "b a", "a", "a b", "b"]),
        ("ÜNDER\t7\nseas", ["ünder", "ünder 7", "7", "7 seas", "seas"]),
        ("?!", []),
        ("", []),
        ("钢琴 课", ["钢琴", "钢琴 课", "课"]),
        ("snake_case [x] `y` {z}~", ["snake", "snake case", "case", "case x", "x", "x y", "y", "y z", "z"]),
    ],
)
def test_both_tokenizers_split_alike(query: str, tokens: list[str], tmp_path: Path) -> None:
    assert tokenize(query) == tokens
    at = pa.array([dt.datetime(2026, 3, 1, tzinfo=dt.UTC)], pa.timestamp("us", tz="UTC"))
    pq.write_table(
        pa.table({"user_id": [1], "searched_at": at, "query": [query]}), tmp_path / "part-00000.parquet"
    )
    with connect(EngineParams()) as engine:
        found = search_tokens(engine, engine.read(tmp_path)).to_pyarrow().sort_by("tie")
    assert found["token"].to_pylist() == tokens


def test_buckets_hold_every_event_once_and_cut_no_user(tmp_path: Path) -> None:
    rows = make_rows(1, users=30, events_per_day=60)
    with connect(EngineParams()) as engine:
        logs = read_logs(engine, write_rows(rows, tmp_path))
        pieces = user_buckets(engine, logs, 100)
        assert 4 <= len(pieces) <= 12
        for name in ("impressions", "watches", "users", "history", "searches"):
            users = [set(piece.tables[name].user_id.to_pyarrow().to_pylist()) for piece in pieces]
            assert sum(map(len, users)) == len(set.union(*users)), name
            assert sum(piece.tables[name].count().execute() for piece in pieces) == len(rows[name])
        assert len(user_buckets(engine, logs, 10**9)) == 1


def test_a_column_of_nulls_is_as_good_as_absent(tmp_path: Path) -> None:
    rows = make_rows(1)
    for row in rows["impressions"]:
        row["device"] = None
    with connect(EngineParams()) as engine:
        logs = read_logs(engine, write_rows(rows, tmp_path, without=["users.region"]))
    assert logs.has(["impressions.surface", "videos.topics"])
    assert not logs.has(["impressions.device"])
    assert not logs.has(["users.region"])


def test_a_folder_without_logs_is_named(tmp_path: Path) -> None:
    with (
        connect(EngineParams()) as engine,
        pytest.raises(InputError, match=r"no validated logs here[\s\S]*source.json"),
    ):
        read_logs(engine, tmp_path)
