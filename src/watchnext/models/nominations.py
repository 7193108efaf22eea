"""Inputs of the ranker that candidate generation makes: which sources nominate a video, and what each thinks of it.

"Features ... that describe the past actions on related items", and "propagating candidate generation information into
ranking": "which sources nominated this video candidate? What scores did they assign?" (paper, section 4.1).

One function, `nominations`, makes them for a day of logged impressions and for a single request. What a ranker is
trained on must not know the outcome: an impression of a day of training is scored by models that were fitted on days
before it, see `score_blocks`.
"""

import datetime
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from watchnext.errors import InputError
from watchnext.features.batches import Arrays, Encoder, FeatureSpec, read_examples, read_ranges
from watchnext.models.candidate_sources import (
    SOURCES,
    TOWER,
    Corpus,
    Requests,
    Retriever,
    requests_by_day,
)

KEYS = ("request_id", "video_id")
"""Columns that identify an impression."""

NOMINATED_BY = "candidate_sources"
SOURCE_SPACE = "source"

_REQUESTS_AT_ONCE = 4096


@dataclass(frozen=True)
class NominationFeature:
    """One input of the ranker.

    Attributes:
        name: of the input.
        meaning: one line for the docs.
        source: whose score it is; None for `candidate_sources`, which all make together.
    """

    name: str
    meaning: str
    source: str | None = None

    @property
    def spec(self) -> FeatureSpec:
        if self.source is not None:
            return FeatureSpec(self.name, "continuous", None, None, "impression")
        return FeatureSpec(self.name, "multivalent", SOURCE_SPACE, len(SOURCES), "impression")


FEATURES: tuple[NominationFeature, ...] = (
    NominationFeature(
        NOMINATED_BY, "the sources among whose first candidates, as many as their quota, the video is"
    ),
    NominationFeature("retrieval_score", "dot product of query and candidate embedding", TOWER),
    NominationFeature(
        "co_watched_score", "similarity to the user's last completed videos, summed", "co_watched"
    ),
    NominationFeature(
        "popular_score", "completed watches per day that the video was there, of the last 7 days", "popular"
    ),
    NominationFeature(
        "channel_score",
        "share of the user's last watches that are of the channel, times the video's share of it",
        "channels",
    ),
)
"""Declared once: the pipeline and serving make the same ones, by the same function."""


@dataclass(frozen=True)
class Nominations:
    """What the sources say of N videos.

    Attributes:
        by: bool [N, len(SOURCES)], which of SOURCES nominate each.
        scores: name of a feature -> float64 [N]; NaN: no opinion.
    """

    by: npt.NDArray[np.bool_]
    scores: Mapping[str, npt.NDArray[np.float64]]

    def columns(self) -> dict[str, pa.Array]:
        """Name of a feature -> [N]: float64 (null: no opinion), or lists of names of sources."""
        scores = {name: pa.array(scores, from_pandas=True) for name, scores in self.scores.items()}
        return {NOMINATED_BY: _names_of(self.by), **scores}

    def encoded(self, names: Iterable[str], sets: npt.NDArray[np.int32]) -> Arrays:
        """Of these inputs those that are made here, as an encoder makes them of `columns`; `sets` is its `encoded_sets`."""
        arrays: Arrays = {name: self.scores[name].astype(np.float32) for name in names if name in self.scores}
        if NOMINATED_BY in names:
            arrays[NOMINATED_BY] = sets[np.packbits(self.by, axis=1, bitorder="little")[:, 0]]
        return arrays


def encoded_sets(encoder: Encoder) -> npt.NDArray[np.int32]:
    """Every set of sources as the ranker's input NOMINATED_BY, int32 [2 ** len(SOURCES), length]: they are few.

    Set number s has the source at place p if bit p of s is set.
    """
    numbers = np.arange(2 ** len(SOURCES), dtype=np.uint8)
    members = np.unpackbits(numbers[:, None], axis=1, bitorder="little").astype(bool)[:, : len(SOURCES)]
    return encoder.encode_some({NOMINATED_BY: _names_of(members)}, [NOMINATED_BY])[NOMINATED_BY]


