"""The losses of both models, each beside its equation."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import tensorflow as tf

Estimator = Literal["consistent", "tfrs"]

Odds = Literal["unclicked", "impressions"]
"""Which impressions are unit negatives of watch time: the unclicked ones, as in the paper, or all."""


def weighted_logistic_loss(
    logits: tf.Tensor,
    clicked: tf.Tensor,
    watch_time_s: tf.Tensor,
    *,
    unit_s: float,
    cap_s: float,
    odds: Odds = "unclicked",
) -> tf.Tensor:
    """Logistic regression in which a click weighs as much as the watch time that followed (paper, section 4.2).

        w_i = min(T_i, cap_s) / unit_s,  0 where unclicked

        unclicked     L = 1/N * sum over i of ( w_i * softplus(-z_i)  +  [i unclicked] * softplus(z_i) )
        impressions   L = 1/N * sum over i of ( w_i * softplus(-z_i)  +                  softplus(z_i) )

    For impressions that share a logit z the minimum lies, with k clicks among N impressions, at

        unclicked     e^z = sum(w_i) / (N - k) = E[T] / (1 - P) / unit_s
        impressions   e^z = sum(w_i) / N       = E[T] / unit_s

    with P the click rate and E[T] the mean watch time of an impression (0 without a click). The first is the paper's,
    which takes P for small: E[T] (1 + P), close to E[T]. Where it is not, what is clicked more is rated too high by
    its own 1 / (1 - P), and the order of impressions is not that of their watch time. The second counts a
    clicked impression as a unit negative, too, and is E[T] at any click rate.

    The sum is divided by the count of impressions, not by the sum of weights, so that the step size does not depend
    on how long the videos of a batch were watched. |dL/dz_i| <= max(1, w_i) / N for any z: no logit needs a bound
    in training.

    Args:
        logits: [num_impressions] logits z.
        clicked: [num_impressions] 1.0 for clicked, 0.0 for unclicked.
        watch_time_s: [num_impressions] watch time in seconds; ignored where unclicked. A click without watch
            time weighs nothing, as the equation says; among `impressions` it is a unit negative.
        unit_s: the watch time, in seconds, that weighs as much as one unit negative.
        cap_s: watch time above this counts as this, in seconds.
        odds: which impressions are the unit negatives.

    Returns:
        [] mean loss per impression.
    """
    tf.debugging.assert_shapes([(logits, ("N",)), (clicked, ("N",)), (watch_time_s, ("N",))])
    weight = tf.minimum(watch_time_s, cap_s) / unit_s
    negative = 1.0 if odds == "impressions" else 1.0 - clicked
    per_impression = clicked * weight * tf.nn.softplus(-logits) + negative * tf.nn.softplus(logits)
    return tf.reduce_mean(per_impression)


def expected_watch_time_s(logits: tf.Tensor, *, unit_s: float) -> tf.Tensor:
    """The serving activation that belongs to `weighted_logistic_loss`: unit_s * e^z (paper, section 4.2).

    With odds of `impressions` this is E[T], the expected watch time of an impression; with odds of `unclicked` it is
    E[T] / (1 - P): above it by the factor 1 / (1 - click probability).

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
    matmul_dtype: tf.DType = tf.float32,
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
        matmul_dtype: of the products of queries and candidates, and of the probabilities between them and their
            gradient. With bfloat16 a probability is right to 1 %, and the three products take a fifth of the time
            where the processor has instructions for them.

    Returns:
        [num_examples] float32 loss of each example; at most 87, where e^-L leaves float32.
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
    queries, positives, negatives = (
        tf.cast(embeddings, tf.float32) for embeddings in (queries, positives, negatives)
    )
    num_examples = tf.shape(queries)[0]
    examples = tf.range(num_examples)
    # Columns: the labels of the batch, of which column i is the own one of example i; or else one own column for all.
    # Then the shared draws.
    if in_batch:
        own_column = examples
        first = num_examples
        log_count_of_first = log_expected_count_of_positives
        left_out = [_equal_pairs(positive_ids, positive_ids)]
        if user_ids is not None:
            left_out.append(_equal_pairs(user_ids, user_ids))
        left_out = [tf.boolean_mask(pairs, pairs[:, 0] != pairs[:, 1]) for pairs in left_out]
    else:
        own_column = tf.zeros_like(examples)
        first = tf.constant(1)
        log_count_of_first = tf.zeros([1])
        left_out = []
    left_out.append(tf.add(_equal_pairs(positive_ids, negative_ids), [0, first]))
    log_count = tf.concat([log_count_of_first, log_expected_count_of_negatives], axis=0)
    own_places = tf.stack([examples, own_column], axis=1)
    places = tf.concat([own_places, *left_out], axis=0)
    num_left_out = tf.shape(places)[0] - num_examples
    values = tf.concat(
        [tf.zeros([num_examples], matmul_dtype), tf.fill([num_left_out], matmul_dtype.min)], axis=0
    )

    @tf.custom_gradient
    def loss(
        queries: tf.Tensor, positives: tf.Tensor, negatives: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
        own = tf.reduce_sum(queries * positives, axis=1)
        if estimator == "tfrs":
            own -= log_expected_count_of_positives
        candidates = tf.concat([positives if in_batch else tf.zeros_like(positives[:1]), negatives], axis=0)
        # s_ik - log Q_k - own_i in one product. What is large stays exact in bfloat16: all is relative to the positive,
        # whose own entry is 0.
        owns, log_counts = _split(-own, matmul_dtype), _split(-log_count, matmul_dtype)
        relative = tf.matmul(
            tf.concat([tf.cast(queries, matmul_dtype), tf.ones_like(owns), owns], axis=1),
            tf.concat([tf.cast(candidates, matmul_dtype), log_counts, tf.ones_like(log_counts)], axis=1),
            transpose_b=True,
        )
        share = tf.nn.softmax(tf.tensor_scatter_nd_update(relative, places, values))
        own_share = tf.cast(tf.gather_nd(share, own_places), tf.float32)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            # dL_i / ds_ik = share_ik, less 1 at the positive, which the products leave to float32.
            of_queries = tf.matmul(share, tf.cast(candidates, matmul_dtype))
            weighted = upstream[:, tf.newaxis] * queries
            of_candidates = tf.cast(
                tf.matmul(share, tf.cast(weighted, matmul_dtype), transpose_a=True), tf.float32
            )
            # The column that stands for the own positives is no embedding: their share is added here.
            of_own = (-1.0 if in_batch else own_share - 1.0) * tf.ones_like(upstream)
            of_positives = of_own[:, tf.newaxis] * weighted
            if in_batch:
                of_positives += of_candidates[:num_examples]
            of_queries = tf.cast(of_queries, tf.float32) + of_own[:, tf.newaxis] * positives
            return upstream[:, tf.newaxis] * of_queries, of_positives, of_candidates[first:]

        return -tf.math.log(tf.maximum(own_share, np.finfo(np.float32).tiny)), gradient

    return loss(queries, positives, negatives)


def _split(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """[N] float32 as [N, 2] of `dtype`: the nearest number, and what is missing, so that both add up to the value.

    Products add up in float32: a column beside the embeddings is as exact as if it were added afterwards.
    """
    nearest = tf.cast(values, dtype)
    return tf.stack([nearest, tf.cast(values - tf.cast(nearest, tf.float32), dtype)], axis=1)


def _equal_pairs(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """Where left_i == right_j: int32 [num_pairs, 2] of (i, j).

    By sorting: all pairs of 4,096 ids and 8,000 compared take a tenth of a training step.
    """
    order = tf.argsort(right)
    ascending = tf.gather(right, order)
    ranges = tf.raw_ops.RaggedRange(
        starts=tf.searchsorted(ascending, left, side="left"),
        limits=tf.searchsorted(ascending, left, side="right"),
        deltas=tf.constant(1),
        Tsplits=tf.int32,
    )
    place = ranges.rt_dense_values
    row = tf.searchsorted(ranges.rt_nested_splits, tf.range(tf.size(place)), side="right") - 1
    return tf.stack([row, tf.gather(order, place)], axis=1)
