"""Where candidates come from: the query tower, and sources beside it that need no gradient.

Every source answers by one interface, `Retriever`, for many requests at once and, with the same code, for a single one:
what is measured offline is what is served. A source knows of a request the last completed watches, the instant,
and how popular videos were over the complete days before: nothing at or after the request.

    tower       the largest dot products of query and candidate embedding
    co_watched  what others completed who completed the user's last videos
    popular     most completed watches per day of the last 7 days on which the video was there
    channels    the popular videos of the channels that the user watches most
    fresh       the newest uploads

`MostPopular` is the baseline that a retrieval model has to beat.
"""

import datetime
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchnext.errors import InputError
from watchnext.features.batches import Encoder, FeatureSpec, Vocabulary

TOWER = "tower"
SOURCES = (TOWER, "co_watched", "popular", "channels", "fresh")
"""Names of all sources, in the order in which they fill a blend."""

CO_WATCH_LENGTH = 20
"""How many of the last completed watches `co_watched` looks at."""

FRESH_DAYS = 7.0
"""How long after its upload a video counts as fresh."""

_PRIOR_DAYS = 1.0
_DAY_US = 86_400_000_000
_ALWAYS = np.iinfo(np.int64).min
_NEVER = np.iinfo(np.int64).max

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]
Search = Callable[[npt.NDArray[np.float32], int], tuple[Ints, Floats]]
"""(queries [B, D], k) -> rows [B, <= k] of the candidate embeddings (-1: none) and scores, as `Searcher.search`."""


