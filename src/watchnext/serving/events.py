"""What users did, as a server is told of it: rows of the project's tables, each with an id.

A user's events have no order of their own: whatever is computed from them depends on the set alone, so that late,
repeated and differently batched events lead to the same state. Two events that are one row by the table's key (one
told by the client, the other loaded from the pipeline) count once, and the one that `ingest` would keep is kept.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal

from watchnext import schema
from watchnext.features.history import Id, UserHistory, from_tables
from watchnext.features.ranking_features import VideoFacts

_encoded = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
"""Made once: `json.dumps` makes an encoder for each event."""

EventTable = Literal["history", "watches", "impressions", "searches"]
EVENT_TABLES: tuple[EventTable, ...] = ("history", "watches", "impressions", "searches")


@dataclass(frozen=True)
class Event:
    """One row of a table of events.

    Attributes:
        user_id: who, as text: a user whose id is a number in the logs is the user with that number as text.
        id: unique among the user's events; whoever sends an event again sends the same id.
        table: which table.
        row: its columns but `user_id`, instants as microseconds since 1970 UTC, everything as JSON has it. A watch may
            name the `request_id` of the page that it came from: it then is the click on that page's impression.
    """

    user_id: str
    id: str
    table: EventTable
    row: Mapping[str, Any] = field(hash=False)

    def to_json(self) -> str:
        """Table and row, for a store."""
        return _encoded([self.table, self.row])

    @classmethod
    def from_json(cls, user_id: str, event_id: str, text: str | bytes) -> "Event":
        """The event that `to_json` wrote."""
        table, row = json.loads(text)
        return cls(user_id, event_id, table, row)


def key_of(table: EventTable, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same row, within one user.

    >>> key_of("searches", {"searched_at": 7, "query": "piano"})
    (7,)
    """
    return tuple(map(row.__getitem__, _KEYS[table]))


def id_of(table: EventTable, row: Mapping[str, Any]) -> str:
    """The id of an event that nobody gave one, from the table's key.

    >>> id_of("watches", {"video_id": 12, "watched_at": 7})
    'watches:12:7'
    """
    return ":".join((table, *(str(part) for part in key_of(table, row))))


def rows_of(events: Iterable[Event]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one user's events by table in their own order, each key once, clicks in their impressions.

    An impression that a watch names as its page is clicked, and has the watch time of that watch (of several: their sum).
    """
    chosen: dict[EventTable, dict[tuple[Any, ...], Mapping[str, Any]]] = {table: {} for table in EVENT_TABLES}
    user_id = None
    for event in events:
        user_id, row = event.user_id, event.row
        of_table, key = chosen[event.table], key_of(event.table, row)
        known = of_table.get(key)
        if known is None or _rank(event.table, row) > _rank(event.table, known):
            of_table[key] = row
    clicks: dict[tuple[Any, ...], float] = {}
    for watch in chosen["watches"].values():
        if watch.get("request_id") is not None:
            page = (watch["request_id"], watch["video_id"])
            clicks[page] = clicks.get(page, 0.0) + (watch.get("watch_time_s") or 0.0)
    for page, watch_time_s in clicks.items():
        shown = chosen["impressions"].get(page)
        if shown is not None and not shown["clicked"]:
            chosen["impressions"][page] = {**shown, "clicked": True, "watch_time_s": watch_time_s}
    return {
        # In their own order, in which a history takes them without moving what it has.
        table: [{"user_id": user_id, **row} for row in sorted(rows.values(), key=itemgetter(_ORDER[table]))]
        for table, rows in chosen.items()
        if rows
    }


def history_of(events: Iterable[Event], facts_of: Callable[[Id], VideoFacts]) -> UserHistory:
    """What one user did, in the form that features are made of; `facts_of` gives the facts of a video."""
    rows = rows_of(events)
    videos = {row["video_id"] for table in ("watches", "impressions") for row in rows.get(table, ())}
    facts = {video_id: facts_of(video_id) for video_id in videos}
    histories = from_tables(
        rows,
        {video_id: one.channel_id for video_id, one in facts.items()},
        {video_id: one.topics for video_id, one in facts.items()},
    )
    return next(iter(histories.values()), UserHistory())


_KEYS: dict[EventTable, tuple[str, ...]] = {
    table: tuple(name for name in schema.TABLES[table].key if name != "user_id") for table in EVENT_TABLES
}
_ORDER: dict[EventTable, str] = {
    table: schema.TABLES[table].instant or schema.TABLES[table].key[-1] for table in EVENT_TABLES
}
_REST: dict[EventTable, tuple[str, ...]] = {
    table: tuple(name for name in schema.TABLES[table].column_names if name not in ("user_id", *_KEYS[table]))
    for table in EVENT_TABLES
}


def _rank(table: EventTable, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Of two rows with one key `ingest` keeps the greater, column by column, what is absent below everything.

    A page that is named comes last: it is no column of the table.
    """
    values = [*(row.get(name) for name in _REST[table]), row.get("request_id")]
    return tuple((value is not None, value if value is not None else 0) for value in values)
