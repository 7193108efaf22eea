"""Examples of candidate generation: predict the next completed watch from what came before it (paper, section 3.4).

Labels are completed watches of every origin, not only those that a recommendation led to. In training a fixed
number of examples per user keeps the most active users from ruling the loss.
"""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from watchnext import schema
from watchnext.data.split import SplitDays, days_between
from watchnext.engine import Engine
from watchnext.features.batches import FeatureSpec
from watchnext.features.day_parts import DayParts, EarlierDays
from watchnext.features.history import AsOf, Logs, Streams, UserHistory, as_of, before_logs_at, day_ranges
from watchnext.features.ranking_features import RequestContext

HISTORY_LENGTH = 50
SHOWN_LENGTH = 50
TOKEN_BAG_LENGTH = 50
OLDEST_AGE_YEARS = 100.0
"""The age that is scaled to 1."""

REQUEST_LASTS_S = 86_400.0
"""How long after a page was shown a watch of a video clicked on it is still taken to come from that page."""

UNRECOMMENDED_ORIGINS = ("external", "search")
"""Origins of watches that no page of recommendations led to."""

HISTORY_BAG = AsOf("completed_watches", "recent", measure="video_id", length=HISTORY_LENGTH)
SHOWN_UNWATCHED_BAG = AsOf("shown_unwatched", "recent", measure="video_id", length=SHOWN_LENGTH)
_TOKENS = AsOf("search_tokens", "recent", measure="token", length=TOKEN_BAG_LENGTH)
_DEVICE = AsOf("contexts", "last", measure="device")
_LOGGED_IN = AsOf("contexts", "last", measure="logged_in")


@dataclass(frozen=True)
class Input:
    """One input of the query tower.

    Attributes:
        spec: its name, kind, id space and length.
        meaning: one line for the docs.
        expression: table of examples -> column. The table has the quantities in `reads`, named `AsOf.column`, and
            the columns of `users`, each with `user_` before its name. Unknown is null.
        evaluate: the same for one request; unknown is None.
        reads: quantities over the user's past.
        needs: column of the logs, as table.column, without which the input does not exist.
        dtype: of the column; None for lists of video ids, whose type is the logs' own.
    """

    spec: FeatureSpec
    meaning: str
    expression: Callable[[ir.Table], ir.Value]
    evaluate: Callable[[UserHistory, RequestContext], Any]
    needs: str
    reads: tuple[AsOf, ...] = ()
    dtype: pa.DataType | None = None