def _names_of(by: npt.NDArray[np.bool_]) -> pa.Array:
    """bool [N, len(SOURCES)] -> [N] lists of names of sources."""
    _, names = np.nonzero(by)
    offsets = np.concatenate([[0], np.cumsum(by.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(SOURCES).take(pa.array(names)))


def nominations(
    sources: Mapping[str, Retriever],
    quotas: Mapping[str, int],
    requests: Requests,
    of: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    known: int,
    first: Mapping[str, npt.NDArray[np.int64]] | None = None,
) -> Nominations:
    """The inputs of some videos of some requests.

    A source nominates what is among its first `quota` candidates before any filter: whether a video was watched before
    is for the ranker's other inputs to say.

    Args:
        sources: name -> source.
        quotas: how many each source names.
        requests: [B] of one day.
        of: [N] which request.
        rows: [N] which row of the corpus; -1 for a video that is not in it.
        known: videos of the vocabulary; those beyond it have no `retrieval_score`, since their embeddings are only
            guessed, and the models that scored training days have none of them.
        first: name of a source -> its best candidates before any filter, at least `quota`, [B, any]; None: they are asked.
    """
    nominated = np.zeros((len(rows), len(SOURCES)), bool)
    for place, name in enumerate(SOURCES):
        quota = quotas.get(name, 0)
        if name in sources and quota > 0 and len(rows):
            best = sources[name].retrieve(requests, quota)[0] if first is None else first[name][:, :quota]
            nominated[:, place] = _among(best, of, rows) & (rows >= 0)
    scores = {}
    for feature in FEATURES:
        if feature.source is not None:
            scores[feature.name] = np.full(len(rows), np.nan)
            if feature.source in sources:
                asked = np.where(rows < known, rows, -1) if feature.source == TOWER else rows
                scores[feature.name] = sources[feature.source].score(requests, of, asked).astype(np.float64)
    return Nominations(nominated, scores)


def _among(
    best: npt.NDArray[np.int64], of: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which `rows` [N] are among the best candidates [B, any] of their requests `of` [N]."""
    if len(best) == 1:
        ascending = np.sort(best[0])
        place = np.minimum(ascending.searchsorted(rows), len(ascending) - 1)
        return ascending[place] == rows
    return (best[of] == rows[:, None]).any(axis=1)


@dataclass(frozen=True)
class Scorer:
    """Candidate generation of one training, asked about logged impressions.

    Attributes:
        sources: name -> source.
        quotas: how many each source names.
        corpus: the videos.
        encoder: that belongs to the query tower.
        query_tower: encoded requests -> query embeddings [B, D].
    """

    sources: Mapping[str, Retriever]
    quotas: Mapping[str, int]
    corpus: Corpus
    encoder: Encoder
    query_tower: Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[np.float32]]

    def score(self, impressions: pa.Table, features: Path, split: str) -> dict[str, pa.Array]:
        """The inputs of impressions.

        Args:
            impressions: user_id, video_id, shown_at, [N].
            features: outputs of the stage featurize.
            split: which the impressions are of.

        Returns:
            See `Nominations.columns`, [N] in the order of `impressions`.

        Raises:
            InputError: a request of an impression is not among `ranking_requests`.
        """
        zone = json.loads((features / "manifest.json").read_text(encoding="utf-8"))["time_zone"]
        days = local_days(impressions["shown_at"], zone)
        parts = []
        for day in np.unique(days):
            rows = np.flatnonzero(days == day)
            of_day = impressions.take(pa.array(rows))
            parts.append((rows, self._score_day(of_day, features, split, day.item())))
        return scattered(impressions.num_rows, parts)

    def _score_day(
        self, impressions: pa.Table, features: Path, split: str, day: datetime.date
    ) -> dict[str, pa.Array]:
        asked, place = _requests_of(impressions, features / "ranking_requests" / split)
        statistics = statistics_of(features / "video_statistics", day)
        rows = self.corpus.rows(impressions["video_id"])
        order = np.argsort(place, kind="stable")
        ordered = place[order]
        parts = []
        for begin in range(0, asked.num_rows, _REQUESTS_AT_ONCE):
            part = asked.slice(begin, _REQUESTS_AT_ONCE)
            arrays = self.encoder.encode_retrieval(part)
            at = part["shown_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
            queries = self.query_tower(arrays)
            mine = order[np.searchsorted(ordered, begin) : np.searchsorted(ordered, begin + part.num_rows)]
            inputs = self.encoder.retrieval_features
            for some, requests in requests_by_day(self.corpus, statistics, at, arrays, inputs, queries):
                own = mine[np.isin(place[mine] - begin, some)]
                of = np.searchsorted(some, place[own] - begin)
                made = nominations(self.sources, self.quotas, requests, of, rows[own], self.corpus.known)
                parts.append((own, made.columns()))
        return scattered(impressions.num_rows, parts)


def local_days(instants: pa.ChunkedArray, time_zone: str) -> npt.NDArray[np.datetime64]:
    """[N] instants -> datetime64[D] [N], the local days that they lie on."""
    zoned = instants.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", time_zone))
    return pc.local_timestamp(zoned).to_numpy().astype("datetime64[D]")


def statistics_of(directory: Path, day: datetime.date) -> pa.Table:
    """The rows of one day of the table `video_statistics`."""
    parts = sorted(directory.glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part, filters=[("day", "=", day)]) for part in parts])


def _requests_of(impressions: pa.Table, requests: Path) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The requests of impressions, each once, and which of them is each impression's."""
    parts = sorted(requests.glob("part-*.parquet"))
    if not parts:
        raise InputError("there are no requests here", where=str(requests), remedy="run the stage featurize")
    shown_at = impressions["shown_at"]
    data = ds.dataset([str(part) for part in parts], format="parquet")
    kind = data.schema.field("shown_at").type
    span = pc.min_max(shown_at)
    table = data.to_table(
        filter=(ds.field("shown_at") >= span["min"].cast(kind))
        & (ds.field("shown_at") <= span["max"].cast(kind))
    )
    place = _keys(table).get_indexer(_keys(impressions))
    if (place < 0).any():
        raise InputError(
            f"{int((place < 0).sum())} impressions have no request to be scored as",
            where=str(requests),
            offenders=impressions.filter(pa.array(place < 0)).slice(0, 3).to_pylist(),
            remedy="examples and requests are not of the same run of featurize: run `dvc repro`",
        )
    used, place = np.unique(place, return_inverse=True)
    return table.take(pa.array(used)).combine_chunks(), place.reshape(-1).astype(np.int64)


def _keys(table: pa.Table) -> pd.MultiIndex:
    at = table["shown_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    users = table["user_id"].to_numpy(zero_copy_only=False)
    return pd.MultiIndex.from_arrays([users, at])


def training_blocks(
    first: datetime.date, last: datetime.date, number: int
) -> list[tuple[datetime.date, datetime.date]]:
    """Cut the days of training into `number` + 1 nearly equal runs, and return all but the first.

    The first run has no days before it, so its impressions are scored by nobody; each later block is scored by models of
    the days before the block. Fewer blocks come back where there are too few days.

    >>> training_blocks(datetime.date(2026, 3, 1), datetime.date(2026, 3, 7), 2)[0]
    (datetime.date(2026, 3, 3), datetime.date(2026, 3, 4))
    """
    days = (last - first).days + 1
    pieces = min(number + 1, days)
    edges = [first + datetime.timedelta(days=days * place // pieces) for place in range(pieces + 1)]
    one = datetime.timedelta(days=1)
    return [(begin, end - one) for begin, end in itertools.pairwise(edges[1:])]


def write_inputs(path: Path, names: Sequence[str], boundaries: Mapping[str, Sequence[float]]) -> None:
    """Store which of FEATURES a ranker gets, and the quantiles of the continuous ones, for `Encoder.with_inputs`."""
    chosen = [
        feature
        for feature in FEATURES
        if feature.name in names and (feature.source is None or boundaries.get(feature.name))
    ]
    content = {
        "ranking_features": [asdict(feature.spec) for feature in chosen],
        "vocabularies": {SOURCE_SPACE: list(SOURCES)},
        "quantiles": {name: list(values) for name, values in boundaries.items() if name in names},
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def nominated_inputs(encoder: Encoder) -> list[str]:
    """Names of the ranker's inputs that candidate generation makes."""
    known = {feature.name for feature in FEATURES}
    return [spec.name for spec in encoder.ranking_features if spec.name in known]


def read_impressions(features: Path, split: str) -> pa.Table:
    """request_id, video_id, user_id, surface (where known) and shown_at of ranking examples, in stored order."""
    names = {*KEYS, "user_id", "surface", "shown_at"}
    tables = [
        table.select([name for name in table.column_names if name in names])
        for table in read_examples(features / "ranking_examples" / split)
    ]
    return pa.concat_tables(tables).combine_chunks()


def boundaries(
    columns: Mapping[str, pa.Array], others: Mapping[str, npt.NDArray[np.float64]]
) -> dict[str, list[float]]:
    """Quantiles of the continuous inputs, as many as those of `others` have; none of an input that is always missing."""
    count = max((len(edges) for edges in others.values()), default=0) or 256
    found = {}
    for feature in FEATURES:
        values = columns[feature.name].drop_null()
        if feature.source is not None and len(values):
            found[feature.name] = np.quantile(
                values.to_numpy(), np.arange(count) / max(1, count - 1)
            ).tolist()
    return found


def describe(columns: Mapping[str, pa.Array]) -> dict[str, float]:
    """Which share of impressions has a score, and which is nominated by each source."""
    rows = max(1, len(columns[NOMINATED_BY]))
    named = pc.list_flatten(columns[NOMINATED_BY])
    shares = {
        f"{feature.name}_known_share": 1.0 - columns[feature.name].null_count / rows
        for feature in FEATURES
        if feature.source is not None
    }
    counts = {one["values"]: one["counts"] for one in pc.value_counts(named).to_pylist()}
    return shares | {f"nominated_by_{name}_share": counts.get(name, 0) / rows for name in SOURCES}


def store(directory: Path, impressions: pa.Table) -> None:
    """Store the columns of impressions that candidate generation added, in their order, for `joined`."""
    directory.mkdir(parents=True)
    known = {"user_id", "surface", "shown_at"}
    table = impressions.select([name for name in impressions.column_names if name not in known])
    pq.write_table(table, directory / "part-00000.parquet", compression="zstd")


def joined(
    scores: Path, examples: Iterator[pa.Table], ranges: Iterable[tuple[int, int]] | None = None
) -> Iterator[pa.Table]:
    """Ranking examples with the columns that the stage nominate stored for them, in one order, both read as they come.

    Args:
        scores: directory of the scores of a split.
        examples: its tables, in stored order.
        ranges: begin and end of the rows that `examples` are, where they are not all of them, see `shared_ranges`.

    Raises:
        InputError: they are not of the same impressions.
    """
    stored = _Rows(read_examples(scores) if ranges is None else read_ranges(scores, ranges))
    for table in examples:
        part = stored.next(table.num_rows)
        if part is None or any(not part[key].equals(table[key].cast(part[key].type)) for key in KEYS):
            raise _other_impressions(scores)
        for name in part.column_names:
            if name not in KEYS:
                table = table.append_column(name, part[name])
        yield table
    if stored.next(1) is not None:
        raise _other_impressions(scores)


class _Rows:
    """Tables that follow one another, taken by so many rows."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._held: list[pa.Table] = []

    def next(self, rows: int) -> pa.Table | None:
        """The next `rows` rows; None where there are fewer."""
        while sum(table.num_rows for table in self._held) < rows:
            table = next(self._tables, None)
            if table is None:
                return None
            self._held.append(table)
        held = pa.concat_tables(self._held).combine_chunks()
        self._held = [held.slice(rows)]
        return held.slice(0, rows)


def _other_impressions(scores: Path) -> InputError:
    return InputError(
        "scores and ranking examples are not of the same impressions",
        where=str(scores),
        remedy="they are not of the same run: run `dvc repro`",
    )


def scattered(
    rows: int, parts: Sequence[tuple[npt.NDArray[np.int64], Mapping[str, pa.Array]]]
) -> dict[str, pa.Array]:
    """Columns of [rows] from columns of some of the rows; null, or an empty list, where no part has the row."""
    position = np.full(rows, -1, np.int64)
    begin = 0
    for indices, _ in parts:
        position[indices] = np.arange(begin, begin + len(indices))
        begin += len(indices)
    take = pa.array(position, mask=position < 0)
    columns: dict[str, pa.Array] = {}
    for feature in FEATURES:
        kind = pa.float64() if feature.source is not None else pa.list_(pa.string())
        values = [columns_of[feature.name] for _, columns_of in parts]
        columns[feature.name] = pa.concat_arrays([pa.array([], kind), *values]).take(take)
    return columns


def document() -> str:
    """The declarations as a table in Markdown: what `docs/candidates.md` shows."""
    lines = ["| input | kind | what it is |", "|---|---|---|"]
    lines += [f"| `{one.name}` | {one.spec.kind} | {one.meaning} |" for one in FEATURES]
    return "\n".join(lines) + "\n"
