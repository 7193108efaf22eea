"""What a set of events says, whatever order it is read in."""

from itertools import permutations

import pytest

from watchnext.features.ranking_features import VideoFacts
from watchnext.serving.events import Event, history_of, id_of, rows_of

SHOWN = {
    "request_id": "page 1",
    "video_id": 12,
    "shown_at": 100,
    "clicked": False,
    "watch_time_s": 0.0,
}
WATCH = {"video_id": 12, "watched_at": 200, "watch_time_s": 30.0, "completed": True}


def event(table: str, event_id: str = "", **row: object) -> Event:
    return Event("7", event_id or id_of(table, row), table, row)  # type: ignore[arg-type]


def test_an_event_comes_back_from_its_text() -> None:
    one = event("searches", searched_at=5, query='Füße "und"\n:')
    assert Event.from_json(one.user_id, one.id, one.to_json()) == one


def test_a_watch_is_the_click_on_the_page_that_it_names() -> None:
    """Of that page and that video alone, and with the time of all watches from it."""
    events = [
        event("impressions", **SHOWN),
        event("impressions", **{**SHOWN, "video_id": 13}),
        event("impressions", **{**SHOWN, "request_id": "page 2", "shown_at": 150}),
        event("watches", **WATCH, request_id="page 1"),
        event("watches", **{**WATCH, "watched_at": 900, "watch_time_s": 10.5}, request_id="page 1"),
        event("watches", **{**WATCH, "watched_at": 1000}),
    ]
    for order in permutations(events, len(events)):
        shown = {(row["request_id"], row["video_id"]): row for row in rows_of(order)["impressions"]}
        assert {place: (row["clicked"], row["watch_time_s"]) for place, row in shown.items()} == {
            ("page 1", 12): (True, 40.5),
            ("page 1", 13): (False, 0.0),
            ("page 2", 12): (False, 0.0),
        }
    history = history_of(events, VideoFacts)
    assert history.impressions(10**9) == (3, 1)
    assert history.watches_of_clicks(10**9) == (1, 40_500)
    assert history.last_shown_unwatched(5, 10**9) == [13, 12]


def test_an_outcome_that_the_log_knows_is_not_changed() -> None:
    logged = event("impressions", **{**SHOWN, "clicked": True, "watch_time_s": 31.0})
    rows = rows_of([event("watches", **WATCH, request_id="page 1"), logged])
    assert rows["impressions"][0]["watch_time_s"] == 31.0


@pytest.mark.parametrize(
    ("one", "other", "kept"),
    [
        ({"watch_time_s": 30.0}, {"watch_time_s": 31.0}, {"watch_time_s": 31.0}),
        ({"watch_time_s": None}, {"watch_time_s": 0.0}, {"watch_time_s": 0.0}),
        ({"completed": False}, {"completed": True}, {"completed": True}),
        ({}, {"request_id": "page 1"}, {"request_id": "page 1"}),
    ],
)
def test_of_two_rows_with_one_key_the_one_is_kept_that_ingest_keeps(
    one: dict[str, object], other: dict[str, object], kept: dict[str, object]
) -> None:
    """The greater, column by column; ids of the events play no part."""
    events = [event("watches", "b", **{**WATCH, **one}), event("watches", "a", **{**WATCH, **other})]
    for order in (events, events[::-1]):
        assert rows_of(order)["watches"] == [{"user_id": "7", **WATCH, **kept}]
