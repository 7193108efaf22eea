"""What a user had done before an instant: as tables for the pipeline, in memory for one request.

Both sides share one rule: an event counts from the moment after its own instant. Two events at the same
microsecond do not know of each other, and no example knows of its own outcome. The instant of a watch is its end,
because what came of it (how long, completed or not) is known no earlier; the instant of an impression is when it
was shown, and that of the watch time that followed is the end of that watch.
"""

import bisect
import dataclasses
import datetime
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir

from watchnext import schema
from watchnext.data.split import SplitDays, local_day
from watchnext.engine import Engine
from watchnext.errors import InputError

Id = int | str
Instant = int | datetime.datetime

BEFORE_LOGS_AT = -(1 << 62)
"""Microseconds before every event of the logs: a row of the table `history` is given this plus its position."""

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


def to_microseconds(instant: Instant) -> int:
    """Microseconds since 1970 UTC of an aware datetime; integers are taken as such already."""
    return instant if isinstance(instant, int) else (instant - _EPOCH) // _MICROSECOND


def to_milliseconds(seconds: float) -> int:
    """Seconds as whole milliseconds, halves up: watch time is summed in integers, so that order cannot matter."""
    return int(seconds * 1000.0 + 0.5)


def before_logs_at(position: Any) -> Any:
    """Microseconds that stand for the instant of a row of `history`: before the logs, in the order of positions."""
    return position + BEFORE_LOGS_AT


def end_of_watch(began_at: Instant, watch_time_s: float | None) -> int:
    """Microseconds since 1970 UTC at which a watch ended, halves up; with an unknown watch time, when it began.

    >>> end_of_watch(100, 0.0000025), end_of_watch(100, None)
    (103, 100)
    """
    return to_microseconds(began_at) + int((watch_time_s or 0.0) * 1_000_000.0 + 0.5)


# ---- tables ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logs:
    """The validated tables of one source.

    Attributes:
        tables: name -> table; `impressions` and `watches` have two further columns (date, local): `day`, and
            `ended_day`, the day on which the watch (for impressions: the one that followed) ended. `history`
            always has `completed`.
        source: name of the source.
        time_zone: IANA name of the zone that days are cut in.
        digest: of the stored tables.
        present: table.column of every column that holds a value. A column of nulls alone is as good as absent.
    """

    tables: Mapping[str, ir.Table]
    source: str
    time_zone: str
    digest: str
    present: frozenset[str]

    def has(self, needed: Iterable[str]) -> bool:
        """Whether all of these columns, as table.column, hold values."""
        return self.present.issuperset(needed)


def read_logs(engine: Engine, directory: Path) -> Logs:
    """Read the tables that the stages ingest and validate leave.

    Raises:
        InputError: `source.json` or a table that every source has is missing.
    """
    path = directory / "source.json"
    if not path.exists():
        raise InputError("there are no validated logs here", where=str(path), remedy="run `dvc repro`")
    source = json.loads(path.read_text())
    tables: dict[str, ir.Table] = {}
    present: set[str] = set()
    for name, table_schema in schema.TABLES.items():
        if table_schema.optional and not any((directory / name).glob("part-*.parquet")):
            continue
        table = engine.read(directory / name)
        filled = table.aggregate(**{column: table[column].count() for column in table.columns}).to_pyarrow()
        present.update(f"{name}.{column}" for column in table.columns if filled[column][0].as_py() > 0)
        if table_schema.instant and name != "searches":
            began = table[table_schema.instant]
            ended = engine.instant(_end_of_watch(engine.microseconds(began), table.watch_time_s))
            table = table.mutate(
                day=local_day(began, source["time_zone"]), ended_day=local_day(ended, source["time_zone"])
            )
        if name == "history" and "completed" not in table.columns:
            table = table.mutate(completed=ibis.literal(True))
        tables[name] = table
    return Logs(tables, source["source"], source["time_zone"], source["digest"], frozenset(present))


Stream = Literal[
    "impressions",
    "clicks",
    "unclicked",
    "contexts",
    "watches_of_clicks",
    "watches",
    "completed_watches",
    "watches_of_topics",
    "shown_unwatched",
    "search_tokens",
    "searches",
]

TOPIC = "topic"
"""Key of quantities over a video's topics, of which it may have several or none, see `AsOf`."""


