"""From a bundle, a user's state and a request to a slate (paper, figure 2), without HTTP and without a registry.

history -> query tower -> candidates from the index -> what was watched is taken out
        -> ranking inputs, by the evaluators that the pipeline's own columns are held to
        -> ranker -> the slate, by expected watch time
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from watchnext.bundle import Bundle
from watchnext.console import quiet_native_logs
from watchnext.errors import InputError
from watchnext.features.batches import Encoder
from watchnext.features.history import Id, UserHistory
from watchnext.features.ranking_features import (
    RequestContext,
    VideoFacts,
    VideoStatistics,
    evaluate_request,
    features_named,
)
from watchnext.features.retrieval_examples import request_columns
from watchnext.index.search import Searcher
from watchnext.models.candidate_sources import by_popularity

CANDIDATES = 200
"""How many videos the ranker sees per request: "hundreds" (paper, section 2)."""

MAX_SLATE = 500

Model = Callable[[Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]
"""A SavedModel's signature: named arrays to named arrays."""

_SEARCH_AT_MOST = 4 * CANDIDATES


@dataclass(frozen=True)
class Recommendation:
    """One video of a slate.

    Attributes:
        video_id: which.
        expected_watch_time_s: the ranker's, and what the slate is sorted by.
        retrieval_score: dot product of query and candidate embedding; None for a video that came as popular.
    """

    video_id: Id
    expected_watch_time_s: float
    retrieval_score: float | None


@dataclass(frozen=True)
class Slate:
    """The answer to one request.

    Attributes:
        videos: falling expected watch time.
        personal: whether candidates came from the user's own past; otherwise they are what is popular.
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
    row_to_video: Sequence[Id] = field(repr=False)
    videos: "VideoTable" = field(repr=False)

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
            ranker = load_signature(str(bundle.ranker))
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
        return cls(
            bundle=bundle,
            encoder=encoder,
            statistics=VideoStatistics.from_table(_read(bundle.features / "video_statistics")),
            query_tower=query_tower,
            ranker=ranker,
            searcher=searcher,
            row_to_video=_read_rows(bundle.index / "rows.arrow"),
            videos=VideoTable(_read(bundle.features / "videos")),
        )

    def recommend(
        self,
        user: UserHistory | None,
        request: RequestContext,
        how_many: int = 20,
        exclude: Collection[Id] = (),
        statistics: VideoStatistics | None = None,
    ) -> Slate:
        """Answer one request.

        Args:
            user: what the user did; only what lies before `request.at` is looked at. None: nothing is known.
            request: who asks, when, where.
            how_many: length of the slate; fewer come back only where fewer videos exist.
            exclude: further videos not to show. What the user has watched is never shown.
            statistics: of the videos as of the day of the request; None for the bundle's latest day.

        Raises:
            InputError: `how_many` is not between 1 and MAX_SLATE.
        """
        if not 1 <= how_many <= MAX_SLATE:
            raise InputError(f"a slate has 1 to {MAX_SLATE} videos", where="how_many", offenders=[how_many])
        user = user if user is not None else UserHistory()
        statistics = statistics if statistics is not None else self.statistics
        excluded = set(exclude) | watched_videos(user, request)
        wanted = max(CANDIDATES, how_many)

        scores = self._retrieve(user, request, wanted, excluded)
        personal = bool(scores)
        if len(scores) < wanted:
            for video_id in popular_videos(statistics):
                if len(scores) >= wanted:
                    break
                if video_id not in excluded:
                    scores.setdefault(video_id, None)
        if len(scores) < how_many:
            # A corpus that nobody has watched for a week still has something to show.
            for video_id in self.row_to_video:
                if len(scores) >= how_many:
                    break
                if video_id not in excluded:
                    scores.setdefault(video_id, None)
        candidates = list(scores)
        if not candidates:
            return Slate((), personal, 0)
        expected = self.rank(user, request, candidates, statistics)
        order = np.argsort(-expected, kind="stable")[:how_many]
        videos = tuple(
            Recommendation(candidates[place], float(expected[place]), scores[candidates[place]])
            for place in order
        )
        return Slate(videos, personal, len(candidates))

    def rank(
        self,
        user: UserHistory,
        request: RequestContext,
        video_ids: Sequence[Id],
        statistics: VideoStatistics | None = None,
    ) -> npt.NDArray[np.float64]:
        """Expected watch time in seconds of each of `video_ids`, [N], for this user at this request."""
        columns = evaluate_request(
            features_named([spec.name for spec in self.encoder.ranking_features]),
            user,
            request,
            [self.videos.facts(video_id) for video_id in video_ids],
            statistics if statistics is not None else self.statistics,
        )
        arrays = self.encoder.encode_ranking(columns)
        inputs = {name: _repeated(array, len(video_ids)) for name, array in arrays.items()}
        return self.ranker(inputs)["expected_watch_time_s"].astype(np.float64)

    def embed(self, user: UserHistory, request: RequestContext) -> npt.NDArray[np.float32]:
        """The query embedding of a user at a request, float32 [1, D]."""
        names = [spec.name for spec in self.encoder.retrieval_features]
        return self.query_tower(self.encoder.encode_retrieval(request_columns(user, request, names)))[
            "embedding"
        ]

    def _retrieve(
        self, user: UserHistory, request: RequestContext, wanted: int, excluded: Collection[Id]
    ) -> dict[Id, float | None]:
        """Candidates by the query tower, best first, with their scores; none for a user without a past."""
        if not user.last_completed(1, request.at) and not user.last_search_tokens(1, request.at):
            return {}
        many = min(len(self.row_to_video), max(_SEARCH_AT_MOST, wanted), wanted + len(excluded))
        rows, scores = self.searcher.search(self.embed(user, request), many)
        found: dict[Id, float | None] = {}
        for row, score in zip(rows[0], scores[0], strict=True):
            # An approximate index may give fewer than asked, and fills up with rows that do not exist.
            if 0 <= row < len(self.row_to_video) and np.isfinite(score):
                video_id = self.row_to_video[row]
                if video_id not in excluded:
                    found[video_id] = float(score)
                    if len(found) == wanted:
                        break
        return found


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


def popular_videos(statistics: VideoStatistics) -> list[Id]:
    """Videos by their popularity over the days that `statistics` cover, in the order of the baseline."""
    if not statistics.rows:
        return []
    rows = statistics.rows.values()
    table = pa.table(
        {
            "video_id": list(statistics.rows),
            "completed_watches": [row.completed_watches for row in rows],
            "impressions": [row.impressions for row in rows],
        }
    )
    return by_popularity(table).to_pylist()


def _repeated(array: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    return np.repeat(array, rows, axis=0) if len(array) == 1 and rows > 1 else array


def _read(directory: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in sorted(directory.glob("part-*.parquet"))])


def _read_rows(path: Path) -> list[Id]:
    """Row of the index -> video id, [V]."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    return table["video_id"].to_pylist()
