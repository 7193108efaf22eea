"""Training examples of candidate generation beside the watches of the logs.

    history     completed rows of the table `history`: what users watched before the logs begin
    shown       what was shown and not watched: the choice of a recommender that knew the user, a weaker hint at
                what suits whom than a watch is, and there are more of them

Both are for training alone. The second says what used to be recommended, and a model that learns from it leans
towards the recommender that made the logs: the stage train_retrieval decides how many of them it takes.
"""

from collections.abc import Sequence
from pathlib import Path

import ibis
import ibis.expr.types as ir

from watchnext.data.split import SplitDays, local_day
from watchnext.engine import Engine
from watchnext.features.batches import FeatureSpec
from watchnext.features.day_parts import EarlierDays
from watchnext.features.history import BEFORE_LOGS_AT, Logs, Stream, Streams
from watchnext.features.retrieval_examples import (
    HISTORY_BAG,
    SHOWN_UNWATCHED_BAG,
    Input,
    choose_training,
    evaluate_inputs,
    examples_since,
    inputs_named,
    retrieval_examples,
    take_examples,
    with_example_age,
)

NAMES = ("history", "shown")
"""Directories of `retrieval_examples` that these are stored in."""


def logs_begin_at(engine: Engine, logs: Logs) -> int:
    """Microseconds of the first impression or watch of all users: the instant that rows of `history` are given."""
    first = []
    for name, instant in (("impressions", "shown_at"), ("watches", "watched_at")):
        table = logs.tables[name]
        first.append(
            table.aggregate(first=engine.microseconds(table[instant]).min()).to_pyarrow()["first"][0]
        )
    return min(value.as_py() for value in first if value.is_valid)


