"""From a bundle, a user's state and a request to a slate (paper, figure 2), without HTTP and without a registry.

history -> candidates of every source: the query tower through the index, and those beside it
        -> what the setting `exclude` filters is taken out -> blended
        -> ranking inputs, by the evaluators that the pipeline's own columns are held to
        -> ranker -> the slate, by the score that the bundle declares: a function of expected watch time
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from watchnext.bundle import Bundle
from watchnext.config import Exclude
from watchnext.console import quiet_native_logs
from watchnext.errors import InputError
from watchnext.features.batches import Arrays, Encoder, Vocabulary
from watchnext.features.history import Id, UserHistory, to_microseconds
from watchnext.features.ranking_features import (
    COUNTS,
    Feature,
    Moment,
    RequestContext,
    VideoFacts,
    Videos,
    VideoStatistics,
    evaluate,
    features_named,
    one_array,
    with_topic_codes,
)
from watchnext.features.retrieval_examples import Input, inputs_named
from watchnext.index.search import Searcher
from watchnext.models.candidate_sources import (
    TOWER,
    Corpus,
    Popularity,
    Requests,
    Retriever,
    Tower,
    blend,
    has_a_past,
    load_sources,
    utc_day,
)
from watchnext.models.final_score import FinalScore
from watchnext.models.new_videos import embed_uploads
from watchnext.models.nominations import NOMINATED_BY, encoded_sets, nominated_inputs, nominations

MAX_SLATE = 500

Draw = Callable[[int, int], tuple[Sequence[int], Sequence[float]]]
"""(candidates, slots) -> ranks of the videos of a slate in its order, from 0, and the probability of each to stand there."""

Model = Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]
"""What a SavedModel serves: named arrays to named arrays."""


@dataclass(frozen=True)
class Recommendation:
    """One video of a slate.

    Attributes:
        video_id: which.
        expected_watch_time_s: the ranker's.
        score: what the slate is sorted by, see `models.final_score`.
        retrieval_score: dot product of query and candidate embedding; None for a video that the tower did not name.
        sources: every source that named it, with its score, each on a scale of its own.
        propensity: probability, given the request, that it stands where it does; None where nothing is drawn.
    """

    video_id: Id
    expected_watch_time_s: float
    score: float
    retrieval_score: float | None
    sources: Mapping[str, float] = field(default_factory=dict)
    propensity: float | None = None


@dataclass(frozen=True)
class Slate:
    """The answer to one request.

    Attributes:
        videos: by falling score, unless they were drawn.
        personal: whether candidates came from the user's own past; otherwise they are what is popular or new.
        ranked: number of candidates that the ranker saw.
        step_ms: step of `recommend` -> how long it took; no part of what a slate is.
    """

    videos: tuple[Recommendation, ...]
    personal: bool
    ranked: int
    step_ms: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def video_ids(self) -> tuple[Id, ...]:
        return tuple(video.video_id for video in self.videos)


class StopWatch:
    """How long each of several steps takes, one after the other; of a step that is taken again, the sum."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The step `name` ends now."""
        now = time.perf_counter()
        self.laps_ms[name] = self.laps_ms.get(name, 0.0) + (now - self._last) * 1000.0
        self._last = now

    def take(self, laps_ms: Mapping[str, float]) -> None:
        """What was done since the last lap was timed by itself."""
        for name, lap_ms in laps_ms.items():
            self.laps_ms[name] = self.laps_ms.get(name, 0.0) + lap_ms
        self._last = time.perf_counter()


