"""The losses of both models, each beside its equation."""

from typing import Literal

import tensorflow as tf

Estimator = Literal["consistent", "tfrs"]

_LEFT_OUT = tf.float32.min
"""Logit of a candidate that takes no part: its exponential is 0 beside any other."""


def weighted_logistic_loss(
    logits: tf.Tensor, clicked: tf.Tensor, watch_time_s: tf.Tensor, *, unit_s: float, cap_s: float
) -> tf.Tensor:
    """Logistic regression in which a click weighs as much as the watch time that followed (paper, section 4.2).

        w_i = min(T_i, cap_s) / unit_s
        L   = 1/N * ( sum over clicked of w_i * softplus(-z_i)  +  sum over unclicked of softplus(z_i) )

    For impressions that share a logit z the minimum lies at e^z = sum(w_i) / (N - k), with k clicks among N
    impressions. With P the click rate and E[T] the mean watch time of an impression (0 without a click) that
    is E[T] / (1 - P) in units of `unit_s`: the paper's approximation E[T] (1 + P), and close to E[T], only
    while P is small. The sum is divided by the count of impressions, not by the sum of weights, so that the
    step size does not depend on how long the videos of a batch were watched.

    Args:
        logits: [num_impressions] logits z.
        clicked: [num_impressions] 1.0 for clicked, 0.0 for unclicked.
        watch_time_s: [num_impressions] watch time in seconds; ignored where unclicked. A click without watch
            time weighs nothing, as the equation says.
        unit_s: the watch time, in seconds, that weighs as much as one unclicked impression.
        cap_s: watch time above this counts as this, in seconds.

    Returns:
        [] mean loss per impression.
    """
    tf.debugging.assert_shapes([(logits, ("N",)), (clicked, ("N",)), (watch_time_s, ("N",))])
    weight = tf.minimum(watch_time_s, cap_s) / unit_s
    per_impression = clicked * weight * tf.nn.softplus(-logits) + (1.0 - clicked) * tf.nn.softplus(logits)
    return tf.reduce_mean(per_impression)


def expected_watch_time_s(logits: tf.Tensor, *, unit_s: float) -> tf.Tensor:
    """The serving activation that belongs to `weighted_logistic_loss`: unit_s * e^z (paper, section 4.2).

    This is E[T] / (1 - P): above the expected watch time by the factor 1 / (1 - click probability).

    Args:
        logits: [num_impressions] logits z.
        unit_s: as in training, in seconds.

    Returns:
        [num_impressions] watch-time odds in seconds.
    """
    return unit_s * tf.exp(logits)


def sampled_softmax_loss(
    queries: tf.Tensor,
    positives: tf.Tensor,
    negatives: tf.Tensor,
    *,
    positive_ids: tf.Tensor,
    negative_ids: tf.Tensor,
    log_expected_count_of_positives: tf.Tensor,
    log_expected_count_of_negatives: tf.Tensor,
    user_ids: tf.Tensor | None = None,
    estimator: Estimator = "consistent",
    in_batch: bool = True,
) -> tf.Tensor:
    """Cross-entropy of a softmax over the whole corpus, estimated from sampled candidates (paper, section 3.1).

    With s_ij = query_i . candidate_j, y the label of example i and Q_j the expected count of candidate j among the
    negatives of an example, the candidates drawn stand for the corpus:

        consistent      L_i = -s_iy + log( e^{s_iy} + sum over drawn k, k != y of  e^{s_ik} / Q_k )
        tfrs            L_i = -(s_iy - log Q_y) + log( e^{s_iy} / Q_y + sum over drawn k, k != y of  e^{s_ik} / Q_k )

    In the first, the sum is an unbiased estimate of what the full softmax sums over the other classes, so that the
    gradient converges to the full softmax's, with a bias of the order 1 / S. The second is what
    `tfrs.tasks.Retrieval(remove_accidental_hits=True)` computes: the positive is weighted as if it had been
    drawn, too. Where candidates are seldom drawn it recovers the same probabilities; its gradient differs from
    the full softmax's however many are drawn (arXiv 2507.09331). Unlike there, no Q is clipped.

    Candidates are the shared negatives and, with `in_batch`, the labels of the other examples. Left out for example i
    are candidates that equal its label (accidental hits), and labels of further examples of the same user: what a
    user watched is not to be pushed away by another watch of the same user.

    Args:
        queries: [num_examples, embedding_dim] query embeddings.
        positives: [num_examples, embedding_dim] candidate embeddings of the labels.
        negatives: [num_negatives, embedding_dim] candidate embeddings of the shared draws.
        positive_ids: int [num_examples] labels.
        negative_ids: int [num_negatives].
        log_expected_count_of_positives: [num_examples] log Q of the labels.
        log_expected_count_of_negatives: [num_negatives] log Q of the shared draws.
        user_ids: int [num_examples], equal for examples of one user; None: no example shares its user.
        estimator: which of the two.
        in_batch: whether labels of other examples are negatives.

    Returns:
        [num_examples] loss of each example.
    """
    tf.debugging.assert_shapes(
        [
            (queries, ("B", "D")),
            (positives, ("B", "D")),
            (negatives, ("S", "D")),
            (positive_ids, ("B",)),
            (negative_ids, ("S",)),
            (log_expected_count_of_positives, ("B",)),
            (log_expected_count_of_negatives, ("S",)),
        ]
    )
    own = tf.reduce_sum(queries * positives, axis=1)
    if estimator == "tfrs":
        own -= log_expected_count_of_positives
    shared = tf.matmul(queries, negatives, transpose_b=True) - log_expected_count_of_negatives
    hit = positive_ids[:, tf.newaxis] == negative_ids
    logits = [own[:, tf.newaxis], tf.where(hit, _LEFT_OUT, shared)]
    if in_batch:
        others = tf.matmul(queries, positives, transpose_b=True) - log_expected_count_of_positives
        hit = positive_ids[:, tf.newaxis] == positive_ids
        if user_ids is not None:
            hit |= user_ids[:, tf.newaxis] == user_ids
        logits.append(tf.where(hit, _LEFT_OUT, others))
    return tf.reduce_logsumexp(tf.concat(logits, axis=1), axis=1) - own
