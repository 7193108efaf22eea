"""What is known of users, in memory: for replaying a day's requests as they would have been answered then.

A history knows the instants of its events and is asked for what came before an instant, so one state serves
every request of the day and no request sees its own outcome.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from watchnext import schema
from watchnext.errors import InputError
from watchnext.features.history import Id, UserHistory, from_tables

_EVENT_COLUMNS = {
    "history": ("user_id", "position", "video_id", "completed"),
    "watches": ("user_id", "video_id", "watched_at", "watch_time_s", "completed"),
    "impressions": ("user_id", "video_id", "shown_at", "clicked", "watch_time_s", "device", "logged_in"),
    "searches": ("user_id", "searched_at", "query"),
}


@dataclass(frozen=True)
class UserFacts:
    """A row of `users`, as far as models read it. Absent facts are None.

    Attributes:
        columns: name -> value of the columns beyond the schema.
    """

    region: str | None = None
    age_years: float | None = None
    gender: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class UserStates:
    """Histories and facts of some users.

    Attributes:
        histories: user id -> everything that the tables say of the user.
        facts: user id -> the user's row of `users`.
    """

    histories: Mapping[Id, UserHistory] = field(default_factory=dict)
    facts: Mapping[Id, UserFacts] = field(default_factory=dict)

    def history(self, user_id: Id) -> UserHistory:
        """The user's history; an empty one for somebody unknown."""
        return self.histories.get(user_id) or UserHistory()

    def facts_of(self, user_id: Id) -> UserFacts:
        """The user's facts; all absent for somebody unknown."""
        return self.facts.get(user_id) or UserFacts()

    @classmethod
    def read(cls, tables: Path, user_ids: Collection[Id]) -> "UserStates":
        """Read the events of `user_ids` from the validated tables.

        Args:
            tables: folder of tables as ingest and validate store them.
            user_ids: whom to read; everybody else is skipped while reading.

        Raises:
            InputError: `tables` holds no watches or no impressions.
        """
        chosen = pa.array(sorted(user_ids))
        rows = {}
        for name, columns in _EVENT_COLUMNS.items():
            if name in ("watches", "impressions") or (tables / name).is_dir():
                rows[name] = _rows(tables / name, columns, chosen)
        seen = {row["video_id"] for name in ("watches", "impressions") for row in rows[name]}
        videos = _videos(tables / "videos", seen)
        known = [name for name in _dataset(tables / "users").schema.names if name != "signed_up_at"]
        further = [name for name in known if name not in schema.USERS.column_names]
        facts = {
            row["user_id"]: UserFacts(
                row.get("region"),
                row.get("age_years"),
                row.get("gender"),
                {name: row[name] for name in further},
            )
            for row in _rows(tables / "users", known, chosen)
        }
        return cls(from_tables(rows, *videos), facts)


def _rows(directory: Path, columns: Collection[str], user_ids: pa.Array) -> list[dict[str, Any]]:
    dataset = _dataset(directory)
    present = [name for name in columns if name in dataset.schema.names]
    table = dataset.to_table(columns=present, filter=ds.field("user_id").isin(user_ids))
    return table.to_pylist()


def _videos(
    directory: Path, video_ids: Collection[Id]
) -> tuple[dict[Id, Id | None], dict[Id, list[str] | None]]:
    """Channels and topics of some videos, by id."""
    if not video_ids:
        return {}, {}
    table = _dataset(directory).to_table(
        columns=["video_id", "channel_id", "topics"],
        filter=ds.field("video_id").isin(pa.array(sorted(video_ids))),
    )
    ids = table["video_id"].to_pylist()
    channels = dict(zip(ids, table["channel_id"].to_pylist(), strict=True))
    return channels, dict(zip(ids, table["topics"].to_pylist(), strict=True))


def _dataset(directory: Path) -> Any:
    parts = sorted(directory.glob("part-*.parquet"))
    if not parts:
        raise InputError("no table here", where=str(directory), remedy="run `dvc repro`, which makes it")
    return ds.dataset([str(part) for part in parts], format="parquet")
