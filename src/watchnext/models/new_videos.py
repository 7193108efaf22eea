"""Candidate embeddings for videos that training never saw completed: uploaded later, never watched, or cut off.

Their place follows from what is known of them at upload. A weighted ridge regression on the videos of the vocabulary
maps topics, language, duration and days since upload to candidate embeddings, and what it leaves unexplained is shared
by the videos of a channel. A video counts by its completed watches: the many that were watched once have embeddings
near where they began, and would pull every new video to where nothing is found.

A regression also draws towards the mean, so new videos would score too low, and videos that nobody completed in
all of training would score as if they were like those that somebody did. Each of the two groups therefore gets one
level, added to the scores of its videos: the maximum likelihood of the softmax over all candidates on the tuning day,
at which the probability that goes to a group is the share of watches that went to it. Groups neither flood nor
vanish. Since an index knows only dot products, a level is a step along the mean query.
"""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from watchnext.features.batches import Encoder
from watchnext.models.candidate_sources import Corpus

Floats = npt.NDArray[np.floating]

_DAY_US = 86_400_000_000
_AGE_KNOTS_DAYS = np.array([0, 0.5, 1, 2, 3, 5, 7, 10, 14, 18, 30, 90, 365], np.float64)
"""Days between upload and the end of training, linear in between: what is new is wanted otherwise than what is old."""
_MOST_TOPICS = 500
_MOST_LANGUAGES = 100
_ROWS_AT_ONCE = 65_536
_SCORES_AT_ONCE = 20_000_000
_LEVEL_DEVIATION = 5.0
"""Standard deviation of a level before anything is known; keeps that of a group nobody watched finite."""


@dataclasses.dataclass(frozen=True)
class Levels:
    """What is added to the scores of videos outside the vocabulary.

    Attributes:
        late: of videos uploaded after training.
        unwatched: of videos that were there in training, or whose upload is not known.
        late_share: of the tuning day's watches that went to late videos.
        unwatched_share: the same of unwatched ones.
    """

    late: float = 0.0
    unwatched: float = 0.0
    late_share: float = 0.0
    unwatched_share: float = 0.0


def embed_new_videos(
    embeddings: Floats,
    corpus: Corpus,
    encoder: Encoder,
    videos: pa.Table,
    *,
    shrinkage: float,
    events: tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None,
) -> tuple[npt.NDArray[np.float32], Levels, float]:
    """Candidate embeddings of the whole corpus: the trained ones, and after them those of all other videos.

    Args:
        embeddings: [V, D] as trained.
        corpus: the videos.
        encoder: of the training; says when it ended and how often each video was completed.
        videos: the table of that name.
        shrinkage: see `embed_from_facts`.
        events: of the tuning day, as in `fit_levels`: queries, instants, labels. None: both levels are 0.

    Returns:
        float32 [num_videos, D], the levels that are in it, and the variance that facts explain.
    """
    until_us = trained_until_us(encoder.manifest)
    frequency = encoder.vocabularies["video"].frequency
    predicted = embed_from_facts(embeddings, frequency, corpus, videos, until_us, shrinkage=shrinkage)
    explained = explained_variance(embeddings, predicted, frequency)
    predicted[: corpus.known] = embeddings
    if events is None:
        return predicted, Levels(), explained
    queries, at_us, labels = events
    levels = fit_levels(queries, at_us, labels, predicted, corpus, until_us)
    return (
        with_levels(predicted, levels, mean_query_step(queries), corpus, until_us),
        levels,
        explained,
    )


