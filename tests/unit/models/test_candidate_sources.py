import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchnext.errors import InputError
from watchnext.features.batches import Vocabulary
from watchnext.models.candidate_sources import (
    Channels,
    Corpus,
    CoWatched,
    MostPopular,
    Popularity,
    Requests,
    Tower,
    blend,
    fit_co_watched,
)

DAY = datetime.date(2026, 1, 9)
DAY_US = 86_400_000_000


def make_corpus(*, uploaded_days=(-30, -30, -30, -2, -1), known=4):
    """Videos a to e, of which the first `known` are the vocabulary; a, b, d on one channel, c on another, e on none."""
    ids = list("abcde")
    at = [
        datetime.datetime(2026, 1, 9, tzinfo=datetime.UTC) + datetime.timedelta(days=d) for d in uploaded_days
    ]
    videos = pa.table(
        {
            "video_id": ids,
            "channel_id": ["x", "x", "y", "x", None],
            "uploaded_at": pa.array(at, pa.timestamp("us", tz="UTC")),
        }
    )
    return Corpus(Vocabulary("video", pa.array(ids[:known]), np.ones(known, np.int64)), videos)


BEGINS_AT = int(datetime.datetime(2026, 1, 9, tzinfo=datetime.UTC).timestamp()) * 1_000_000


def ask(history, popularity, at=BEGINS_AT):
    return Requests(np.array([at]), np.array([history], np.int32), popularity)


def test_the_corpus_is_the_vocabulary_and_then_whatever_else_there_is():
    corpus = make_corpus()
    assert corpus.row_to_video == list("abcde")
    assert corpus.rows(pa.array(["e", "a", "zzz", None])).tolist() == [4, 0, -1, -1]
    assert corpus.channels.tolist() == [0, 0, 1, 0, -1]


def test_similarity_is_the_shrunk_cosine_of_who_completed_what():
    """Users: {a, b}, {a, b, c}, {c}, and one who completed d alone, twice. Seen to fail with repeats counted."""
    corpus = make_corpus()
    users = np.array([0, 0, 1, 1, 1, 2, 3, 3, 3])
    rows = np.array([0, 1, 0, 1, 2, 2, 3, 3, 4])  # e is not in the vocabulary
    fitted = fit_co_watched(corpus, users, rows, neighbours=2, shrinkage=1.0)
    assert fitted.neighbours.tolist() == [[1, 2], [0, 2], [0, 1], [-1, -1]]
    cosine, weak = 2 / (np.sqrt(2 * 2) + 1), 1 / (np.sqrt(2 * 2) + 1)
    np.testing.assert_allclose(fitted.similarities, [[cosine, weak], [cosine, weak], [weak, weak], [0, 0]])
    popularity = Popularity(corpus, np.zeros(5), 7, BEGINS_AT)
    scores = fitted.score(ask([1, 2, 1, 0], popularity), np.zeros(5, int), np.arange(5))
    np.testing.assert_allclose(scores, [cosine, cosine, 2 * weak, 0.0, np.nan], rtol=1e-6)


def test_only_the_last_watches_of_a_user_are_paired():
    corpus = make_corpus()
    fitted = fit_co_watched(
        corpus, np.zeros(3, int), np.array([0, 1, 2]), neighbours=2, watches_per_user=2, shrinkage=0.0
    )
    assert fitted.neighbours.tolist() == [[-1, -1], [2, -1], [1, -1], [-1, -1]]
    nobody = fit_co_watched(corpus, np.empty(0, int), np.empty(0, int), neighbours=2)
    assert (nobody.neighbours == -1).all()


def test_a_table_of_another_vocabulary_is_refused(tmp_path):
    fitted = fit_co_watched(make_corpus(), np.zeros(2, int), np.array([0, 1]), neighbours=2)
    fitted.save(tmp_path)
    again = CoWatched.load(make_corpus(), tmp_path)
    np.testing.assert_array_equal(again.neighbours, fitted.neighbours)
    with pytest.raises(InputError, match="vocabulary of 3 videos"):
        CoWatched.load(make_corpus(known=3), tmp_path)


def test_popularity_is_per_day_that_a_video_was_there():
    """Seen to fail with the sum of the week, which a video of yesterday cannot reach."""
    watches = np.array([14.0, 7.0, 0.0, 6.0, 0.0])
    popularity = Popularity(make_corpus(), watches, 7, BEGINS_AT)
    prior = 27 / (7 + 7 + 7 + 2 + 1)
    np.testing.assert_allclose(
        popularity.rate,
        [(14 + prior) / 8, (7 + prior) / 8, prior / 8, (6 + prior) / 3, prior / 2],
    )
    assert popularity.order.tolist() == [3, 0, 1]


def test_channels_share_out_the_next_watch():
    """Three watches of channel x and one of y; d is watched, and still named: filters are another matter."""
    corpus = make_corpus()
    popularity = Popularity(corpus, np.array([14.0, 7.0, 1.0, 6.0, 9.0]), 7, BEGINS_AT)
    channels = Channels(corpus)
    rows, scores = channels.retrieve(ask([1, 2, 3, 4, 0], popularity), 5)
    x, rate = popularity.rate[[0, 1, 3]].sum(), popularity.rate
    assert rows[0].tolist() == [3, 0, 2, 1, -1]
    expected = [0.75 * rate[3] / x, 0.75 * rate[0] / x, 0.25, 0.75 * rate[1] / x]
    np.testing.assert_allclose(scores[0, :4], expected, rtol=1e-6)
    other = channels.score(ask([3], popularity), np.zeros(3, int), np.array([0, 2, 4]))
    np.testing.assert_allclose(other, [0.0, 1.0, np.nan])