INPUTS: tuple[Input, ...] = (
    Input(
        FeatureSpec("history", "multivalent", "video", HISTORY_LENGTH),
        f"the last {HISTORY_LENGTH} videos that the user completed, oldest first",
        lambda row: row[HISTORY_BAG.column],
        lambda user, request: user.last_completed(HISTORY_LENGTH, request.at),
        "watches.video_id",
        reads=(HISTORY_BAG,),
    ),
    Input(
        FeatureSpec("shown_unwatched", "multivalent", "video", SHOWN_LENGTH),
        f"the last {SHOWN_LENGTH} videos that were shown and not clicked, or in `history` not completed, oldest first",
        lambda row: row[SHOWN_UNWATCHED_BAG.column],
        lambda user, request: user.last_shown_unwatched(SHOWN_LENGTH, request.at),
        "impressions.video_id",
        reads=(SHOWN_UNWATCHED_BAG,),
    ),
    Input(
        FeatureSpec("search_tokens", "multivalent", "search_token", TOKEN_BAG_LENGTH),
        f"the last {TOKEN_BAG_LENGTH} unigrams and bigrams of the user's searches, oldest first",
        lambda row: row[_TOKENS.column],
        lambda user, request: user.last_search_tokens(TOKEN_BAG_LENGTH, request.at),
        "searches.query",
        reads=(_TOKENS,),
        dtype=pa.list_(pa.string()),
    ),
    Input(
        FeatureSpec("region", "categorical", "region"),
        "region of the user",
        lambda row: row.user_region,
        lambda user, request: request.region,
        "users.region",
        dtype=pa.string(),
    ),
    Input(
        FeatureSpec("device", "categorical", "device"),
        "device of the user's last impression",
        lambda row: row[_DEVICE.column],
        lambda user, request: user.last_context(request.at)[0],
        "impressions.device",
        reads=(_DEVICE,),
        dtype=pa.string(),
    ),
    Input(
        FeatureSpec("gender", "unit", "gender"),
        "gender of the user: 0 the most frequent one of training, 1 the rarest",
        lambda row: row.user_gender,
        lambda user, request: request.gender,
        "users.gender",
        dtype=pa.string(),
    ),
    Input(
        FeatureSpec("logged_in", "unit"),
        "1 if the user was logged in at the last impression, 0 if not",
        lambda row: row[_LOGGED_IN.column].cast("boolean"),
        lambda user, request: user.last_context(request.at)[1],
        "impressions.logged_in",
        reads=(_LOGGED_IN,),
        dtype=pa.bool_(),
    ),
    Input(
        FeatureSpec("age", "unit"),
        f"age of the user in units of {OLDEST_AGE_YEARS:g} years, at most 1",
        # `least` would take the 1 where the age is unknown.
        lambda row: (row.user_age_years > OLDEST_AGE_YEARS).ifelse(
            1.0, row.user_age_years / OLDEST_AGE_YEARS
        ),
        lambda user, request: (
            None if request.age_years is None else min(request.age_years / OLDEST_AGE_YEARS, 1.0)
        ),
        "users.age_years",
        dtype=pa.float64(),
    ),
    Input(
        FeatureSpec("example_age_s", "continuous"),
        "newest label of training minus instant of the label (when its watch began), s; 0 outside training",
        lambda row: ibis.literal(0.0, "float64"),
        lambda user, request: 0.0,
        "watches.watched_at",
        dtype=pa.float64(),
    ),
)
"""Inputs of the query tower that are known by name; columns of `users` beyond the schema are more, see `user_input`."""

_USER = "user_"


def user_input(column: str) -> Input:
    """The input made of a column that `users` has beyond the schema."""
    name = _USER + column
    return Input(
        FeatureSpec(name, "categorical", name),
        f"`{column}` of the user",
        lambda row: row[name],
        lambda user, request: request.user_columns.get(column),
        f"users.{column}",
        dtype=pa.string(),
    )


def inputs_named(names: Sequence[str]) -> tuple[Input, ...]:
    """The declarations of these names, in this order. Raises KeyError for a name that nothing declares."""
    declared = {one.spec.name: one for one in INPUTS}
    return tuple(
        declared[name] if name in declared or not name.startswith(_USER) else user_input(name[len(_USER) :])
        for name in names
    )


def possible_inputs(logs: Logs, vocabulary_sizes: Mapping[str, int]) -> tuple[FeatureSpec, ...]:
    """The inputs that these logs have the columns for, and training the values."""
    further = (column for column in logs.tables["users"].columns if column not in schema.USERS.column_names)
    return tuple(
        one.spec
        for one in (*INPUTS, *map(user_input, further))
        if logs.has([one.needs]) and (one.spec.space is None or vocabulary_sizes.get(one.spec.space, 0) > 0)
    )


def retrieval_labels(engine: Engine, tables: Mapping[str, ir.Table]) -> ir.Table:
    """Every completed watch, with its `at` in microseconds: what examples are chosen from."""
    watches = tables["watches"]
    origin = [] if "origin" not in watches.columns else ["origin"]
    return watches.filter(watches.completed).select(
        "user_id", "watched_at", "video_id", *origin, "day", at=engine.microseconds(watches.watched_at)
    )


Labels = Literal["all", "recommended"]
"""Which completed watches are labels of training: all, or those that recommendations led to."""


