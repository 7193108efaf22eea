"""Vocabularies: which values of an id space a model knows (paper, section 4.1, "Embedding Categorical Features").

Built from training days alone: the top N values by how often training saw them, index 1 the most frequent. What
the ranker alone reads is counted in clicked impressions, as the paper does.
Whatever is left out is index 0, the zero vector.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir

from watchnext import schema
from watchnext.data.split import SplitDays, day_begins_at
from watchnext.engine import Engine
from watchnext.errors import InputError
from watchnext.features.history import (
    AsOf,
    Logs,
    Streams,
    as_of,
    search_queries,
    search_tokens,
    to_microseconds,
)


@dataclass(frozen=True)
class Space:
    """One id space.

    Attributes:
        name: of the space and of its folder.
        needs: columns of the logs, as table.column, without which the space does not exist.
        counted: what a frequency counts, for the docs.
        count: tables of the training days -> table of token, frequency; a token may come in several rows.
        setting: key of `featurize.vocabulary_sizes` that says how many values are kept; the name where empty.
    """

    name: str
    needs: tuple[str, ...]
    counted: str
    count: Callable[[Mapping[str, ir.Table]], ir.Table]
    setting: str = ""


def _counts(table: ir.Table, column: str) -> ir.Table:
    return table.group_by(token=table[column]).aggregate(frequency=lambda rows: rows.count().cast("int64"))


def _completed(tables: Mapping[str, ir.Table]) -> ir.Table:
    watched = _counts(tables["watches"].filter(tables["watches"].completed), "video_id")
    if "history" not in tables:
        return watched
    return watched.union(_counts(tables["history"].filter(tables["history"].completed), "video_id"))


def _of_clicked_videos(column: str) -> Callable[[Mapping[str, ir.Table]], ir.Table]:
    def count(tables: Mapping[str, ir.Table]) -> ir.Table:
        impressions = tables["impressions"]
        clicked = _counts(impressions.filter(impressions.clicked), "video_id").rename(video_id="token")
        facts = tables["videos"].select("video_id", token=tables["videos"][column])
        if facts["token"].type().is_array():
            facts = facts.unnest("token")
        return clicked.inner_join(facts, "video_id").select("token", "frequency")

    return count


def _of_clicks(column: str) -> Callable[[Mapping[str, ir.Table]], ir.Table]:
    def count(tables: Mapping[str, ir.Table]) -> ir.Table:
        impressions = tables["impressions"]
        return _counts(impressions.filter(impressions.clicked), column)

    return count


def _of_watching_users(column: str) -> Callable[[Mapping[str, ir.Table]], ir.Table]:
    def count(tables: Mapping[str, ir.Table]) -> ir.Table:
        watches = tables["watches"]
        active = _counts(watches.filter(watches.completed), "user_id").rename(user_id="token")
        values = tables["users"].select("user_id", token=tables["users"][column])
        return active.inner_join(values, "user_id").select("token", "frequency")

    return count


SPACES: tuple[Space, ...] = (
    Space(
        "video",
        ("watches.video_id",),
        "completed watches, those before the logs too: what candidate generation can be trained to name",
        _completed,
    ),
    Space("channel", ("videos.channel_id",), "clicked impressions", _of_clicked_videos("channel_id")),
    Space("topic", ("videos.topics",), "clicked impressions", _of_clicked_videos("topics")),
    Space("language", ("videos.language",), "clicked impressions", _of_clicked_videos("language")),
    Space("region", ("users.region",), "completed watches of its users", _of_watching_users("region")),
    Space("gender", ("users.gender",), "completed watches of its users", _of_watching_users("gender")),
    Space("surface", ("impressions.surface",), "clicked impressions", _of_clicks("surface")),
    Space("position", ("impressions.position",), "clicked impressions", _of_clicks("position")),
    Space(
        "device",
        ("impressions.device",),
        "impressions",
        lambda tables: _counts(tables["impressions"], "device"),
    ),
    Space(
        "search_token",
        ("searches.query",),
        "searches: unigrams and bigrams",
        lambda tables: _counts(tables["search_tokens"], "token"),
    ),
    Space(
        "search_query",
        ("searches.query",),
        "clicked impressions of users whose last search it was",
        lambda tables: tables["queries_of_clicks"],
    ),
)


_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}"


def user_spaces(
    logs: Logs, training: Mapping[str, ir.Table], most_values: int
) -> tuple[tuple[Space, ...], dict[str, str]]:
    """The id spaces of the columns that `users` has beyond the schema, each called `user_` and the column's name.

    Such a column is a category if the users who completed a watch in training have at least two and at most
    `most_values` different values of it (null counts as one), and not all of them are dates. A column of more
    values is a quantity or an id, and one of a single value tells nothing.

    Returns:
        The spaces, and column -> why it is none.
    """
    spaces: list[Space] = []
    left_out: dict[str, str] = {}
    for column in logs.tables["users"].columns:
        if column in schema.USERS.column_names or not logs.has([f"users.{column}"]):
            continue
        count = _of_watching_users(column)
        values = count(training).select("token").distinct()
        is_date = values.token.cast("string").re_search(_DATE)
        found = (
            values.aggregate(
                values=values.count(), known=values.token.count(), dates=is_date.cast("int64").sum()
            )
            .to_pyarrow()
            .to_pylist()[0]
        )
        if not 2 <= found["values"] <= most_values:
            left_out[column] = "one value" if found["values"] == 1 else f"{found['values']} different values"
        elif found["dates"] == found["known"]:
            left_out[column] = "dates"
        else:
            spaces.append(
                Space(
                    f"user_{column}",
                    (f"users.{column}",),
                    "completed watches of its users",
                    count,
                    setting="user_column",
                )
            )
    return tuple(spaces), left_out


def training_tables(engine: Engine, logs: Logs, split: SplitDays) -> dict[str, ir.Table]:
    """The tables of the logs, event tables cut at the end of the last training day.

    With searches there are `search_tokens` too, and `queries_of_clicks`: token, frequency, how many clicked
    impressions have which query as the last before them.
    """
    last = split.training[1]
    training = {name: logs.tables[name] for name in ("videos", "users", "history") if name in logs.tables}
    for name in ("impressions", "watches"):
        training[name] = logs.tables[name].filter(logs.tables[name].day <= last)
    if "searches" in logs.tables:
        tokens = search_tokens(engine, logs.tables["searches"])
        training["search_tokens"] = tokens.filter(
            tokens["at"] < to_microseconds(trained_until_at(logs, split))
        )
        clicked = training["impressions"].filter(training["impressions"].clicked)
        points = clicked.select("user_id", at=engine.microseconds(clicked.shown_at))
        query = AsOf("searches", "last", measure="query")
        streams = Streams({"searches": search_queries(engine, logs.tables["searches"])})
        queries = as_of(engine, points, streams, [query])
        training["queries_of_clicks"] = engine.materialize(_counts(queries, query.column))
    return training


def trained_until_at(logs: Logs, split: SplitDays) -> datetime.datetime:
    """The end of training, exclusive: midnight after its last day, in the time zone of the logs."""
    return day_begins_at(split.training[1] + datetime.timedelta(days=1), logs.time_zone)


def check_trainable(training: Mapping[str, ir.Table], split: SplitDays) -> None:
    """Refuse training days that no model can be fitted on.

    Raises:
        InputError: they have no completed watch (nothing to retrieve) or no click (nothing to rank by).
    """
    days = f"training days {split.training[0]} to {split.training[1]}"
    watches, impressions = training["watches"], training["impressions"]
    counted = (
        watches.aggregate(rows=watches.count(), good=watches.completed.sum()).to_pyarrow().to_pylist()[0]
    )
    if not counted["good"]:
        raise InputError(
            f"no watch was completed in the {days}: candidate generation has no positive example",
            where=f"watches.completed, {counted['rows']} rows",
            remedy="check how the source fills `completed`, or add logs of days that have completed watches",
        )
    counted = (
        impressions.aggregate(rows=impressions.count(), good=impressions.clicked.sum())
        .to_pyarrow()
        .to_pylist()[0]
    )
    if not counted["good"]:
        raise InputError(
            f"no impression was clicked in the {days}: ranking has no positive example",
            where=f"impressions.clicked, {counted['rows']} rows",
            remedy="check how the source fills `clicked`, or add logs of days that have clicks",
        )


def write_vocabularies(
    engine: Engine,
    training: Mapping[str, ir.Table],
    logs: Logs,
    largest: Mapping[str, int],
    directory: Path,
    further: Sequence[Space] = (),
) -> dict[str, int]:
    """Count, cut and store the vocabulary of every space that the logs have.

    Args:
        engine: the engine that holds the tables.
        training: see `training_tables`.
        logs: say which columns there are.
        largest: setting of a space -> N, how many values to keep.
        directory: gets one folder per space, with columns token, index (int32 from 1), frequency (int64).
        further: spaces besides SPACES, see `user_spaces`.

    Returns:
        Space -> number of values kept; 0, and no folder, for a space of which training has no value.
    """
    sizes: dict[str, int] = {}
    for space in (*SPACES, *further):
        if not logs.has(space.needs):
            continue
        counted = space.count(training)
        counted = counted.filter(counted.token.notnull())
        totals = counted.group_by("token").aggregate(frequency=counted.frequency.sum().cast("int64"))
        ranked = totals.mutate(
            index=(ibis.row_number().over(order_by=[totals.frequency.desc(), totals.token.asc()]) + 1).cast(
                "int32"
            )
        )
        kept = ranked.filter(ranked["index"] <= largest[space.setting or space.name]).select(
            "token", "index", "frequency"
        )
        sizes[space.name] = engine.write(kept, directory / space.name, sort_by=["index"])
        if sizes[space.name] == 0:
            engine.remove(directory / space.name)
    return sizes
