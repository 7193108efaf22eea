import numpy as np
import pytest

from watchnext.index.search import ExactSearcher


def test_the_largest_dot_products_come_first():
    searcher = ExactSearcher(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
    rows, scores = searcher.search(np.array([[1.0, 0.0], [-1.0, 1.0]], np.float32), 2)
    assert rows.tolist() == [[2, 0], [1, 2]]
    assert scores.tolist() == [[3.0, 1.0], [2.0, 0.0]]
    assert searcher.is_exact()


def test_candidates_that_score_alike_come_in_order_of_rows():
    searcher = ExactSearcher(np.ones((50, 3), np.float32))
    assert searcher.search(np.ones((1, 3), np.float32), 4)[0].tolist() == [[0, 1, 2, 3]]


def test_k_beyond_the_corpus_gives_the_whole_corpus():
    rows, _ = ExactSearcher(np.eye(3, dtype=np.float32)).search(np.ones((2, 3), np.float32), 10)
    assert rows.tolist() == [[0, 1, 2]] * 2


def test_it_is_argsort():
    rng = np.random.default_rng(1)
    embeddings, queries = (
        rng.normal(size=(300, 8)).astype(np.float32),
        rng.normal(size=(20, 8)).astype(np.float32),
    )
    rows, scores = ExactSearcher(embeddings).search(queries, 25)
    expected = np.argsort(-(queries @ embeddings.T), axis=1)[:, :25]
    assert np.array_equal(rows, expected)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_wrong_shape_is_refused():
    searcher = ExactSearcher(np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"\[num_queries, 3\]"):
        searcher.search(np.ones((2, 4), np.float32), 1)
    with pytest.raises(ValueError, match="two axes"):
        ExactSearcher(np.ones(3, np.float32))