def test_videos_that_a_model_never_saw_have_neither_place_nor_score():
    corpus = make_corpus()
    embeddings = np.array([[4.0], [3.0], [2.0], [1.0]], np.float32)

    def search(queries, k):
        scores = queries @ embeddings.T
        order = np.argsort(-scores, axis=1)[:, :k]
        return order, np.take_along_axis(scores, order, axis=1)

    tower = Tower(corpus, search, embeddings, seen=np.array([True, False, True, True]))
    popularity = Popularity(corpus, np.zeros(5), 7, BEGINS_AT)
    request = Requests(
        np.array([BEGINS_AT]), np.zeros((1, 1), np.int32), popularity, np.ones((1, 1), np.float32)
    )
    assert tower.retrieve(request, 2)[0].tolist() == [[0, 2]]
    np.testing.assert_allclose(
        tower.score(request, np.zeros(5, int), np.arange(5)), [4.0, np.nan, 2.0, 1.0, np.nan]
    )


def test_videos_beside_the_index_are_found_and_scored_as_if_they_were_in_it():
    """The two lists are one, best first."""
    corpus = make_corpus()
    embeddings = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)

    def searching(candidates):
        def search(queries, k):
            scores = queries @ candidates.T
            order = np.argsort(-scores, axis=1)[:, :k]
            return order, np.take_along_axis(scores, order, axis=1)

        return search

    whole = Tower(corpus, searching(embeddings), embeddings)
    inside, beside = np.array([4, 0, 2]), np.array([3, 1])
    tower = Tower(
        corpus,
        searching(embeddings[inside]),
        embeddings[inside],
        inside,
        added=(beside, embeddings[beside]),
    )
    queries = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)
    at = np.array([BEGINS_AT] * 5 + [BEGINS_AT - 3 * DAY_US])
    popularity = Popularity(corpus, np.zeros(5), 7, BEGINS_AT)
    asked = Requests(
        at, np.zeros((6, 1), np.int32), popularity, queries, np.array([True, True, False, True, True, True])
    )
    for k, excluded in ((1, None), (3, [{number % 5} for number in range(6)]), (5, None)):
        rows, scores = tower.retrieve(asked, k, excluded)
        expected_rows, expected_scores = whole.retrieve(asked, k, excluded)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    of, every = np.repeat(np.arange(6), 6), np.tile(np.array([0, 1, 2, 3, 4, -1]), 6)
    np.testing.assert_allclose(tower.score(asked, of, every), whole.score(asked, of, every), rtol=1e-5)


def test_a_tower_asked_early_finds_k_in_spite_of_later_uploads():
    """d and e, which score best, come after the request. Fails where only k of the index are looked at."""
    corpus = make_corpus(known=3, uploaded_days=(-30, -30, -30, 2, 3))
    embeddings = np.array([[1.0], [2.0], [3.0], [8.0], [9.0]], np.float32)
    asked = []

    def search(queries, k):
        asked.append(k)
        order = np.argsort(-embeddings[:, 0])[:k]
        return np.tile(order, (len(queries), 1)), np.tile(embeddings[order, 0], (len(queries), 1))

    early = Requests(
        np.array([BEGINS_AT]),
        np.array([[1]], np.int32),
        Popularity(corpus, np.zeros(5), 7, BEGINS_AT),
        np.ones((1, 1), np.float32),
    )
    rows, scores = Tower(corpus, search, embeddings).retrieve(early, 2)
    assert rows.tolist() == [[2, 1]]
    assert scores.tolist() == [[3.0, 2.0]]
    assert asked == [4]


def test_a_blend_fills_quotas_in_order_and_what_one_source_lacks_by_the_others():
    lists = {"tower": [1, 2, 3, 4, 5, 6], "co_watched": [2, 7, -1], "popular": [1, 2, 8, 9, 10]}
    quotas = {"tower": 3, "co_watched": 2, "popular": 1, "fresh": 0}
    assert blend(lists, quotas) == [1, 2, 3, 7, 8, 4]
    assert blend(lists, quotas, 3) == [1, 2, 3]
    assert blend(lists, quotas, 4) == [1, 2, 7, 3]
    assert blend(lists, quotas, 100) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert blend({"tower": [-1, -1], "popular": [3]}, {"tower": 1, "popular": 1}) == [3]
    assert blend(lists, dict.fromkeys(lists, 0)) == []


@pytest.fixture
def statistics(tmp_path):
    rows = [
        ("a", DAY, 10, 5),
        ("b", DAY, 99, 7),
        ("c", DAY, 20, 5),
        ("d", DAY, 10, 5),
        ("e", DAY, 0, 0),
        ("f", DAY - datetime.timedelta(days=1), 500, 500),
    ]
    names = ("video_id", "day", "impressions", "completed_watches")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "part-00000.parquet")
    return tmp_path


def test_order_is_completed_watches_then_impressions_then_id_of_that_day_alone(statistics):
    popular = MostPopular.from_statistics(statistics, DAY)
    assert popular.video_ids.to_pylist() == ["b", "c", "a", "d"]
    assert popular.recommend(2).to_pylist() == ["b", "c"]
    assert len(popular.recommend(100)) == 4


def test_places_count_from_1_and_unknown_is_0(statistics):
    popular = MostPopular.from_statistics(statistics, DAY)
    assert popular.places(pa.array(["d", "b", "e", "zzz", None])).tolist() == [4, 1, 0, 0, 0]


def test_a_day_without_statistics_is_an_error(statistics):
    with pytest.raises(InputError, match="no video has an event"):
        MostPopular.from_statistics(statistics, DAY + datetime.timedelta(days=30))
    with pytest.raises(InputError, match="no video statistics"):
        MostPopular.from_statistics(statistics / "nowhere", DAY)