def recommended(engine: Engine, labels: ir.Table, streams: Streams) -> ir.Table:
    """The labels that a recommendation led to, for the study of what such labels lose (paper, section 3.4).

    With an origin that is any but UNRECOMMENDED_ORIGINS; without one, if the video was clicked by the user at most
    REQUEST_LASTS_S before.
    """
    rows = _with_last_click(engine, labels, streams)
    was_clicked = rows.clicked.notnull() & _is_recent(rows, rows.clicked)
    if "origin" in rows.columns:
        was_clicked = rows.origin.notin(UNRECOMMENDED_ORIGINS).fill_null(was_clicked)
    return rows.filter(was_clicked).select(labels.columns)


def choose_training(labels: ir.Table, known: ir.Table, seed: int, examples_per_user: int | None) -> ir.Table:
    """At most `examples_per_user` labels of each user, among those whose video is in the vocabulary.

    Which ones is decided by the md5 of seed, user, instant and video, which is the same on every engine and does
    not depend on what other users do.

    Args:
        labels: see `retrieval_labels`, of training days.
        known: vocabulary of the space `video`.
        seed: of the run.
        examples_per_user: at most so many; None: all.
    """
    inside = labels.semi_join(known, labels.video_id == known.token)
    if examples_per_user is None:
        return inside
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
    """Labels with the inputs as of their instants; and `day`, `at`, `asked_at` (see `with_asked_at`).

    Args:
        engine: the engine that holds the tables.
        tables: the tables of the logs.
        streams: their events.
        labels: see `retrieval_labels`.
        inputs: which inputs to make.
    """
    labels = engine.materialize(with_asked_at(engine, labels, streams))
    state = inputs_at(engine, tables, streams, labels.select("user_id", at=labels.asked).distinct(), inputs)
    state = state.rename(asked="at")
    rows = labels.inner_join(state, ["user_id", "asked"])
    rows = rows.select(
        *(rows[name] for name in labels.columns if name != "asked"),
        *(rows[spec.name] for spec in inputs),
        asked_at=engine.instant(rows.asked),
    )
    return engine.materialize(rows)


def inputs_at(
    engine: Engine,
    tables: Mapping[str, ir.Table],
    streams: Streams,
    points: ir.Table,
    inputs: Sequence[FeatureSpec],
) -> ir.Table:
    """The inputs of users as of instants: user_id, `at`, and one column per input.

    Args:
        engine: the engine that holds the tables.
        tables: the tables of the logs.
        streams: their events.
        points: distinct user_id and `at` (int64 microseconds).
        inputs: which inputs to make.
    """
    wanted = inputs_named([spec.name for spec in inputs])
    state = as_of(engine, points, streams, [quantity for one in wanted for quantity in one.reads])
    return evaluate_inputs(tables, state, wanted, keep=["user_id", "at"])


_INSTANTS_AT_A_TIME = 50


