"""Judging models on the examples of one day: used by `evaluate` and by the gate, so that both measure alike.

Examples are stored with the ids of the logs. Whoever is judged brings its own encoder (its vocabularies), so
that two models of different trainings are judged on the same rows.
"""

import dataclasses
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchnext.config import Exclude
from watchnext.errors import InputError
from watchnext.evaluation import metrics
from watchnext.features.batches import (
    OPENING,
    PAGED_SHARE,
    Encoder,
    FeatureSpec,
    Vocabulary,
    pad,
    read_examples,
)
from watchnext.index.search import ExactSearcher, Searcher
from watchnext.models.candidate_sources import Corpus, MostPopular
from watchnext.models.final_score import DURATION, FinalScore

QueryTower = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Encoded requests -> query embeddings float32 [num_queries, embedding_dim]."""

Ranker = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Encoded impressions, a row of both sides each -> `expected_watch_time_s` and `logit`, float32 [num_impressions] each."""

Nominate = Callable[[pa.Table], pa.Table]
"""A day's impressions as they are stored -> the same with the columns that candidate generation adds."""

EXCLUDED: Mapping[Exclude, tuple[str, ...]] = {
    "none": (),
    "watched": ("watched_before",),
    "shown": ("watched_before", "shown_before"),
}
"""Which list columns of held-out examples hold the videos that a filter takes out."""

REQUEST = "request"
USER_SURFACE_DAY = "user_surface_day"
"""What groups of impressions are, see `group_impressions`."""

FRESH_S = 7 * 86_400.0
"""Videos uploaded less than this before an impression are fresh, in seconds."""

RECOMMENDED = ("home", "feed", "up_next")
"""Origins of watches that a recommendation led to."""

LIGHT_WATCHES = 5
"""Light users have completed so many watches before, or fewer, and at least one."""

SLICED = ("user_completed_watches", "video_age_s", "device")
"""Further columns of ranking examples that slices are cut by, see `impression_slices`."""

_SMALLEST_SHARE = 0.01

JUDGED = ("request_id", "user_id", "video_id", "shown_at", "surface", "clicked", "watch_time_s")
"""Columns of ranking examples that judging needs."""

_SCORES_AT_ONCE = 20_000_000
_PARTS_AT_ONCE = 16_384


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """How a source of candidates ranked what users went on to watch, one event per stored row, in its order.

    Attributes:
        ranks: int64 [num_events], from 1; metrics.UNRANKED where the label cannot be recommended.
        user_ids: [num_events].
        labels: int64 [num_events], row of the candidates (or of the corpus, where one was given); -1 for a video
            that is none.
    """

    ranks: np.ndarray
    user_ids: pa.Array
    labels: np.ndarray

    def of(self, which: np.ndarray) -> "RetrievalResult":
        """The events for which `which`, bool [num_events], is true."""
        return RetrievalResult(self.ranks[which], self.user_ids.filter(pa.array(which)), self.labels[which])

    def metrics(self, ks: tuple[int, ...] = (10, 50, 100, 200)) -> dict[str, float]:
        """recall, precision and ndcg at each K, and map."""
        values = {"map": metrics.mean_average_precision(self.ranks)}
        for k in ks:
            values[f"recall_at_{k}"] = metrics.recall_at_k(self.ranks, k)
            values[f"precision_at_{k}"] = metrics.precision_at_k(self.ranks, k)
            values[f"ndcg_at_{k}"] = metrics.ndcg_at_k(self.ranks, k)
        return values


