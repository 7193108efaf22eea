"""What every source of candidates has to keep to, the query tower through the index as well as those beside it.

The world: 60 videos of the vocabulary and 6 uploads after training, on 7 channels. Users complete videos of one of two
halves, so that there is something to be co-watched.
"""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from watchnext.features.batches import Vocabulary
from watchnext.index.scann import ScannSearcher
from watchnext.index.search import ExactSearcher
from watchnext.models import candidate_sources as sources
from watchnext.models.candidate_sources import Corpus, Popularity, Requests

KNOWN, LATER, DIM = 60, 6, 8
DAY = dt.datetime(2026, 1, 20, tzinfo=dt.UTC)
DAY_US = 86_400_000_000
BEGINS_AT = int(DAY.timestamp()) * 1_000_000
NOON = BEGINS_AT + DAY_US // 2


def make_corpus() -> Corpus:
    """Video 100 + r stands in row r. Of the later uploads two are days old, two hours, two come tonight."""
    ids = [100 + row for row in range(KNOWN + LATER)]
    days_ago = (
        [30.0] * (KNOWN - 10) + [4.5 - 0.3 * step for step in range(10)] + [2.0, 1.0, 0.4, 0.3, -0.6, -0.7]
    )
    uploaded = [DAY + dt.timedelta(days=0.5 - ago) for ago in days_ago]
    videos = pa.table(
        {
            "video_id": ids[::-1],
            "channel_id": [None if place % 11 == 10 else f"channel {place % 7}" for place in range(len(ids))][
                ::-1
            ],
            "uploaded_at": pa.array(uploaded[::-1], pa.timestamp("us", tz="UTC")),
        }
    )
    return Corpus(Vocabulary("video", pa.array(ids[:KNOWN]), np.ones(KNOWN, np.int64)), videos)


CORPUS = make_corpus()
STATISTICS = pa.table(
    {
        "video_id": CORPUS.video_ids,
        "completed_watches": [(17 * row) % 13 for row in range(KNOWN)] + [3, 2, 0, 0, 0, 0],
        "covered_days": [7] * len(CORPUS),
    }
)
POPULARITY = Popularity.of_day(CORPUS, STATISTICS, BEGINS_AT)
EMBEDDINGS = np.random.default_rng(3).normal(size=(KNOWN, DIM)).astype(np.float32)


