"""The losses of both models, each beside its equation."""

import numpy as np
import tensorflow as tf


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


def candidate_sampling_probability(
    label_frequency: np.ndarray, *, num_in_batch: int, num_uniform: int
) -> np.ndarray:
    """How likely each candidate is drawn as a negative, up to a constant factor: the Q of the logQ correction.

    A step's candidates are the labels of its batch, drawn as often as they occur among the examples, and
    `num_uniform` draws from the whole corpus:

        Q_i  proportional to  num_in_batch * frequency_i / sum(frequency) + num_uniform / V

    A factor common to all candidates cancels in the softmax. `tfrs.tasks.Retrieval` clips Q to [1e-6, 1]
    without a word, so the result is scaled to a maximum of 1, and a Q that would be clipped is refused.

    Args:
        label_frequency: [num_candidates] how often each candidate is a label among the examples as emitted.
        num_in_batch: examples per batch.
        num_uniform: uniformly drawn candidates per batch.

    Returns:
        [num_candidates] float32 in [1e-6, 1]. Candidates that are never drawn have the smallest value of
        those that are.

    Raises:
        ValueError: no label at all, or Q spans more than a factor of a million.
    """
    total = label_frequency.sum()
    if total <= 0:
        raise ValueError("there are no labels to draw negatives from")
    corpus_size = len(label_frequency)
    expected_count = num_in_batch * label_frequency / total + num_uniform / corpus_size
    drawn = expected_count[expected_count > 0]
    if drawn.min() < 1e-6 * drawn.max():
        raise ValueError(
            f"the sampling probabilities of {corpus_size} candidates span a factor of "
            f"{drawn.max() / drawn.min():.3g}, and tfrs.tasks.Retrieval clips beyond 1e6; draw more uniform negatives"
        )
    scaled = np.maximum(expected_count, drawn.min()) / drawn.max()
    return scaled.astype(np.float32)
