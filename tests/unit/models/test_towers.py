import numpy as np
import pytest
import tensorflow as tf

from watchnext.models.towers import (
    EmbeddingTable,
    adagrad,
    halving_widths,
    log_dim,
    relu_tower,
    run_tower,
)


def test_the_mean_is_over_known_ids_alone_and_ignores_order():
    table = EmbeddingTable(5, 3)
    rows = table.table.numpy()
    mean = table.pool(tf.constant([[2, 0, 4], [4, 2, 0], [5, 0, 0]]), "mean").numpy()
    assert mean[0] == pytest.approx((rows[2] + rows[4]) / 2, rel=1e-6)
    assert mean[1] == pytest.approx(mean[0], rel=1e-6)
    assert mean[2] == pytest.approx(rows[5], rel=1e-6)


def test_index_0_embeds_to_zero_whatever_the_row_holds_and_is_never_trained():
    """Fails on a table without the mask, and on a bag mean that gathers its padding."""
    table = EmbeddingTable(2, 3)
    table.table.assign(tf.fill([3, 3], 7.0))
    with tf.GradientTape() as tape:
        single, bag = table(tf.constant([0, 1])), table.pool(tf.constant([[0, 0], [0, 1]]), "mean")
        loss = tf.reduce_sum(single) + tf.reduce_sum(bag)
    assert single.numpy()[0].tolist() == bag.numpy()[0].tolist() == [0.0, 0.0, 0.0]
    assert bag.numpy()[1].tolist() == [7.0, 7.0, 7.0]
    gradient = tf.convert_to_tensor(tape.gradient(loss, table.table)).numpy()
    assert gradient[0].tolist() == [0.0] * 3
    assert gradient[1].tolist() == [2.0] * 3


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_only_rows_of_the_batch_change(how):
    table = EmbeddingTable(100, 4)
    # Each of both rows has a component that is the larger one: at random, one of them would have none in 1 of 16 runs.
    before = np.array(table.table)
    before[[3, 7]] = [[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]]
    table.table.assign(before)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(table.pool(tf.constant([[3, 7], [7, 0]]), how))
    gradient = tape.gradient(loss, table.table)
    assert isinstance(gradient, tf.IndexedSlices)
    adagrad(0.1).apply_gradients([(gradient, table.table)])
    changed = np.flatnonzero((table.table.numpy() != before).any(axis=1))
    assert changed.tolist() == [3, 7]


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_a_bag_batch_without_any_known_id_is_all_zero(how):
    assert EmbeddingTable(4, 2).pool(tf.zeros([3, 50], tf.int32), how).numpy().tolist() == [[0.0, 0.0]] * 3


def test_sum_and_maximum_are_over_known_ids_alone():
    """The maximum of negative components is negative: padding is no zero to compare with."""
    table = EmbeddingTable(3, 2)
    table.table.assign([[9.0, 9.0], [-1.0, 4.0], [-2.0, 5.0], [3.0, -6.0]])
    bags = tf.constant([[1, 2, 0], [0, 3, 0], [0, 0, 0], [1, 1, 0]])
    assert table.pool(bags, "sum").numpy().tolist() == [[-3.0, 9.0], [3.0, -6.0], [0.0, 0.0], [-2.0, 8.0]]
    assert table.pool(bags, "max").numpy().tolist() == [[-1.0, 5.0], [3.0, -6.0], [0.0, 0.0], [-1.0, 4.0]]


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
def test_two_bags_of_one_table_give_one_gradient_per_row_and_it_is_the_plain_one(how):
    """Against a dense gather with a mask. Id 3 stands in both bags, twice in one of them. Fails if a share is lost."""
    bags = [tf.constant([[3, 7, 3, 0], [0, 0, 0, 0], [1, 0, 9, 2]]), tf.constant([[7, 0], [3, 8], [0, 0]])]
    table = EmbeddingTable(9, 3)
    weights = [tf.random.stateless_normal([3, 3], seed=(1, number)) for number in range(2)]

    def plain(bag):
        known = tf.cast(bag > 0, tf.float32)[:, :, tf.newaxis]
        rows = tf.gather(table.table, bag)
        if how == "max":
            highest = tf.reduce_max(tf.where(known > 0, rows, -1e9), axis=1)
            return tf.where(highest > -1e8, highest, 0.0)
        total = tf.reduce_sum(rows * known, axis=1)
        return total / tf.maximum(tf.reduce_sum(known, axis=1), 1.0) if how == "mean" else total

    outcomes = []
    for pooled in (lambda: table.pool_all(bags, how), lambda: [plain(bag) for bag in bags]):
        with tf.GradientTape() as tape:
            values = pooled()
            loss = tf.add_n([tf.reduce_sum(w * v) for w, v in zip(weights, values, strict=True)])
        outcomes.append((values, tape.gradient(loss, table.table)))
    (values, gradient), (expected_values, expected_gradient) = outcomes
    for value, expected in zip(values, expected_values, strict=True):
        assert value.numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-6)
    assert gradient.indices.numpy().tolist() == [1, 2, 3, 7, 8, 9]
    dense = tf.convert_to_tensor(gradient).numpy()
    expected = tf.convert_to_tensor(expected_gradient).numpy()
    # Where 3 stands twice in a bag it ties with itself: either way of giving the maximum's gradient is one.
    if how != "max":
        assert dense == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert dense.sum(axis=0) == pytest.approx(expected.sum(axis=0), rel=1e-5)


def test_adagrad_by_hand_adds_up_the_gradients_of_a_row_that_occurs_twice():
    """Fails where each occurrence is a step of its own."""
    table = tf.Variable([[1.0], [1.0], [1.0]])
    optimizer = adagrad(0.1)
    for indices, values in (([0, 2, 0], [0.3, 0.5, 0.1]), ([2, 0], [0.2, 0.4])):
        optimizer.apply_gradients([(tf.IndexedSlices(tf.constant(values)[:, tf.newaxis], indices), table)])
    first = 1.0 - 0.1 * 0.4 / 0.4 - 0.1 * 0.4 / (0.4**2 + 0.4**2) ** 0.5
    third = 1.0 - 0.1 * 0.5 / 0.5 - 0.1 * 0.2 / (0.5**2 + 0.2**2) ** 0.5
    assert table.numpy()[:, 0] == pytest.approx([first, 1.0, third], rel=1e-4)


def test_a_tower_run_in_bfloat16_is_the_same_one_rounded():
    tower = relu_tower([32, 16], "tower")
    inputs = tf.random.stateless_normal([64, 20], seed=(1, 2))
    rounded = run_tower(tower, inputs, tf.bfloat16)
    assert rounded.dtype == tf.bfloat16
    exact = tower(inputs).numpy()
    error = np.linalg.norm(tf.cast(rounded, tf.float32).numpy() - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.01
    assert run_tower(tower, inputs, tf.float32).numpy().tolist() == exact.tolist()


def test_widths_follow_the_paper():
    assert halving_widths(256, 3) == [1024, 512, 256]
    assert halving_widths(256, 1) == [256]
    assert relu_tower([8, 4], "tower")(tf.zeros([2, 3])).shape == (2, 4)


def test_dimension_grows_with_the_logarithm():
    assert [log_dim(size, 1.0) for size in (1, 1023, 1_048_575)] == [2, 11, 21]