def fitted_co_watch() -> sources.CoWatched:
    generator = np.random.default_rng(4)
    users = np.repeat(np.arange(200), 12)
    rows = generator.integers(0, KNOWN // 2, len(users)) + (users % 2) * (KNOWN // 2)
    return sources.fit_co_watched(CORPUS, users, rows, neighbours=20, shrinkage=1.0)


RETRIEVERS: dict[str, sources.Retriever] = {
    "tower, exact": sources.Tower(CORPUS, ExactSearcher(EMBEDDINGS).search, EMBEDDINGS),
    "tower, scann": sources.Tower(
        CORPUS, ScannSearcher.build(EMBEDDINGS, brute_force_below=1000).search, EMBEDDINGS
    ),
    "co_watched": fitted_co_watch(),
    "popular": sources.Popular(CORPUS),
    "channels": sources.Channels(CORPUS),
    "fresh": sources.Fresh(CORPUS),
}
NEED_A_PAST = {"tower, exact", "tower, scann", "co_watched", "channels"}


def requests(*histories: list[int], at: int = NOON, popularity: Popularity = POPULARITY) -> Requests:
    """Requests at noon of users who completed the videos in these rows."""
    longest = max([1, *map(len, histories)])
    history = np.zeros((len(histories), longest), np.int32)
    for number, rows in enumerate(histories):
        history[number, : len(rows)] = np.array(rows, np.int32) + 1
    queries = np.stack(
        [EMBEDDINGS[rows].sum(axis=0) if rows else np.zeros(DIM, np.float32) for rows in histories]
    ).astype(np.float32)
    personal = np.array([bool(rows) for rows in histories])
    return Requests(np.full(len(histories), at), history, popularity, queries, personal)


SOME = requests([1, 2, 3], [35, 40, 41, 42, 35], [7])

every_retriever = pytest.mark.parametrize("name", RETRIEVERS)


@every_retriever
def test_scores_never_rise_rows_are_known_and_come_once(name: str) -> None:
    rows, scores = RETRIEVERS[name].retrieve(SOME, 5)
    assert rows.shape == scores.shape == (3, 5)
    assert (np.diff(scores, axis=1)[rows[:, 1:] >= 0] <= 0).all()
    assert ((rows >= -1) & (rows < len(CORPUS))).all()
    assert (rows >= 0).any(axis=1).all(), "every request of somebody with a past gets something"
    for found, values in zip(rows, scores, strict=True):
        assert np.isfinite(values[found >= 0]).all()
        assert np.isneginf(values[found < 0]).all()
        assert len(set(found[found >= 0])) == (found >= 0).sum()
        assert (np.diff((found < 0).astype(int)) >= 0).all(), "what is missing is missing at the end"


@every_retriever
def test_k_larger_than_the_corpus_gives_what_there_is(name: str) -> None:
    many, most = RETRIEVERS[name].retrieve(SOME, 10 * len(CORPUS))
    few, best = RETRIEVERS[name].retrieve(SOME, 5)
    assert many.shape == (3, 10 * len(CORPUS))
    assert ((many >= 0).sum(axis=1) <= len(CORPUS)).all()
    np.testing.assert_array_equal(many[:, :5], few)
    np.testing.assert_allclose(most[:, :5], best, rtol=1e-5)


@every_retriever
def test_users_unknown_or_without_history_are_answered_or_get_nothing(name: str) -> None:
    """A past of unknown videos alone is encoded as zeros, like no past."""
    rows, scores = RETRIEVERS[name].retrieve(requests([], [1, 2]), 5)
    if name in NEED_A_PAST:
        assert (rows[0] == -1).all()
        assert np.isneginf(scores[0]).all()
    else:
        assert (rows[0] >= 0).any()
    alone, _ = RETRIEVERS[name].retrieve(requests([1, 2]), 5)
    np.testing.assert_array_equal(rows[1], alone[0])


@every_retriever
def test_excluded_videos_never_come_back_and_make_room(name: str) -> None:
    """Seen to fail where no more are asked for than `k`: then the lists get shorter."""
    before, _ = RETRIEVERS[name].retrieve(SOME, 8)
    excluded = [{int(row) for row in found[:4] if row >= 0} for found in before]
    after, _ = RETRIEVERS[name].retrieve(SOME, 4, excluded)
    for number, banned in enumerate(excluded):
        assert not banned & set(after[number].tolist())
    np.testing.assert_array_equal(after, before[:, 4:])
    everything, _ = RETRIEVERS[name].retrieve(SOME, 5, [range(len(CORPUS))] * 3)
    assert (everything == -1).all()


@every_retriever
def test_equal_questions_get_equal_answers_whoever_else_asks(name: str) -> None:
    together, scores = RETRIEVERS[name].retrieve(SOME, 6)
    again, _ = RETRIEVERS[name].retrieve(SOME, 6)
    np.testing.assert_array_equal(together, again)
    for number, history in enumerate(([1, 2, 3], [35, 40, 41, 42, 35], [7])):
        alone, values = RETRIEVERS[name].retrieve(requests(history), 6)
        np.testing.assert_array_equal(alone[0], together[number])
        np.testing.assert_allclose(values[0], scores[number], rtol=1e-5)


@every_retriever
def test_nothing_of_the_instant_or_later_comes_back(name: str) -> None:
    """A video that is uploaded at the very instant of the request is not there yet."""
    upload = int(CORPUS.uploaded[KNOWN + 2])
    for at in (upload, BEGINS_AT + 1):
        rows, _ = RETRIEVERS[name].retrieve(requests([1, 2, 3], [59], at=at), len(CORPUS))
        found = rows[rows >= 0]
        assert (CORPUS.uploaded[found] < at).all()
    just_after, _ = RETRIEVERS["fresh"].retrieve(requests([1], at=upload + 1), len(CORPUS))
    assert KNOWN + 2 in just_after


@every_retriever
def test_score_is_what_retrieval_ranks_by(name: str) -> None:
    retriever = RETRIEVERS[name]
    rows, scores = retriever.retrieve(SOME, 12)
    of, place = np.nonzero(rows >= 0)
    np.testing.assert_allclose(retriever.score(SOME, of, rows[of, place]), scores[of, place], rtol=1e-4)
    for number in range(3):
        everything = retriever.score(SOME, np.full(len(CORPUS), number), np.arange(len(CORPUS)))
        left = np.setdiff1d(np.arange(len(CORPUS)), rows[number])
        if name in (
            "popular",
            "channels",
        ):  # they have an opinion on videos that nobody completed, and name none
            left = np.intersect1d(left, POPULARITY.order)
        left = left[everything[left] > 0]
        if len(left) and (rows[number] >= 0).all():
            assert np.nanmax(everything[left]) <= scores[number, -1] * (1 + 1e-5)


@every_retriever
def test_there_is_no_score_for_a_video_that_is_not_there(name: str) -> None:
    retriever = RETRIEVERS[name]
    assert np.isnan(retriever.score(SOME, np.array([0, 1]), np.array([-1, -1]))).all()
    assert retriever.score(SOME, np.empty(0, int), np.empty(0, int)).shape == (0,)
