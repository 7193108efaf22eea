"""From a bundle, a user's state and a request to a slate (paper, figure 2), without HTTP and without a registry.

history -> candidates of every source: the query tower through the index, and those beside it
        -> what the setting `exclude` filters is taken out -> blended
        -> ranking inputs, by the evaluators that the pipeline's own columns are held to
        -> ranker -> the slate, by expected watch time
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from watchnext.bundle import Bundle
from watchnext.config import Exclude
from watchnext.console import quiet_native_logs
from watchnext.errors import InputError
from watchnext.features.batches import Encoder
from watchnext.features.history import Id, UserHistory, to_microseconds
from watchnext.features.ranking_features import (
    RequestContext,
    VideoFacts,
    VideoStatistics,
    evaluate_request,
    features_named,
)
from watchnext.features.retrieval_examples import request_columns
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
from watchnext.models.nominations import nominated_inputs, nominations

MAX_SLATE = 500

Draw = Callable[[int, int], tuple[Sequence[int], Sequence[float]]]
"""(candidates, slots) -> ranks of the videos of a slate in its order, from 0, and the probability of each to stand there."""

Model = Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]
"""A SavedModel's signature: named arrays to named arrays."""


@dataclass(frozen=True)
class Recommendation:
    """One video of a slate.

    Attributes:
        video_id: which.
        expected_watch_time_s: the ranker's, and what the slate is sorted by.
        retrieval_score: dot product of query and candidate embedding; None for a video that the tower did not name.
        sources: every source that named it, with its score, each on a scale of its own.
        propensity: probability, given the request, that it stands where it does; None where nothing is drawn.
    """

    video_id: Id
    expected_watch_time_s: float
    retrieval_score: float | None
    sources: Mapping[str, float] = field(default_factory=dict)
    propensity: float | None = None


