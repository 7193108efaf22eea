"""Examples of candidate generation: predict the next completed watch from what came before it (paper, section 3.4).

Labels are completed watches of every origin, not only those that a recommendation led to. In training a fixed
number of examples per user keeps the most active users from ruling the loss.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from watchnext.data.split import SplitDays
from watchnext.engine import Engine
from watchnext.features.batches import FeatureSpec
from watchnext.features.history import AsOf, Logs, Streams, UserHistory, as_of, day_ranges
from watchnext.features.ranking_features import RequestContext

HISTORY_LENGTH = 50
TOKEN_BAG_LENGTH = 50

_HISTORY = AsOf("completed_watches", "recent", measure="video_id", length=HISTORY_LENGTH)
_TOKENS = AsOf("search_tokens", "recent", measure="token", length=TOKEN_BAG_LENGTH)

INPUTS: tuple[tuple[FeatureSpec, str], ...] = (
    (FeatureSpec("history", "multivalent", "video", HISTORY_LENGTH), "watches.video_id"),
    (FeatureSpec("search_tokens", "multivalent", "search_token", TOKEN_BAG_LENGTH), "searches.query"),
    (FeatureSpec("region", "categorical", "region"), "users.region"),
    (FeatureSpec("example_age_s", "continuous"), "watches.watched_at"),
)
"""Inputs of the query tower, each with the column of the logs, as table.column, that it needs."""


def possible_inputs(logs: Logs, vocabulary_sizes: Mapping[str, int]) -> tuple[FeatureSpec, ...]:
    """The inputs that these logs have the columns for, and training the values."""
    return tuple(
        spec
        for spec, needed in INPUTS
        if logs.has([needed]) and (spec.space is None or vocabulary_sizes.get(spec.space, 0) > 0)
    )


def retrieval_labels(engine: Engine, tables: Mapping[str, ir.Table]) -> ir.Table:
    """Every completed watch, with its `at` in microseconds: what examples are chosen from."""
    watches = tables["watches"]
    origin = [] if "origin" not in watches.columns else ["origin"]
    return watches.filter(watches.completed).select(
        "user_id", "watched_at", "video_id", *origin, "day", at=engine.microseconds(watches.watched_at)
    )


def choose_training(labels: ir.Table, known: ir.Table, seed: int, examples_per_user: int) -> ir.Table:
    """At most `examples_per_user` labels of each user, among those whose video is in the vocabulary.

    Which ones is decided by the md5 of seed, user, instant and video, which is the same on every engine and does
    not depend on what other users do.

    Args:
        labels: see `retrieval_labels`, of training days.
        known: vocabulary of the space `video`.
        seed: of the run.
        examples_per_user: at most so many.
    """
    inside = labels.semi_join(known, labels.video_id == known.token)
    text = ibis.literal(f"{seed}|")
    for name in ("user_id", "at", "video_id"):
        text = text + inside[name].cast("string") + "|"
    drawn = inside.mutate(draw=text.hexdigest("md5"))
    order = ibis.window(group_by="user_id", order_by=["draw", "at", "video_id"])
    ranked = drawn.mutate(place=ibis.row_number().over(order))
    return ranked.filter(ranked.place < examples_per_user).drop("draw", "place")


def retrieval_examples(
    engine: Engine,
    tables: Mapping[str, ir.Table],
    streams: Streams,
    labels: ir.Table,
    inputs: Sequence[FeatureSpec],
) -> ir.Table:
    """Labels with the inputs as of their instants, save `example_age_s`; and `day`, `at`.

    Args:
        engine: the engine that holds the tables.
        tables: the tables of the logs.
        streams: their events.
        labels: see `retrieval_labels`.
        inputs: which inputs to make.
    """
    names = {spec.name for spec in inputs}
    quantities = [_HISTORY] + ([_TOKENS] if "search_tokens" in names else [])
    labels = engine.materialize(labels)
    state = as_of(engine, labels.select("user_id", "at").distinct(), streams, quantities)
    renamed = {"history": state[_HISTORY.column]}
    if "search_tokens" in names:
        renamed["search_tokens"] = state[_TOKENS.column]
    rows = labels.inner_join(state, ["user_id", "at"]).select(labels, **renamed)
    if "region" in names:
        people = tables["users"].select("user_id", "region")
        rows = rows.left_join(people, "user_id").select(rows, people.region)
    return engine.materialize(rows)


def with_example_age(examples: ir.Table, newest_at: int | None) -> ir.Table:
    """Add `example_age_s` and leave the columns that are stored.

    Args:
        examples: see `retrieval_examples`.
        newest_at: microseconds of the newest training label, from which the age counts back (paper, section
            3.3); None makes it 0, as it is when serving.
    """
    age = (
        ibis.literal(0.0) if newest_at is None else (newest_at - examples["at"]).cast("float64") / 1_000_000.0
    )
    return examples.mutate(example_age_s=age.cast("float64")).drop("day", "at")


def write_retrieval_examples(
    engine: Engine,
    logs: Logs,
    streams: Streams,
    split: SplitDays,
    inputs: Sequence[FeatureSpec],
    features_dir: Path,
    *,
    newest_at: int,
    seed: int,
    examples_per_user: int,
    part: int,
) -> dict[str, int]:
    """Store the examples of some users as part `part` of every split.

    Args:
        engine: the engine that holds the tables.
        logs: of these users.
        streams: their events.
        split: which days.
        inputs: which inputs to make.
        features_dir: holds `vocabularies/video`, gets `retrieval_examples/<split>`.
        newest_at: microseconds of the newest completed watch of all users in training.
        seed: of the run.
        examples_per_user: of training.
        part: number of these users' bucket.

    Returns:
        retrieval_examples_<split> -> rows.
    """
    ranges = day_ranges(split)
    labels = retrieval_labels(engine, logs.tables)
    known = engine.read(features_dir / "vocabularies" / "video")
    first, last = ranges["training"]
    chosen = choose_training(labels.filter(labels.day.between(first, last)), known, seed, examples_per_user)
    held_out = labels.filter(
        labels.day.isin([day for name, (day, _) in ranges.items() if name != "training"])
    )
    examples = retrieval_examples(engine, logs.tables, streams, chosen.union(held_out), inputs)
    rows = {}
    for name, (first, last) in ranges.items():
        of_split = examples.filter(examples.day.between(first, last))
        rows[f"retrieval_examples_{name}"] = engine.write(
            with_example_age(of_split, newest_at if name == "training" else None),
            features_dir / "retrieval_examples" / name,
            sort_by=["watched_at", "user_id", "video_id"],
            part=part,
        )
    return rows


def newest_label_at(engine: Engine, training: Mapping[str, ir.Table]) -> int:
    """Microseconds of the newest completed watch of the training days: the paper's t_max."""
    labels = retrieval_labels(engine, training)
    return int(labels["at"].max().execute())


def request_columns(user: UserHistory, request: RequestContext, inputs: Sequence[str]) -> dict[str, pa.Array]:
    """The inputs of the query tower for one request, each [1], as `Encoder.encode_retrieval` takes them.

    Args:
        user: what the user did so far; events at or after `request.at` are not looked at.
        request: the request.
        inputs: names, as in the manifest's `inputs`.
    """
    columns = {
        "history": lambda: pa.array([user.last_completed(HISTORY_LENGTH, request.at)]),
        "search_tokens": lambda: pa.array(
            [user.last_search_tokens(TOKEN_BAG_LENGTH, request.at)], pa.list_(pa.string())
        ),
        "region": lambda: pa.array([request.region], pa.string()),
        "example_age_s": lambda: pa.array([0.0]),
    }
    return {name: columns[name]() for name in inputs}
