import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watchnext.errors import InputError
from watchnext.evaluation import metrics

NEVER = metrics.UNRANKED


def test_ranks_count_candidates_that_score_as_high():
    scores = np.array([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [1.0, 2.0, 3.0]])
    assert metrics.label_ranks(scores, np.array([3, 1, 0])).tolist() == [2, 3, NEVER]


def test_constant_scores_rank_last_not_first():
    """Fails where ties count in favour of the label."""
    assert metrics.label_ranks(np.zeros((2, 50)), np.array([1, 50])).tolist() == [50, 50]


def test_excluded_candidates_give_up_their_places_once_each():
    scores = np.array([[0.9, 0.8, 0.7, 0.6]] * 3)
    excluded = np.array([[1, 1, 2, 0], [4, 0, 0, 0], [3, 1, 0, 0]])
    assert metrics.label_ranks(scores, np.array([3, 3, 3]), excluded).tolist() == [1, 3, NEVER]


def test_excluding_equals_deleting():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(1, 20))
    kept = np.delete(scores, [4, 11], axis=1)
    assert metrics.label_ranks(scores, np.array([1]), np.array([[5, 12]])) == metrics.label_ranks(
        kept, np.array([1])
    )


def test_a_label_scored_nan_is_not_ranked():
    assert metrics.label_ranks(np.array([[np.nan, 1.0]]), np.array([1])).tolist() == [NEVER]


RANKS = np.array([1, 3, 10, NEVER])


def test_retrieval_metrics():
    assert metrics.recall_at_k(RANKS, 1) == 1 / 4
    assert metrics.recall_at_k(RANKS, 3) == 2 / 4
    assert metrics.recall_at_k(RANKS, 10**9) == 3 / 4
    assert metrics.precision_at_k(RANKS, 3) == (2 / 4) / 3
    assert metrics.mean_average_precision(RANKS) == pytest.approx((1 + 1 / 3 + 1 / 10 + 0) / 4)
    assert metrics.ndcg_at_k(RANKS, 3) == pytest.approx((1 / math.log2(2) + 1 / math.log2(4) + 0 + 0) / 4)
    with pytest.raises(ValueError, match="at least 1"):
        metrics.recall_at_k(RANKS, 0)


def test_index_recall_ignores_order_and_counts_what_is_missing():
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[2, 1, 9, 4], [5, 6, -1, -1]])
    assert metrics.index_recall_at_k(found, exact, 2) == (2 + 2) / (2 * 2)
    assert metrics.index_recall_at_k(found, exact, 4) == (3 + 2) / (2 * 4)
    with pytest.raises(ValueError, match="needs 5 columns"):
        metrics.index_recall_at_k(found, exact, 5)


def test_weighted_pairwise_loss_by_hand():
    """30 s clicked at 0.5 between unclicked at 0.9 and 0.1: 30 of 60. 10 s clicked and unclicked at 0.2: 5 of 10."""
    scores = np.array([0.5, 0.9, 0.1, 0.2, 0.2])
    clicked = np.array([True, False, False, True, False])
    time = np.array([30.0, 0.0, 0.0, 10.0, 0.0])
    groups = np.array([0, 0, 0, 1, 1])
    assert metrics.weighted_pairwise_loss(scores, clicked, time, groups) == (30 + 10 / 2) / (30 + 30 + 10)


def test_pairs_are_of_one_group_alone():
    """Fails where groups are ignored: across them the order is wrong."""
    arguments = (np.array([0.2, 0.1, 0.9, 0.8]), np.array([1, 0, 1, 0], bool), np.ones(4))
    assert metrics.weighted_pairwise_loss(*arguments, np.array([0, 0, 1, 1])) == 0.0
    assert metrics.weighted_pairwise_loss(*arguments, np.array([0, 1, 1, 0])) == 1 / 2
    assert metrics.weighted_pairwise_loss(*arguments, np.zeros(4, int)) == 1 / 4


def test_without_pairs_there_is_no_loss():
    assert math.isnan(
        metrics.weighted_pairwise_loss(np.ones(2), np.ones(2, bool), np.ones(2), np.zeros(2, int))
    )
    assert math.isnan(
        metrics.weighted_pairwise_loss(np.ones(0), np.ones(0, bool), np.ones(0), np.zeros(0, int))
    )


def test_a_day_with_no_clicks_has_no_losses_and_stops_nobody():
    """What asks for a click is NaN; the log loss has its negatives, and predicted seconds have nothing to be over."""
    scores, clicked, time = np.array([0.1, -0.2, 0.3]), np.zeros(3, bool), np.zeros(3)
    assert math.isnan(metrics.weighted_pairwise_loss(scores, clicked, time, np.zeros(3, int)))
    assert math.isnan(metrics.auc(scores, clicked))
    assert math.isnan(metrics.xauc(scores[clicked], time[clicked]))
    ratios = metrics.calibration_ratios(np.exp(scores), clicked, time)
    assert all(math.isnan(value) for value in ratios.values())
    loss = metrics.weighted_log_loss(scores, clicked, time, unit_s=10.0, cap_s=100.0)
    assert loss == pytest.approx(np.logaddexp(0.0, scores).mean())


