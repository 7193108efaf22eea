"""Inputs of the ranking model: one declaration each, with two evaluators (paper, section 4.1).

`expression` makes the column of the pipeline, `evaluate` the value of one video of one request; a test holds
them equal. To add a feature, add a declaration to FEATURES: what it reads of a user's past it names as `AsOf`
quantities, and both the tables and the in-memory `UserHistory` are as of the instant of the request.
"""

import datetime
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from watchnext import schema
from watchnext.data.split import SplitDays, days_between
from watchnext.engine import Engine
from watchnext.features.batches import OPENING, PAGED_SHARE, Column, FeatureSpec, Kind, Vocabulary
from watchnext.features.day_parts import DayParts
from watchnext.features.history import (
    TOPIC,
    AsOf,
    Id,
    Instant,
    Logs,
    Streams,
    UserHistory,
    as_of,
    day_ranges,
    milliseconds,
    to_microseconds,
)

STATISTICS_DAYS = 7
"""How many complete days before a request the statistics of a video cover."""

RECENT_WATCHES_LENGTH = 20
SEARCH_TOKENS_LENGTH = 20
TOPICS_LENGTH = 10

_MICROSECONDS = 1_000_000.0


@dataclass(frozen=True)
class RequestContext:
    """What is known of a request besides the user's history. Absent facts are None.

    Attributes:
        user_columns: of the columns of `users` beyond the schema, by name.
        seeds: video -> the video that it was nominated for, of the videos that have one.
    """

    user_id: Id
    at: Instant
    surface: str | None = None
    device: str | None = None
    logged_in: bool | None = None
    region: str | None = None
    age_years: float | None = None
    gender: str | None = None
    user_columns: Mapping[str, str | None] = field(default_factory=dict)
    seeds: Mapping[Id, Id] = field(default_factory=dict)


@dataclass(frozen=True)
class VideoFacts:
    """A row of `videos`. Absent facts are None."""

    video_id: Id
    channel_id: Id | None = None
    topics: Sequence[str] | None = None
    duration_s: float | None = None
    uploaded_at: Instant | None = None
    language: str | None = None


