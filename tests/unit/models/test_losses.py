import math

import numpy as np
import pytest
import tensorflow as tf

from watchnext.models.losses import (
    candidate_sampling_probability,
    expected_watch_time_s,
    weighted_logistic_loss,
)


def loss_of(logits, clicked, watch_time_s, unit_s=1.0, cap_s=1e9):
    return float(
        weighted_logistic_loss(
            tf.constant(logits, tf.float32),
            tf.constant(clicked, tf.float32),
            tf.constant(watch_time_s, tf.float32),
            unit_s=unit_s,
            cap_s=cap_s,
        )
    )


def test_clicks_weigh_their_watch_time_in_units_and_the_sum_is_divided_by_the_count_of_impressions():
    expected = ((30 / 10) * math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(2.0))) / 2
    assert loss_of([0.5, 2.0], [1.0, 0.0], [30.0, 0.0], unit_s=10.0) == pytest.approx(expected, rel=1e-6)


def test_watch_time_counts_up_to_the_cap():
    assert loss_of([0.5], [1.0], [500.0], cap_s=100.0) == loss_of([0.5], [1.0], [100.0], cap_s=100.0)
    assert loss_of([0.5], [1.0], [99.0], cap_s=100.0) < loss_of([0.5], [1.0], [100.0], cap_s=100.0)


def test_watch_time_without_a_click_is_ignored_and_a_click_without_watch_time_weighs_nothing():
    assert loss_of([0.7], [0.0], [50.0]) == loss_of([0.7], [0.0], [0.0])
    assert loss_of([0.7, -1.0], [0.0, 1.0], [0.0, 0.0]) == pytest.approx(loss_of([0.7], [0.0], [0.0]) / 2)


def test_the_minimum_lies_where_the_odds_are_watch_time_over_unclicked_impressions():
    """sum(T) / (N - k) = (20 + 40) / (5 - 2), in units of 10 s: the gradient vanishes there and nowhere near."""
    clicked, time = [1.0, 1.0, 0.0, 0.0, 0.0], [20.0, 40.0, 0.0, 0.0, 0.0]
    at = math.log((20 + 40) / 10 / (5 - 2))
    least = loss_of([at] * 5, clicked, time, unit_s=10.0)
    assert loss_of([at + 0.05] * 5, clicked, time, unit_s=10.0) > least
    assert loss_of([at - 0.05] * 5, clicked, time, unit_s=10.0) > least
    assert float(expected_watch_time_s(tf.constant(at), unit_s=10.0)) == pytest.approx(60 / 3, rel=1e-5)


def test_huge_logits_stay_finite():
    assert math.isfinite(loss_of([1e4, -1e4], [0.0, 1.0], [0.0, 100.0]))


def test_a_wrong_shape_is_refused_where_it_enters():
    with pytest.raises(ValueError, match=r"shape|rank"):
        loss_of([[0.0], [1.0]], [0.0, 1.0], [0.0, 1.0])


def test_sampling_probability_mixes_label_frequency_and_uniform_draws():
    q = candidate_sampling_probability(np.array([6, 2, 0, 0]), num_in_batch=8, num_uniform=4)
    expected_counts = np.array([8 * 6 / 8 + 4 / 4, 8 * 2 / 8 + 4 / 4, 4 / 4, 4 / 4])
    assert q == pytest.approx(expected_counts / expected_counts.max(), rel=1e-6)


def test_sampling_probability_that_tfrs_would_clip_is_refused():
    frequency = np.zeros(3_000_000, np.int64)
    frequency[0] = 1000
    with pytest.raises(ValueError, match="more uniform negatives"):
        candidate_sampling_probability(frequency, num_in_batch=1000, num_uniform=1)
    with pytest.raises(ValueError, match="no labels"):
        candidate_sampling_probability(np.zeros(3, np.int64), num_in_batch=1, num_uniform=1)