@dataclass(frozen=True)
class Slate:
    """The answer to one request.

    Attributes:
        videos: by falling expected watch time, unless they were drawn.
        personal: whether candidates came from the user's own past; otherwise they are what is popular or new.
        ranked: number of candidates that the ranker saw.
    """

    videos: tuple[Recommendation, ...]
    personal: bool
    ranked: int

    @property
    def video_ids(self) -> tuple[Id, ...]:
        return tuple(video.video_id for video in self.videos)


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
    _popularity: tuple[VideoStatistics, int, Popularity] | None = field(default=None, init=False, repr=False)

    @classmethod
    def open(cls, bundle: Bundle) -> "Recommender":
        """Load the models, the index and the features of a verified bundle. Takes seconds: imports TensorFlow.

        Raises:
            InputError: the bundle's models do not take the inputs that its features make.
        """
        with quiet_native_logs():
            from watchnext.index.scann import ScannSearcher
            from watchnext.models.towers import load_signature

            searcher = ScannSearcher.load(bundle.index / "scann")
            query_tower = load_signature(str(bundle.query_tower))
            ranker: Model = load_signature(str(bundle.ranker))
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
        filtered = excluded_videos(user, request, self.bundle.recommend["exclude"])
        asked = self.requests(user, request, statistics)
        banned = set(self.corpus.rows(_ids({*exclude, *filtered}, self.corpus)).tolist()) - {-1}

        quotas = {
            name: quota for name, quota in self.bundle.recommend["sources"].items() if name in self.sources
        }
        wanted = max(sum(quotas.values()), how_many)
        named = {
            name: self.sources[name].retrieve(asked, wanted, [banned])
            for name, quota in quotas.items()
            if quota
        }
        rows = blend({name: found[0].tolist() for name, (found, _) in named.items()}, quotas, wanted)
        if len(rows) < how_many:
            # A corpus that nobody has watched for a week still has something to show.
            there = self.corpus.uploaded < asked.at[0]
            there[[*rows, *banned]] = False
            rows += np.flatnonzero(there)[: how_many - len(rows)].tolist()
        personal = bool(asked.personal is not None and asked.personal[0])
        if not rows:
            return Slate((), personal, 0)
        candidates = [self.row_to_video[row] for row in rows]
        expected = self.rank(user, request, candidates, statistics)
        scores: dict[int, dict[str, float]] = {row: {} for row in rows}
        for name, (found, values) in named.items():
            for row, score in zip(found[0].tolist(), values[0].tolist(), strict=True):
                if row in scores:
                    scores[row][name] = score
        ranked = np.argsort(-expected, kind="stable")
        slots = min(how_many, len(ranked))
        ranks, propensities = (range(slots), [None] * slots) if draw is None else draw(len(ranked), slots)
        videos = tuple(
            Recommendation(
                candidates[place],
                float(expected[place]),
                scores[rows[place]].get(TOWER),
                scores[rows[place]],
                propensity,
            )
            for place, propensity in zip(ranked[ranks], propensities, strict=True)
        )
        return Slate(videos, personal, len(candidates))

    def requests(self, user: UserHistory, request: RequestContext, statistics: VideoStatistics) -> Requests:
        """One request as the sources see it, from what lies before it."""
        specs = self.encoder.retrieval_features
        arrays = self.encoder.encode_retrieval(request_columns(user, request, [spec.name for spec in specs]))
        at = to_microseconds(request.at)
        return Requests(
            at=np.array([at]),
            history=arrays["history"],
            popularity=self._popular_on(statistics, utc_day(at)),
            queries=self.query_tower(arrays)["embedding"],
            personal=has_a_past(arrays, specs),
        )

    def _popular_on(self, statistics: VideoStatistics, begins_at: int) -> Popularity:
        """The popularity of a day, kept until another is asked for: it is the same for every request of the day."""
        kept = self._popularity
        if kept is None or kept[0] is not statistics or kept[1] != begins_at:
            watches = np.zeros(len(self.corpus))
            rows = self.corpus.rows(_ids(statistics.rows, self.corpus))
            counts = np.array([day.completed_watches for day in statistics.rows.values()], np.float64)
            watches[rows[rows >= 0]] = counts[rows >= 0]
            popularity = Popularity(self.corpus, watches, statistics.covered_days, begins_at)
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
        statistics = statistics if statistics is not None else self.statistics
        nominated = nominated_inputs(self.encoder)
        columns = evaluate_request(
            features_named(
                [
                    spec.name
                    for spec in self.encoder.ranking_features
                    if spec.name not in nominated and not spec.training_only
                ]
            ),
            user,
            request,
            [self.videos.facts(video_id) for video_id in video_ids],
            statistics,
        )
        if nominated:
            columns |= self.nominations(user, request, video_ids, statistics)
        return self.ranker(self.encoder.encode_ranking(columns))["expected_watch_time_s"].astype(np.float64)

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
        return nominations(self.sources, self.bundle.recommend["sources"], asked, of, rows, self.corpus.known)

    def embed(self, user: UserHistory, request: RequestContext) -> npt.NDArray[np.float32]:
        """The query embedding of a user at a request, float32 [1, D]."""
        names = [spec.name for spec in self.encoder.retrieval_features]
        return self.query_tower(self.encoder.encode_retrieval(request_columns(user, request, names)))[
            "embedding"
        ]


class VideoTable:
    """Facts of videos by id, kept as columns and turned into objects when asked for.

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
        self._table = pa.table({name: columns[name].combine_chunks() for name in known})
        self._place = {video_id: place for place, video_id in enumerate(columns["video_id"].to_pylist())}
        self._facts: dict[Id, VideoFacts] = {}

    def __len__(self) -> int:
        return len(self._place)

    def facts(self, video_id: Id) -> VideoFacts:
        """The facts of a video; all absent for one that the bundle does not know."""
        facts = self._facts.get(video_id)
        if facts is None:
            place = self._place.get(video_id)
            if place is None:
                return VideoFacts(video_id)
            values: Mapping[str, Any] = self._table.slice(place, 1).to_pylist()[0]
            facts = self._facts[video_id] = VideoFacts(**values)
        return facts


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