@dataclass(frozen=True)
class AsOf:
    """One quantity over a user's events strictly before an instant.

    Attributes:
        stream: which events.
        kind: `count` of events; `sum` of an integer measure; `last_at`: instant of the last one in microseconds;
            `last`: value of the last one (of a stream with one event per key and instant);
            `recent`: list of the last `length` values, oldest first (by user alone).
        by: columns that an event must share with the example, `user_id` among them. With TOPIC the quantity is
            taken for every topic of the example's video, and the greatest is kept: of `count` that of the topic
            with most events, of `last_at` the last event of any.
        measure: for `sum`, the integer column; for `last` and `recent`, the value column.
        length: for `recent`, at most so many.
    """

    stream: Stream
    kind: Literal["count", "sum", "last_at", "last", "recent"]
    by: tuple[str, ...] = ("user_id",)
    measure: str | None = None
    length: int = 0

    @property
    def column(self) -> str:
        """Name of the column that holds it beside an example."""
        parts = (self.stream, self.kind, self.measure or "", "_".join(self.by), str(self.length or ""))
        return "__".join(part for part in parts if part)


class Streams:
    """Events of the logs, one row each, with the columns that quantities are taken over.

    Attributes:
        tables: stream -> table with `user_id`, `at` (int64 microseconds), and its keys and measures; of
            `search_tokens` with `tie` too (int64, the place of a token in its query). `at` is the instant at which
            the event is known: of `impressions`, those of them that were clicked (`clicks`) or not (`unclicked`;
            with the rows of `history` that were not completed, `shown_unwatched`) and `contexts` (device and
            login, one per user and instant) when it was shown, of `watches_of_clicks` (clicked impressions),
            `watches` and `completed_watches` the end of the watch. `watches_of_topics` has a row for each topic
            of the watched video, `searches` those with a word in them, one per user and instant. Beside the
            streams, `topics_of_videos`: video_id, topic, each pair once.
        order: stream -> columns that order a user's events, all but those that are equal.
    """

    order: Mapping[str, tuple[str, ...]] = {
        "watches": ("at", "video_id"),
        "completed_watches": ("at", "video_id"),
        "shown_unwatched": ("at", "video_id"),
        "search_tokens": ("at", "tie"),
    }

    def __init__(self, tables: Mapping[str, ir.Table]) -> None:
        self.tables = dict(tables)


def day_ranges(split: SplitDays) -> dict[str, tuple[datetime.date, datetime.date]]:
    """Split -> its first and its last day, for the splits that there are days for, in order of time."""
    single = {"tuning": split.tuning, "gate": split.gate, "shadow": split.shadow}
    return {
        "training": split.training,
        **{name: (day, day) for name, day in single.items() if day is not None},
    }