@dataclasses.dataclass(frozen=True)
class RankingResult:
    """How a ranker scored the impressions of a day, one row per stored row, in its order.

    Attributes:
        scores: [num_impressions], what slates are ordered by, with every input as of the instant of the impression.
        pair_scores: [num_impressions], what pairs are compared by: everything that depends on the user is as
            of the first impression of the group, see `hold_query_side` and `hold_openings`. The same as
            `scores` where groups are requests.
        clicked: bool [num_impressions].
        watch_time_s: [num_impressions] seconds, 0 where unclicked.
        groups: int64 [num_impressions]; pairs are made within a group.
        group_kind: `request`, or `user_surface_day` where most requests are a single impression.
        user_ids: [num_impressions].
        slices: name -> bool [num_impressions], see `impression_slices`.
    """

    scores: np.ndarray
    pair_scores: np.ndarray
    clicked: np.ndarray
    watch_time_s: np.ndarray
    groups: np.ndarray
    group_kind: str
    user_ids: pa.Array
    slices: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def metrics_by_slice(self) -> dict[str, float]:
        """For each slice weighted_pairwise_loss_SLICE: of the watch time that was clicked in it, the share mispredicted.

        The unclicked impressions that it is compared with are those of the group, within the slice or not. NaN where a
        slice has no pair.
        """
        mispredicted, total = metrics.pairwise_losses(
            self.pair_scores, self.clicked, self.watch_time_s, self.groups
        )
        return {
            f"weighted_pairwise_loss_{name}": float(mispredicted[of].sum() / total[of].sum())
            if total[of].sum() > 0
            else float("nan")
            for name, of in self.slices.items()
        }

    def metrics(self) -> dict[str, float]:
        """What needs only the order of scores.

        Returns:
            weighted_pairwise_loss and auc; where groups are not requests also
            weighted_pairwise_loss_live_context, the loss if what is known of the user is left to move within a
            group.
        """
        outcome = (self.clicked, self.watch_time_s, self.groups)
        values = {
            "weighted_pairwise_loss": metrics.weighted_pairwise_loss(self.pair_scores, *outcome),
            "auc": metrics.auc(self.scores, self.clicked),
        }
        if self.group_kind != REQUEST:
            values["weighted_pairwise_loss_live_context"] = metrics.weighted_pairwise_loss(
                self.scores, *outcome
            )
        return values