def test_a_user_with_one_side_only_of_a_pair_counts_nowhere():
    """One user who clicked all that was shown and one who clicked nothing, beside one whose pair ties."""
    scores = np.array([0.5, 0.5, 0.9, 0.8, 0.1, 0.2])
    clicked = np.array([True, False, True, True, False, False])
    time, users = np.array([30.0, 0.0, 500.0, 600.0, 0.0, 0.0]), np.array([0, 0, 1, 1, 2, 2])
    mispredicted, total = metrics.pairwise_losses(scores, clicked, time, users)
    assert mispredicted.tolist() == [15.0, 0, 0, 0, 0, 0]
    assert total.tolist() == [30.0, 0, 0, 0, 0, 0]
    assert metrics.weighted_pairwise_loss(scores, clicked, time, users) == 0.5


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(InputError, match="1 of 2 scores"):
        metrics.weighted_pairwise_loss(
            np.array([np.nan, 1.0]), np.ones(2, bool), np.ones(2), np.zeros(2, int)
        )


impressions = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 50), st.integers(0, 4)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(impressions)
def test_the_fast_pairwise_loss_is_the_double_loop(rows):
    groups, clicked, time, scores = (np.array(column) for column in zip(*rows, strict=True))
    mispredicted = total = 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            if groups[i] == groups[j] and clicked[i] and not clicked[j]:
                total += time[i]
                mispredicted += time[i] * ((scores[j] > scores[i]) + 0.5 * (scores[j] == scores[i]))
    found = metrics.weighted_pairwise_loss(scores.astype(float), clicked, time.astype(float), groups)
    assert found == pytest.approx(mispredicted / total) if total else math.isnan(found)


def test_auc_by_hand():
    assert metrics.auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 3 / 4
    assert metrics.auc(np.zeros(4), np.array([False, True, False, True])) == 1 / 2


@pytest.mark.parametrize("odds", ["unclicked", "impressions"])
def test_weighted_log_loss_is_the_training_loss(odds):
    tf = pytest.importorskip("tensorflow")
    from watchnext.models.losses import weighted_logistic_loss

    logits, clicked, time = (
        np.array([0.3, -2.0, 1.0]),
        np.array([1.0, 0.0, 1.0]),
        np.array([40.0, 9.0, 900.0]),
    )
    expected = weighted_logistic_loss(
        *(tf.constant(array, tf.float32) for array in (logits, clicked, time)),
        unit_s=10.0,
        cap_s=300.0,
        odds=odds,
    )
    found = metrics.weighted_log_loss(logits, clicked, time, unit_s=10.0, cap_s=300.0, odds=odds)
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_calibration_by_hand():
    predicted = np.array([1.0, 2.0, 30.0, 40.0])
    clicked, time = np.array([False, True, True, False]), np.array([5.0, 4.0, 60.0, 0.0])
    bins = metrics.calibration(predicted, clicked, time, bins=2)
    assert bins["impressions"].tolist() == [2, 2]
    assert bins["predicted_s"].tolist() == [(1 + 2) / 2, (30 + 40) / 2]
    assert bins["observed_s"].tolist() == [4 / 2, 60 / 2]
    assert bins["observed_odds_s"].tolist() == [4 / 1, 60 / 1]
    ratios = metrics.calibration_ratios(predicted, clicked, time)
    assert ratios["calibration"] == pytest.approx((73 / 4) / (64 / 4))
    assert ratios["odds_calibration"] == pytest.approx((73 / 4) / (64 / 2))


def test_calibration_by_decile_is_of_what_the_odds_learn():
    """Ten deciles of ten impressions, in each five clicked: predictions are the mean watch time but for two deciles."""
    clicked = np.tile([True, False], 50)
    time = np.repeat(np.arange(1.0, 11.0), 10)
    mean = time * 0.5
    mean[:10], mean[90:] = mean[:10] * 0.8, mean[90:] * 1.5
    of_impressions = metrics.calibration_ratios(mean, clicked, time, odds="impressions")
    assert of_impressions["decile_calibration_least"] == pytest.approx(0.8)
    assert of_impressions["decile_calibration_largest"] == pytest.approx(1.5)
    of_unclicked = metrics.calibration_ratios(2 * mean, clicked, time, odds="unclicked")
    assert of_unclicked["decile_calibration_least"] == pytest.approx(0.8)
    assert of_unclicked["decile_calibration_largest"] == pytest.approx(1.5)


def test_xauc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    predicted, observed = rng.integers(0, 6, 60).astype(float), rng.integers(0, 9, 60).astype(float)
    right = total = 0.0
    for i in range(60):
        for j in range(60):
            if observed[i] < observed[j]:
                total += 1
                right += (predicted[i] < predicted[j]) + 0.5 * (predicted[i] == predicted[j])
    assert metrics.xauc(predicted, observed) == pytest.approx(right / total)
    assert metrics.xauc(observed, observed) == 1.0
    assert metrics.xauc(np.ones(60), observed) == 0.5
    assert np.isnan(metrics.xauc(observed, np.ones(60)))
    assert np.isnan(metrics.xauc(np.ones(0), np.ones(0)))


def test_rank_correlation_is_spearmans_with_ties_at_their_mean_rank():
    """By hand: ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4 have covariance 4.5 / 4 and variances 4.5 / 4 and 5 / 4."""
    first, second = np.array([1.0, 7.0, 7.0, 9.0]), np.array([0.1, 0.2, 0.3, 40.0])
    assert metrics.rank_correlation(first, second) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert metrics.rank_correlation(second, np.exp(second)) == pytest.approx(1.0)
    assert metrics.rank_correlation(second, -second) == pytest.approx(-1.0)
    assert np.isnan(metrics.rank_correlation(first, np.ones(4)))
    assert np.isnan(metrics.rank_correlation(first[:1], second[:1]))