class Counts:
    """Rows of `video_statistics` by the id of a video, or of a channel.

    Args:
        ids: [M], each once.
        counts: int64 [M, len(COUNTS)].
    """

    def __init__(self, ids: pa.Array | None = None, counts: npt.NDArray[np.int64] | None = None) -> None:
        ids = pa.array([], pa.int64()) if ids is None else ids
        nothing = np.zeros((1, len(COUNTS)), np.int64)
        self._counts = nothing if counts is None else np.concatenate([nothing, counts])
        self._places = Vocabulary("video_statistics", ids, np.zeros(len(ids), np.int64))

    def of(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """[N] ids -> int64 [N, len(COUNTS)]; zeros for what had no event, or is null."""
        return self._counts[self._places.lookup(ids)]


@dataclass(frozen=True)
class VideoStatistics:
    """What befell every video over the complete days before one day.

    Attributes:
        covered_days: how many complete days of logs they cover, at most STATISTICS_DAYS.
        videos: by video id.
        channels: by channel id, the sum over its videos.
    """

    covered_days: int = 0
    videos: Counts = field(default_factory=Counts)
    channels: Counts = field(default_factory=Counts)

    @classmethod
    def from_table(cls, table: pa.Table) -> "VideoStatistics":
        """The rows of one day of the table `video_statistics`."""
        videos = _counts_by(table, "video_id", COUNTS)
        channels = Counts()
        # Tables that were stored before there were inputs of channels do not have the column.
        if "channel_id" in table.column_names:
            known = table.filter(table["channel_id"].is_valid())
            sums = known.group_by("channel_id").aggregate([(name, "sum") for name in COUNTS])
            channels = _counts_by(sums, "channel_id", [f"{name}_sum" for name in COUNTS])
        return cls(int(pc.max(table["covered_days"]).as_py() or 0), videos, channels)


COUNTS = ("impressions", "clicks", "watch_time_ms", "completed_watches")
"""Columns of `video_statistics` that are counted."""


def _counts_by(table: pa.Table, key: str, counts: Sequence[str]) -> Counts:
    columns = [table[name].cast(pa.int64()).to_numpy() for name in counts]
    return Counts(one_array(table[key]), np.stack(columns, axis=1))


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


class Videos:
    """Some videos of a table, as columns that are made when they are asked for.

    Args:
        table: columns of `videos` by name, those that there are.
        places: int64 [N] rows of the table; -1: a video that it does not have, of which nothing is known.
        ids: [N] their ids.
        statistics: of the day of the request.
        topic_codes: topic -> its place among the `topics` of a table that has them as dictionary.
    """

    def __init__(
        self,
        table: Mapping[str, pa.Array],
        places: npt.NDArray[np.int64],
        ids: pa.Array,
        statistics: VideoStatistics,
        topic_codes: Mapping[str, int],
    ) -> None:
        self._table = table
        self._places = places
        unknown = places < 0
        self._unknown = unknown if unknown.any() else None
        self._statistics = statistics
        self.id_column = ids
        self.topic_codes = topic_codes

    @classmethod
    def of(cls, facts: Sequence[VideoFacts], statistics: VideoStatistics) -> "Videos":
        """Videos that are known one by one."""
        table = {
            name: pa.array([getattr(one, name) for one in facts]) for name in VideoFacts.__dataclass_fields__
        }
        if pa.types.is_timestamp(table["uploaded_at"].type):
            table["uploaded_at"] = table["uploaded_at"].cast(pa.timestamp("us")).cast(pa.int64())
        table["topics"], codes = with_topic_codes(table["topics"])
        return cls(table, np.arange(len(facts)), table["video_id"], statistics, codes)

    def __len__(self) -> int:
        return len(self._places)

    def column(self, name: str) -> pa.Array:
        """[N] of a column of the table; null where it is not known."""
        if name not in self._table:
            return pa.nulls(len(self))
        return self._table[name].take(pa.array(self._places, mask=self._unknown))

    def _plain(self, name: str) -> npt.NDArray[Any] | None:
        """[N] of a column of numbers that are all known; None for another one. To ask Arrow takes many times as long."""
        column = self._table.get(name)
        if column is None or not self._is_known(column):
            return None
        is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
        return column.to_numpy()[self._places] if is_number else None

    def _is_known(self, column: pa.Array) -> bool:
        """Whether each of the videos has a value in a column of the table, since all that there are have."""
        return column.null_count == 0 and self._unknown is None

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """float64 [N] of a column of numbers; NaN where it is not known. Instants in microseconds are exact."""
        plain = self._plain(name)
        if plain is not None:
            return plain.astype(np.float64)
        column = self.column(name).cast(pa.float64())
        return column.fill_null(np.nan).to_numpy() if column.null_count else column.to_numpy()

    @cached_property
    def ids(self) -> list[Id]:
        return _to_list(self.id_column)

    @cached_property
    def channel_column(self) -> pa.Array:
        return self.column("channel_id")

    @cached_property
    def channel_ids(self) -> list[Id | None]:
        plain = self._plain("channel_id")
        return _to_list(self.channel_column) if plain is None else list(plain.tolist())

    @property
    def has_channel(self) -> npt.NDArray[np.bool_]:
        """bool [N]: whether its channel is known."""
        if "channel_id" in self._table and self._is_known(self._table["channel_id"]):
            return np.ones(len(self), bool)
        return self.channel_column.is_valid().to_numpy(zero_copy_only=False)

    @cached_property
    def topics(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Every topic of the videos, one after the other: int64 [M] which video, ascending, and [M] its code."""
        lists = self._table.get("topics")
        if lists is None or not pa.types.is_list(lists.type) or len(lists) == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        # By where each list begins and ends: to take lists out of a large table costs far more.
        ends = lists.offsets.to_numpy()
        begins, sizes = ends[self._places].astype(np.int64), ends[self._places + 1] - ends[self._places]
        if self._unknown is not None:
            sizes[self._unknown] = 0
        owner = np.repeat(np.arange(len(self)), sizes)
        places = np.arange(len(owner)) + np.repeat(begins - (np.cumsum(sizes) - sizes), sizes)
        return owner, lists.values.indices.to_numpy()[places].astype(np.int64)

    @cached_property
    def counts(self) -> dict[str, npt.NDArray[np.int64]]:
        """Name of COUNTS -> int64 [N] of the videos; with `channel_` before it, of their channels."""
        own = self._statistics.videos.of(self.id_column)
        of_channel = self._statistics.channels.of(self.channel_column)
        return dict(zip(COUNTS, own.T, strict=True)) | {
            f"channel_{name}": column for name, column in zip(COUNTS, of_channel.T, strict=True)
        }

    @property
    def covered_days(self) -> int:
        return self._statistics.covered_days


def with_topic_codes(topics: pa.Array) -> tuple[pa.Array, dict[str, int]]:
    """Lists of topics as lists of codes, a null being as long as an empty one, and which topic has which."""
    if not pa.types.is_list(topics.type):
        return topics, {}
    values = topics.flatten().cast(pa.string()).dictionary_encode()
    sizes = topics.value_lengths().fill_null(0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    coded = pa.ListArray.from_arrays(offsets, values, mask=topics.is_null())
    return coded, {topic: code for code, topic in enumerate(values.dictionary.to_pylist())}


def _to_list(column: pa.Array) -> list[Any]:
    """`to_pylist`, of integers in a fraction of its time."""
    if pa.types.is_integer(column.type) and column.null_count == 0:
        values: list[Any] = column.to_numpy().tolist()
        return values
    return list(column.to_pylist())


@dataclass(frozen=True)
class Moment:
    """One request and its candidates, as `evaluate` sees them. `at` is its instant in microseconds since 1970 UTC."""

    user: UserHistory
    request: RequestContext
    at: int
    videos: Videos

    @cached_property
    def impressions_of_videos(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """[N] impressions of each video without a click, and the instant of its last impression, NaN without one."""
        return self._numbers_and_instants(self.videos.ids, self.user.shown, self.user.impressions_of)

    @cached_property
    def watches_of_channels(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """[N] watches of each video's channel, and the end of the last, NaN without one."""
        user = self.user
        return self._numbers_and_instants(
            self.videos.channel_ids, user.watched_channels, user.channel_watches
        )

    @cached_property
    def last_unclicked(self) -> npt.NDArray[np.float64]:
        """[N] the instant of each video's last impression without a click, NaN without one."""
        places, answers = self._of_some(self.videos.ids, self.user.shown, self.user.last_unclicked_at)
        return self._column(places, answers, np.nan)

    def _numbers_and_instants(
        self, ids: Sequence[Any], known: Collection[Any], ask: Callable[[Any, Instant], Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """[N] how often, and the last instant, NaN where there is none, as `ask` says of each id."""
        places, answers = self._of_some(ids, known, ask)
        often = self._column(places, (one[0] for one in answers), 0.0)
        return often, self._column(places, (one[1] for one in answers), np.nan)

    def _of_some(
        self, ids: Sequence[Any], known: Collection[Any], ask: Callable[[Any, Instant], Any]
    ) -> tuple[list[int], list[Any]]:
        """Places of those ids that the user has met, and what `ask` says of each: most candidates are none of them."""
        answers = {one: ask(one, self.at) for one in set(ids).intersection(known)}
        places = [place for place, one in enumerate(ids) if one in answers] if answers else []
        return places, [answers[ids[place]] for place in places]

    def _column(
        self, places: Sequence[int], values: Iterable[float | None], otherwise: float
    ) -> npt.NDArray[np.float64]:
        """float64 [N], `values` in their places, None is NaN, and `otherwise` in the others."""
        column = np.full(len(self.videos), otherwise)
        if places:
            column[places] = np.array(list(values), np.float64)
        return column

    @cached_property
    def watches_of_topics(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """[N] watches of that topic of each video that has most (NaN: it has no topic), and the end of the last of any."""
        watches, last_at = np.zeros((2, len(self.videos.topic_codes)))
        last_at -= np.inf
        for topic, (number, instant) in self.user.watches_by_topic(self.at).items():
            code = self.videos.topic_codes.get(topic)
            if code is not None:
                watches[code], last_at[code] = number, instant
        owner, code_of = self.videos.topics
        most, latest = np.full((2, len(self.videos)), np.nan)
        firsts = np.flatnonzero(np.diff(owner, prepend=-1))
        some = owner[firsts]
        most[some] = np.maximum.reduceat(watches[code_of], firsts)
        latest[some] = np.maximum.reduceat(last_at[code_of], firsts)
        return most, np.where(latest > -np.inf, latest, np.nan)


@dataclass(frozen=True)
class Feature:
    """One input of the ranking model.

    Attributes:
        name: of the input and of its column in the examples.
        kind: see FeatureSpec.
        side: `query` if it has one value per request, `impression` if each video has its own.
        meaning: one line for the docs, with the unit.
        expression: table of examples -> column. The table has the columns of `impressions`, `videos` and
            `users` that features need (those of `users` beyond the schema with USER_COLUMN before their names), `at`
            and `uploaded` (int64 microseconds), the statistics of the request's day (`covered_days`, the names of
            COUNTS, and these with `channel_` before them) and, named `AsOf.column`, the quantities in `reads`.
            Missing is null.
        evaluate: the same for one request in memory: a value for the query side (missing is None), a column [N] for the
            impression side (of numbers float64, missing is NaN).
        space: id space of a categorical or multivalent feature.
        length: how many values of a multivalent feature the model gets, the last ones.
        reads: quantities over the user's past.
        needs: columns of the logs, as table.column, without which the feature does not exist.
        training_only: see FeatureSpec; `evaluate` is then never asked.
        within: see FeatureSpec.
        tells_of_past: whether it tells of what the user did before, although it reads nothing of the past itself.
            Where a user's day stands for a page it is missing: at the beginning of the day it was not known.
        of_video_alone: whether all requests of a day have the same value of a video: `evaluate` then reads nothing but
            `videos`, and serving makes it once for all of them.
    """

    name: str
    kind: Kind
    side: Literal["query", "impression"]
    meaning: str
    expression: Callable[[ir.Table], ir.Value]
    evaluate: Callable[[Moment], Any]
    space: str | None = None
    length: int | None = None
    reads: tuple[AsOf, ...] = ()
    needs: tuple[str, ...] = ()
    training_only: bool = False
    within: str | None = None
    tells_of_past: bool = False
    of_video_alone: bool = False

    @property
    def spec(self) -> FeatureSpec:
        return FeatureSpec(
            self.name, self.kind, self.space, self.length, self.side, self.training_only, self.within
        )


def _ratio_sql(numerator: ir.Value, denominator: ir.Value) -> ir.Value:
    some = (denominator > 0).ifelse(denominator, ibis.null("int64"))
    return numerator.cast("float64") / some.cast("float64")


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _ratios(
    numerator: npt.NDArray[np.int64], denominator: npt.NDArray[np.int64] | int
) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(denominator) > 0, numerator / denominator, np.nan)


def _seconds_sql(later: ir.Value, earlier: ir.Value) -> ir.Value:
    return (later - earlier).cast("float64") / _MICROSECONDS


def _seconds(later: int, earlier: int | None) -> float | None:
    return None if earlier is None else (later - earlier) / _MICROSECONDS


_IMPRESSIONS = AsOf("impressions", "count")
_CLICKS = AsOf("impressions", "sum", measure="clicks")
_WATCHES_OF_CLICKS = AsOf("watches_of_clicks", "count")
_WATCH_TIME_MS = AsOf("watches_of_clicks", "sum", measure="watch_time_ms")
_WATCHES_LAST_AT = AsOf("watches", "last_at")
_LAST_WATCH = AsOf("watches", "recent", measure="video_id", length=1)
_RECENT_WATCHES = AsOf("completed_watches", "recent", measure="video_id", length=RECENT_WATCHES_LENGTH)
_COMPLETED = AsOf("completed_watches", "count")
_MISSES_OF_VIDEO = AsOf("impressions", "sum", ("user_id", "video_id"), measure="misses")
_LAST_IMPRESSION_OF_VIDEO = AsOf("impressions", "last_at", ("user_id", "video_id"))
_LAST_UNCLICKED_OF_VIDEO = AsOf("unclicked", "last_at", ("user_id", "video_id"))
_SEARCH_TOKENS = AsOf("search_tokens", "recent", measure="token", length=SEARCH_TOKENS_LENGTH)
_WATCHES_OF_CHANNEL = AsOf("watches", "count", ("user_id", "channel_id"))
_LAST_WATCH_OF_CHANNEL = AsOf("watches", "last_at", ("user_id", "channel_id"))
_WATCHES_OF_TOPIC = AsOf("watches_of_topics", "count", ("user_id", TOPIC))
_LAST_WATCH_OF_TOPIC = AsOf("watches_of_topics", "last_at", ("user_id", TOPIC))
_LAST_QUERY = AsOf("searches", "last", measure="query")

FEATURES: tuple[Feature, ...] = (
    # ---- categorical
    Feature(
        name="video_id",
        kind="categorical",
        side="impression",
        space="video",
        meaning="the video that is shown",
        expression=lambda row: row.video_id,
        evaluate=lambda moment: moment.videos.id_column,
        of_video_alone=True,
    ),
    Feature(
        name="channel_id",
        kind="categorical",
        side="impression",
        space="channel",
        meaning="its channel",
        expression=lambda row: row.channel_id,
        evaluate=lambda moment: moment.videos.channel_column,
        of_video_alone=True,
        needs=("videos.channel_id",),
    ),
    Feature(
        name="language",
        kind="categorical",
        side="impression",
        space="language",
        meaning="its language",
        expression=lambda row: row.language,
        evaluate=lambda moment: moment.videos.column("language"),
        of_video_alone=True,
        needs=("videos.language",),
    ),
    Feature(
        name="surface",
        kind="categorical",
        side="query",
        space="surface",
        meaning="where in the product the page is",
        expression=lambda row: row.surface,
        evaluate=lambda moment: moment.request.surface,
        needs=("impressions.surface",),
    ),
    Feature(
        name="device",
        kind="categorical",
        side="query",
        space="device",
        meaning="class of the user's device",
        expression=lambda row: row.device,
        evaluate=lambda moment: moment.request.device,
        needs=("impressions.device",),
    ),
    Feature(
        name="region",
        kind="categorical",
        side="query",
        space="region",
        meaning="region of the user",
        expression=lambda row: row.region,
        evaluate=lambda moment: moment.request.region,
        needs=("users.region",),
    ),
    Feature(
        name="gender",
        kind="categorical",
        side="query",
        space="gender",
        meaning="gender of the user",
        expression=lambda row: row.gender,
        evaluate=lambda moment: moment.request.gender,
        needs=("users.gender",),
    ),
    Feature(
        name="last_watched_video_id",
        kind="categorical",
        side="query",
        space="video",
        meaning="the video whose watch by the user ended last, completed or not",
        expression=lambda row: row[_LAST_WATCH.column][0],
        evaluate=lambda moment: next(iter(moment.user.last_watches(1, moment.at)), None),
        reads=(_LAST_WATCH,),
    ),
    Feature(
        name="seed_video_id",
        kind="categorical",
        side="impression",
        space="video",
        meaning="the video for which the video was nominated, where its source has one",
        expression=lambda row: row.seed_video_id,
        evaluate=lambda moment: (
            [moment.request.seeds.get(one) for one in moment.videos.ids]
            if moment.request.seeds
            else pa.nulls(len(moment.videos))
        ),
        needs=("impressions.seed_video_id",),
        tells_of_past=True,
    ),
    Feature(
        name="last_search_query",
        kind="categorical",
        side="query",
        space="search_query",
        meaning="the user's last search, lowered, its words with one space between two",
        expression=lambda row: row[_LAST_QUERY.column],
        evaluate=lambda moment: moment.user.last_search_query(moment.at),
        reads=(_LAST_QUERY,),
        needs=("searches.query",),
    ),
    Feature(
        name="position",
        kind="categorical",
        side="impression",
        space="position",
        meaning="place on the page, from 0",
        expression=lambda row: row.position,
        evaluate=lambda moment: None,
        needs=("impressions.position",),
        training_only=True,
        within="surface",
    ),
    # ---- multivalent
    Feature(
        name="topics",
        kind="multivalent",
        side="impression",
        space="topic",
        length=TOPICS_LENGTH,
        meaning="topics of the video",
        expression=lambda row: row.topics,
        evaluate=lambda moment: moment.videos.column("topics"),
        of_video_alone=True,
        needs=("videos.topics",),
    ),
    Feature(
        name="recent_watches",
        kind="multivalent",
        side="query",
        space="video",
        length=RECENT_WATCHES_LENGTH,
        meaning=f"the last {RECENT_WATCHES_LENGTH} videos that the user completed, oldest first",
        expression=lambda row: row[_RECENT_WATCHES.column],
        evaluate=lambda moment: moment.user.last_completed(RECENT_WATCHES_LENGTH, moment.at),
        reads=(_RECENT_WATCHES,),
    ),
    Feature(
        name="recent_search_tokens",
        kind="multivalent",
        side="query",
        space="search_token",
        length=SEARCH_TOKENS_LENGTH,
        meaning=f"the last {SEARCH_TOKENS_LENGTH} unigrams and bigrams of the user's searches, oldest first",
        expression=lambda row: row[_SEARCH_TOKENS.column],
        evaluate=lambda moment: moment.user.last_search_tokens(SEARCH_TOKENS_LENGTH, moment.at),
        reads=(_SEARCH_TOKENS,),
        needs=("searches.query",),
    ),
    # ---- continuous: the video
    Feature(
        name="video_age_s",
        kind="continuous",
        side="impression",
        meaning="time since its upload, s",
        expression=lambda row: _seconds_sql(row["at"], row.uploaded),
        evaluate=lambda moment: (moment.at - moment.videos.numbers("uploaded_at")) / _MICROSECONDS,
        needs=("videos.uploaded_at",),
    ),
    Feature(
        name="duration_s",
        kind="continuous",
        side="impression",
        meaning="its length, s",
        expression=lambda row: row.duration_s,
        evaluate=lambda moment: moment.videos.numbers("duration_s"),
        of_video_alone=True,
        needs=("videos.duration_s",),
    ),
    Feature(
        name="video_impressions_per_day",
        kind="continuous",
        side="impression",
        meaning="its impressions per day over the 7 complete days before",
        expression=lambda row: _ratio_sql(row.impressions, row.covered_days),
        evaluate=lambda moment: _ratios(moment.videos.counts["impressions"], moment.videos.covered_days),
        of_video_alone=True,
    ),
    Feature(
        name="video_completed_watches_per_day",
        kind="continuous",
        side="impression",
        meaning="its completed watches of every origin per day over the 7 complete days before",
        expression=lambda row: _ratio_sql(row.completed_watches, row.covered_days),
        evaluate=lambda moment: _ratios(
            moment.videos.counts["completed_watches"], moment.videos.covered_days
        ),
        of_video_alone=True,
    ),
    Feature(
        name="video_click_rate",
        kind="continuous",
        side="impression",
        meaning="clicks per impression over the 7 complete days before",
        expression=lambda row: _ratio_sql(row.clicks, row.impressions),
        evaluate=lambda moment: _ratios(moment.videos.counts["clicks"], moment.videos.counts["impressions"]),
        of_video_alone=True,
    ),
    Feature(
        name="video_mean_watch_time_s",
        kind="continuous",
        side="impression",
        meaning="watch time per click over the 7 complete days before, s",
        expression=lambda row: _ratio_sql(row.watch_time_ms, row.clicks * 1000),
        evaluate=lambda moment: _ratios(
            moment.videos.counts["watch_time_ms"], moment.videos.counts["clicks"] * 1000
        ),
        of_video_alone=True,
    ),
    # ---- continuous: the channel
    Feature(
        name="channel_click_rate",
        kind="continuous",
        side="impression",
        meaning="clicks per impression of the channel's videos over the 7 complete days before",
        expression=lambda row: _ratio_sql(row.channel_clicks, row.channel_impressions),
        evaluate=lambda moment: _ratios(
            moment.videos.counts["channel_clicks"], moment.videos.counts["channel_impressions"]
        ),
        of_video_alone=True,
        needs=("videos.channel_id",),
    ),
    Feature(
        name="channel_mean_watch_time_s",
        kind="continuous",
        side="impression",
        meaning="watch time per click of the channel's videos over the 7 complete days before, s",
        expression=lambda row: _ratio_sql(row.channel_watch_time_ms, row.channel_clicks * 1000),
        evaluate=lambda moment: _ratios(
            moment.videos.counts["channel_watch_time_ms"], moment.videos.counts["channel_clicks"] * 1000
        ),
        of_video_alone=True,
        needs=("videos.channel_id",),
    ),
    # ---- continuous: the user and this video, this channel, these topics
    Feature(
        name="unclicked_impressions_of_video",
        kind="continuous",
        side="impression",
        meaning="how often the video was shown to the user before without a click",
        expression=lambda row: row[_MISSES_OF_VIDEO.column].cast("float64"),
        evaluate=lambda moment: moment.impressions_of_videos[0],
        reads=(_MISSES_OF_VIDEO,),
    ),
    Feature(
        name="since_impression_of_video_s",
        kind="continuous",
        side="impression",
        meaning="time since the video was last shown to the user, s",
        expression=lambda row: _seconds_sql(row["at"], row[_LAST_IMPRESSION_OF_VIDEO.column]),
        evaluate=lambda moment: (moment.at - moment.impressions_of_videos[1]) / _MICROSECONDS,
        reads=(_LAST_IMPRESSION_OF_VIDEO,),
    ),
    Feature(
        name="since_unclicked_impression_of_video_s",
        kind="continuous",
        side="impression",
        meaning="time since the video was last shown to the user without a click, s",
        expression=lambda row: _seconds_sql(row["at"], row[_LAST_UNCLICKED_OF_VIDEO.column]),
        evaluate=lambda moment: (moment.at - moment.last_unclicked) / _MICROSECONDS,
        reads=(_LAST_UNCLICKED_OF_VIDEO,),
    ),
    Feature(
        name="watches_of_channel",
        kind="continuous",
        side="impression",
        meaning="how many videos of the channel the user has watched; missing if the video has no channel",
        expression=lambda row: row.channel_id.notnull().ifelse(
            row[_WATCHES_OF_CHANNEL.column].cast("float64"), ibis.null("float64")
        ),
        evaluate=lambda moment: np.where(moment.videos.has_channel, moment.watches_of_channels[0], np.nan),
        reads=(_WATCHES_OF_CHANNEL,),
        needs=("videos.channel_id",),
    ),
    Feature(
        name="since_watch_of_channel_s",
        kind="continuous",
        side="impression",
        meaning="time since the end of the user's last watch of a video of the channel, s",
        expression=lambda row: _seconds_sql(row["at"], row[_LAST_WATCH_OF_CHANNEL.column]),
        evaluate=lambda moment: (moment.at - moment.watches_of_channels[1]) / _MICROSECONDS,
        reads=(_LAST_WATCH_OF_CHANNEL,),
        needs=("videos.channel_id",),
    ),
    Feature(
        name="watches_of_topic",
        kind="continuous",
        side="impression",
        meaning="how many videos the user has watched of that of the video's topics of which these are most; missing if "
        "the video has no topic",
        expression=lambda row: (row.topics.length() > 0).ifelse(
            row[_WATCHES_OF_TOPIC.column].cast("float64"), ibis.null("float64")
        ),
        evaluate=lambda moment: moment.watches_of_topics[0],
        reads=(_WATCHES_OF_TOPIC,),
        needs=("videos.topics",),
    ),
    Feature(
        name="since_watch_of_topic_s",
        kind="continuous",
        side="impression",
        meaning="time since the end of the user's last watch of a video of any of the topics, s",
        expression=lambda row: _seconds_sql(row["at"], row[_LAST_WATCH_OF_TOPIC.column]),
        evaluate=lambda moment: (moment.at - moment.watches_of_topics[1]) / _MICROSECONDS,
        reads=(_LAST_WATCH_OF_TOPIC,),
        needs=("videos.topics",),
    ),
    # ---- continuous: the user
    Feature(
        name="user_impressions",
        kind="continuous",
        side="query",
        meaning="impressions that the user has had",
        expression=lambda row: row[_IMPRESSIONS.column].cast("float64"),
        evaluate=lambda moment: float(moment.user.impressions(moment.at)[0]),
        reads=(_IMPRESSIONS,),
    ),
    Feature(
        name="user_click_rate",
        kind="continuous",
        side="query",
        meaning="clicks per impression of the user so far",
        expression=lambda row: _ratio_sql(row[_CLICKS.column], row[_IMPRESSIONS.column]),
        evaluate=lambda moment: _ratio(
            moment.user.impressions(moment.at)[1], moment.user.impressions(moment.at)[0]
        ),
        reads=(_CLICKS, _IMPRESSIONS),
    ),
    Feature(
        name="user_mean_watch_time_s",
        kind="continuous",
        side="query",
        meaning="watch time per clicked impression of the user whose watch has ended, s",
        expression=lambda row: _ratio_sql(row[_WATCH_TIME_MS.column], row[_WATCHES_OF_CLICKS.column] * 1000),
        evaluate=lambda moment: _ratio(
            moment.user.watches_of_clicks(moment.at)[1], moment.user.watches_of_clicks(moment.at)[0] * 1000
        ),
        reads=(_WATCH_TIME_MS, _WATCHES_OF_CLICKS),
    ),
    Feature(
        name="user_completed_watches",
        kind="continuous",
        side="query",
        meaning="videos that the user has completed, those before the logs included",
        expression=lambda row: row[_COMPLETED.column].cast("float64"),
        evaluate=lambda moment: float(moment.user.completed_watches(moment.at)),
        reads=(_COMPLETED,),
    ),
    Feature(
        name="since_watch_s",
        kind="continuous",
        side="query",
        meaning="time since the end of the user's last watch of any video, s",
        expression=lambda row: _seconds_sql(row["at"], row[_WATCHES_LAST_AT.column]),
        evaluate=lambda moment: _seconds(moment.at, moment.user.last_watched_at(moment.at)),
        reads=(_WATCHES_LAST_AT,),
    ),
    Feature(
        name="age_years",
        kind="continuous",
        side="query",
        meaning="age of the user, years",
        expression=lambda row: row.age_years,
        evaluate=lambda moment: moment.request.age_years,
        needs=("users.age_years",),
    ),
    Feature(
        name="logged_in",
        kind="continuous",
        side="query",
        meaning="1 if the user was logged in, 0 if not",
        expression=lambda row: row.logged_in.cast("int64").cast("float64"),
        evaluate=lambda moment: None if moment.request.logged_in is None else float(moment.request.logged_in),
        needs=("impressions.logged_in",),
    ),
)

EXAMPLE_COLUMNS = (
    "request_id",
    "user_id",
    "video_id",
    "shown_at",
    "position",
    "surface",
    "clicked",
    "watch_time_s",
    "sources",
    "source_scores",
    "propensity",
)
"""Columns of an example besides its features, those that the logs have."""


USER_COLUMN = "user_column_"
"""What begins the name of a feature that is a column of `users` beyond the schema."""


def user_feature(column: str) -> Feature:
    """The feature made of a column that `users` has beyond the schema."""
    name = USER_COLUMN + column
    return Feature(
        name=name,
        kind="categorical",
        side="query",
        space=f"user_{column}",
        meaning=f"`{column}` of the user",
        expression=lambda row: row[name],
        evaluate=lambda moment: moment.request.user_columns.get(column),
        needs=(f"users.{column}",),
    )


def features_named(names: Sequence[str]) -> tuple[Feature, ...]:
    """The declarations of these names, in this order. Raises KeyError for a name that nothing declares."""
    declared = {feature.name: feature for feature in FEATURES}
    return tuple(
        user_feature(name.removeprefix(USER_COLUMN)) if name.startswith(USER_COLUMN) else declared[name]
        for name in names
    )


def possible_features(logs: Logs, vocabulary_sizes: Mapping[str, int]) -> tuple[Feature, ...]:
    """The features that these logs have the columns for, and training the values."""
    further = (column for column in logs.tables["users"].columns if column not in schema.USERS.column_names)
    return tuple(
        feature
        for feature in (*FEATURES, *map(user_feature, further))
        if logs.has(feature.needs) and (feature.space is None or vocabulary_sizes.get(feature.space, 0) > 0)
    )


def video_statistics(engine: Engine, tables: Mapping[str, ir.Table], days: Sequence[Any]) -> ir.Table:
    """What befell each video over the complete days before a day.

    Args:
        engine: the engine that holds the tables.
        tables: `impressions` and `watches` with the columns `day` and `ended_day` (date, local). Impressions
            and clicks count to the day on which they were shown, watch time and completed watches to the day
            on which the watch ended: the next morning is the first to know of them.
        days: every day from the first to the day after the last, in order; events outside do not count.

    Returns:
        video_id, channel_id (of the video), day, covered_days (int64, days of logs among the STATISTICS_DAYS
        before), impressions, clicks, watch_time_ms (of clicked impressions), completed_watches: int64. Videos
        without an event have no row.
    """
    impressions = tables["impressions"]
    clicks = impressions.clicked.cast("int64")
    watches = tables["watches"]
    zero = ibis.literal(0, "int64")
    one = ibis.literal(1, "int64")
    shown = impressions.select(
        "video_id", "day", impressions=one, clicks=clicks, watch_time_ms=zero, completed_watches=zero
    )
    clicked = impressions.filter(impressions.clicked)
    played = clicked.select(
        "video_id",
        day=clicked.ended_day,
        impressions=zero,
        clicks=zero,
        watch_time_ms=milliseconds(clicked.watch_time_s),
        completed_watches=zero,
    )
    completed = watches.filter(watches.completed)
    watched = completed.select(
        "video_id",
        day=completed.ended_day,
        impressions=zero,
        clicks=zero,
        watch_time_ms=zero,
        completed_watches=one,
    )
    events = ibis.union(shown, played, watched)
    daily = events.group_by(["video_id", "day"]).aggregate(
        **{name: events[name].sum().cast("int64") for name in COUNTS}
    )
    daily = engine.materialize(daily)
    daily = daily.filter(daily.day >= days[0])
    shifted = ibis.union(
        *(
            daily.mutate(day=(daily.day + ibis.interval(days=later)).cast("date"))
            for later in range(1, STATISTICS_DAYS + 1)
        )
    )
    covered = [(shifted.day == day, number) for number, day in enumerate(days[:STATISTICS_DAYS])]
    summed = (
        shifted.filter(shifted.day <= days[-1])
        .mutate(covered_days=ibis.cases(*covered, else_=STATISTICS_DAYS).cast("int64"))
        .group_by(["video_id", "day", "covered_days"])
        .aggregate(**{name: shifted[name].sum().cast("int64") for name in COUNTS})
    )
    channels = tables["videos"].select("video_id", "channel_id")
    return summed.left_join(channels, "video_id").select(
        summed.video_id,
        channels.channel_id,
        summed.day,
        summed.covered_days,
        *(summed[name] for name in COUNTS),
    )


@dataclass(frozen=True)
class RankingTables:
    """Ranking examples before their columns are chosen.

    Attributes:
        examples: narrow rows, one per impression.
        requests: what is the same for a whole request.
        features: their declarations.
        kept: columns of an example besides the features.
        openings: OPENING columns of impressions by request_id and video_id, see `opening_features`.
    """

    examples: ir.Table
    requests: ir.Table
    features: tuple[Feature, ...]
    kept: tuple[str, ...]
    openings: ir.Table | None = None

    def between(self, first: Any, last: Any, openings: bool = False) -> ir.Table:
        """Examples of the days `first` to `last`, with one column per feature; and with `openings`, if asked."""
        rows = self.examples.filter(self.examples.day.between(first, last))
        rows = rows.inner_join(self.requests, ["user_id", "at"])
        columns: dict[str, ir.Value] = {name: rows[name] for name in self.kept}
        columns.update({feature.name: feature.expression(rows) for feature in self.features})
        examples = rows.select(**columns)
        if not openings or self.openings is None:
            return examples
        added = [self.openings[name] for name in self.openings.columns if name.startswith(OPENING)]
        return examples.left_join(self.openings, ["request_id", "video_id"]).select(examples, *added)


def opening_features(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Features of a user and a video, which move with what the user did: those that a page would have frozen."""
    return tuple(
        feature
        for feature in features
        if feature.side == "impression" and (feature.reads or feature.tells_of_past)
    )


def days_without_pages(impressions: ir.Table, days: Sequence[datetime.date]) -> frozenset[datetime.date]:
    """Which of these days have too few impressions that share a request for requests to be pages (PAGED_SHARE).

    Args:
        impressions: with a column `day`, of all users.
        days: which to look at.
    """
    some = impressions.filter(impressions.day.isin(list(days)))
    requests = some.group_by(["day", "request_id"]).aggregate(size=lambda rows: rows.count())
    shared = (requests["size"] > 1).ifelse(requests["size"], 0)
    sums = requests.group_by("day").aggregate(shared=shared.sum(), rows=requests["size"].sum()).to_pyarrow()
    return frozenset(
        row["day"] for row in sums.to_pylist() if float(row["shared"]) / float(row["rows"]) < PAGED_SHARE
    )


def ranking_tables(
    engine: Engine,
    tables: Mapping[str, ir.Table],
    streams: Streams,
    statistics: ir.Table,
    days: Sequence[Any],
    features: Sequence[Feature],
    pageless: Collection[datetime.date] = (),
) -> RankingTables:
    """Join what every feature reads to the impressions.

    Args:
        engine: the engine that holds the tables.
        tables: the tables of the logs, `impressions` with a column `day`.
        streams: their events.
        statistics: see `video_statistics`.
        days: as given to `video_statistics`.
        features: which to prepare.
        pageless: days whose examples also get the values of `opening_features` as of the first impression of
            the user, surface and day: there such a group stands for a page when models are judged.
    """
    impressions, videos, users = tables["impressions"], tables["videos"], tables["users"]
    kept = tuple(name for name in EXAMPLE_COLUMNS if name in impressions.columns)
    context = [name for name in _needed(features, "impressions") if name not in kept]
    base = impressions.select(*kept, *context, "day", at=engine.microseconds(impressions.shown_at))
    channels = videos.select("video_id", "channel_id")
    base = engine.materialize(base.left_join(channels, "video_id").select(base, channels.channel_id))

    reads = list(dict.fromkeys(quantity for feature in features for quantity in feature.reads))
    of_user = [quantity for quantity in reads if quantity.by == ("user_id",)]
    of_pair = [quantity for quantity in reads if quantity.by != ("user_id",)]
    requests = as_of(engine, base.select("user_id", "at").distinct(), streams, of_user)
    of_person = {
        name if name in schema.USERS.column_names else USER_COLUMN + name: users[name]
        for name in _needed(features, "users")
    }
    people = users.select("user_id", **of_person)
    requests = requests.left_join(people, "user_id").select(requests, *(people[name] for name in of_person))
    requests = engine.materialize(requests)

    rows = as_of(engine, base, streams, of_pair)
    of_video = {
        "uploaded" if name == "uploaded_at" else name: (
            engine.microseconds(videos[name]) if name == "uploaded_at" else videos[name]
        )
        for name in _needed(features, "videos")
        if name != "channel_id"
    }
    facts = videos.select("video_id", **of_video)
    rows = rows.left_join(facts, "video_id").select(rows, *(facts[name] for name in of_video))
    covered = [(rows.day == day, number) for number, day in enumerate(days[:STATISTICS_DAYS])]
    rows = rows.left_join(statistics, ["video_id", "day"]).select(
        rows,
        ibis.cases(*covered, else_=STATISTICS_DAYS).cast("int64").name("covered_days"),
        *(statistics[name].fill_null(0).name(name) for name in COUNTS),
    )
    of_channels = statistics.group_by(["channel_id", "day"]).aggregate(
        **{f"channel_{name}": statistics[name].sum().cast("int64") for name in COUNTS}
    )
    rows = rows.left_join(of_channels, ["channel_id", "day"]).select(
        rows, *(of_channels[f"channel_{name}"].fill_null(0).name(f"channel_{name}") for name in COUNTS)
    )
    openings = None
    if pageless:
        openings = engine.materialize(
            _openings(engine, base, streams, opening_features(features), pageless, videos)
        )
    return RankingTables(engine.materialize(rows), requests, tuple(features), kept, openings)


def _needed(features: Sequence[Feature], table: str) -> list[str]:
    """The columns of a table that the features need."""
    needs = dict.fromkeys(needed for feature in features for needed in feature.needs)
    return [needed.removeprefix(f"{table}.") for needed in needs if needed.startswith(f"{table}.")]


def _openings(
    engine: Engine,
    base: ir.Table,
    streams: Streams,
    features: Sequence[Feature],
    days: Collection[datetime.date],
    videos: ir.Table,
) -> ir.Table:
    """request_id, video_id and the OPENING column of each of `features`, of the impressions of `days`."""
    some = base.filter(base.day.isin(list(days)))
    group = [name for name in ("user_id", "surface", "day") if name in some.columns]
    points = some.mutate(at=some["at"].min().over(ibis.window(group_by=group)))
    reads = dict.fromkeys(quantity for feature in features for quantity in feature.reads)
    rows = as_of(engine, points, streams, reads)
    facts = videos.select("video_id", "topics")
    rows = rows.left_join(facts, "video_id").select(rows, facts.topics)
    values = {
        OPENING + feature.name: ibis.null(value.type()) if feature.tells_of_past else value
        for feature in features
        for value in (feature.expression(rows),)
    }
    return rows.select("request_id", "video_id", **values)


def statistics_days(split: SplitDays) -> list[datetime.date]:
    """Every day from the first training day to the day after the last of the split."""
    last = max(day for _, day in day_ranges(split).values())
    return days_between(split.training[0], last + datetime.timedelta(days=1))


def write_video_statistics(engine: Engine, logs: Logs, split: SplitDays, features_dir: Path) -> None:
    """Store `video_statistics` of every day of the split and of the day after."""
    with engine.scope():
        statistics = video_statistics(engine, logs.tables, statistics_days(split))
        engine.write(statistics, features_dir / "video_statistics", sort_by=["day", "video_id"])


def write_ranking_examples(
    engine: Engine,
    logs: Logs,
    streams: Streams,
    split: SplitDays,
    features: Sequence[Feature],
    features_dir: Path,
    *,
    pageless: frozenset[datetime.date],
    part: int,
    parts: DayParts,
) -> None:
    """Store the examples of some users as `ranking_examples`, see `DayParts`.

    Args:
        engine: the engine that holds the tables.
        logs: of these users.
        streams: their events.
        split: which days.
        features: which.
        features_dir: holds `video_statistics`.
        pageless: days whose logs know no pages, see `days_without_pages`: a split of such days alone gets the
            OPENING columns.
        part: number of these users' bucket.
        parts: writes them.
    """
    statistics = engine.read(features_dir / "video_statistics")
    impressions = logs.tables["impressions"]
    tables = {**logs.tables, "impressions": parts.to_make(impressions)}
    prepared = ranking_tables(engine, tables, streams, statistics, statistics_days(split), features, pageless)
    for name, (first, last) in day_ranges(split).items():
        days = days_between(first, last)
        openings = pageless.issuperset(days)
        parts.write(
            "ranking_examples",
            name,
            days,
            partial(prepared.between, openings=openings),
            ("shown_at", "request_id", "video_id"),
            part,
            without="" if openings else OPENING,
        )


def describe_inputs(examples: ir.Table, features: Sequence[Feature]) -> list[dict[str, Any]]:
    """Per feature its kind, and the share of examples that lack it (for bags: that have an empty one)."""

    def lacking(feature: Feature) -> ir.Value:
        value = examples[feature.name]
        gone = value.isnull()
        if feature.kind == "multivalent":
            gone = gone | (value.length() == 0)
        return gone.cast("int64").mean().name(feature.name)

    shares = examples.aggregate([lacking(feature) for feature in features]).to_pyarrow().to_pylist()[0]
    return [
        {
            "input": feature.name,
            "kind": feature.kind,
            "side": feature.side,
            "missing_share": round(shares[feature.name], 6),
            "meaning": feature.meaning,
        }
        for feature in features
    ]


def document() -> str:
    """The declarations as a table in Markdown: what `docs/features.md` shows."""
    lines = ["| input | kind | side | id space | what it is | needs |", "|---|---|---|---|---|---|"]
    for feature in (*FEATURES, user_feature("<column>")):
        kind = f"{feature.kind}, {feature.length}" if feature.length else feature.kind
        kind += ", in training alone" if feature.training_only else ""
        needs = ", ".join(f"`{needed}`" for needed in feature.needs)
        cells = (f"`{feature.name}`", kind, feature.side, feature.space or "", feature.meaning, needs)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def evaluate_request(
    features: Sequence[Feature],
    user: UserHistory,
    request: RequestContext,
    videos: Sequence[VideoFacts],
    statistics: VideoStatistics,
) -> dict[str, pa.Array]:
    """The columns of ranking examples for one request, as `Encoder.encode_ranking` takes them.

    Args:
        features: which; `features_named(manifest["inputs"]["ranking"])` for those of a model.
        user: what the user did so far; events at or after `request.at` are not looked at.
        request: the request.
        videos: the candidates, [N].
        statistics: of the day of the request.

    Returns:
        Feature name -> array, of all but the `training_only` ones: [1] for the query side, [N] for the impression
        side. Missing is null, or NaN among numbers.
    """
    columns = Videos.of(videos, statistics)
    found = evaluate(features, Moment(user, request, to_microseconds(request.at), columns))
    return {
        name: column if isinstance(column, pa.Array) else pa.array(column) for name, column in found.items()
    }


def evaluate(features: Sequence[Feature], moment: Moment) -> dict[str, Column]:
    """See `evaluate_request`; whatever comes as a list or in NumPy stays so."""
    columns: dict[str, Column] = {}
    for feature in features:
        if feature.training_only:
            continue
        value = feature.evaluate(moment)
        if feature.side == "query":
            value = [math.nan if value is None and feature.kind == "continuous" else value]
        columns[feature.name] = value
    return columns


if __name__ == "__main__":
    sys.stdout.write(document())
