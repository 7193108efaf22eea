import json
import shutil
import sys
import threading

import numpy as np
import pytest

from watchnext.errors import InputError
from watchnext.evaluation.metrics import index_recall_at_k
from watchnext.index.scann import ScannSearcher
from watchnext.index.search import ExactSearcher

RNG = np.random.default_rng(7)
EMBEDDINGS = RNG.normal(size=(3000, 16)).astype(np.float32)
QUERIES = RNG.normal(size=(60, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def tree():
    return ScannSearcher.build(EMBEDDINGS, brute_force_below=0)


def same_as_exact(searcher, k=50):
    rows, scores = searcher.search(QUERIES, k)
    exact_rows, exact_scores = ExactSearcher(EMBEDDINGS).search(QUERIES, k)
    return np.array_equal(rows, exact_rows) and np.allclose(scores, exact_scores, rtol=1e-4)


def test_one_leaf_with_everything_reordered_is_brute_force():
    """Plumbing apart from approximation. Fails with squared L2 as distance."""
    searcher = ScannSearcher.build(
        EMBEDDINGS, brute_force_below=0, num_leaves=1, leaves_to_search=1, reorder=len(EMBEDDINGS)
    )
    assert not searcher.is_exact()
    assert same_as_exact(searcher)


def test_below_the_threshold_search_is_exact():
    searcher = ScannSearcher.build(EMBEDDINGS, brute_force_below=3001)
    assert searcher.is_exact()
    assert same_as_exact(searcher)


@pytest.mark.parametrize(("k", "floor"), [(10, 0.85), (100, 0.8)])
def test_the_tree_keeps_a_floor_on_the_hardest_data_and_says_that_it_is_not_exact(tree, k, floor):
    """Gaussian noise has no clusters for leaves to follow; a learned corpus does better."""
    recall = index_recall_at_k(tree.search(QUERIES, k)[0], ExactSearcher(EMBEDDINGS).search(QUERIES, k)[0], k)
    assert not tree.is_exact()
    assert floor <= recall <= 1.0


def test_sizes_of_the_search_are_looked_at_when_a_query_comes(tree):
    """Every leaf with everything scored again is brute force, of the same tree of which one leaf makes a poor search.

    Fails where the sizes that the tree was built with are used.
    """
    poor = tree.tuned(leaves_to_search=1, reorder=50)
    exact_rows = ExactSearcher(EMBEDDINGS).search(QUERIES, 50)[0]
    assert 0.0 < index_recall_at_k(poor.search(QUERIES, 50)[0], exact_rows, 50) < 0.5
    everything = tree.tuned(leaves_to_search=1_000, reorder=10_000)
    assert same_as_exact(everything)
    singly = np.concatenate([everything.search(query[np.newaxis], 50)[0] for query in QUERIES])
    assert np.array_equal(singly, exact_rows)


def test_more_are_found_than_are_scored_again_if_more_are_asked_for(tree):
    """Fails where a small `reorder` cuts the answer short."""
    tuned = tree.tuned(leaves_to_search=1_000, reorder=20)
    rows, scores = tuned.search(QUERIES[:3], 500)
    assert rows.shape == (3, 500)
    assert (rows >= 0).all()
    assert np.isfinite(scores).all()
    assert len(tuned.search(QUERIES[:1], 500)[0][0]) == 500


@pytest.mark.parametrize("k", [60, 100, 101, 400])
def test_what_a_query_is_answered_first_depends_neither_on_k_nor_on_the_queries_beside_it(tree, k):
    """Fails where as many are scored again as are asked for, and with ScaNN's search of batches on ties."""
    tuned = tree.tuned(leaves_to_search=10, reorder=100)
    of_a_batch, _ = tuned.search(QUERIES, k)
    singly = np.concatenate([tuned.search(query[np.newaxis], 60)[0] for query in QUERIES])
    assert np.array_equal(of_a_batch[:, :60], singly)
    for rows in of_a_batch:
        found = rows[rows >= 0]
        assert len(np.unique(found)) == len(found)


def test_brute_force_has_nothing_to_tune():
    with pytest.raises(ValueError, match="nothing to tune"):
        ScannSearcher.build(EMBEDDINGS, brute_force_below=10_000).tuned(leaves_to_search=1, reorder=1)


def test_tuned_sizes_survive_saving_and_moving(tree, tmp_path):
    """Fails where the loaded index searches as it was built."""
    tuned = tree.tuned(leaves_to_search=2, reorder=40)
    tuned.save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    loaded = ScannSearcher.load(tmp_path / "there")
    assert (loaded.leaves_to_search, loaded.reorder) == (2, 40)
    assert np.array_equal(loaded.search(QUERIES, 30)[0], tuned.search(QUERIES, 30)[0])
    assert not np.array_equal(loaded.search(QUERIES, 30)[0], tree.search(QUERIES, 30)[0])


def test_an_index_of_before_there_were_tuned_sizes_is_still_read(tree, tmp_path):
    tree.save(tmp_path)
    content = {"kind": "scann", "num_candidates": 3000, "embedding_dim": 16}
    (tmp_path / "searcher.json").write_text(json.dumps(content))
    assert np.array_equal(ScannSearcher.load(tmp_path).search(QUERIES, 30)[0], tree.search(QUERIES, 30)[0])


@pytest.mark.parametrize("brute_force_below", [0, 10_000])
def test_an_index_works_after_it_was_moved_and_the_original_deleted(tmp_path, brute_force_below):
    """Fails with serialize(relative_path=False)."""
    built = ScannSearcher.build(EMBEDDINGS, brute_force_below=brute_force_below)
    built.save(tmp_path / "here" / "scann")
    expected = built.search(QUERIES, 20)
    shutil.copytree(tmp_path / "here", tmp_path / "copied to a place with spaces")
    shutil.move(tmp_path / "here", tmp_path / "elsewhere")
    for place in ("elsewhere", "copied to a place with spaces"):
        loaded = ScannSearcher.load(tmp_path / place / "scann")
        assert loaded.kind == built.kind
        assert np.array_equal(loaded.search(QUERIES, 20)[0], expected[0])
        shutil.rmtree(tmp_path / place)


def test_one_query_and_many_are_answered_alike(tree):
    """Exactly by brute force; a tree scores batches in another precision, so that its border may differ."""
    brute_force = ScannSearcher.build(EMBEDDINGS, brute_force_below=10_000)
    for searcher, least in ((brute_force, 1.0), (tree, 0.9)):
        rows, _ = searcher.search(QUERIES, 20)
        singly = np.concatenate([searcher.search(query[np.newaxis], 20)[0] for query in QUERIES])
        assert least <= index_recall_at_k(singly, rows, 20) <= 1.0
        assert searcher.search(QUERIES[:0], 20)[0].shape == (0, 20)


def test_threads_may_search_at_once(tree):
    expected = tree.search(QUERIES, 10)[0].tolist()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(tree.search(QUERIES, 10)[0].tolist()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 8


@pytest.mark.parametrize("brute_force_below", [0, 10])
@pytest.mark.parametrize("corpus_size", [1, 3])
def test_k_beyond_a_tiny_corpus_gives_the_whole_corpus(corpus_size, brute_force_below):
    searcher = ScannSearcher.build(
        np.eye(corpus_size, 4, dtype=np.float32), brute_force_below=brute_force_below
    )
    rows, scores = searcher.search(np.ones((2, 4), np.float32), 50)
    assert np.sort(rows, axis=1).tolist() == [list(range(corpus_size))] * 2
    assert np.isfinite(scores).all()


def test_a_pickle_in_the_directory_is_refused(tmp_path):
    ScannSearcher.build(EMBEDDINGS[:10], brute_force_below=100).save(tmp_path)
    (tmp_path / "scann_docids.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="pickle"):
        ScannSearcher.load(tmp_path)


def test_absolute_paths_are_refused(tmp_path):
    searcher = ScannSearcher.build(EMBEDDINGS[:10], brute_force_below=100)
    searcher.save(tmp_path)
    searcher._native.serialize(str(tmp_path))
    with pytest.raises(InputError, match="absolute paths"):
        ScannSearcher.load(tmp_path)


def test_paths_that_lead_out_of_the_index_are_refused(tmp_path):
    """Meant to fail when absolute paths alone were refused."""
    ScannSearcher.build(EMBEDDINGS[:10], brute_force_below=100).save(tmp_path / "index")
    assets = tmp_path / "index" / "scann_assets.pbtxt"
    assets.write_text(assets.read_text().replace('asset_path: "', 'asset_path: "../index/'))
    with pytest.raises(InputError, match="lead out of it"):
        ScannSearcher.load(tmp_path / "index")


def test_a_directory_without_an_index_is_an_error(tmp_path):
    with pytest.raises(InputError, match="there is no"):
        ScannSearcher.load(tmp_path)


def test_embeddings_that_cannot_be_indexed_are_named():
    with pytest.raises(InputError, match="no candidates"):
        ScannSearcher.build(np.empty((0, 4), np.float32), brute_force_below=10)
    broken = EMBEDDINGS[:10].copy()
    broken[4, 2] = np.nan
    with pytest.raises(InputError, match="not finite") as caught:
        ScannSearcher.build(broken, brute_force_below=100)
    assert "row 4" in str(caught.value)


def test_native_log_lines_are_held_back(capfd, tmp_path):
    ScannSearcher.build(EMBEDDINGS, brute_force_below=0).save(tmp_path)
    ScannSearcher.load(tmp_path)
    sys.stderr.flush()
    assert capfd.readouterr().err == ""