def earlier(streams: Streams, stream: Stream) -> ir.Table:
    """The events of a stream that come from the table `history`."""
    events = streams.tables[stream]
    return events.filter(events["at"] < BEFORE_LOGS_AT // 2)


def history_labels(engine: Engine, streams: Streams, begin_at: int) -> ir.Table:
    """Every video that a user completed before the logs, once: user_id, watched_at, video_id, at.

    Args:
        engine: the engine that holds the tables.
        streams: see `make_streams`.
        begin_at: see `logs_begin_at`; these watches have no instant of their own.
    """
    return _at(
        engine, earlier(streams, "completed_watches").select("user_id", "video_id").distinct(), begin_at
    )


def shown_labels(
    engine: Engine, logs: Logs, streams: Streams, split: SplitDays, begin_at: int
) -> tuple[ir.Table, ir.Table]:
    """What was shown and not clicked, or before the logs not completed, save what was completed before the logs.

    Whether it was watched later is not asked: a label must not tell what came after it.

    Returns:
        Of the training days, each at its first such impression, and of `history`: user_id, watched_at, video_id, at.
        `watched_at` is when it was shown.
    """
    pair = ["user_id", "video_id"]
    completed = earlier(streams, "completed_watches").select(*pair).distinct()
    impressions = logs.tables["impressions"]
    shown = impressions.filter(impressions.day.between(*split.training) & ~impressions.clicked)
    shown = shown.anti_join(completed, pair)
    shown = shown.group_by(pair).aggregate(at=engine.microseconds(shown.shown_at).min())
    of_logs = shown.select("user_id", "video_id", "at", watched_at=engine.instant(shown["at"]))
    before = earlier(streams, "shown_unwatched").select(*pair).distinct().anti_join(completed, pair)
    return of_logs.select(*_LABEL), _at(engine, before, begin_at)


_LABEL = ("user_id", "watched_at", "video_id", "at")


def _at(engine: Engine, pairs: ir.Table, begin_at: int) -> ir.Table:
    dated = pairs.mutate(at=ibis.literal(begin_at, "int64"))
    return dated.mutate(watched_at=engine.instant(dated["at"])).select(*_LABEL)


def held_out_examples(
    engine: Engine, logs: Logs, streams: Streams, labels: ir.Table, inputs: Sequence[FeatureSpec]
) -> ir.Table:
    """Labels of `history`, each with all else that `history` holds of its user (paper, figure 5a).

    The future watch (5b) would give the label at position k the k rows before it, so that most bags of training
    were far shorter than those that are served. All of `history` lies before the logs and before whatever is judged,
    so a held-out row of it tells nothing of the future. What the logs know later (searches, devices) is unknown here.

    Args:
        engine: the engine that holds the tables.
        logs: of these users.
        streams: their events.
        labels: user_id, watched_at, video_id, at.
        inputs: which inputs to make.
    """
    wanted = inputs_named([spec.name for spec in inputs])
    state = labels
    for bag in (HISTORY_BAG, SHOWN_UNWATCHED_BAG):
        others = _others(engine, labels, earlier(streams, bag.stream), bag.length)
        joined = state.left_join(others, ["user_id", "video_id"]).select(state, others["values"])
        empty = ibis.literal([], type=others.schema()["values"])
        state = joined.mutate(**{bag.column: ibis.coalesce(joined["values"], empty)}).drop("values")
    state = state.mutate(**_unknown(streams, wanted, state.columns))
    rows = evaluate_inputs(logs.tables, state, wanted, keep=labels.columns)
    return engine.materialize(rows.mutate(asked_at=rows.watched_at))


def _others(engine: Engine, labels: ir.Table, events: ir.Table, length: int) -> ir.Table:
    """user_id, video_id of each label, values: the last `length` videos of its user but the label, oldest first."""
    order = ibis.window(group_by="user_id", order_by=[events["at"].desc(), events.video_id.desc()])
    # One more than the bag holds, because the label may be among them.
    placed = events.select("user_id", other=events.video_id, back=ibis.row_number().over(order).cast("int64"))
    placed = placed.filter(placed.back <= length)
    pairs = labels.select("user_id", "video_id").inner_join(placed, "user_id")
    pairs = pairs.filter(pairs.video_id != pairs.other).mutate(place=-pairs.back)
    bags = pairs.group_by(["user_id", "video_id"]).aggregate(values=engine.collect(pairs.other, pairs.place))
    return bags.mutate(values=bags["values"][-length:])


def _unknown(streams: Streams, wanted: Sequence[Input], known: Sequence[str]) -> dict[str, ir.Value]:
    """The quantities that nothing before the logs tells, as columns: empty lists and nulls."""
    values: dict[str, ir.Value] = {}
    for quantity in (one for declared in wanted for one in declared.reads if one.column not in known):
        assert quantity.measure is not None
        kind = streams.tables[quantity.stream].schema()[quantity.measure]
        # Cut out of a list, because Spark does not keep the type of an empty one.
        values[quantity.column] = (
            ibis.array([ibis.null(kind)])[:0] if quantity.kind == "recent" else ibis.null(kind)
        )
    return values


def write_further_examples(
    engine: Engine,
    logs: Logs,
    streams: Streams,
    split: SplitDays,
    inputs: Sequence[FeatureSpec],
    features_dir: Path,
    *,
    newest_at: int,
    begin_at: int,
    seed: int,
    examples_per_user: int | None,
    part: int,
    earlier: EarlierDays | None = None,
) -> dict[str, int]:
    """Store the examples of some users as part `part` of `retrieval_examples/history` and `retrieval_examples/shown`.

    Args:
        engine: the engine that holds the tables.
        logs: of these users.
        streams: their events.
        split: which days.
        inputs: which inputs to make.
        features_dir: holds `vocabularies/video`.
        newest_at: microseconds of the newest completed watch of all users in training, which ages count back from.
        begin_at: see `logs_begin_at`.
        seed: of the run.
        examples_per_user: of each of the two, at most; None: all of them.
        part: number of these users' bucket.
        earlier: days whose examples of `shown` are taken from an earlier run.

    Returns:
        retrieval_examples_<name> -> rows.
    """
    known = engine.read(features_dir / "vocabularies" / "video")
    of_logs, before = shown_labels(engine, logs, streams, split, begin_at)
    marked = of_logs.mutate(in_logs=True).union(before.mutate(in_logs=False))
    shown = engine.materialize(choose_training(marked, known, seed, examples_per_user))
    of_logs = shown.filter(shown.in_logs).drop("in_logs")
    watched = choose_training(history_labels(engine, streams, begin_at), known, seed, examples_per_user)

    def held_out(labels: ir.Table) -> ir.Table:
        return held_out_examples(engine, logs, streams, labels, inputs)

    stored = earlier.examples(engine, ["shown"]) if earlier is not None else []
    if earlier is None or not stored:
        seen = retrieval_examples(engine, logs.tables, streams, of_logs, inputs)
    else:
        of_logs = engine.materialize(of_logs.mutate(day=local_day(of_logs.watched_at, logs.time_zone)))
        # What `history` has is given the instant of the first event.
        stored = [one.filter(engine.microseconds(one.watched_at) > begin_at) for one in stored]
        taken = take_examples(engine, of_logs, stored, earlier.before)
        missing = of_logs.anti_join(taken, ["user_id", "video_id", "watched_at"])
        made = examples_since(engine, logs, streams, missing, inputs, before=earlier.before)
        seen = made.union(taken.select(*made.columns)).drop("day")
    examples = {
        "history": held_out(watched),
        "shown": seen.union(held_out(shown.filter(~shown.in_logs).drop("in_logs")).select(*seen.columns)),
    }
    return {
        f"retrieval_examples_{name}": engine.write(
            with_example_age(rows, newest_at),
            features_dir / "retrieval_examples" / name,
            sort_by=["watched_at", "user_id", "video_id"],
            part=part,
        )
        for name, rows in examples.items()
    }