def trained_until_us(manifest: Mapping[str, Any]) -> int:
    """The end of training, exclusive, in microseconds, from the features' manifest."""
    until = datetime.datetime.fromisoformat(manifest["trained_until_at"])
    return (until - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def embed_from_facts(
    embeddings: Floats,
    frequency: npt.NDArray[np.int64],
    corpus: Corpus,
    videos: pa.Table,
    trained_until_us: int,
    *,
    shrinkage: float,
) -> npt.NDArray[np.float32]:
    """Embeddings of all videos of the corpus from their facts alone.

    Args:
        embeddings: [V, D] of the vocabulary.
        frequency: [V] completed watches of each in training.
        corpus: the videos; the first V are the vocabulary.
        videos: the table of that name; topics, language and duration_s are used where it has them.
        trained_until_us: the end of training, in microseconds.
        shrinkage: of the regression and of the channels, in videos of mean frequency: a channel of as many goes half
            of the way.

    Returns:
        float32 [num_videos, D]. For the vocabulary it is what its facts would say; the share of the variance that this
        explains is `explained_variance`.
    """
    weight = np.maximum(frequency.astype(np.float64), 1.0)
    ridge = shrinkage * weight.mean()
    facts = _Facts(corpus, videos, weight, trained_until_us)
    known = np.arange(corpus.known)

    mean_fact = sum(weight[rows] @ facts.of(rows) for rows in _blocks(known)) / weight.sum()
    mean = weight @ embeddings / weight.sum()
    gram = ridge * np.eye(facts.width)
    moment = np.zeros((facts.width, embeddings.shape[1]))
    for rows in _blocks(known):
        centred = facts.of(rows) - mean_fact
        gram += centred.T @ (weight[rows, None] * centred)
        moment += centred.T @ (weight[rows, None] * (embeddings[rows] - mean))
    slope = np.linalg.solve(gram, moment)

    predicted = np.empty((len(corpus), embeddings.shape[1]), np.float32)
    for rows in _blocks(np.arange(len(corpus))):
        predicted[rows] = mean + (facts.of(rows) - mean_fact) @ slope

    inside = corpus.channels >= 0
    of_known = corpus.channels[: corpus.known]
    some = of_known >= 0
    channels = int(corpus.channels.max(initial=-1)) + 1
    total = np.bincount(of_known[some], weight[some], channels)
    left = weight[some, None] * (embeddings[some] - predicted[: corpus.known][some])
    effect = np.stack([np.bincount(of_known[some], column, channels) for column in left.T], axis=1)
    predicted[inside] += (effect / (total + ridge)[:, None])[corpus.channels[inside]]
    return predicted


def embed_uploads(
    embeddings: Floats,
    rows: npt.NDArray[np.int64],
    corpus: Corpus,
    videos: pa.Table,
    uploads: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Embeddings of videos that came after an index was built: too few to fit anything for, and wanted at once.

    Each is the mean embedding of its channel's videos; where its channel has none, the mean over its topics of the mean
    embedding of the topic's videos.

    Args:
        embeddings: [num_rows, D] of the index.
        rows: [num_rows] row of the corpus of each.
        corpus: the videos, the uploads among them.
        videos: the table of that name, of all of them.
        uploads: [num_uploads] rows of the corpus.

    Returns:
        float32 [num_uploads, D]; NaN where neither says anything.
    """
    found = np.full((len(uploads), embeddings.shape[1]), np.nan, np.float32)
    channels, of_upload = corpus.channels[rows], corpus.channels[uploads]
    for channel in np.unique(of_upload[of_upload >= 0]):
        members = np.flatnonzero(channels == channel)
        if len(members):
            found[of_upload == channel] = embeddings[members].mean(axis=0)
    wanting = np.flatnonzero(np.isnan(found[:, 0]))
    has_topics = "topics" in videos.column_names and not pa.types.is_null(videos.schema.field("topics").type)
    if not has_topics or len(wanting) == 0:
        return found
    place = np.full(len(corpus), -1, np.int64)
    place[rows] = np.arange(len(rows))
    number = np.full(len(corpus), -1, np.int64)
    number[uploads[wanting]] = wanting
    lists = videos["topics"].combine_chunks()
    owner = corpus.rows(videos["video_id"])[pc.list_parent_indices(lists).to_numpy()]
    topics = pc.list_flatten(lists)
    mine = number[owner] >= 0
    means: dict[int, list[Floats]] = {}
    for topic in pc.unique(topics.filter(pa.array(mine))):
        of_topic = pc.fill_null(pc.equal(topics, topic), False).to_numpy(zero_copy_only=False)
        members = np.unique(place[owner[of_topic]])
        members = members[members >= 0]
        if len(members):
            mean = embeddings[members].mean(axis=0)
            for one in np.unique(number[owner[of_topic & mine]]).tolist():
                means.setdefault(one, []).append(mean)
    for one, of_topics in means.items():
        found[one] = np.mean(of_topics, axis=0)
    return found


def explained_variance(embeddings: Floats, predicted: Floats, frequency: npt.NDArray[np.int64]) -> float:
    """Share of the variance of the vocabulary's embeddings, weighted by frequency, that `embed_from_facts` explains."""
    weight = np.maximum(frequency.astype(np.float64), 1.0)[:, None]
    mean = (weight * embeddings).sum(axis=0) / weight.sum()
    left = (weight * (embeddings - predicted[: len(embeddings)]) ** 2).sum()
    return float(1.0 - left / max((weight * (embeddings - mean) ** 2).sum(), np.finfo(np.float64).tiny))


def is_late(corpus: Corpus, trained_until_us: int) -> npt.NDArray[np.bool_]:
    """bool [num_videos]: outside the vocabulary, and uploaded after training."""
    late = corpus.uploaded >= trained_until_us
    late[: corpus.known] = False
    return late


def fit_levels(
    queries: Floats,
    at_us: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    embeddings: Floats,
    corpus: Corpus,
    trained_until_us: int,
) -> Levels:
    """The levels at which each group gets the share of the watches that it had.

    With s the scores of an event's candidates, those uploaded before it, and c = q·q̄ / |q̄|² about 1,

        P(i) = exp(s_i + c level_group(i)) / sum over candidates j of exp(s_j + c level_group(j))

    and the levels maximise the sum of log P(label): two numbers, a concave function, Newton's method.

    Args:
        queries: [num_events, D].
        at_us: [num_events] when each event was, in microseconds.
        labels: [num_events] row of the corpus that was watched; events with -1 say nothing.
        embeddings: [num_videos, D] of all videos of the corpus, levels not yet in them.
        corpus: the videos.
        trained_until_us: the end of training, in microseconds.
    """
    seen = labels >= 0
    queries, at_us, labels = queries[seen], at_us[seen], labels[seen]
    late = is_late(corpus, trained_until_us)
    group = np.where(late, 1, np.where(np.arange(len(corpus)) < corpus.known, 0, 2))
    if len(labels) == 0 or (group == 0).all():
        return Levels()
    watched = np.stack([group[labels] == 1, group[labels] == 2], axis=1).astype(np.float64)
    shares = watched.mean(axis=0)
    step = mean_query_step(queries)
    along = (queries @ step).astype(np.float64)
    if not step.any():
        return Levels(0.0, 0.0, *shares.tolist())
    logs = np.stack([_log_sum_exp(queries, at_us, embeddings, corpus, group == g) for g in range(3)], axis=1)

    levels = np.zeros(2)
    prior = 1.0 / _LEVEL_DEVIATION**2
    for _ in range(100):
        shifted = logs + along[:, None] * np.append(0.0, levels)
        shifted -= shifted.max(axis=1, keepdims=True)
        probability = np.exp(shifted)
        probability = (probability / probability.sum(axis=1, keepdims=True))[:, 1:]
        gradient = along @ (watched - probability) - prior * levels
        weighted = along[:, None] ** 2 * probability
        curvature = np.diag(weighted.sum(axis=0) + prior) - weighted.T @ probability
        change = np.clip(np.linalg.solve(curvature, gradient), -1.0, 1.0)
        levels += change
        if np.abs(change).max() < 1e-6:
            break
    return Levels(*levels.tolist(), *shares.tolist())


def mean_query_step(queries: Floats) -> npt.NDArray[np.float32]:
    """q̄ / |q̄|², [D]: added to a candidate embedding it raises its score by 1 on average; 0 where q̄ is 0."""
    mean = queries.mean(axis=0, dtype=np.float64)
    square = float(mean @ mean)
    return (mean / square if square > 1e-12 else np.zeros_like(mean)).astype(np.float32)


def with_levels(
    predicted: Floats, levels: Levels, step: Floats, corpus: Corpus, trained_until_us: int
) -> npt.NDArray[np.float32]:
    """`predicted` [num_videos, D] with the level of its group added to each video outside the vocabulary."""
    late = is_late(corpus, trained_until_us)
    level = np.where(late, levels.late, levels.unwatched)
    level[: corpus.known] = 0.0
    return (predicted + level[:, None] * step).astype(np.float32)


class _Facts:
    """Facts of the videos of a corpus as numbers, made a block at a time.

    Attributes:
        width: numbers per video.
    """

    def __init__(self, corpus: Corpus, videos: pa.Table, weight: Floats, trained_until_us: int) -> None:
        self._corpus = corpus
        self._until = trained_until_us
        # Row of the corpus -> row of the table; -1 for a video of the vocabulary that the table lacks.
        self._place = np.full(len(corpus), -1, np.int64)
        rows = corpus.rows(videos["video_id"])
        self._place[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        weight_of = np.append(np.zeros(videos.num_rows), 0.0)
        weight_of[self._place[: corpus.known]] = weight
        weight_of = weight_of[: videos.num_rows]

        self._topics = _lists_of_codes(videos, "topics", weight_of, _MOST_TOPICS)
        self._languages = _lists_of_codes(videos, "language", weight_of, _MOST_LANGUAGES)
        self._duration = np.full(videos.num_rows, np.nan)
        if "duration_s" in videos.column_names:
            seconds = videos["duration_s"].combine_chunks().cast(pa.float64())
            self._duration = np.log1p(
                np.maximum(pc.fill_null(seconds, np.nan).to_numpy(zero_copy_only=False), 0.0)
            )
        known = np.isfinite(self._duration)
        self._centre = float(self._duration[known].mean()) if known.any() else 0.0
        self._spread = max(float(self._duration[known].std()) if known.any() else 1.0, 1e-6)
        self.width = self._topics[2] + self._languages[2] + 2 + len(_AGE_KNOTS_DAYS)

    def of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[len(rows), width]; what is not known is 0 throughout."""
        facts = np.zeros((len(rows), self.width))
        place = self._place[rows]
        inside = np.flatnonzero(place >= 0)
        place = place[inside]
        begin = 0
        for offsets, codes, size in (self._topics, self._languages):
            counts = offsets[place + 1] - offsets[place]
            owner = np.repeat(inside, counts)
            first = np.repeat(offsets[place] - np.append(0, np.cumsum(counts)[:-1]), counts)
            found = codes[first + np.arange(counts.sum())]
            some = found >= 0
            # A video of three topics is a third of each.
            np.add.at(
                facts,
                (owner[some], begin + found[some]),
                np.repeat(1.0 / np.maximum(counts, 1), counts)[some],
            )
            begin += size
        scaled = (self._duration[place] - self._centre) / self._spread
        scaled = np.where(np.isfinite(scaled), np.clip(scaled, -4.0, 4.0), 0.0)
        facts[inside, begin], facts[inside, begin + 1] = scaled, scaled**2
        begin += 2
        uploaded = self._corpus.uploaded[rows].astype(np.float64)
        dated = np.flatnonzero(self._corpus.uploaded[rows] > np.iinfo(np.int64).min)
        days = np.clip((self._until - uploaded[dated]) / _DAY_US, 0.0, _AGE_KNOTS_DAYS[-1])
        left = np.clip(np.searchsorted(_AGE_KNOTS_DAYS, days, side="right") - 1, 0, len(_AGE_KNOTS_DAYS) - 2)
        part = (days - _AGE_KNOTS_DAYS[left]) / np.diff(_AGE_KNOTS_DAYS)[left]
        facts[dated, begin + left] = 1.0 - part
        facts[dated, begin + left + 1] += part
        return facts


def _lists_of_codes(
    videos: pa.Table, column: str, weight: Floats, most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """A column of values, or of lists of them, as offsets [N + 1], codes (-1: not among the `most` heaviest), and size."""
    if column not in videos.column_names or videos.num_rows == 0:
        return np.zeros(videos.num_rows + 1, np.int64), np.empty(0, np.int64), 0
    values = videos[column].combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        counts = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        flat = pc.list_flatten(values)
    else:
        counts = np.ones(len(values), np.int64)
        flat = values
    offsets = np.append(0, np.cumsum(counts)).astype(np.int64)
    codes = pc.fill_null(flat.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    size = int(codes.max(initial=-1)) + 1
    owner = np.repeat(np.arange(len(values)), counts)
    heavy = np.bincount(codes[codes >= 0], weight[owner[codes >= 0]], size)
    kept = np.argsort(-heavy, kind="stable")[:most]
    kept = kept[heavy[kept] > 0]
    new = np.full(size + 1, -1, np.int64)
    new[kept] = np.arange(len(kept))
    return offsets, new[codes], len(kept)


def _log_sum_exp(
    queries: Floats,
    at_us: npt.NDArray[np.int64],
    embeddings: Floats,
    corpus: Corpus,
    members: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """log of the sum of exp(score) over the members that were uploaded before each event; very low where there is none."""
    rows = np.flatnonzero(members)
    best = np.full(len(queries), -1e9)
    total = np.zeros(len(queries))
    step = max(1, _SCORES_AT_ONCE // max(1, len(queries)))
    for begin in range(0, len(rows), step):
        some = rows[begin : begin + step]
        scores = (queries @ embeddings[some].T).astype(np.float64)
        scores[corpus.uploaded[some][None, :] >= at_us[:, None]] = -1e9
        higher = np.maximum(best, scores.max(axis=1))
        total = total * np.exp(best - higher) + np.exp(scores - higher[:, None]).sum(axis=1)
        best = higher
    return np.where(best > -1e8, best + np.log(np.maximum(total, 1e-300)), -1e9)


def _blocks(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return [rows[begin : begin + _ROWS_AT_ONCE] for begin in range(0, len(rows), _ROWS_AT_ONCE)]