def evaluate_retrieval(
    query_tower: QueryTower,
    candidates: np.ndarray | Searcher,
    encoder: Encoder,
    examples: Path,
    *,
    corpus: Corpus | None = None,
    exclude: Exclude = "none",
    depth: int = 200,
    max_events: int | None = None,
) -> RetrievalResult:
    """Rank every label of a day's retrieval examples.

    Args:
        query_tower: the model judged.
        candidates: its candidate embeddings [V, embedding_dim], row r = index r + 1 of the encoder's videos: every
            label gets its exact rank. Or an index over them: labels beyond its first `depth` are UNRANKED.
        encoder: the encoder that belongs to the model.
        corpus: where candidates go on beyond the vocabulary, row r of them is row r of the corpus, and a video is a
            candidate of the events after its upload alone. None: they are the vocabulary, there at all times.
        examples: directory of the examples, e.g. retrieval_examples/gate.
        exclude: takes what was watched before each event, or shown too, out of what may be recommended; a label
            among it is UNRANKED then.
        depth: how many candidates to ask an index for.
        max_events: judge only so many, spread evenly over the day.

    Raises:
        InputError: there are no examples, or a query embedding is not a number.
    """
    ranks, users, rows_of_labels = [], [], []
    videos = encoder.vocabularies["video"] if corpus is None else corpus.ids
    inputs = [spec.name for spec in encoder.retrieval_features]
    columns = ["user_id", "video_id", "watched_at", "asked_at", *inputs, *EXCLUDED[exclude]]
    for table in tables_of(examples, columns, max_events):
        arrays = encoder.encode_retrieval(table)
        labels = videos.lookup(table["video_id"])
        rows_of_labels.append(labels.astype(np.int64) - 1)
        users.append(table["user_id"].combine_chunks())
        queries = query_tower(arrays)
        if not np.isfinite(queries).all():
            raise InputError(
                "the query tower gives embeddings that are not numbers",
                where=str(examples),
                remedy="train_retrieval diverged: lower its learning_rate",
            )
        excluded = _excluded(table, exclude, videos, examples)
        at = None if corpus is None else asked_at_us(table)
        if corpus is not None and at is not None:
            there = np.append(corpus.uploaded, np.iinfo(np.int64).max)[labels - 1] < at
            labels = np.where(there, labels, 0)
        if isinstance(candidates, np.ndarray):
            step = max(1, _SCORES_AT_ONCE // max(1, len(candidates)))
            for begin in range(0, len(queries), step):
                part = slice(begin, begin + step)
                scores = queries[part] @ candidates.T
                if corpus is not None and at is not None:
                    recent = np.flatnonzero(corpus.uploaded[: len(candidates)] >= at[part].min())
                    hidden = corpus.uploaded[recent][None, :] >= at[part][:, None]
                    scores[:, recent] = np.where(hidden, -np.inf, scores[:, recent])
                ranks.append(
                    metrics.label_ranks(
                        scores,
                        np.where(labels[part] <= len(candidates), labels[part], 0),
                        None
                        if excluded is None
                        else np.where(excluded <= len(candidates), excluded, 0)[part],
                    )
                )
        else:
            most = 0 if excluded is None else int((excluded > 0).sum(axis=1).max(initial=0))
            later = 0 if corpus is None or at is None else int((corpus.uploaded >= at.min()).sum())
            rows, _ = candidates.search(queries, depth + most + later)
            if corpus is not None and at is not None:
                rows = np.where((rows >= 0) & (corpus.uploaded[rows] < at[:, None]), rows, -1)
            ranks.append(_ranks_in_lists(rows + 1, labels, excluded, depth))
    return RetrievalResult(np.concatenate(ranks), _concat(users), np.concatenate(rows_of_labels))


def asked_at_us(table: pa.Table) -> np.ndarray:
    """int64 [num_events] microseconds: the instant of which the inputs of retrieval examples are."""
    at = table["asked_at" if "asked_at" in table.column_names else "watched_at"]
    return at.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()


def evaluate_most_popular(
    popular: MostPopular, examples: Path, *, exclude: Exclude = "none"
) -> RetrievalResult:
    """Rank every label of a day's retrieval examples by popularity; see `evaluate_retrieval`."""
    ranks, users, rows_of_labels = [], [], []
    for table in tables_of(examples, ["user_id", "video_id", *EXCLUDED[exclude]]):
        place = popular.places(table["video_id"].combine_chunks())
        own = np.where(place > 0, place, metrics.UNRANKED)
        rows_of_labels.append(place - 1)
        if exclude != "none":
            lists = excluded_lists(table, exclude, examples)
            owner = np.concatenate([pc.list_parent_indices(column).to_numpy() for column in lists])
            left_out = np.concatenate([popular.places(pc.list_flatten(column)) for column in lists])
            pairs = np.unique(np.stack([owner, left_out], axis=1)[left_out > 0], axis=0)
            before = np.bincount(
                pairs[:, 0], weights=pairs[:, 1] < own[pairs[:, 0]], minlength=len(own)
            ).astype(np.int64)
            seen = np.zeros(len(own), dtype=bool)
            seen[pairs[pairs[:, 1] == own[pairs[:, 0]], 0]] = True
            own = np.where((own == metrics.UNRANKED) | seen, metrics.UNRANKED, own - before)
        ranks.append(own)
        users.append(table["user_id"].combine_chunks())
    return RetrievalResult(np.concatenate(ranks), _concat(users), np.concatenate(rows_of_labels))


def excluded_lists(table: pa.Table, exclude: Exclude, examples: Path) -> list[pa.Array]:
    """The list columns of held-out examples with the video ids that a filter takes out; none for `none`.

    Raises:
        InputError: the examples have no such columns.
    """
    missing = [name for name in EXCLUDED[exclude] if name not in table.column_names]
    if missing:
        raise InputError(
            f"the examples do not say what `recommend.exclude: {exclude}` leaves out",
            where=str(examples),
            offenders=missing,
            remedy="run the stage featurize, which writes these columns of held-out days",
        )
    columns = (table[name].combine_chunks() for name in EXCLUDED[exclude])
    return [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]


def _excluded(table: pa.Table, exclude: Exclude, videos: Vocabulary, examples: Path) -> np.ndarray | None:
    """int32 [num_events, any] indices that may not be recommended, 0 = padding; None for `none`."""
    bags = []
    for column in excluded_lists(table, exclude, examples):
        longest = pc.max(pc.list_value_length(column)).as_py() or 0
        bags.append(pad(column, videos, longest))
    return np.concatenate(bags, axis=1) if bags else None


def evaluate_ranking(
    ranker: Ranker,
    encoder: Encoder,
    examples: Path,
    nominate: Nominate | None = None,
    final_score: FinalScore = FinalScore(),  # noqa: B008 - frozen
) -> tuple[RankingResult, Mapping[str, np.ndarray]]:
    """Score every impression of a day's ranking examples.

    Args:
        ranker: the model judged.
        encoder: that belongs to it.
        examples: directory of the examples, e.g. ranking_examples/gate.
        nominate: adds the inputs that candidate generation makes, where the ranker has any.
        final_score: what a slate of it would be ordered by.

    Returns:
        The result, scored by `final_score`, and what the ranker says of each impression.

    Raises:
        InputError: there are no examples, or a score is not a number.
    """
    # What is known in training alone is not read: a model is judged by what it would say when serving.
    inputs = [spec.name for spec in encoder.ranking_features if not spec.training_only]
    names = list(dict.fromkeys([*JUDGED, *SLICED, DURATION, *inputs, *(OPENING + name for name in inputs)]))
    day = pa.concat_tables(tables_of(examples, names))
    if nominate is not None and not set(inputs) <= set(day.column_names):
        day = nominate(day)
    groups, kind = group_impressions(day, encoder.manifest["time_zone"])
    duration_s = None
    if DURATION in day.column_names:
        duration_s = pc.fill_null(day[DURATION].cast(pa.float64()), np.nan).to_numpy()

    def scores_of(predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        return final_score(predicted["expected_watch_time_s"], duration_s)

    predicted = _in_parts(ranker, encoder.encode_ranking(day))
    scores = pair_scores = scores_of(predicted)
    if kind != REQUEST:
        arrays = encoder.encode_ranking(hold_openings(day))
        held = hold_query_side(arrays, encoder.ranking_features, groups)
        pair_scores = scores_of(_in_parts(ranker, held))
    if np.isnan(scores).any():
        raise InputError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not a number",
            where=str(examples),
            remedy="train_ranking diverged: lower its learning_rate",
        )
    return judge_scores(scores, pair_scores, day, groups, kind), predicted


def hold_query_side(
    arrays: Mapping[str, np.ndarray], features: Sequence[FeatureSpec], groups: np.ndarray
) -> dict[str, np.ndarray]:
    """Give every impression of a group the query side of the group's first impression.

    The impressions of a page have one query side: what is known of the user when the page is made. Where a
    user's day stands for a page, it moves, and with the outcomes: a long watch raises the user's mean watch time,
    and so the score of every later impression that it is compared with. A score made of that mean alone then
    loses on two pairs in three, where within a page it could only tie.

    Args:
        arrays: encoded impressions, in the order in which they were shown.
        features: their specs, which know the side.
        groups: int64 [num_impressions].
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    opening = first[group.reshape(-1)]
    query = {spec.name for spec in features if spec.side == "query"}
    return {name: array[opening] if name in query else array for name, array in arrays.items()}


def hold_openings(examples: pa.Table) -> pa.Table:
    """Give the impression side of every impression the user as of the group's first impression.

    How often the user watched the channel of a video, or was shown the video, moves with the outcomes within
    a group just as the query side does. Unlike that, it differs between videos, so no other impression has it:
    the stage featurize stores it, in OPENING columns, for the days on which requests are no pages.

    Args:
        examples: ranking examples; where they have no OPENING columns they stay as they are.
    """
    for name in examples.column_names:
        if name.startswith(OPENING):
            place = examples.column_names.index(name.removeprefix(OPENING))
            examples = examples.set_column(place, examples.column_names[place], examples[name])
    return examples


def evaluate_past_watch_time(
    statistics: Path, day: datetime.date, examples: Path, time_zone: str
) -> RankingResult:
    """The baseline of ranking: score an impression by the video's mean watch time per impression before `day`.

    Args:
        statistics: directory of the table `video_statistics`.
        day: the day of the examples.
        examples: directory of the examples.
        time_zone: in which days are cut.
    """
    table = pa.concat_tables(
        [
            pq.read_table(part, filters=[("day", "=", day)])
            for part in sorted(statistics.glob("part-*.parquet"))
        ]
    )
    impressions = table["impressions"].to_numpy()
    mean = np.divide(
        table["watch_time_ms"].to_numpy() / 1000.0,
        impressions,
        out=np.zeros(len(impressions)),
        where=impressions > 0,
    )
    judged = pa.concat_tables(tables_of(examples, list(JUDGED)))
    row = pc.index_in(judged["video_id"].combine_chunks(), value_set=table["video_id"].combine_chunks())
    row = pc.fill_null(row, len(mean)).to_numpy(zero_copy_only=False)
    scores = np.append(mean, 0.0)[row]
    return judge_scores(scores, scores, judged, *group_impressions(judged, time_zone))


def group_impressions(judged: pa.Table, time_zone: str) -> tuple[np.ndarray, str]:
    """Which impressions are compared with each other.

    Those of a request, as in the paper (section 4.3). Where most impressions are alone in their request (a feed
    that is scrolled), there are no pages: then those of a user, surface and day.

    Args:
        judged: request_id, user_id, surface and shown_at of the impressions.
        time_zone: in which days are cut.

    Returns:
        groups int64 [num_impressions], and REQUEST or USER_SURFACE_DAY.
    """
    by_request = _codes(judged["request_id"])
    # A few impressions of a feed share an instant and with it a request; that makes them no page.
    if len(by_request) == 0 or (np.bincount(by_request)[by_request] > 1).mean() >= PAGED_SHARE:
        return by_request, REQUEST
    local = pc.local_timestamp(
        judged["shown_at"].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", time_zone))
    )
    keys = [_codes(judged["user_id"]), _codes(judged["surface"]), _codes(local.cast(pa.date32()))]
    _, groups = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    return groups.reshape(-1), USER_SURFACE_DAY


def judge_scores(
    scores: np.ndarray, pair_scores: np.ndarray, judged: pa.Table, groups: np.ndarray, group_kind: str
) -> RankingResult:
    """Bring scores and outcomes of the same impressions together; `judged` has clicked, watch_time_s, user_id."""
    clicked = judged["clicked"].to_numpy().astype(bool)
    watch_time_s = pc.fill_null(judged["watch_time_s"], 0.0).to_numpy().astype(np.float64)
    return RankingResult(
        scores=scores,
        pair_scores=pair_scores,
        clicked=clicked,
        watch_time_s=np.where(clicked, watch_time_s, 0.0),
        groups=groups,
        group_kind=group_kind,
        user_ids=judged["user_id"].combine_chunks(),
        slices=impression_slices(judged),
    )


def impression_slices(judged: pa.Table) -> dict[str, np.ndarray]:
    """Parts of a day that a mean over all hides, by what was known before each impression.

    Args:
        judged: ranking examples; a slice whose column is not there does not exist.

    Returns:
        Name -> bool [num_impressions]: `new_users` (none completed a watch before), `light_users` (1 to LIGHT_WATCHES
        did), `fresh_videos` (uploaded less than FRESH_S before) and `surface_NAME` and `device_NAME` of each with a
        hundredth of the impressions or more.
    """
    slices: dict[str, np.ndarray] = {}
    if "user_completed_watches" in judged.column_names:
        watches = pc.fill_null(judged["user_completed_watches"].cast(pa.float64()), 0.0)
        slices |= _by_past(watches.to_numpy())
    if "video_age_s" in judged.column_names:
        age_s = pc.fill_null(judged["video_age_s"].cast(pa.float64()), np.inf).to_numpy()
        slices["fresh_videos"] = age_s < FRESH_S
    return dict(sorted({**slices, **_by_column(judged, ("surface", "device"))}.items()))


def event_slices(examples: Path, videos: Path) -> dict[str, np.ndarray]:
    """The same parts of a day's retrieval examples, by what was known before each watch; they have no surface.

    Beside them `other_origins`, watches that no recommendation led to: the rest favours the model that recommended them.

    Args:
        examples: directory of the examples, e.g. retrieval_examples/gate.
        videos: the table of videos that featurize writes, for when they were uploaded.

    Returns:
        Name -> bool [num_events], one event per stored row, in its order.
    """
    columns = ["history", "device", "video_id", "watched_at", "asked_at", "origin"]
    events = pa.concat_tables(tables_of(examples, columns))
    slices: dict[str, np.ndarray] = {}
    if "history" in events.column_names:
        lengths = pc.fill_null(pc.list_value_length(events["history"]), 0)
        slices |= _by_past(lengths.to_numpy().astype(np.float64))
    if "origin" in events.column_names and not pa.types.is_null(events["origin"].type):
        recommended = pc.is_in(events["origin"], value_set=pa.array(RECOMMENDED))
        slices["other_origins"] = pc.and_(events["origin"].is_valid(), pc.invert(recommended)).to_numpy()
    known = pa.concat_tables([pq.read_table(part) for part in sorted(videos.glob("part-*.parquet"))])
    row = pc.fill_null(pc.index_in(events["video_id"], value_set=known["video_id"]), -1).to_numpy()
    uploaded = known["uploaded_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    fresh_from = asked_at_us(events) - int(1e6 * FRESH_S)
    slices["fresh_videos"] = (row >= 0) & (uploaded[row] > fresh_from)
    return dict(sorted({**slices, **_by_column(events, ("device",))}.items()))


def _by_past(completed: np.ndarray) -> dict[str, np.ndarray]:
    """By how many watches the user had completed, as far as a history goes back."""
    return {"new_users": completed == 0, "light_users": (completed > 0) & (completed <= LIGHT_WATCHES)}


def _by_column(table: pa.Table, names: Sequence[str]) -> dict[str, np.ndarray]:
    slices: dict[str, np.ndarray] = {}
    for name in names:
        if name not in table.column_names or pa.types.is_null(table[name].type):
            continue
        values = pc.fill_null(table[name].cast(pa.string()), "").combine_chunks()
        for count in pc.value_counts(values).to_pylist():
            if count["values"] and count["counts"] >= _SMALLEST_SHARE * table.num_rows:
                of = re.sub(r"[^0-9A-Za-z_.-]+", "_", count["values"])
                slices[f"{name}_{of}"] = pc.equal(values, count["values"]).to_numpy(zero_copy_only=False)
    return slices


def _in_parts(ranker: Ranker, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = len(next(iter(arrays.values())))
    parts = [
        ranker({name: array[begin : begin + _PARTS_AT_ONCE] for name, array in arrays.items()})
        for begin in range(0, rows, _PARTS_AT_ONCE)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _ranks_in_lists(
    lists: np.ndarray, labels: np.ndarray, excluded: np.ndarray | None, depth: int
) -> np.ndarray:
    """Places of labels in lists of vocabulary indices (0 = nothing found), excluded ones left out."""
    allowed = lists > 0
    if excluded is not None and excluded.size:
        # One number per event and video, so that one look-up tells which videos are whose.
        base = int(max(lists.max(initial=0), excluded.max())) + 1
        first = np.arange(len(lists), dtype=np.int64)[:, None] * base
        allowed &= ~np.isin(first + lists, (first + excluded)[excluded > 0])
    place = np.cumsum(allowed, axis=1)
    hit = (lists == labels[:, None]) & allowed & (labels > 0)[:, None] & (place <= depth)
    found = np.where(hit, place, 0).max(axis=1)
    return np.where(found > 0, found, metrics.UNRANKED)


def tables_of(examples: Path, columns: Sequence[str], max_rows: int | None = None) -> list[pa.Table]:
    """Columns of a day's examples, those that there are, in pieces of a size that encodes well."""
    tables = []
    for table in read_examples(examples):
        if "surface" in columns and "surface" not in table.column_names:
            table = table.append_column("surface", pa.nulls(table.num_rows))
        tables.append(table.select([name for name in dict.fromkeys(columns) if name in table.column_names]))
    day = pa.concat_tables(tables) if tables else None
    if day is None or day.num_rows == 0:
        raise InputError(
            "there are no examples to judge models on",
            where=str(examples),
            remedy="nothing was completed, or shown, on that day",
        )
    if max_rows is not None and max_rows < day.num_rows:
        day = day.take(np.linspace(0, day.num_rows - 1, max_rows).astype(np.int64))
    return [day.slice(begin, _PARTS_AT_ONCE) for begin in range(0, day.num_rows, _PARTS_AT_ONCE)]


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy().astype(np.int64)


def _concat(arrays: list[pa.Array]) -> pa.Array:
    return pa.concat_arrays(
        [array.chunk(0) if isinstance(array, pa.ChunkedArray) else array for array in arrays]
    )


def index_recall(
    query_tower: QueryTower,
    searcher: Searcher,
    candidates: np.ndarray,
    encoder: Encoder,
    examples: Path,
    k: int,
    *,
    queries: int = 1_000,
) -> float:
    """Share of the exact first `k` candidates that an index finds, over `queries` events spread over a day.

    Raises:
        InputError: there are no examples.
    """
    columns = ["video_id", *(spec.name for spec in encoder.retrieval_features)]
    table = pa.concat_tables(tables_of(examples, columns, queries))
    embedded = query_tower(encoder.encode_retrieval(table))
    k = min(k, len(candidates))
    exact, _ = ExactSearcher(candidates).search(embedded, k)
    rows, _ = searcher.search(embedded, k)
    return metrics.index_recall_at_k(rows, exact, k)