def with_what_was_met(engine: Engine, examples: ir.Table, tables: Mapping[str, ir.Table]) -> ir.Table:
    """Add what filters take out: `watched_before` and `shown_before`, lists of distinct video ids.

    As `UserHistory.begun_videos` with the completed ones, and `UserHistory.shown_videos`, have it for a request at
    `asked_at`: every watch that had begun, every video that had been shown, and what `history` tells of both.

    Args:
        engine: the engine that holds the tables.
        examples: with user_id and asked_at.
        tables: the tables of the logs.
    """
    watches, impressions = tables["watches"], tables["impressions"]
    begun = watches.select("user_id", "video_id", at=engine.microseconds(watches.watched_at))
    shown = impressions.select("user_id", "video_id", at=engine.microseconds(impressions.shown_at))
    if "history" in tables:
        history = tables["history"]
        earlier = history.select(
            "user_id", "video_id", "completed", at=before_logs_at(history.position.cast("int64"))
        )
        begun = begun.union(earlier.filter(earlier.completed).drop("completed"))
        shown = shown.union(earlier.drop("completed"))
    examples = examples.mutate(asked=engine.microseconds(examples.asked_at))
    points = examples.select("user_id", "asked").distinct()
    # What one user had met at each of his instants grows with the product of both, and would be one task's: his instants are
    # taken so many at a time, and what he had met goes to each of these pieces once.
    place = ibis.row_number().over(ibis.window(group_by="user_id", order_by="asked"))
    points = engine.materialize(points.mutate(piece=(place // _INSTANTS_AT_A_TIME).cast("int64")))
    pieces = points.select("user_id", "piece").distinct()
    for name, events in (("watched_before", begun), ("shown_before", shown)):
        # Of the first time alone: whether a video was met before an instant takes no other.
        first = events.group_by(["user_id", "video_id"]).aggregate(at=events["at"].min())
        given = pieces.inner_join(first, "user_id").select(pieces, first.video_id, first["at"])
        met = points.inner_join(given, ["user_id", "piece", given["at"] < points.asked]).select(
            points, given.video_id
        )
        numbered = met.mutate(
            place=ibis.row_number().over(ibis.window(group_by=["user_id", "asked"], order_by="video_id"))
        )
        lists = numbered.group_by(["user_id", "asked"]).aggregate(
            engine.collect(numbered.video_id, numbered.place).name(name)
        )
        joined = examples.left_join(lists, ["user_id", "asked"]).select(examples, lists[name])
        empty = ibis.literal([], type=lists.schema()[name])
        examples = joined.mutate(**{name: ibis.coalesce(joined[name], empty)})
    return engine.materialize(examples.drop("asked"))


def evaluate_inputs(
    tables: Mapping[str, ir.Table], state: ir.Table, wanted: Sequence[Input], *, keep: Sequence[str]
) -> ir.Table:
    """The columns `keep` of `state`, and the inputs.

    Args:
        tables: the tables of the logs; `users` is looked up.
        state: user_id, the columns `keep`, and the quantities that the inputs read.
        wanted: declarations of the inputs.
        keep: columns that stay.
    """
    people = tables["users"]
    people = people.select(
        "user_id", **{_USER + name: people[name] for name in people.columns if name != "user_id"}
    )
    state = state.left_join(people, "user_id").select(
        state, *(people[name] for name in people.columns if name != "user_id")
    )
    return state.select(*keep, **{one.spec.name: one.expression(state) for one in wanted})


def with_asked_at(engine: Engine, labels: ir.Table, streams: Streams) -> ir.Table:
    """Add `asked`, the microsecond that inputs are as of: when somebody had to decide what to recommend.

    For a watch that a page of recommendations led to, that is when the page was shown: its other videos, shown too by
    the time of the watch, must not be among the inputs, because no request knows the page that it asks for. A watch
    comes from the last impression of its video at or before it, if that was clicked, is not older than
    REQUEST_LASTS_S, and the watch's origin is none of UNRECOMMENDED_ORIGINS. For all others it is when they began.
    """
    rows = _with_last_click(engine, labels, streams)
    is_recommended = (rows.shown == rows.clicked) & _is_recent(rows, rows.shown)
    if "origin" in rows.columns:
        is_recommended = is_recommended & rows.origin.notin(UNRECOMMENDED_ORIGINS).fill_null(True)
    asked = is_recommended.fill_null(False).ifelse(rows.shown, rows["at"])
    return rows.mutate(asked=asked).drop("shown", "clicked")


def _with_last_click(engine: Engine, labels: ir.Table, streams: Streams) -> ir.Table:
    """Add when the label's video was last `shown` to its user, and last `clicked`, at or before the watch: microseconds."""
    pair = ("user_id", "video_id")
    shown, clicked = AsOf("impressions", "last_at", pair), AsOf("clicks", "last_at", pair)
    points = labels.select(*pair, at=labels["at"] + 1).distinct()  # A page shown at this very instant counts.
    last = as_of(engine, points, streams, [shown, clicked])
    last = last.select(*pair, at=last["at"] - 1, shown=last[shown.column], clicked=last[clicked.column])
    return labels.left_join(last, [*pair, "at"]).select(labels, last.shown, last.clicked)


def _is_recent(labels: ir.Table, event_at: ir.Value) -> ir.Value:
    return event_at >= labels["at"] - int(REQUEST_LASTS_S * 1_000_000)


def with_example_age(examples: ir.Table, newest_at: int | None) -> ir.Table:
    """Set `example_age_s` and leave the columns that are stored.

    Args:
        examples: see `retrieval_examples`.
        newest_at: microseconds of the newest training label, from which the age counts back (paper, section
            3.3); None makes it 0, as it is when serving.
    """
    age = (
        ibis.literal(0.0) if newest_at is None else (newest_at - examples["at"]).cast("float64") / 1_000_000.0
    )
    return examples.mutate(example_age_s=age.cast("float64")).drop(
        *(name for name in ("day", "at") if name in examples.columns)
    )


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
    examples_per_user: int | None,
    which_labels: Labels = "all",
    part: int,
    earlier: EarlierDays | None = None,
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
        examples_per_user: of training; None: all of them.
        which_labels: of training.
        part: number of these users' bucket.
        earlier: days whose examples are taken from an earlier run.

    Returns:
        retrieval_examples_<split> -> rows.
    """
    ranges = day_ranges(split)
    labels = retrieval_labels(engine, logs.tables)
    known = engine.read(features_dir / "vocabularies" / "video")
    first, last = ranges["training"]
    trainable = labels.filter(labels.day.between(first, last))
    if which_labels == "recommended":
        trainable = recommended(engine, trainable, streams)
    chosen = choose_training(trainable, known, seed, examples_per_user)
    held_out = labels.filter(
        labels.day.isin([day for name, (day, _) in ranges.items() if name != "training"])
    )
    taken = {}
    if earlier is None:
        made = retrieval_examples(engine, logs.tables, streams, chosen.union(held_out), inputs)
    else:
        taken = {
            "training": _taken(engine, chosen, earlier, ranges),
            "held out": _taken(engine, held_out, earlier, [name for name in ranges if name != "training"]),
        }
        missing = [
            labels.anti_join(rows, _KEY) if rows is not None else labels
            for labels, rows in ((chosen, taken["training"]), (held_out, taken["held out"]))
        ]
        made = examples_since(
            engine, logs, streams, missing[0].union(missing[1]), inputs, before=earlier.before
        )
    rows = {}
    for name, (first, last) in ranges.items():
        of_split = made.filter(made.day.between(first, last))
        if name != "training":
            of_split = with_what_was_met(engine, of_split, logs.tables)
        known = taken.get("training" if name == "training" else "held out")
        if known is not None:
            some = known.filter(known.day.between(first, last))
            of_split = of_split.union(some.select(*of_split.columns))
        rows[f"retrieval_examples_{name}"] = engine.write(
            with_example_age(of_split, newest_at if name == "training" else None),
            features_dir / "retrieval_examples" / name,
            sort_by=_ORDER,
            part=part,
        )
    return rows


_KEY = ("user_id", "video_id", "watched_at")
_ORDER = ("watched_at", "user_id", "video_id")


def _taken(engine: Engine, labels: ir.Table, earlier: EarlierDays, splits: Iterable[str]) -> ir.Table | None:
    """Those of `labels` that an earlier run made the examples of, as `retrieval_examples` would; None: there are none.

    Examples of training lack what held-out days have beside, which `splits` of held-out days alone do not.
    """
    stored = earlier.examples(engine, splits)
    return take_examples(engine, labels, stored, earlier.before) if stored else None


def take_examples(
    engine: Engine, labels: ir.Table, stored: Sequence[ir.Table], before: datetime.date
) -> ir.Table:
    """Those of `labels` from days before `before` that are among the stored examples, with their columns.

    Args:
        engine: the engine that holds the tables.
        labels: user_id, video_id, watched_at, `at` and `day`, and more.
        stored: examples as they are stored; of columns that not all of them have, none is taken.
        before: the first day of which nothing is taken.
    """
    common = [name for name in stored[0].columns if all(name in one.columns for one in stored)]
    examples = ibis.union(*(one.select(*common) for one in stored)) if len(stored) > 1 else stored[0]
    some = labels.filter(labels.day < before).select(*_KEY, "at", "day")
    return engine.materialize(examples.inner_join(some, _KEY).select(examples, some["at"], some.day))


def examples_since(
    engine: Engine,
    logs: Logs,
    streams: Streams,
    labels: ir.Table,
    inputs: Sequence[FeatureSpec],
    *,
    before: datetime.date,
) -> ir.Table:
    """`retrieval_examples` of labels nearly all of which are from `before` on.

    The few from days before it (their video is new to the vocabulary) are made apart, from the events of their users
    alone: with them among the points, what lies before all points would be next to nothing.
    """
    labels = engine.materialize(labels)
    late = labels.filter(labels.day < before)
    made = retrieval_examples(engine, logs.tables, streams, labels.filter(labels.day >= before), inputs)
    users = engine.materialize(late.select("user_id").distinct())
    if not users.count().to_pyarrow().as_py():
        return made
    own = {
        name: engine.materialize(table.semi_join(users, "user_id")) if "user_id" in table.columns else table
        for name, table in streams.tables.items()
    }
    rest = retrieval_examples(engine, logs.tables, Streams(own), late, inputs)
    return made.union(rest.select(*made.columns))


def write_ranking_requests(
    engine: Engine,
    logs: Logs,
    streams: Streams,
    split: SplitDays,
    inputs: Sequence[FeatureSpec],
    *,
    part: int,
    parts: DayParts,
) -> None:
    """Store what the query tower would have been asked when impressions were shown: scores of impressions need it.

    One row per user and instant of an impression: user_id, shown_at and the inputs as they are when serving, in
    `ranking_requests`, see `DayParts`.
    """
    impressions = parts.to_make(logs.tables["impressions"])
    points = impressions.select("user_id", "shown_at", "day", at=engine.microseconds(impressions.shown_at))
    points = engine.materialize(points.distinct())
    state = inputs_at(engine, logs.tables, streams, points.select("user_id", "at").distinct(), inputs)
    added = [state[name] for name in state.columns if name not in ("user_id", "at")]
    requests = points.inner_join(state, ["user_id", "at"]).select(points, *added)
    requests = engine.materialize(requests.drop("at"))
    for name, (first, last) in day_ranges(split).items():
        parts.write(
            "ranking_requests",
            name,
            days_between(first, last),
            lambda first, last: requests.filter(requests.day.between(first, last)).drop("day"),
            ("shown_at", "user_id"),
            part,
        )


def newest_label_at(engine: Engine, training: Mapping[str, ir.Table]) -> int:
    """Microseconds of the newest completed watch of the training days: the paper's t_max."""
    labels = retrieval_labels(engine, training)
    return int(labels["at"].max().execute())


def document() -> str:
    """The declarations as a table in Markdown: what `docs/features.md` shows."""
    lines = ["| input | kind | id space | what it is | needs |", "|---|---|---|---|---|"]
    for one in (*INPUTS, user_input("<column>")):
        spec = one.spec
        kind = f"bag, {spec.length}" if spec.length else spec.kind
        space = f"`{spec.space}`" if spec.space else ""
        lines.append(f"| `{spec.name}` | {kind} | {space} | {one.meaning} | `{one.needs}` |")
    return "\n".join(lines) + "\n"


def request_columns(user: UserHistory, request: RequestContext, inputs: Sequence[str]) -> dict[str, pa.Array]:
    """The inputs of the query tower for one request, each [1], as `Encoder.encode_retrieval` takes them.

    Args:
        user: what the user did so far; events at or after `request.at` are not looked at.
        request: the request.
        inputs: names, as in the manifest's `inputs`.
    """
    return {one.spec.name: pa.array([one.evaluate(user, request)], one.dtype) for one in inputs_named(inputs)}
