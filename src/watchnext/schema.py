"""Every table of the project: columns, types, units and keys.

Tables are Parquet datasets: a directory named after the table that holds `part-*.parquet`. Instants are UTC
timestamps with microseconds and their columns end in `_at`; durations are seconds and end in `_s`.
Ids may be integers or strings, one type per id space throughout a data set.
"""

import dataclasses
from typing import Literal

Kind = Literal["id", "string", "int", "float", "bool", "instant", "list[string]", "list[float]"]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: column name; the unit is part of it.
        kind: logical type. `id` is int64 or string, decided per id space by the source.
        meaning: one line for the docs.
        nullable: whether single values may be null.
        optional: whether a source may lack the whole column; the inputs made of it are then absent from the
            model, and the run says so.
        id_space: for `id` columns, which ids these are (`video`, `user`, `channel`, `request`).
        minimum: smallest value that can be true, inclusive; None for unbounded.
        maximum: largest value that can be true, inclusive; None for unbounded.
    """

    name: str
    kind: Kind
    meaning: str
    nullable: bool = False
    optional: bool = False
    id_space: str | None = None
    minimum: float | None = None
    maximum: float | None = None


@dataclasses.dataclass(frozen=True)
class TableSchema:
    """A table: its columns, its key, and the order its rows are stored in.

    Attributes:
        name: directory name of the table.
        columns: in storage order.
        key: columns that together identify a row.
        sort_by: total order in which ingest stores rows, so that the order of input rows does not matter.
        instant: the column that says when the row happened, for event tables; None otherwise.
        optional: whether a source may lack the table.
        extra_columns: whether further categorical columns are kept (as nullable strings).
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    sort_by: tuple[str, ...]
    instant: str | None = None
    optional: bool = False
    extra_columns: bool = False

    def column(self, name: str) -> Column:
        """The column called `name`. Raises KeyError where there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"table {self.name} has no column {name}")

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


def _user_id() -> Column:
    return Column("user_id", "id", "who", id_space="user")


def _video_id() -> Column:
    return Column("video_id", "id", "which video", id_space="video")


VIDEOS = TableSchema(
    name="videos",
    columns=(
        _video_id(),
        Column("channel_id", "id", "who uploaded it", nullable=True, id_space="channel"),
        Column("topics", "list[string]", "topics, unordered", nullable=True),
        Column("duration_s", "float", "length", nullable=True, minimum=0.0),
        Column("uploaded_at", "instant", "instant of upload", nullable=True),
        Column("language", "string", "language code", nullable=True, optional=True),
    ),
    key=("video_id",),
    sort_by=("video_id",),
)

USERS = TableSchema(
    name="users",
    columns=(
        _user_id(),
        Column("region", "string", "country or region", nullable=True, optional=True),
        Column("gender", "string", "gender as recorded", nullable=True, optional=True),
        Column("age_years", "float", "age", nullable=True, optional=True, minimum=0.0, maximum=130.0),
        Column("signed_up_at", "instant", "instant of sign-up", nullable=True, optional=True),
    ),
    key=("user_id",),
    sort_by=("user_id",),
    extra_columns=True,
)

IMPRESSIONS = TableSchema(
    name="impressions",
    columns=(
        Column("request_id", "id", "the page that this impression was on", id_space="request"),
        _video_id(),
        _user_id(),
        Column("shown_at", "instant", "instant at which the page was shown"),
        Column("surface", "string", "where in the product (home, feed, ...)", nullable=True, optional=True),
        Column("position", "int", "place on the page, from 0", nullable=True, optional=True, minimum=0),
        Column("device", "string", "device class", nullable=True, optional=True),
        Column("logged_in", "bool", "whether the user was logged in", nullable=True, optional=True),
        Column("clicked", "bool", "whether the video was clicked"),
        Column("watch_time_s", "float", "watch time that followed; 0 without a click", minimum=0.0),
        Column(
            "sources", "list[string]", "candidate sources that nominated it", nullable=True, optional=True
        ),
        Column("source_scores", "list[float]", "their scores, in that order", nullable=True, optional=True),
        Column("seed_video_id", "id", "video that seeded it", nullable=True, optional=True, id_space="video"),
        Column(
            "propensity",
            "float",
            "probability, given the request, that the logging policy put this video at this position",
            nullable=True,
            optional=True,
            minimum=0.0,
            maximum=1.0,
        ),
    ),
    key=("request_id", "video_id"),
    sort_by=("shown_at", "request_id", "position", "video_id"),
    instant="shown_at",
)

WATCHES = TableSchema(
    name="watches",
    columns=(
        _user_id(),
        _video_id(),
        Column("watched_at", "instant", "instant at which the watch began"),
        Column("watch_time_s", "float", "how long it was watched", nullable=True, minimum=0.0),
        Column(
            "completed", "bool", "whether the user completed the video: the positive of candidate generation"
        ),
        Column(
            "origin", "string", "what led to it (home, search, external, ...)", nullable=True, optional=True
        ),
    ),
    key=("user_id", "video_id", "watched_at"),
    sort_by=("watched_at", "user_id", "video_id"),
    instant="watched_at",
)

SEARCHES = TableSchema(
    name="searches",
    columns=(
        _user_id(),
        Column("searched_at", "instant", "instant of the search"),
        Column("query", "string", "what was typed"),
    ),
    key=("user_id", "searched_at"),
    sort_by=("searched_at", "user_id", "query"),
    instant="searched_at",
    optional=True,
)

HISTORY = TableSchema(
    name="history",
    columns=(
        _user_id(),
        Column(
            "position", "int", "order within the user's history before the logs, growing with time", minimum=0
        ),
        _video_id(),
        Column(
            "completed",
            "bool",
            "whether the user completed the video; false: it was shown and not completed. Without the column "
            "every row is a completed watch",
            optional=True,
        ),
    ),
    key=("user_id", "position"),
    sort_by=("user_id", "position"),
    optional=True,
)

TABLES: dict[str, TableSchema] = {
    table.name: table for table in (VIDEOS, USERS, IMPRESSIONS, WATCHES, SEARCHES, HISTORY)
}