class Corpus:
    """Every video that can be a candidate, by its row: first the vocabulary in its order, then the others by id.

    Attributes:
        video_ids: [num_videos].
        known: V, the videos of the vocabulary; row r < V is vocabulary index r + 1.
        ids: looks them up; row r is its index r + 1.
        channels: int32 [num_videos], a number per channel; -1: none.
        uploaded: int64 [num_videos] microseconds; the smallest integer where unknown, the largest of what was taken down.
    """

    def __init__(self, vocabulary: Vocabulary, videos: pa.Table, taken_down: pa.Array | None = None) -> None:
        """A corpus of what was uploaded and, but for `taken_down`, still is there.

        `videos` is the table of that name: video_id and, where the logs have them, channel_id, uploaded_at.
        """
        ids = videos["video_id"].combine_chunks().cast(vocabulary.tokens.type)
        others = ids.filter(pa.array(vocabulary.lookup(ids) == 0))
        self.video_ids = pa.concat_arrays([vocabulary.tokens, others.sort()])
        self.known = len(vocabulary)
        self.ids = Vocabulary("video", self.video_ids, np.zeros(len(self.video_ids), np.int64))
        rows = self.rows(ids)
        self.channels = np.full(len(self), -1, np.int32)
        self.uploaded = np.full(len(self), _ALWAYS, np.int64)
        if "channel_id" in videos.column_names:
            codes = videos["channel_id"].combine_chunks().dictionary_encode().indices
            self.channels[rows] = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
        if "uploaded_at" in videos.column_names:
            at = videos["uploaded_at"].combine_chunks().cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
            self.uploaded[rows] = pc.fill_null(at, _ALWAYS).to_numpy(zero_copy_only=False)
        if taken_down is not None:
            gone = self.rows(taken_down)
            # No request is as late as this, so no source ever names them.
            self.uploaded[gone[gone >= 0]] = _NEVER

    def __len__(self) -> int:
        return len(self.video_ids)

    def rows(self, video_ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.int64]:
        """[N] ids -> int64 [N] rows; -1 for a video that is not in the corpus."""
        return self.ids.lookup(video_ids).astype(np.int64) - 1

    def rows_of(self, video_ids: Iterable[Any]) -> npt.NDArray[np.int64]:
        """`rows` of a few ids of whatever type, ascending and each once; without those that are not in the corpus."""
        rows = {self.ids.index_of(one) - 1 for one in video_ids}
        return np.array(sorted(rows - {-1}), np.int64)

    def ids_of(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        """[N] rows -> their ids; of numbers without asking Arrow, which takes many times as long for a few rows."""
        if pa.types.is_integer(self.video_ids.type):
            return pa.array(self.video_ids.to_numpy()[rows])
        return self.video_ids.take(pa.array(rows))

    @cached_property
    def row_to_video(self) -> list[Any]:
        """Row -> id, [num_videos]."""
        return self.video_ids.to_pylist()


def read_videos(directory: Path) -> pa.Table:
    """The table `videos` of the features, or of a bundle.

    Raises:
        InputError: there is none.
    """
    parts = sorted(directory.glob("part-*.parquet"))
    if not parts:
        raise InputError(
            "there is no table of videos here", where=str(directory), remedy="run the stage featurize"
        )
    return pa.concat_tables([pq.read_table(part) for part in parts])


class Popularity:
    """How popular every video is on one day, as of the beginning of that day.

    rate = (completed watches + prior) / (days there + 1), where a video was there for as many of the covered days as
    lie after its upload, and the prior is the mean rate of all videos, as if each had had one average day more. A video
    of yesterday so needs no week to be as popular as an old one, and one watch makes none popular.

    Args:
        corpus: the videos.
        completed_watches: [num_videos] over the covered days.
        covered_days: complete days that they cover, at most 7.
        begins_at: microseconds; the beginning of the day.
    """

    def __init__(
        self, corpus: Corpus, completed_watches: npt.ArrayLike, covered_days: int, begins_at: int
    ) -> None:
        watches = np.asarray(completed_watches, np.float64)
        self._channels = corpus.channels
        self._uploaded = corpus.uploaded
        there = np.clip((begins_at - corpus.uploaded.astype(np.float64)) / _DAY_US, 0.0, covered_days)
        total = float(there.sum())
        prior = watches.sum() / total if total > 0 else 0.0
        self.rate = (watches + _PRIOR_DAYS * prior) / (there + _PRIOR_DAYS)
        self.begins_at = begins_at
        watched = np.flatnonzero((watches > 0) & (corpus.uploaded < begins_at))
        self.order = watched[np.argsort(-self.rate[watched], kind="stable")]

    @classmethod
    def of_day(cls, corpus: Corpus, statistics: pa.Table, begins_at: int) -> "Popularity":
        """From the rows of one day of the table `video_statistics`."""
        watches = np.zeros(len(corpus))
        rows = corpus.rows(statistics["video_id"])
        counts = statistics["completed_watches"].to_numpy()
        watches[rows[rows >= 0]] = counts[rows >= 0]
        return cls(corpus, watches, int(pc.max(statistics["covered_days"]).as_py() or 0), begins_at)

    @cached_property
    def newest(self) -> npt.NDArray[np.int64]:
        """Rows of the videos that are fresh on that day, the newest first."""
        since = self.begins_at - int(FRESH_DAYS * _DAY_US)
        fresh = np.flatnonzero((self._uploaded > since) & (self._uploaded < self.begins_at + 2 * _DAY_US))
        return fresh[np.argsort(-self._uploaded[fresh], kind="stable")]

    @cached_property
    def newest_ages(self) -> npt.NDArray[np.int64]:
        """Minus the upload of each of `newest`, ascending: not to be made for every request."""
        return -self._uploaded[self.newest]

    @cached_property
    def channel_rate(self) -> npt.NDArray[np.float64]:
        """[num_channels] sum of the rates of a channel's videos."""
        inside = self._channels >= 0
        return np.bincount(self._channels[inside], self.rate[inside]).astype(np.float64)

    @cached_property
    def channel_rate_or_one(self) -> npt.NDArray[np.float64]:
        """[num_channels + 1] `channel_rate`, and 1 in the last place, where channel -1 looks."""
        return np.append(self.channel_rate, 1.0)

    @cached_property
    def channel_order(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Watched videos by channel, within it the most popular first, and where each channel begins, [C + 1]."""
        ordered = self.order[np.argsort(self._channels[self.order], kind="stable")]
        begins = np.searchsorted(self._channels[ordered], np.arange(len(self.channel_rate) + 1))
        return ordered, begins


@dataclass(frozen=True)
class Requests:
    """What sources know of B requests of one day.

    Attributes:
        at: int64 [B] microseconds.
        history: int32 [B, any] vocabulary indices of the last completed watches, oldest first; 0 = none, at the end.
        popularity: of the day.
        queries: float32 [B, D] query embeddings; None where no tower is asked.
        personal: bool [B], whether anything is known of what the user did; the tower answers nobody else. None: all.
        kept: what a source has found out of a request that is alone, and needs again, by source.
    """

    at: npt.NDArray[np.int64]
    history: npt.NDArray[np.int32]
    popularity: Popularity
    queries: npt.NDArray[np.float32] | None = None
    personal: npt.NDArray[np.bool_] | None = None
    kept: dict["Retriever", Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.at)


def requests_by_day(
    corpus: Corpus,
    statistics: pa.Table,
    at: Ints,
    arrays: Mapping[str, npt.NDArray[Any]],
    features: Sequence[FeatureSpec],
    queries: npt.NDArray[np.float32] | None,
) -> Iterator[tuple[npt.NDArray[np.int64], Requests]]:
    """Encoded requests that one day's statistics belong to, cut where the day of UTC changes, as serving cuts them.

    Args:
        corpus: the videos.
        statistics: rows of `video_statistics` of the requests' local day.
        at: int64 [N] microseconds.
        arrays: what `Encoder.encode_retrieval` makes of them.
        features: specs of these inputs.
        queries: float32 [N, D], or None.

    Yields:
        which requests, int64 [B], and they themselves.
    """
    personal = has_a_past(arrays, features)
    at = np.asarray(at, np.int64)
    begins = utc_day(at)
    for begin in np.unique(begins):
        some = np.flatnonzero(begins == begin)
        yield (
            some,
            Requests(
                at=at[some].astype(np.int64),
                history=arrays["history"][some],
                popularity=Popularity.of_day(corpus, statistics, int(begin)),
                queries=None if queries is None else queries[some],
                personal=personal[some],
            ),
        )


def utc_day(at: Any) -> Any:
    """The beginning of the day of UTC, in microseconds as `at` is."""
    return at - at % _DAY_US


def has_a_past(
    arrays: Mapping[str, npt.NDArray[Any]], features: Sequence[FeatureSpec]
) -> npt.NDArray[np.bool_]:
    """bool [N]: which encoded requests hold anything that the user did, in any of the bags."""
    bags = [arrays[spec.name].any(axis=1) for spec in features if spec.kind == "multivalent"]
    return np.logical_or.reduce(bags)


class Retriever(Protocol):
    """Something that names candidates for requests. Answering changes nothing, so threads may share one."""

    name: str

    def retrieve(
        self, requests: Requests, k: int, excluded: Sequence[Collection[int]] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The best candidates of each request, best first.

        Args:
            requests: [B].
            k: how many; fewer come back where the source knows no more.
            excluded: per request the rows of the corpus that must not come back.

        Returns:
            rows int64 [B, k] of the corpus, each at most once, -1 where there is none, and scores float32 [B, k], never
            rising (but where an approximate index was asked for many, see `index.search.Searcher`), -inf there. Equal
            questions get equal answers, and the first of them do not depend on `k`.
        """
        ...

    def score(self, requests: Requests, of: Ints, rows: Ints) -> npt.NDArray[np.float32]:
        """What the source thinks of given videos, whether it would name them or not.

        Args:
            requests: [B].
            of: [N] which request.
            rows: [N] which row of the corpus; -1 for a video that is not in it.

        Returns:
            float32 [N]; NaN where the source has no opinion.
        """
        ...


class PerRequest:
    """A source that is asked request by request: `candidates` names rows and scores, best first, for one of them."""

    name: str

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def candidates(self, requests: Requests, number: int, k: int) -> tuple[Ints, Floats]:
        """At least the `k` best candidates of request `number`, if there are so many, best first."""
        raise NotImplementedError

    def retrieve(
        self, requests: Requests, k: int, excluded: Sequence[Collection[int]] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """See `Retriever.retrieve`."""
        rows = np.full((len(requests), k), -1, np.int64)
        scores = np.full((len(requests), k), -np.inf, np.float32)
        for number in range(len(requests)):
            banned = excluded[number] if excluded is not None else ()
            found, values = self.candidates(requests, number, k + len(banned))
            keep = (self.corpus.uploaded[found] < requests.at[number]) & _allowed(found, banned)
            found, values = found[keep], values[keep]
            size = min(k, len(found))
            rows[number, :size], scores[number, :size] = found[:size], values[:size]
        return rows, scores


class CoWatched(PerRequest):
    """What others completed who completed the user's last CO_WATCH_LENGTH distinct videos.

    score(j) = sum over these videos i of similarity(i, j), with similarity(i, j) = c_ij / (sqrt(c_i c_j) + shrinkage),
    c_ij the users who completed both and c_i those who completed i: the cosine of the columns of the matrix of users
    and videos, less for pairs that few have in common.

    Args:
        corpus: the videos.
        neighbours: int32 [V, N] rows of the most similar videos of each video of the vocabulary, best first; -1: none.
        similarities: float32 [V, N]; 0: none.
    """

    name = "co_watched"

    def __init__(
        self, corpus: Corpus, neighbours: npt.NDArray[np.int32], similarities: npt.NDArray[np.float32]
    ) -> None:
        super().__init__(corpus)
        self.neighbours = neighbours
        self.similarities = similarities

    def candidates(self, requests: Requests, number: int, k: int) -> tuple[Ints, Floats]:
        """See `PerRequest.candidates`."""
        found, scores = summed = self._summed(requests.history[number])
        if len(requests) == 1:
            requests.kept[self] = summed
        some = (found >= 0) & (scores > 0) & (self.corpus.uploaded[found] < requests.at[number])
        found, scores = found[some], scores[some]
        if 0 < k < len(scores):
            # Those that are as good as the last of the best k are sorted, not all.
            best = scores >= np.partition(scores, -k)[-k]
            found, scores = found[best], scores[best]
        order = np.argsort(-scores, kind="stable")
        return found[order], scores[order]

    def score(self, requests: Requests, of: Ints, rows: Ints) -> npt.NDArray[np.float32]:
        """See `Retriever.score`: 0 for a video with nothing in common; NaN without watches, or for an unknown video."""
        size = len(self.neighbours)
        if len(requests) == 1:
            # Serving never needs the table of all pairs, which takes more memory than the rest of a large corpus.
            found, values = requests.kept.get(self) or self._summed(requests.history[0])
            at = np.minimum(np.searchsorted(found, rows), len(found) - 1)
            summed = np.where(found[at] == rows, values[at], 0.0)
            nobody = not (requests.history[0] > 0).any()
            return np.where(nobody | (rows < 0) | (rows >= size), np.nan, summed).astype(np.float32)
        last = np.full((len(requests), CO_WATCH_LENGTH), -1, np.int64)
        for number, history in enumerate(requests.history):
            distinct = _last_distinct(history)
            last[number, : len(distinct)] = distinct
        scores = np.zeros(len(rows))
        for place in range(CO_WATCH_LENGTH):
            watched = last[of, place]
            some = np.flatnonzero((watched >= 0) & (rows >= 0))
            if len(some) == 0:
                break
            key = watched[some] * size + rows[some]
            found = np.minimum(np.searchsorted(self._pairs[0], key), len(self._pairs[0]) - 1)
            scores[some] += np.where(self._pairs[0][found] == key, self._pairs[1][found], 0.0)
        unknown = (rows < 0) | (rows >= size) | (last[of, 0] < 0)
        return np.where(unknown, np.nan, scores).astype(np.float32)

    def _summed(self, history: npt.NDArray[np.int32]) -> tuple[Ints, Floats]:
        """Rows that are similar to any of a history's last videos, ascending, and their scores; of -1 the score is 0."""
        last = _last_distinct(history)
        found, place = np.unique(np.append(self.neighbours[last].ravel(), -1), return_inverse=True)
        values = np.append(self.similarities[last].ravel(), 0.0)
        return found, np.bincount(place.ravel(), values, len(found)).astype(np.float64)

    @cached_property
    def _pairs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Pairs as row * V + neighbour, ascending, and their similarities; never empty."""
        size = len(self.neighbours)
        keys = np.arange(size)[:, None] * size + self.neighbours
        some = self.neighbours >= 0
        flat, values = np.append(keys[some], -1), np.append(self.similarities[some], np.float32(0.0))
        order = np.argsort(flat, kind="stable")
        return flat[order], values[order]

    @classmethod
    def load(cls, corpus: Corpus, directory: Path) -> "CoWatched":
        """Read `neighbours.npy` and `similarities.npy`.

        Raises:
            InputError: they are not of this vocabulary.
        """
        parts = [
            np.load(directory / f"{name}.npy", allow_pickle=False) for name in ("neighbours", "similarities")
        ]
        if parts[0].shape != parts[1].shape or len(parts[0]) != corpus.known:
            raise InputError(
                f"the co-watch table has {parts[0].shape} neighbours and {parts[1].shape} similarities"
                f" for a vocabulary of {corpus.known} videos",
                where=str(directory),
                remedy="run `dvc repro`, which makes them fit",
            )
        return cls(corpus, *parts)

    def save(self, directory: Path) -> None:
        """Write what `load` reads."""
        directory.mkdir(parents=True, exist_ok=True)
        np.save(directory / "neighbours.npy", self.neighbours)
        np.save(directory / "similarities.npy", self.similarities)


def fit_co_watched(
    corpus: Corpus,
    users: Ints,
    rows: Ints,
    *,
    neighbours: int = 100,
    watches_per_user: int = 200,
    shrinkage: float = 5.0,
) -> CoWatched:
    """Count which videos the same users completed.

    Args:
        corpus: the videos.
        users: [num_watches] a number per user.
        rows: [num_watches] row of the completed video, in the order of the watches; rows beyond the vocabulary and -1
            are left out.
        neighbours: N, how many similar videos are kept per video.
        watches_per_user: how many of a user's last watches count, so that no user makes millions of pairs.
        shrinkage: see CoWatched.
    """
    import scipy.sparse as sp  # serving never fits, and need not wait for it

    inside = (rows >= 0) & (rows < corpus.known)
    users, rows = np.asarray(users)[inside].astype(np.int64), np.asarray(rows)[inside].astype(np.int64)
    order = np.argsort(users, kind="stable")
    users, rows = users[order], rows[order]
    ends = np.searchsorted(users, users, side="right")
    last = ends - np.arange(len(users)) <= watches_per_user
    seen = sp.csr_matrix(
        (np.ones(int(last.sum()), np.float32), (users[last], rows[last])),
        shape=(int(users.max(initial=-1)) + 1, corpus.known),
    )
    seen.sum_duplicates()
    seen.data[:] = 1.0
    by_video = seen.T.tocsr()
    count = np.diff(by_video.indptr).astype(np.float64)
    near = np.full((corpus.known, neighbours), -1, np.int32)
    similar = np.zeros((corpus.known, neighbours), np.float32)
    step = 1024
    for begin in range(0, corpus.known, step):
        both = (by_video[begin : begin + step] @ seen).tocsr()
        for offset in range(both.shape[0]):
            part = slice(both.indptr[offset], both.indptr[offset + 1])
            video, others, common = begin + offset, both.indices[part], both.data[part].astype(np.float64)
            value = common / (np.sqrt(count[video] * count[others]) + shrinkage)
            value[others == video] = 0.0
            best = np.lexsort((others, -value))[:neighbours]
            best = best[value[best] > 0]
            near[video, : len(best)], similar[video, : len(best)] = others[best], value[best]
    return CoWatched(corpus, near, similar)


class Popular(PerRequest):
    """The videos with the highest `Popularity.rate` among those that anybody completed in the days it covers."""

    name = "popular"

    def candidates(self, requests: Requests, number: int, k: int) -> tuple[Ints, Floats]:
        """See `PerRequest.candidates`."""
        del number
        best = requests.popularity.order[:k]
        return best, requests.popularity.rate[best]

    def score(self, requests: Requests, of: Ints, rows: Ints) -> npt.NDArray[np.float32]:
        """See `Retriever.score`: the rate; NaN for a video that is not in the corpus or not uploaded yet."""
        return np.where(
            _there(self.corpus, requests, of, rows), requests.popularity.rate[rows], np.nan
        ).astype(np.float32)


class Fresh(PerRequest):
    """The newest uploads, at most FRESH_DAYS old. Score: 1 for a video of this instant, 0 at that age."""

    name = "fresh"

    def candidates(self, requests: Requests, number: int, k: int) -> tuple[Ints, Floats]:
        """See `PerRequest.candidates`."""
        newest = requests.popularity.newest
        first = int(np.searchsorted(requests.popularity.newest_ages, -requests.at[number], side="right"))
        found = newest[first : first + k]
        freshness = self._freshness(requests.at[number], found)
        return found[freshness > 0], freshness[freshness > 0]

    def score(self, requests: Requests, of: Ints, rows: Ints) -> npt.NDArray[np.float32]:
        """See `Retriever.score`: NaN for a video that is not in the corpus, not uploaded yet, or not fresh."""
        value = self._freshness(requests.at[of], rows)
        there = _there(self.corpus, requests, of, rows) & (value > 0)
        return np.where(there, value, np.nan).astype(np.float32)

    def _freshness(self, at: Any, rows: Ints) -> npt.NDArray[np.float64]:
        age_days = (at - self.corpus.uploaded[rows].astype(np.float64)) / _DAY_US
        return 1.0 - age_days / FRESH_DAYS


class Channels(PerRequest):
    """Popular videos of the channels that the user's last completed watches are of.

    score = share of these watches that are of the video's channel, times the video's share of the rate of its channel:
    how likely the next watch is this one if it goes to channels as the last ones did.
    """

    name = "channels"

    def candidates(self, requests: Requests, number: int, k: int) -> tuple[Ints, Floats]:
        """See `PerRequest.candidates`."""
        popularity = requests.popularity
        ordered, begins = popularity.channel_order
        channels, share = shares = self._shares(requests.history[number])
        if len(requests) == 1:
            requests.kept[self] = shares
        # Of one channel none but its first k can be among the best k.
        parts = [ordered[begins[one] : begins[one + 1]][:k] for one in channels]
        sizes = [len(part) for part in parts]
        found = np.concatenate([*parts, np.empty(0, np.int64)])
        scores = (
            np.repeat(share, sizes)
            * popularity.rate[found]
            / np.repeat(popularity.channel_rate[channels], sizes)
        )
        order = np.lexsort((found, -scores))
        return found[order], scores[order]

    def score(self, requests: Requests, of: Ints, rows: Ints) -> npt.NDArray[np.float32]:
        """See `Retriever.score`: 0 for another channel; NaN for a video without one, and for users without watches."""
        popularity = requests.popularity
        channel = np.where(rows >= 0, self.corpus.channels[rows], -1)
        share = self._share_of(requests, of, channel)
        total = popularity.channel_rate_or_one[channel]
        there = _there(self.corpus, requests, of, rows) & (channel >= 0) & ~np.isnan(share)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.where(share > 0, share * popularity.rate[rows] / total, 0.0)
        return np.where(there, np.nan_to_num(value), np.nan).astype(np.float32)

    def _share_of(self, requests: Requests, of: Ints, channel: Ints) -> npt.NDArray[np.float64]:
        """[N] share of the watches of the requests `of` that are of these channels, -1: none; NaN without watches."""
        if len(requests) == 1:
            found, shares = requests.kept.get(self) or self._shares(requests.history[0])
            if len(found) == 0:
                return np.full(len(channel), np.nan)
            ascending = np.argsort(found)
            place = ascending[np.minimum(found[ascending].searchsorted(channel), len(found) - 1)]
            return np.where(found[place] == channel, shares[place], 0.0)
        # The channels of all requests' watches at once, as sorted keys: one by one they would take most of the time.
        base = len(requests.popularity.channel_rate) + 1
        number, place = np.nonzero(requests.history > 0)
        watched = self.corpus.channels[requests.history[number, place] - 1]
        number, watched = number[watched >= 0], watched[watched >= 0]
        keys, count = np.unique(number * base + watched, return_counts=True)
        total_watches = np.bincount(number, minlength=len(requests))
        shares = np.append(count / total_watches[keys // base], 0.0)
        keys = np.append(keys, np.iinfo(np.int64).max)
        wanted = np.asarray(of, np.int64) * base + channel
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        share = np.where((keys[place] == wanted) & (channel >= 0), shares[place], 0.0)
        return np.where(total_watches[of] > 0, share, np.nan)

    def _shares(self, history: npt.NDArray[np.int32]) -> tuple[Ints, Floats]:
        """The channels of a history, the most watched first, and their shares of its watches that have a channel."""
        channels = self.corpus.channels[history[history > 0] - 1]
        found, count = np.unique(channels[channels >= 0], return_counts=True)
        order = np.argsort(-count, kind="stable")
        return found[order], count[order] / max(1, count.sum())


class Tower:
    """Candidates by the query tower: the largest dot products of query and candidate embedding.

    Args:
        corpus: the videos.
        search: finds rows of the candidate embeddings.
        embeddings: float32 [num_rows, D].
        rows: [num_rows] row of the corpus of each of them; None: they are the vocabulary's, in its order.
        seen: bool [num_rows], the candidates that the model was trained with; the others have no score. None: all.
        added: rows of the corpus, int64 [A], and embeddings, float32 [A, D], of videos that `search` does not know. Each is
            scored for each request: they are few.
    """

    name = TOWER

    def __init__(
        self,
        corpus: Corpus,
        search: Search,
        embeddings: npt.NDArray[np.float32],
        rows: Ints | None = None,
        seen: npt.NDArray[np.bool_] | None = None,
        added: tuple[Ints, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        self.corpus = corpus
        self._search = search
        if added is None:
            added = np.empty(0, np.int64), np.empty((0, embeddings.shape[1]), np.float32)
        self._added_rows, self._added = added
        self._embeddings = np.asarray(
            embeddings
        )  # rows of a memory map are made as maps of their own, each at a price
        self._rows = np.arange(len(embeddings)) if rows is None else np.asarray(rows)
        self._seen = np.ones(len(embeddings), bool) if seen is None else seen
        self._place = np.full(len(corpus) + 1, -1, np.int64)  # the last place is where row -1 looks
        self._place[self._rows] = np.where(self._seen, np.arange(len(embeddings)), -1)
        self._place[self._added_rows] = len(embeddings) + np.arange(len(self._added_rows))
        self._place[-1] = -1
        self._unseen = int((~self._seen).sum())
        self._uploads = np.sort(corpus.uploaded[self._rows])

    def retrieve(
        self, requests: Requests, k: int, excluded: Sequence[Collection[int]] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """See `Retriever.retrieve`."""
        rows = np.full((len(requests), k), -1, np.int64)
        scores = np.full((len(requests), k), -np.inf, np.float32)
        asked = np.arange(len(requests))
        if requests.personal is not None:
            asked = asked[requests.personal]
        if requests.queries is None or len(asked) == 0 or k == 0:
            return rows, scores
        banned = [excluded[int(number)] if excluded is not None else () for number in asked]
        most = max(map(len, banned))
        later = len(self._uploads) - int(np.searchsorted(self._uploads, requests.at[asked].min()))
        many = min(len(self._embeddings), k + most + self._unseen + later)
        found, values = self._search(requests.queries[asked], many)
        # An approximate index may find fewer than asked, and fills up with rows that do not exist.
        valid = (found >= 0) & (found < len(self._rows)) & np.isfinite(values)
        place = np.where(valid, found, 0)
        corpus_rows = self._rows[place]
        valid &= corpus_rows >= 0
        if self._unseen:
            valid &= self._seen[place]
        if len(self._added):
            queries = requests.queries[asked]
            values = np.concatenate([np.where(valid, values, -np.inf), queries @ self._added.T], axis=1)
            corpus_rows = np.concatenate([corpus_rows, np.tile(self._added_rows, (len(asked), 1))], axis=1)
            order = np.argsort(-values, axis=1, kind="stable")
            values = np.take_along_axis(values, order, axis=1)
            corpus_rows = np.take_along_axis(corpus_rows, order, axis=1)
            valid = np.isfinite(values)
        valid &= self.corpus.uploaded[corpus_rows] < requests.at[asked, None]
        for offset, number in enumerate(asked):
            keep = valid[offset] & _allowed(corpus_rows[offset], banned[offset])
            best = np.flatnonzero(keep)[:k]
            rows[number, : len(best)] = corpus_rows[offset, best]
            scores[number, : len(best)] = values[offset, best]
        return rows, scores

    def score(self, requests: Requests, of: Ints, rows: Ints) -> npt.NDArray[np.float32]:
        """See `Retriever.score`: the dot product; NaN for a video without embedding, and for users without a past."""
        place = self._place[rows]
        known = place >= 0
        if requests.personal is not None:
            known &= requests.personal[of]
        scores = np.full(len(rows), np.nan, np.float32)
        if requests.queries is not None and known.any():
            place = place[known]
            beside = place >= len(self._embeddings)
            candidates = self._embeddings[np.where(beside, 0, place)]
            candidates[beside] = self._added[place[beside] - len(self._embeddings)]
            scores[known] = np.einsum("nd,nd->n", requests.queries[of[known]], candidates, optimize=False)
        return scores


def read_corpus(encoder: Encoder, features: Path) -> Corpus:
    """The corpus of the vocabulary of an encoder and the table `videos` in a folder of features."""
    return Corpus(
        encoder.vocabularies["video"],
        _read_table(features / "videos", ["video_id", "channel_id", "uploaded_at"]),
    )


def load_sources(corpus: Corpus, tower: Tower, tables: Path) -> dict[str, Retriever]:
    """Every source by its name, in the order of SOURCES.

    Args:
        corpus: the videos.
        tower: the query tower's.
        tables: what the stage nominate writes as `tables/`, or a bundle's `sources/`; a bundle of format 1 has none, and
            no co-watched videos then.
    """
    found: dict[str, Retriever] = {TOWER: tower}
    if (tables / "co_watched").is_dir():
        found["co_watched"] = CoWatched.load(corpus, tables / "co_watched")
    return found | {one.name: one for one in (Popular(corpus), Channels(corpus), Fresh(corpus))}


@dataclass(frozen=True)
class CompletedWatches:
    """Completed watches in the order in which they ended, those from before the logs first.

    Attributes:
        user_ids: [num_users] user number -> id.
        users: int64 [num_watches] user numbers.
        rows: int64 [num_watches] rows of the corpus; -1: not in it.
        began: int64 [num_watches] microseconds; the smallest integer for those from before the logs.
        ended: int64 [num_watches] microseconds: when it was known that the watch was completed.
    """

    user_ids: pa.Array
    users: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    began: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int64]

    @classmethod
    def read(cls, tables: Path, corpus: Corpus) -> "CompletedWatches":
        """Read them from the validated tables.

        Raises:
            InputError: there is no table `watches`.
        """
        columns = ["user_id", "video_id", "watched_at", "watch_time_s", "completed"]
        watches = _read_table(tables / "watches", columns)
        watches = watches.filter(watches["completed"])
        began = watches["watched_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
        lasted_s = pc.fill_null(watches["watch_time_s"], 0.0).to_numpy()
        ended = began + np.floor(lasted_s * 1_000_000.0 + 0.5).astype(np.int64)
        order = np.argsort(ended, kind="stable")
        parts = [watches.select(["user_id", "video_id"]).take(order)]
        began, ended = began[order], ended[order]
        if any((tables / "history").glob("part-*.parquet")):
            earlier = _read_table(tables / "history", ["user_id", "video_id", "position", "completed"])
            earlier = earlier.sort_by("position")
            if "completed" in earlier.column_names:
                earlier = earlier.filter(earlier["completed"])
            parts.insert(0, earlier.select(["user_id", "video_id"]))
            before = np.full(earlier.num_rows, _ALWAYS)
            began, ended = np.concatenate([before, began]), np.concatenate([before, ended])
        both = pa.concat_tables(parts, promote_options="permissive")
        users = both["user_id"].combine_chunks().dictionary_encode()
        users = users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users
        return cls(
            users.dictionary,
            users.indices.to_numpy().astype(np.int64),
            corpus.rows(both["video_id"]),
            began,
            ended,
        )

    def before(self, instant: int) -> "CompletedWatches":
        """Those that had ended before an instant, in microseconds."""
        known = self.ended < instant
        return CompletedWatches(
            self.user_ids, self.users[known], self.rows[known], self.began[known], self.ended[known]
        )


def _read_table(directory: Path, columns: Sequence[str]) -> pa.Table:
    parts = sorted(directory.glob("part-*.parquet"))
    if not parts:
        raise InputError("no table here", where=str(directory), remedy="run `dvc repro`, which makes it")
    present = [name for name in columns if name in pq.read_schema(parts[0]).names]
    return pa.concat_tables([pq.read_table(part, columns=present) for part in parts])


def blend(
    lists: Mapping[str, Sequence[int]], quotas: Mapping[str, int], wanted: int | None = None
) -> list[int]:
    """One list of candidates of several sources' lists.

    In the order of SOURCES, each source adds its best candidates that are not there yet until its quota is full. What is
    then still wanting, because a source had too few, is added by the sources in the same order, from where they stopped.

    Args:
        lists: source -> rows, best first, -1 = none.
        quotas: source -> how many of `wanted`; of another number than their sum, in proportion.
        wanted: how many in all; None: the sum of the quotas.

    >>> blend({"tower": [1, 2, 3, 4], "popular": [2, 9, 8]}, {"tower": 2, "popular": 1})
    [1, 2, 9]
    """
    names = [name for name in SOURCES if quotas.get(name, 0) > 0 and name in lists]
    total = sum(quotas[name] for name in names)
    wanted = total if wanted is None else wanted
    taken: dict[int, None] = {}
    left = {name: iter(lists[name]) for name in names}
    for share in ({name: quotas[name] * wanted // total for name in names}, None):
        for name in names:
            room = wanted - len(taken) if share is None else min(share[name], wanted - len(taken))
            if room <= 0:
                continue
            for row in left[name]:
                if row >= 0 and row not in taken:
                    taken[row] = None
                    room -= 1
                    if room == 0:
                        break
    return list(taken)


def _last_distinct(history: npt.NDArray[np.int32]) -> Ints:
    """Rows of the last CO_WATCH_LENGTH distinct videos of a history, ascending."""
    watched = history[history > 0][::-1]
    _, first = np.unique(watched, return_index=True)
    return np.sort(watched[np.sort(first)[:CO_WATCH_LENGTH]]).astype(np.int64) - 1


def _allowed(rows: Ints, banned: Collection[int]) -> npt.NDArray[np.bool_]:
    if not banned:
        return np.ones(len(rows), bool)
    return ~np.isin(rows, np.fromiter(banned, np.int64, len(banned)))


def _there(corpus: Corpus, requests: Requests, of: Ints, rows: Ints) -> npt.NDArray[np.bool_]:
    """Which videos are in the corpus and were uploaded before the request."""
    return (rows >= 0) & (corpus.uploaded[rows] < requests.at[of])


class MostPopular:
    """Videos by completed watches over the complete days before a day; the same list for everybody.

    Args:
        video_ids: [num_ranked] ids, integers or strings, the most popular first.
    """

    def __init__(self, video_ids: pa.Array) -> None:
        self.video_ids = video_ids

    @classmethod
    def from_statistics(cls, statistics: Path, day: datetime.date) -> "MostPopular":
        """Read the table `video_statistics` (its rows cover the 7 complete days before their `day`).

        The order is that of `by_popularity`.

        Args:
            statistics: directory of the table.
            day: the day to recommend on.

        Raises:
            InputError: there is no table, or it has no rows of that day.
        """
        parts = sorted(statistics.glob("part-*.parquet"))
        if not parts:
            raise InputError(
                "there are no video statistics", where=str(statistics), remedy="run the stage featurize"
            )
        table = pa.concat_tables([pq.read_table(part, filters=[("day", "=", day)]) for part in parts])
        ranked = by_popularity(table)
        if len(ranked) == 0:
            raise InputError(
                f"no video has an event in the days before {day}",
                where=str(statistics),
                remedy="the logs must cover the days before the day that is judged",
            )
        return cls(ranked)

    def recommend(self, k: int) -> pa.Array:
        """The first `k` video ids."""
        return self.video_ids.slice(0, k)

    def places(self, video_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """[N] ids -> int64 [N] places on the list from 1; 0 where a video is not on it or the id is null."""
        found = pc.index_in(video_ids, value_set=self.video_ids, skip_nulls=True)
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1


def by_popularity(statistics: pa.Table) -> pa.Array:
    """Ids of videos, the most popular first: what the baseline ranks by, and what a slate is filled up with.

    Of videos with as many completed watches the one with more impressions comes first, then the smaller id.
    Videos without any event are left out.

    Args:
        statistics: one row per video: video_id, completed_watches, impressions.
    """
    seen = statistics.filter(
        pc.or_(pc.greater(statistics["completed_watches"], 0), pc.greater(statistics["impressions"], 0))
    )
    ordered = seen.sort_by(
        [("completed_watches", "descending"), ("impressions", "descending"), ("video_id", "ascending")]
    )
    return ordered["video_id"].combine_chunks()
