import numpy as np
import pytest
import tensorflow as tf

from watchnext.models.towers import EmbeddingTable, adagrad, halving_widths, log_dim, relu_tower


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
    before = table.table.numpy()
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


def test_widths_follow_the_paper():
    assert halving_widths(256, 3) == [1024, 512, 256]
    assert halving_widths(256, 1) == [256]
    assert relu_tower([8, 4], "tower")(tf.zeros([2, 3])).shape == (2, 4)


def test_dimension_grows_with_the_logarithm():
    assert [log_dim(size, 1.0) for size in (1, 1023, 1_048_575)] == [2, 11, 21]