@dataclass
class Recommender:
    """A bundle, loaded. Safe to be used by several threads at once: answering changes nothing.

    Use `Recommender.open`.
    """

    bundle: Bundle
    encoder: Encoder
    statistics: VideoStatistics
    query_tower: Model = field(repr=False)
    ranker: Model = field(repr=False)
    searcher: Searcher = field(repr=False)
    corpus: Corpus = field(repr=False)
    sources: Mapping[str, Retriever] = field(repr=False)
    videos: "VideoTable" = field(repr=False)
    final_score: FinalScore
    _popularity: tuple[VideoStatistics, int, Popularity] | None = field(default=None, init=False, repr=False)
    _standing: tuple[VideoStatistics, npt.NDArray[Any]] | None = field(default=None, init=False, repr=False)

    @classmethod
    def open(cls, bundle: Bundle) -> "Recommender":
        """Load the models, the index and the features of a verified bundle. Takes seconds: imports TensorFlow.

        Raises:
            InputError: the bundle's models do not take the inputs that its features make.
        """
        # A request's products are small, and requests come beside each other: a second thread would wait, spinning, for the
        # core that the next one needs. For this process as a whole, and so for every way to ask for a slate.
        threadpool_limits(1, "blas")
        with quiet_native_logs():
            from watchnext.index.scann import ScannSearcher
            from watchnext.models.towers import load_forward

            searcher = ScannSearcher.load(bundle.index / "scann")
            query_tower = load_forward(str(bundle.query_tower))
            ranker: Model = load_forward(str(bundle.ranker))
            if not bundle.ranks_one_query:
                ranker = _with_rows_of_both_sides(ranker)
        encoder = Encoder.load(bundle.features)
        for part, made in (
            ("retrieval", {spec.name for spec in encoder.retrieval_features}),
            ("ranking", {spec.name for spec in encoder.ranking_features}),
        ):
            wanted = set(bundle.manifest["inputs"][part])
            if wanted - made:
                raise InputError(
                    f"the bundle's features do not make the inputs that its {part} model takes",
                    where=str(bundle.path),
                    offenders=sorted(wanted - made),
                    remedy="package anew with `dvc repro`",
                )
        videos = _read(bundle.features / "videos")
        corpus = Corpus(encoder.vocabularies["video"], videos)
        embeddings = np.load(bundle.index / "candidate_embeddings.npy", mmap_mode="r", allow_pickle=False)
        tower = Tower(
            corpus, searcher.search, embeddings, corpus.rows(_read_rows(bundle.index / "rows.arrow"))
        )
        return cls(
            bundle=bundle,
            encoder=encoder,
            statistics=VideoStatistics.from_table(_read(bundle.features / "video_statistics")),
            query_tower=query_tower,
            ranker=ranker,
            searcher=searcher,
            corpus=corpus,
            sources=load_sources(corpus, tower, bundle.sources),
            videos=VideoTable(videos),
            final_score=FinalScore.of(bundle.recommend, encoder.quantiles),
        )

    def __post_init__(self) -> None:
        self._nominated = nominated_inputs(self.encoder)
        self._source_sets = (
            encoded_sets(self.encoder) if NOMINATED_BY in self._nominated else np.zeros((0, 0), np.int32)
        )
        features: tuple[Feature, ...] = features_named(
            [
                spec.name
                for spec in self.encoder.ranking_features
                if spec.name not in self._nominated and not spec.training_only
            ]
        )
        self._alone = [one for one in features if one.of_video_alone]
        self._of_request = [one for one in features if not one.of_video_alone]
        self._inputs = inputs_named([spec.name for spec in self.encoder.retrieval_features])
        # The last place is where row -1, a video that is not in the corpus, looks.
        self._places = np.append(self.videos.places(self.corpus.video_ids), -1)
        self._duration_s = self.videos.duration_s(self._places)

    @property
    def video_schema(self) -> pa.Schema:
        """Columns of the bundle's table of videos."""
        return pq.read_schema(min((self.bundle.features / "videos").glob("part-*.parquet")))

    def with_catalogue(self, added: Sequence[Mapping[str, Any]], taken_down: Collection[Id]) -> "Recommender":
        """The same models over a catalogue that has changed since the bundle was made. Takes as long as reading its videos.

        What is new gets an embedding by its channel and topics (`new_videos.embed_uploads`), and is ranked by its facts.
        Where neither says anything it is a candidate while it is fresh. What was taken down is no candidate of any source.

        Args:
            added: facts of new videos by column of `videos`, `uploaded_at` in microseconds; those that the bundle has
                stay as they are there.
            taken_down: ids, of the type that ids of the bundle have; others are left out.
        """
        table = _read(self.bundle.features / "videos")
        ids = pa.array([row["video_id"] for row in added], table.schema.field("video_id").type)
        there = pc.is_in(ids, table["video_id"]).to_pylist()
        new = [row for row, is_there in zip(added, there, strict=True) if not is_there]
        columns = {}
        for name, kind in zip(table.schema.names, table.schema.types, strict=True):
            values = [row.get(name) for row in new]
            given = (
                pa.array(values, pa.timestamp("us", tz="UTC"))
                if name.endswith("_at")
                else pa.array(values, kind)
            )
            columns[name] = given.cast(kind)
        table = pa.concat_tables([table, pa.table(columns, table.schema)])
        corpus = Corpus(self.encoder.vocabularies["video"], table, _ids(taken_down, self.corpus))
        embeddings = np.load(
            self.bundle.index / "candidate_embeddings.npy", mmap_mode="r", allow_pickle=False
        )
        rows = corpus.rows(_read_rows(self.bundle.index / "rows.arrow"))
        uploads = corpus.rows(pa.array([row["video_id"] for row in new], ids.type))
        guessed = embed_uploads(embeddings, rows, corpus, table, uploads)
        is_placed = np.isfinite(guessed).all(axis=1)
        added_to_index = uploads[is_placed], guessed[is_placed]
        tower = Tower(corpus, self.searcher.search, embeddings, rows, added=added_to_index)
        return replace(
            self,
            corpus=corpus,
            sources=load_sources(corpus, tower, self.bundle.sources),
            videos=VideoTable(table),
        )

    @property
    def row_to_video(self) -> Sequence[Id]:
        """Every video that can be recommended, those of the vocabulary first."""
        return self.corpus.row_to_video

    def recommend(
        self,
        user: UserHistory | None,
        request: RequestContext,
        how_many: int = 20,
        exclude: Collection[Id] = (),
        statistics: VideoStatistics | None = None,
        draw: Draw | None = None,
    ) -> Slate:
        """Answer one request.

        Args:
            user: what the user did; only what lies before `request.at` is looked at. None: nothing is known.
            request: who asks, when, where.
            how_many: length of the slate; fewer come back only where fewer videos exist.
            exclude: further videos not to show. What the bundle's own setting `exclude` filters is never shown.
            statistics: of the videos as of the day of the request; None for the bundle's latest day.
            draw: which of the ranked candidates to show; None: the first.

        Raises:
            InputError: `how_many` is not between 1 and MAX_SLATE.
        """
        if not 1 <= how_many <= MAX_SLATE:
            raise InputError(f"a slate has 1 to {MAX_SLATE} videos", where="how_many", offenders=[how_many])
        user = user if user is not None else UserHistory()
        statistics = statistics if statistics is not None else self.statistics
        watch = StopWatch()
        filtered = excluded_videos(user, request, self.bundle.recommend["exclude"])
        asked = self.requests(user, request, statistics)
        banned = self.corpus.rows_of({*exclude, *filtered})
        watch.lap("tower")

        quotas = {
            name: quota for name, quota in self.bundle.recommend["sources"].items() if name in self.sources
        }
        wanted = max(sum(quotas.values()), how_many)
        # What a source names before any filter is an input of the ranker, so it is asked once and filtered here.
        first = {
            name: self.sources[name].retrieve(asked, wanted + len(banned))
            for name, quota in quotas.items()
            if quota
        }
        named = {
            name: _without(banned, found[0], values[0], wanted) for name, (found, values) in first.items()
        }
        rows = blend({name: found.tolist() for name, (found, _) in named.items()}, quotas, wanted)
        if len(rows) < how_many:
            # A corpus that nobody has watched for a week still has something to show.
            there = self.corpus.uploaded < asked.at[0]
            there[[*rows, *banned]] = False
            rows += np.flatnonzero(there)[: how_many - len(rows)].tolist()
        watch.lap("index")
        personal = bool(asked.personal is not None and asked.personal[0])
        if not rows:
            return Slate((), personal, 0, watch.laps_ms)
        best = {name: found for name, (found, _) in first.items()}
        places = np.array(rows)
        video_ids = self.corpus.ids_of(places)
        arrays = self._inputs_of(user, request, places, video_ids, statistics, asked, best)
        watch.lap("features")
        expected = self.ranker(arrays)["expected_watch_time_s"].astype(np.float64)
        watch.lap("ranker")
        final = self.final_score(expected, self._duration_s[rows])
        ranked = np.argsort(-final, kind="stable")
        slots = min(how_many, len(ranked))
        ranks, propensities = (range(slots), [None] * slots) if draw is None else draw(len(ranked), slots)
        order = ranked[ranks]
        scores: dict[int, dict[str, float]] = {rows[place]: {} for place in order}
        for name, (found, values) in named.items():
            at, which = np.nonzero(found[:, None] == places[order])
            for place, score in zip(order[which].tolist(), values[at].tolist(), strict=True):
                scores[rows[place]][name] = score
        videos = tuple(
            Recommendation(
                self.row_to_video[rows[place]],
                float(expected[place]),
                float(final[place]),
                scores[rows[place]].get(TOWER),
                scores[rows[place]],
                propensity,
            )
            for place, propensity in zip(order, propensities, strict=True)
        )
        watch.lap("slate")
        return Slate(videos, personal, len(rows), watch.laps_ms)

    def requests(self, user: UserHistory, request: RequestContext, statistics: VideoStatistics) -> Requests:
        """One request as the sources see it, from what lies before it."""
        popularity = self._popular_on(statistics, utc_day(to_microseconds(request.at)))
        return as_sources_see(
            user,
            request,
            self._inputs,
            self.encoder,
            lambda arrays: self.query_tower(arrays)["embedding"],
            popularity,
        )

    def _popular_on(self, statistics: VideoStatistics, begins_at: int) -> Popularity:
        """The popularity of a day, kept until another is asked for: it is the same for every request of the day."""
        kept = self._popularity
        if kept is None or kept[0] is not statistics or kept[1] != begins_at:
            popularity = popularity_of(self.corpus, statistics, begins_at)
            # One assignment, so that a thread never sees half of it.
            self._popularity = kept = (statistics, begins_at, popularity)
        return kept[2]

    def rank(
        self,
        user: UserHistory,
        request: RequestContext,
        video_ids: Sequence[Id],
        statistics: VideoStatistics | None = None,
    ) -> npt.NDArray[np.float64]:
        """Expected watch time in seconds of each of `video_ids`, [N], for this user at this request."""
        arrays = self.inputs(user, request, video_ids, statistics)
        return self.ranker(arrays)["expected_watch_time_s"].astype(np.float64)

    def inputs(
        self,
        user: UserHistory,
        request: RequestContext,
        video_ids: Sequence[Id],
        statistics: VideoStatistics | None = None,
    ) -> Arrays:
        """What the ranker is asked about `video_ids`, for this user at this request."""
        statistics = statistics if statistics is not None else self.statistics
        ids = _ids(video_ids, self.corpus)
        asked = self.requests(user, request, statistics) if self._nominated else None
        return self._inputs_of(user, request, self.corpus.rows(ids), ids, statistics, asked)

    def _inputs_of(
        self,
        user: UserHistory,
        request: RequestContext,
        rows: npt.NDArray[np.int64],
        video_ids: pa.Array,
        statistics: VideoStatistics,
        asked: Requests | None,
        first: Mapping[str, npt.NDArray[np.int64]] | None = None,
    ) -> Arrays:
        """What the ranker is asked about videos in these rows of the corpus, -1 for one that is not in it.

        `first` is that of `nominations`.
        """
        standing = self._standing_on(statistics).take(rows)
        videos = self.videos.videos(self._places[rows], video_ids, statistics)
        columns = evaluate(self._of_request, Moment(user, request, to_microseconds(request.at), videos))
        encoded = {name: standing[name] for name in standing.dtype.names or ()}
        if asked is not None and self._nominated:
            quotas = self.bundle.recommend["sources"]
            of = np.zeros(len(rows), np.int64)
            made = nominations(self.sources, quotas, asked, of, rows, self.corpus.known, first)
            encoded |= made.encoded(self._nominated, self._source_sets)
        return self.encoder.encode_ranking(columns, encoded)

    def _standing_on(self, statistics: VideoStatistics) -> npt.NDArray[Any]:
        """Inputs that tell of a video alone, encoded, [num_videos + 1] by their names: made once, not for every request.

        The inputs of one video lie beside each other, so that a request reads from one place in memory for each video, not
        from a dozen. The last row is that of a video that is not in the corpus.
        """
        kept = self._standing
        if kept is None or kept[0] is not statistics:
            video_ids = pa.concat_arrays([self.corpus.video_ids, pa.nulls(1, self.corpus.video_ids.type)])
            videos = self.videos.videos(self._places, video_ids, statistics)
            moment = Moment(UserHistory(), RequestContext("", 0), 0, videos)
            arrays = self.encoder.encode_some(
                evaluate(self._alone, moment), [one.name for one in self._alone]
            )
            beside = np.empty(
                len(self._places), [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
            )
            for name, array in arrays.items():
                beside[name] = array
            self._standing = kept = (statistics, beside)
        return kept[1]

    def nominations(
        self,
        user: UserHistory,
        request: RequestContext,
        video_ids: Sequence[Id],
        statistics: VideoStatistics,
    ) -> dict[str, pa.Array]:
        """What this bundle's sources say of `video_ids`: inputs of the ranker, [N] each."""
        asked = self.requests(user, request, statistics)
        rows = self.corpus.rows(_ids(video_ids, self.corpus))
        of = np.zeros(len(rows), np.int64)
        quotas = self.bundle.recommend["sources"]
        return nominations(self.sources, quotas, asked, of, rows, self.corpus.known).columns()

    def embed(self, user: UserHistory, request: RequestContext) -> npt.NDArray[np.float32]:
        """The query embedding of a user at a request, float32 [1, D]."""
        columns = {one.spec.name: [one.evaluate(user, request)] for one in self._inputs}
        return self.query_tower(self.encoder.encode_retrieval(columns))["embedding"]


class VideoTable:
    """Facts of videos by id, kept as columns.

    Args:
        table: the table `videos`.
    """

    def __init__(self, table: pa.Table) -> None:
        columns = {name: table[name] for name in table.column_names}
        if "uploaded_at" in columns:
            columns["uploaded_at"] = (
                columns["uploaded_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
            )
        known = [name for name in VideoFacts.__dataclass_fields__ if name in columns]
        self._table = {name: one_array(columns[name]) for name in known}
        self._topic_codes: dict[str, int] = {}
        if "topics" in known:
            self._table["topics"], self._topic_codes = with_topic_codes(self._table["topics"])
        self._topics = list(self._topic_codes)  # they are in the order of their codes
        self._columns = {name: self._lookup(column) for name, column in self._table.items()}
        ids = self._table["video_id"]
        self._by_id = Vocabulary("video", ids, np.zeros(len(ids), np.int64))

    def __len__(self) -> int:
        return len(self._by_id)

    def places(self, video_ids: pa.Array) -> npt.NDArray[np.int64]:
        """[N] ids -> int64 [N] rows of the table; -1 for a video that it does not have."""
        return self._by_id.lookup(video_ids).astype(np.int64) - 1

    def videos(
        self, places: npt.NDArray[np.int64], video_ids: pa.Array, statistics: VideoStatistics
    ) -> Videos:
        """The videos of these ids, [N], in these rows of the table, [N]; -1: one that it does not have."""
        return Videos(self._table, places, video_ids, statistics, self._topic_codes)

    def duration_s(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[N] rows of the table -> float64 [N] seconds; NaN where unknown, and for a row of -1."""
        known = self._table.get("duration_s", pa.nulls(len(self)))
        seconds = known.cast(pa.float64()).to_numpy(zero_copy_only=False)
        return np.append(seconds, np.nan)[places]

    def facts(self, video_id: Id) -> VideoFacts:
        """The facts of a video; all absent for one that the bundle does not know."""
        return self.facts_of([video_id])[video_id]

    def facts_of(self, video_ids: Iterable[Id], names: Collection[str] | None = None) -> dict[Id, VideoFacts]:
        """The facts of some videos by id, a column at a time: see `facts`.

        Args:
            video_ids: which.
            names: the facts that are wanted, the others are then absent; None: all.
        """
        places = {video_id: self._by_id.index_of(video_id) - 1 for video_id in video_ids}
        known = [video_id for video_id, place in places.items() if place >= 0]
        taken = np.array([places[video_id] for video_id in known], np.int64)
        # Rows of a large table lie anywhere in memory: each column that is not read counts.
        read = [name for name in self._table if name != "video_id" and (names is None or name in names)]
        columns = [self._columns[name](taken) for name in read]
        facts = {video_id: VideoFacts(video_id) for video_id, place in places.items() if place < 0}
        for video_id, *row in zip(known, *columns, strict=True):
            facts[video_id] = VideoFacts(video_id, **dict(zip(read, row, strict=True)))
        return facts

    def _lookup(self, column: pa.Array) -> Callable[[npt.NDArray[np.int64]], list[Any]]:
        """What gives the values in some rows of a column: of numbers and of lists of topics without asking Arrow, which
        takes many times as long for a few rows of a large table."""
        if pa.types.is_list(column.type) and pa.types.is_dictionary(column.type.value_type):
            ends = column.offsets.to_numpy()
            codes = column.values.indices.to_numpy(zero_copy_only=False)
            is_null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
            topics = self._topics

            def lists(places: npt.NDArray[np.int64]) -> list[Any]:
                begins = zip(ends[places].tolist(), ends[places + 1].tolist(), strict=True)
                found: list[Any] = [
                    [topics[code] for code in codes[begin:end].tolist()] for begin, end in begins
                ]
                if is_null is not None:
                    for place in np.flatnonzero(is_null[places]).tolist():
                        found[place] = None
                return found

            return lists
        if pa.types.is_primitive(column.type) and column.null_count == 0:
            numbers = column.to_numpy(zero_copy_only=False)
            return lambda places: list(numbers[places].tolist())
        return lambda places: list(column.take(pa.array(places)).to_pylist())


def as_sources_see(
    user: UserHistory,
    request: RequestContext,
    inputs: Sequence[Input],
    encoder: Encoder,
    query_tower: Callable[[Arrays], npt.NDArray[np.float32]],
    popularity: Popularity,
) -> Requests:
    """One request as the sources see it, from what lies before it in the user's history.

    Args:
        user: what the user did.
        request: the request.
        inputs: of the query tower.
        encoder: that belongs to it.
        query_tower: encoded requests -> query embeddings [1, D].
        popularity: of the request's day.
    """
    arrays = encoder.encode_retrieval({one.spec.name: [one.evaluate(user, request)] for one in inputs})
    return Requests(
        at=np.array([to_microseconds(request.at)]),
        history=arrays["history"],
        popularity=popularity,
        queries=query_tower(arrays),
        personal=has_a_past(arrays, encoder.retrieval_features),
    )


def popularity_of(corpus: Corpus, statistics: VideoStatistics, begins_at: int) -> Popularity:
    """How popular each video is by the statistics of a day that begins at a microsecond."""
    watches = statistics.videos.of(corpus.video_ids)[:, COUNTS.index("completed_watches")]
    return Popularity(corpus, watches, statistics.covered_days, begins_at)


def watched_videos(user: UserHistory, request: RequestContext) -> set[Id]:
    """What the user had begun to watch before the request, completed or not; what is still playing too."""
    completed = user.last_completed(user.completed_watches(request.at), request.at)
    return {*user.begun_videos(request.at), *completed}


def excluded_videos(user: UserHistory, request: RequestContext, exclude: Exclude) -> set[Id]:
    """What the setting `recommend.exclude` keeps from being shown, as `watched_before` and `shown_before` of examples."""
    if exclude == "none":
        return set()
    watched = watched_videos(user, request)
    return watched if exclude == "watched" else watched | set(user.shown_videos(request.at))


def _without(
    banned: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    at_most: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The first so many rows, and their scores, that are not among `banned`, which ascends."""
    if len(banned) == 0:
        return rows[:at_most], scores[:at_most]
    place = np.minimum(np.searchsorted(banned, rows), len(banned) - 1)
    kept = np.flatnonzero(banned[place] != rows)[:at_most]
    return rows[kept], scores[kept]


def _ids(video_ids: Iterable[Id], corpus: Corpus) -> pa.Array:
    """Ids as an array of the corpus's type; those of another type are no video of it."""
    kind = int if pa.types.is_integer(corpus.video_ids.type) else str
    return pa.array([one if isinstance(one, kind) else None for one in video_ids], corpus.video_ids.type)


def _with_rows_of_both_sides(ranker: Model) -> Model:
    """A ranker that wants a row per impression of every input, given one row of the query side."""

    def call(arrays: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        rows = max(len(array) for array in arrays.values())
        repeated = {
            name: np.repeat(array, rows, axis=0) if len(array) == 1 else array
            for name, array in arrays.items()
        }
        return ranker(repeated)

    return call


def _read(directory: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in sorted(directory.glob("part-*.parquet"))])


def _read_rows(path: Path) -> pa.ChunkedArray:
    """Row of the index -> video id, [V]."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    return table["video_id"]