def user_buckets(engine: Engine, logs: Logs, events_per_bucket: int) -> list[Logs]:
    """The logs cut by users into pieces of about `events_per_bucket` impressions and watches.

    Windows and joins over a user's events then fit into memory however long the logs are; DuckDB's windows
    spill and slow down otherwise. A user is never cut: one with more events than that has a piece of his own.

    The logs are gone through once for all pieces, which lie on disk until the scope around ends. To look each piece up in
    the logs would take, with ten times the logs, ten times as many looks through ten times the rows.
    """
    events = ibis.union(*(logs.tables[name].select("user_id") for name in ("impressions", "watches")))
    per_user = events.group_by("user_id").aggregate(events=lambda rows: rows.count())
    before = per_user.events.sum().over(ibis.window(order_by="user_id", rows=(None, 0))) - per_user.events
    numbered = per_user.mutate(bucket=(before // events_per_bucket).cast("int64"))
    firsts = (
        numbered.group_by("bucket").aggregate(first=numbered.user_id.min()).order_by("bucket").to_pyarrow()
    )
    starts = firsts["first"].to_pylist()
    if len(starts) <= 1:
        return [logs]
    cut = {
        name: engine.cut(table, _place_among(starts, table.user_id), len(starts))
        for name, table in logs.tables.items()
        if name != "videos"
    }
    return [
        dataclasses.replace(
            logs, tables={**logs.tables, **{name: of_all[piece] for name, of_all in cut.items()}}
        )
        for piece in range(len(starts))
    ]


def _place_among(starts: Sequence[Any], ids: ir.Column) -> ir.IntegerColumn:
    """Of each id how many of the ascending `starts`, the first left out, it reaches; by halves, as one looks a word up."""
    if len(starts) == 1:
        return ibis.literal(0)
    middle = len(starts) // 2
    return ibis.ifelse(
        ids < starts[middle], _place_among(starts[:middle], ids), middle + _place_among(starts[middle:], ids)
    )


def read_once(engine: Engine, bucket: Logs) -> Logs:
    """A bucket whose tables are decoded once, not by every window and join anew, and kept until the scope around ends."""
    tables = {
        name: table if name == "videos" else engine.materialize(table)
        for name, table in bucket.tables.items()
    }
    return dataclasses.replace(bucket, tables=tables)


def make_streams(engine: Engine, logs: Logs) -> Streams:
    """Bring the tables of the logs into the form that `as_of` takes."""
    tables = logs.tables
    channel = tables["videos"].select("video_id", "channel_id")
    impressions = tables["impressions"]
    clicks = impressions.clicked.cast("int64")
    streams = {
        "impressions": impressions.select(
            "user_id",
            "video_id",
            at=engine.microseconds(impressions.shown_at),
            clicks=clicks,
            misses=1 - clicks,
        )
    }
    shown = streams["impressions"]
    streams["clicks"] = shown.filter(shown.clicks == 1).select("user_id", "video_id", "at")
    unwatched = shown.filter(shown.clicks == 0).select("user_id", "video_id", "at")
    streams["unclicked"] = unwatched
    # Two requests of one instant may differ: of each fact the greatest value then, whatever the order of rows.
    context = {name: impressions[name] for name in ("device", "logged_in") if name in impressions.columns}
    if "logged_in" in context:
        context["logged_in"] = context["logged_in"].cast("int64")
    asked = impressions.select("user_id", at=engine.microseconds(impressions.shown_at), **context)
    streams["contexts"] = asked.group_by(["user_id", "at"]).aggregate(
        **{name: asked[name].max() for name in context}
    )
    clicked = impressions.filter(impressions.clicked)
    streams["watches_of_clicks"] = clicked.select(
        "user_id",
        at=_end_of_watch(engine.microseconds(clicked.shown_at), clicked.watch_time_s),
        watch_time_ms=milliseconds(clicked.watch_time_s),
    )
    watches = tables["watches"]
    watches = watches.select(
        "user_id",
        "video_id",
        "completed",
        at=_end_of_watch(engine.microseconds(watches.watched_at), watches.watch_time_s),
    )
    streams["watches"] = watches.left_join(channel, "video_id").select(
        "user_id", "video_id", "channel_id", "at"
    )
    topics = tables["videos"].select("video_id", topic=tables["videos"].topics).unnest(TOPIC)
    streams["topics_of_videos"] = engine.materialize(topics.filter(topics[TOPIC].notnull()).distinct())
    streams["watches_of_topics"] = watches.inner_join(streams["topics_of_videos"], "video_id").select(
        "user_id", "video_id", TOPIC, "at"
    )
    completed = watches.filter(watches.completed).select("user_id", "video_id", "at")
    if "history" in tables:
        history = tables["history"]
        earlier = history.select(
            "user_id", "video_id", "completed", at=before_logs_at(history.position.cast("int64"))
        )
        completed = completed.union(earlier.filter(earlier.completed).drop("completed"))
        unwatched = unwatched.union(earlier.filter(~earlier.completed).drop("completed"))
    streams["completed_watches"] = completed
    streams["shown_unwatched"] = unwatched
    if "searches" in tables:
        streams["search_tokens"] = engine.materialize(search_tokens(engine, tables["searches"]))
        streams["searches"] = search_queries(engine, tables["searches"])
    return Streams(streams)


def milliseconds(seconds: ir.NumericColumn) -> ir.IntegerColumn:
    """`to_milliseconds` of a column; null is 0."""
    return (seconds.fill_null(0.0) * 1000.0 + 0.5).floor().cast("int64")


def _end_of_watch(began_at: ir.IntegerValue, watch_time_s: ir.NumericColumn) -> ir.IntegerValue:
    """`end_of_watch` of a table."""
    return began_at + (watch_time_s.fill_null(0.0) * 1_000_000.0 + 0.5).floor().cast("int64")


# Written out, because what \s and \w hold differs between the regular expressions of the engines and of Python.
_SEPARATORS = r"[ \t\n\r\f!-/:-@\[-`{-~]+"


def _words(query: ir.StringValue) -> ir.StringValue:
    """The words of a query, lowered, with one space between two: `normalize_query` of a column."""
    # Not Ibis's `strip`, see `engine.trimmed`: what is a blank here is a space by now, and nothing else is one.
    return query.lower().re_replace(_SEPARATORS, " ").re_replace("^ | $", "")


def search_queries(engine: Engine, searches: ir.Table) -> ir.Table:
    """Every search that has a word in it: user_id, at, query, see `normalize_query`. Of one instant, the greatest."""
    queries = searches.select(
        "user_id", at=engine.microseconds(searches.searched_at), query=_words(searches["query"])
    )
    queries = queries.filter(queries["query"] != "")
    return queries.group_by(["user_id", "at"]).aggregate(query=queries["query"].max())


def search_tokens(engine: Engine, searches: ir.Table) -> ir.Table:
    """Unigrams and bigrams of every query (paper, section 3.3): user_id, at, tie, token.

    A query is lowered and split at spaces and ASCII punctuation. Its tokens stand in the order u1 u1_u2 u2 u2_u3 ...;
    a bigram is its two words with a space between.
    """
    words = searches.select(
        "user_id",
        "query",
        at=engine.microseconds(searches.searched_at),
        word=_words(searches["query"]).split(" "),
    )
    words = words.unnest("word", offset="place").filter(lambda row: row.word != "")
    following = words.word.lead().over(ibis.window(group_by=("user_id", "at", "query"), order_by="place"))
    words = words.mutate(following=following, tie=words.place.cast("int64") * 2)
    unigrams = words.select("user_id", "at", "tie", token=words.word)
    pairs = words.filter(words.following.notnull())
    bigrams = pairs.select("user_id", "at", tie=pairs.tie + 1, token=pairs.word + " " + pairs.following)
    return unigrams.union(bigrams)


def tokenize(query: str) -> list[str]:
    """The tokens of one query, as `search_tokens` orders them.

    >>> tokenize("Piano lesson, one")
    ['piano', 'piano lesson', 'lesson', 'lesson one', 'one']
    """
    words = _split(query)
    tokens = []
    for place, word in enumerate(words):
        tokens.append(word)
        if place + 1 < len(words):
            tokens.append(f"{word} {words[place + 1]}")
    return tokens


def normalize_query(query: str) -> str:
    """The words of a query, lowered, with one space between two; empty if it has none.

    >>> normalize_query(" Piano-lesson, one")
    'piano lesson one'
    """
    return " ".join(_split(query))


def _split(query: str) -> list[str]:
    return [word for word in query.lower().translate(_TO_SPACES).split(" ") if word]


_TO_SPACES = {ord(sign): " " for sign in "\t\n\r\f!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"}


def as_of(engine: Engine, points: ir.Table, streams: Streams, quantities: Iterable[AsOf]) -> ir.Table:
    """Take quantities at every point, over events strictly before it.

    Args:
        engine: the engine that holds the tables.
        points: one row per example, with `at` (int64 microseconds) and every `by` column of the quantities
            (`video_id` for TOPIC). A null in a `by` column matches no event.
        streams: the events.
        quantities: what to take; repeats are taken once.

    Returns:
        `points` with one column per quantity, named `AsOf.column`: counts and sums int64 (0 without events),
        `last_at` int64 and `last` (null without), `recent` lists (empty without).
    """
    wanted = list(dict.fromkeys(quantities))
    counted = [_counted(one) for one in wanted]
    by_key: dict[tuple[str, ...], list[AsOf]] = {}
    for one in dict.fromkeys(counted):
        by_key.setdefault(one.by, []).append(one)
    asked = points = engine.materialize(points)
    # What lies before every point has one state for all of them: of a new day after a month of logs, nearly everything.
    since = asked["at"].min().to_pyarrow().as_py()
    for by, group in by_key.items():
        # Of `asked`, since what has been joined to `points` by now would be joined once more to find its keys.
        if TOPIC in by:
            state, keys = _over_topics(engine, asked, streams, by, group, since), [*_VIDEO_OF_USER, "at"]
        else:
            state, keys = _running(asked, streams, by, group, since), [*by, "at"]
        points = points.left_join(state, keys).select(points, *(state[one.column] for one in group))
        # A projection of its own: Ibis cannot join further on a column computed within a join.
        points = points.mutate(
            **{one.column: points[one.column].fill_null(0) for one in group if one.kind != "last_at"}
        )
    for one in wanted:
        if one.kind == "last":
            points = _with_last(points, streams, one)
    return _with_recent(engine, points, streams, [one for one in wanted if one.kind == "recent"], since)


def _counted(one: AsOf) -> AsOf:
    """What has to be known at a point before `one` can be looked up there."""
    if one.kind == "recent":
        return AsOf(one.stream, "count", one.by)
    return AsOf(one.stream, "last_at", one.by) if one.kind == "last" else one


_VIDEO_OF_USER = ("user_id", "video_id")


def _over_topics(
    engine: Engine,
    points: ir.Table,
    streams: Streams,
    by: tuple[str, ...],
    group: Sequence[AsOf],
    since: int | None,
) -> ir.Table:
    """The greatest over the topics of a video: user_id, video_id, at, one column each; a row where there is a topic."""
    keys = [*_VIDEO_OF_USER, "at"]
    pairs = points.select(keys).distinct().inner_join(streams.tables["topics_of_videos"], "video_id")
    # Kept, or DuckDB joins the quantities to the topics of all videos before it looks for who was shown which.
    pairs = engine.materialize(pairs.select(*keys, TOPIC))
    state = _running(pairs, streams, by, group, since)
    found = pairs.inner_join(state, [*by, "at"]).select(*keys, *(state[one.column] for one in group))
    return found.group_by(keys).aggregate(**{one.column: found[one.column].max() for one in group})


def _running(
    points: ir.Table, streams: Streams, by: tuple[str, ...], group: Sequence[AsOf], since: int | None
) -> ir.Table:
    """Running quantities of one key at the instants of `points`: by, at, one column each; key instants unique.

    No point lies before `since`: of each key, the events before it go in as one row, without a window.
    """
    keys = [*by, "at"]
    none = ibis.null("int64")
    parts = [
        points.select(*keys, ibis.literal(True).name("asked"), *(none.name(one.column) for one in group))
    ]
    for stream in dict.fromkeys(one.stream for one in group):
        events = streams.tables[stream]
        own = {
            one.column: {
                "count": ibis.literal(1, "int64"),
                "sum": events[one.measure] if one.measure else none,
                "last_at": events["at"],
            }[one.kind]
            for one in group
            if one.stream == stream
        }
        rows = events.select(
            *keys,
            ibis.literal(False).name("asked"),
            *(own.get(one.column, none).name(one.column) for one in group),
        )
        if since is None:
            parts.append(rows)
            continue
        before = rows.filter(rows["at"] < since)
        folded = before.group_by(list(by)).aggregate(
            before["at"].max().name("at"),
            *(
                (before[one.column].max() if one.kind == "last_at" else before[one.column].sum())
                .cast("int64")
                .name(one.column)
                for one in group
            ),
        )
        folded = folded.mutate(asked=ibis.literal(False)).select(*rows.columns)
        parts += [rows.filter(rows["at"] >= since), folded]
    together = ibis.union(*parts)
    together = together.filter([together[name].notnull() for name in by])
    # One row per key and instant, so that "all rows before" cannot hold a tie.
    instants = together.group_by(keys).aggregate(
        together.asked.any().name("asked"),
        *(
            (together[one.column].max() if one.kind == "last_at" else together[one.column].sum()).name(
                one.column
            )
            for one in group
        ),
    )
    before = ibis.window(group_by=list(by), order_by="at", rows=(None, -1))
    running = instants.select(
        *keys,
        "asked",
        *(
            (instants[one.column].max() if one.kind == "last_at" else instants[one.column].sum())
            .over(before)
            .cast("int64")
            .name(one.column)
            for one in group
        ),
    )
    return running.filter(running.asked).drop("asked")


def _with_last(points: ir.Table, streams: Streams, one: AsOf) -> ir.Table:
    events = streams.tables[one.stream]
    assert one.measure is not None
    values = events.select(*one.by, last=events[one.measure], event_at=events["at"])
    keys = [(name, name) for name in one.by] + [(_counted(one).column, "event_at")]
    return points.left_join(values, keys).select(points, values["last"].name(one.column))


def _with_recent(
    engine: Engine, points: ir.Table, streams: Streams, wanted: Sequence[AsOf], since: int | None
) -> ir.Table:
    for one in wanted:
        length = max(
            other.length for other in wanted if (other.stream, other.measure) == (one.stream, one.measure)
        )
        blocks = _blocks(engine, streams, one, length, since)
        number = points[_counted(one).column]
        points = points.mutate(block=((number - 1 + length) // length).cast("int64"))
        joined = points.left_join(blocks, ["user_id", "block"])
        points = joined.select(points, blocks["values"], blocks["first"])
        end = points[_counted(one).column] - points["first"]
        start = ibis.greatest(end - one.length, ibis.literal(0, "int64"))
        empty = ibis.literal([], type=blocks.schema()["values"])
        points = points.mutate(**{one.column: ibis.coalesce(points["values"][start:end], empty)})
        points = points.drop("block", "values", "first")
    return points


def _blocks(engine: Engine, streams: Streams, one: AsOf, length: int, since: int | None) -> ir.Table:
    """A user's events in blocks of `length`, so that any `length` events in a row lie in a block and the one before.

    A list after every event would hold each value `length` times. No point lies before `since`: blocks that only points
    before it would read are left out.

    Returns:
        user_id, block (int64 from 1), values (list: of the block before and of this one, oldest first), first
        (int64: how many events come before them).
    """
    events = streams.tables[one.stream]
    order = ibis.window(group_by="user_id", order_by=list(Streams.order[one.stream]))
    assert one.measure is not None
    place = ibis.row_number().over(order).cast("int64")
    if since is None:
        events = events.select("user_id", value=events[one.measure], place=place)
    else:
        early = (events["at"] < since).cast("int64").sum().over(ibis.window(group_by="user_id"))
        events = events.select("user_id", value=events[one.measure], place=place, early=early.cast("int64"))
        # The first point reads at most `length` events before it: of the block that they end in, and of the one before.
        events = events.filter(events.place >= ((events.early - 1) // length - 1) * length).drop("early")
    events = events.mutate(block=(events.place // length + 1).cast("int64"))
    blocks = events.group_by(["user_id", "block"]).aggregate(own=engine.collect(events.value, events.place))
    before = blocks.own.lag().over(ibis.window(group_by="user_id", order_by="block"))
    blocks = blocks.mutate(before=before)
    empty = ibis.literal([], type=blocks.schema()["own"])
    return blocks.select(
        "user_id",
        "block",
        values=ibis.coalesce(blocks.before, empty).concat(blocks.own),
        first=ibis.greatest(blocks.block - 2, ibis.literal(0, "int64")) * length,
    )


# ---- one user in memory ----------------------------------------------------------------------------------------


@dataclass
class _Running:
    """Instants in order, and the sum of a number over all events up to each."""

    instants: list[int] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)

    def add(self, at: int, value: int) -> None:
        if not self.instants or at >= self.instants[-1]:
            self.sums.append(self.sums[-1] + value if self.sums else value)
            self.instants.append(at)
            return
        place = bisect.bisect_right(self.instants, at)
        self.instants.insert(place, at)
        self.sums.insert(place, (self.sums[place - 1] if place else 0))
        for later in range(place, len(self.sums)):
            self.sums[later] += value

    def before(self, at: int) -> tuple[int, int, int | None]:
        """Of the events strictly before `at`: how many there are, the sum of their numbers, the instant of the last."""
        number = bisect.bisect_left(self.instants, at)
        if number == 0:
            return 0, 0, None
        return number, self.sums[number - 1], self.instants[number - 1]


class UserHistory:
    """Everything known of one user, asked for as of an instant.

    Events may be added in any order, in their own order cheapest. Every question takes `before`, an instant,
    and is answered from the events strictly before it. A watch is an event at its end.
    """

    def __init__(self) -> None:
        self._impressions = _Running()
        self._watches_of_clicks = _Running()
        self._impressions_of_video: dict[Id, _Running] = {}
        self._unclicked_of_video: dict[Id, list[int]] = {}
        self._shown_unwatched: list[tuple[int, Id]] = []
        self._contexts: list[tuple[int, str | None, bool | None]] = []
        self._begun: list[tuple[int, Id]] = []
        self._watches: list[tuple[int, Id]] = []
        self._watches_of_channel: dict[Id, list[int]] = {}
        self._watches_of_topic: dict[str, list[int]] = {}
        self._earlier: set[Id] = set()
        self._completed: list[tuple[int, Id]] = []
        self._tokens: list[tuple[int, int, str]] = []
        self._queries: list[tuple[int, str]] = []

    def add_earlier_watch(self, video_id: Id, position: int, completed: bool = True) -> None:
        """A row of the table `history`: order known, instant not. Shown, and not watched, if not `completed`."""
        self._earlier.add(video_id)
        into = self._completed if completed else self._shown_unwatched
        bisect.insort(into, (before_logs_at(position), video_id))

    def add_watch(
        self,
        video_id: Id,
        watched_at: Instant,
        watch_time_s: float | None = None,
        completed: bool = False,
        channel_id: Id | None = None,
        topics: Iterable[str] | None = None,
    ) -> None:
        """A watch that began at `watched_at` and ended `watch_time_s` later, at once if that is not known.

        `channel_id` and `topics` are those of the video, if it has any.
        """
        bisect.insort(self._begun, (to_microseconds(watched_at), video_id))
        at = end_of_watch(watched_at, watch_time_s)
        bisect.insort(self._watches, (at, video_id))
        if channel_id is not None:
            bisect.insort(self._watches_of_channel.setdefault(channel_id, []), at)
        for topic in set(topics or ()):
            bisect.insort(self._watches_of_topic.setdefault(topic, []), at)
        if completed:
            bisect.insort(self._completed, (at, video_id))

    def add_impression(
        self,
        video_id: Id,
        channel_id: Id | None = None,
        *,
        shown_at: Instant,
        clicked: bool,
        watch_time_s: float,
        topics: Sequence[str] = (),
        device: str | None = None,
        logged_in: bool | None = None,
    ) -> None:
        """A video that was shown at `shown_at`, on which device, and what came of it."""
        del channel_id, topics  # Accepted so that callers need not change when a feature asks for them.
        at = to_microseconds(shown_at)
        click = int(clicked)
        self._impressions.add(at, click)
        if clicked:
            self._watches_of_clicks.add(end_of_watch(at, watch_time_s), to_milliseconds(watch_time_s))
        else:
            bisect.insort(self._shown_unwatched, (at, video_id))
            bisect.insort(self._unclicked_of_video.setdefault(video_id, []), at)
        of_video = self._impressions_of_video.get(video_id)
        if of_video is None:
            of_video = self._impressions_of_video[video_id] = _Running()
        of_video.add(at, 1 - click)
        self._add_context(at, device, logged_in)

    def _add_context(self, at: int, device: str | None, logged_in: bool | None) -> None:
        """Two requests of one instant may differ: of each fact the greatest value then."""
        context = (at, device, logged_in)
        if not self._contexts or at > self._contexts[-1][0]:
            self._contexts.append(context)
            return
        if self._contexts[-1] == context:  # the next video of the same page
            return
        place = bisect.bisect_left(self._contexts, at, key=lambda context: context[0])
        if place < len(self._contexts) and self._contexts[place][0] == at:
            _, other_device, other_logged_in = self._contexts[place]
            devices = [one for one in (device, other_device) if one is not None]
            logins = [one for one in (logged_in, other_logged_in) if one is not None]
            self._contexts[place] = (at, max(devices, default=None), max(logins, default=None))
        else:
            self._contexts.insert(place, (at, device, logged_in))

    def add_search(self, query: str, searched_at: Instant) -> None:
        """A query that was typed at `searched_at`."""
        at = to_microseconds(searched_at)
        for tie, token in enumerate(tokenize(query)):
            bisect.insort(self._tokens, (at, tie, token))
        if normalized := normalize_query(query):
            bisect.insort(self._queries, (at, normalized))

    def completed_watches(self, before: Instant) -> int:
        """Number of completed watches, those before the logs included."""
        return bisect.bisect_left(self._completed, (to_microseconds(before),))

    def last_completed(self, length: int, before: Instant) -> list[Id]:
        """The last `length` completed videos, oldest first, those before the logs before all others."""
        end = self.completed_watches(before)
        return [video_id for _, video_id in self._completed[max(0, end - length) : end]]

    def last_shown_unwatched(self, length: int, before: Instant) -> list[Id]:
        """The last `length` videos that were shown and not clicked, or before the logs not completed, oldest first."""
        end = bisect.bisect_left(self._shown_unwatched, (to_microseconds(before),))
        return [video_id for _, video_id in self._shown_unwatched[max(0, end - length) : end]]

    def last_context(self, before: Instant) -> tuple[str | None, bool | None]:
        """Device and login of the user's last impression; None where that is not known, or there was none."""
        end = bisect.bisect_left(self._contexts, to_microseconds(before), key=lambda context: context[0])
        return self._contexts[end - 1][1:] if end else (None, None)

    def begun_videos(self, before: Instant) -> list[Id]:
        """Videos of the watches within the logs that have begun, whether they have ended or not, oldest first."""
        end = bisect.bisect_left(self._begun, (to_microseconds(before),))
        return [video_id for _, video_id in self._begun[:end]]

    def watches(self, before: Instant) -> int:
        """Number of watches within the logs that have ended, completed or not."""
        return bisect.bisect_left(self._watches, (to_microseconds(before),))

    def last_watches(self, length: int, before: Instant) -> list[Id]:
        """The last `length` watched videos, completed or not, in the order in which the watches ended."""
        end = self.watches(before)
        return [video_id for _, video_id in self._watches[max(0, end - length) : end]]

    def last_watched_at(self, before: Instant) -> int | None:
        """Microseconds of the end of the last watch that has ended; None without one."""
        end = self.watches(before)
        return self._watches[end - 1][0] if end else None

    def channel_watches(self, channel_id: Id | None, before: Instant) -> tuple[int, int | None]:
        """Number of watches of videos of this channel that have ended, and the end of the last in microseconds."""
        instants = self._watches_of_channel.get(channel_id, []) if channel_id is not None else []
        number = bisect.bisect_left(instants, to_microseconds(before))
        return number, instants[number - 1] if number else None

    def watches_by_topic(self, before: Instant) -> dict[str, tuple[int, int]]:
        """Topic -> number of watches of it that have ended, and the end of the last in microseconds."""
        at = to_microseconds(before)
        found = {}
        for topic, instants in self._watches_of_topic.items():
            number = bisect.bisect_left(instants, at)
            if number:
                found[topic] = (number, instants[number - 1])
        return found

    def impressions(self, before: Instant) -> tuple[int, int]:
        """Number of impressions, and of clicks among them: a click is known to the next request."""
        number, clicks, _ = self._impressions.before(to_microseconds(before))
        return number, clicks

    def watches_of_clicks(self, before: Instant) -> tuple[int, int]:
        """Number of clicked impressions whose watch has ended, and their watch time in milliseconds."""
        number, watch_time_ms, _ = self._watches_of_clicks.before(to_microseconds(before))
        return number, watch_time_ms

    def impressions_of(self, video_id: Id, before: Instant) -> tuple[int, int | None]:
        """Number of impressions of this video without a click, and the instant of its last impression."""
        running = self._impressions_of_video.get(video_id)
        if running is None:
            return 0, None
        _, misses, last_at = running.before(to_microseconds(before))
        return misses, last_at

    def last_unclicked_at(self, video_id: Id, before: Instant) -> int | None:
        """Microseconds of the last impression of this video within the logs without a click; None without one."""
        instants = self._unclicked_of_video.get(video_id, [])
        number = bisect.bisect_left(instants, to_microseconds(before))
        return instants[number - 1] if number else None

    @property
    def shown(self) -> Collection[Id]:
        """Videos with impressions within the logs, at whatever instant."""
        return self._impressions_of_video.keys()

    @property
    def watched_channels(self) -> Collection[Id]:
        """Channels with watches, at whatever instant."""
        return self._watches_of_channel.keys()

    def shown_videos(self, before: Instant) -> list[Id]:
        """Videos that were shown to the user, those of the table `history` included, each once, in no order."""
        at = to_microseconds(before)
        within = (
            video_id for video_id, shown in self._impressions_of_video.items() if shown.instants[0] < at
        )
        return list({*within, *self._earlier})

    def last_search_tokens(self, length: int, before: Instant) -> list[str]:
        """The last `length` tokens of the user's searches, oldest first."""
        end = bisect.bisect_left(self._tokens, (to_microseconds(before),))
        return [token for _, _, token in self._tokens[max(0, end - length) : end]]

    def last_search_query(self, before: Instant) -> str | None:
        """The last query that has a word in it, see `normalize_query`; None without one."""
        end = bisect.bisect_left(self._queries, (to_microseconds(before),))
        return self._queries[end - 1][1] if end else None


def from_tables(
    rows: Mapping[str, Iterable[Mapping[str, Any]]],
    channels: Mapping[Id, Id | None],
    topics: Mapping[Id, Sequence[str] | None],
) -> dict[Id, UserHistory]:
    """Histories of every user in rows of `history`, `watches`, `impressions`, `searches` (those that there are).

    Args:
        rows: table -> rows as mappings with the columns of the schema.
        channels: video id -> channel id.
        topics: video id -> its topics.
    """
    users: dict[Id, UserHistory] = {}

    def of(row: Mapping[str, Any]) -> UserHistory:
        user = users.get(row["user_id"])
        if user is None:
            user = users[row["user_id"]] = UserHistory()
        return user

    for row in rows.get("history", ()):
        of(row).add_earlier_watch(row["video_id"], row["position"], row.get("completed", True))
    for row in rows.get("watches", ()):
        video = row["video_id"]
        of(row).add_watch(
            video,
            row["watched_at"],
            row["watch_time_s"],
            row["completed"],
            channels.get(video),
            topics.get(video),
        )
    for row in rows.get("impressions", ()):
        video = row["video_id"]
        of(row).add_impression(
            video,
            channels.get(video),
            shown_at=row["shown_at"],
            clicked=row["clicked"],
            watch_time_s=row["watch_time_s"],
            device=row.get("device"),
            logged_in=row.get("logged_in"),
        )
    for row in rows.get("searches", ()):
        of(row).add_search(row["query"], row["searched_at"])
    return users
