"""Trees of classes: their probabilities, by arithmetic on a small one and summed on larger ones."""

import numpy as np
import pytest

from watchnext.studies import softmax


def small_tree() -> softmax.Tree:
    """((0, 1), 2): inner node 0 has the classes 0 and 1, inner node 1 is the root with node 0 to its left."""
    return softmax.tree_of([(0, 1), (3, 2)], 3)


def test_probabilities_of_a_small_tree_are_those_of_its_turns() -> None:
    queries = np.array([[1.0, 2.0], [0.0, -1.0]], np.float32)
    theta = np.array([[0.5, -1.0], [0.25, 0.5]], np.float32)

    def sigmoid(score: float) -> float:
        return 1.0 / (1.0 + np.exp(-score))

    expected = []
    for x, y in queries:
        below, root = 0.5 * x - 1.0 * y, 0.25 * x + 0.5 * y
        expected.append([sigmoid(root) * sigmoid(below), sigmoid(root) * sigmoid(-below), sigmoid(-root)])
    found = np.exp(softmax.log_probabilities(queries, theta, small_tree()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def trees(size: int) -> dict[str, softmax.Tree]:
    rng = np.random.default_rng(3)
    return {
        "huffman": softmax.huffman_tree(rng.zipf(1.5, size).astype(float)),
        "random": softmax.random_tree(size, 1),
        "related": softmax.related_tree(rng.normal(size=(size, 4))),
    }


@pytest.mark.parametrize("size", [2, 3, 17, 100])
@pytest.mark.parametrize("kind", ["huffman", "random", "related"])
def test_probabilities_sum_to_one_and_are_those_of_the_loss(kind: str, size: int) -> None:
    """Fails where a turn has the wrong sign, where padding counts, or where two classes share a leaf."""
    import tensorflow as tf

    tree = trees(size)[kind]
    rng = np.random.default_rng(5)
    queries = rng.normal(size=(7, 6)).astype(np.float32)
    theta = rng.normal(size=(size - 1, 6)).astype(np.float32)
    log_p = softmax.log_probabilities(queries, theta, tree)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=1e-4)
    label = rng.integers(0, size, 7)
    loss = softmax.hierarchical_loss(
        tf.constant(queries),
        tf.constant(theta),
        tf.constant(tree.nodes[label]),
        tf.constant(tree.turns[label]),
    )
    np.testing.assert_allclose(loss.numpy(), -log_p[np.arange(7), label], rtol=1e-4, atol=1e-5)


def test_huffman_paths_are_short_where_classes_are_frequent() -> None:
    """Frequencies 8, 4, 2, 1, 1: codes of 1, 2, 3, 4 and 4 turns."""
    tree = softmax.huffman_tree(np.array([2.0, 8.0, 1.0, 4.0, 1.0]))
    assert np.abs(tree.turns).sum(axis=1).tolist() == [3, 1, 4, 2, 4]


def test_a_tree_of_related_classes_parts_clusters_first() -> None:
    """Two clusters of four, mixed: what is in one cluster goes the same way at the root."""
    centre = np.where(np.arange(8) % 2 == 0, 5.0, -5.0)
    embeddings = np.stack([centre, np.zeros(8)], axis=1) + np.random.default_rng(0).normal(size=(8, 2))
    tree = softmax.related_tree(embeddings)
    assert (tree.nodes[:, -1] == tree.nodes[0, -1]).all()
    root = tree.turns[:, -1]
    assert (root == root[0]).tolist() == [True, False] * 4


def test_balanced_trees_are_no_deeper_than_they_have_to_be() -> None:
    for kind in ("random", "related"):
        assert 6 <= trees(100)[kind].nodes.shape[1] <= 7


def test_log_softmax_is_the_logarithm_of_shares() -> None:
    np.testing.assert_allclose(
        softmax.log_softmax(np.log(np.array([[1.0, 3.0], [5.0, 5.0]]))), np.log([[0.25, 0.75], [0.5, 0.5]])
    )


def test_times_are_given_beside_those_of_the_sampled_softmax() -> None:
    rows = softmax.timing_rows(
        1.0, {softmax.SAMPLED: np.full(5, 2e-5), softmax.FULL_SOFTMAX: np.array([3e-3, 4e-3, 5e-3])}
    )
    found = {(row.metric, row.variant): row for row in rows}
    assert found["time_per_example_ms", softmax.SAMPLED].estimate == pytest.approx(0.02)
    ratio = found["time_over_sampled", softmax.FULL_SOFTMAX]
    assert ratio.estimate == pytest.approx(200.0)
    assert 150.0 <= ratio.low < 200.0 < ratio.high <= 250.0


@pytest.mark.parametrize("name", [softmax.SAMPLED, softmax.FULL_SOFTMAX, softmax.HUFFMAN])
def test_steps_of_each_kind_are_timed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "BUDGET_S", 0.0)
    times = softmax.time_steps(name, 50)
    assert len(times) == 3
    assert 0.0 < times.min() <= times.max() < 1.0
