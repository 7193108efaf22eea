"""Where a step's shared negatives come from, and how often each candidate is expected among them (paper, section 3.1)."""

from typing import Literal

import numpy as np
import tensorflow as tf

SamplerKind = Literal["uniform", "log_uniform", "frequency"]


class Sampler:
    """Draws candidates from one background distribution, the same draws for all examples of a step.

    Args:
        probability: float64 [num_candidates] q, positive or 0; scaled to sum to 1.

    Raises:
        ValueError: there is no candidate, or a probability is negative or not a number, or all are 0.
    """

    def __init__(self, probability: np.ndarray) -> None:
        probability = np.asarray(probability, dtype=np.float64)
        if probability.ndim != 1 or not np.all(probability >= 0) or not 0 < probability.sum() < np.inf:
            raise ValueError("a sampler needs one number per candidate, none below 0 and one above")
        self.probability = probability / probability.sum()
        # In double precision: of a million candidates, single precision loses those whose share is below 6e-8.
        self._cumulative = tf.constant(np.cumsum(self.probability))
        self._last = int(np.flatnonzero(self.probability)[-1])

    def draw(self, num: int, unique: bool) -> tf.Tensor:
        """Rows of candidates, int32: `num` independent draws, or the distinct ones among as many.

        Args:
            num: S, how many draws.
            unique: whether a candidate that was drawn again is left out.

        Returns:
            int32 [num]; with `unique` [at most num].
        """
        places = tf.random.get_global_generator().uniform([num], dtype=tf.float64) * self._cumulative[-1]
        rows = tf.minimum(tf.searchsorted(self._cumulative, places, side="right"), self._last)
        return tf.unique(rows).y if unique else rows

    def expected_count(self, num: int, unique: bool) -> np.ndarray:
        """How often each candidate is expected in what `draw` gives.

            S q_j               of S independent draws
            1 - (1 - q_j)^S     of the distinct ones among them: the probability to be included at all

        Returns:
            float64 [num_candidates].
        """
        if unique:
            with np.errstate(divide="ignore"):  # q = 1: drawn for certain
                return -np.expm1(num * np.log1p(-self.probability))
        return num * self.probability


def make_sampler(
    kind: SamplerKind, *, num_candidates: int, label_frequency: np.ndarray, alpha: float
) -> Sampler:
    """The background distributions to choose from.

        uniform         q_j = 1 / V
        log_uniform     q_j = log((j + 2) / (j + 1)) / log(V + 1), row j from 0: Zipf's law for rows sorted by falling
                        frequency, as those of a vocabulary are
        frequency       q_j proportional to max(f_j, 1)^alpha: word2vec's at alpha = 0.75. A candidate that is
                        never a label counts as one label, since what is never a negative keeps the score it began with

    Args:
        kind: which.
        num_candidates: V.
        label_frequency: [num_candidates] f, how often each candidate is a label of the examples as emitted.
        alpha: exponent of `frequency`; the other kinds do not look at it.
    """
    if kind == "uniform":
        return Sampler(np.ones(num_candidates))
    if kind == "log_uniform":
        return Sampler(np.log1p(1.0 / (np.arange(num_candidates) + 1.0)))
    return Sampler(np.maximum(label_frequency, 1.0) ** alpha)


def expected_candidate_count(
    sampler: Sampler,
    label_frequency: np.ndarray,
    *,
    num_negatives: int,
    unique: bool,
    batch_size: int,
    in_batch: bool,
) -> np.ndarray:
    """How often each candidate is expected to be a negative of one example: the Q of the logQ correction.

        Q_j = S q_j + (B - 1) p_j       (1 - (1 - q_j)^S in place of S q_j for distinct draws)

    S shared draws come from q. The B - 1 other examples of the batch bring their labels, which are drawn from p, the
    distribution of labels among the examples as emitted (after the cap per user): the own label is no negative.

    Args:
        sampler: of the shared draws.
        label_frequency: [num_candidates], how often each candidate is a label of the examples as emitted.
        num_negatives: S.
        unique: whether the shared draws are made distinct.
        batch_size: B.
        in_batch: whether labels of the batch are negatives at all.

    Returns:
        float64 [num_candidates]. 0 where a candidate is never a negative.

    Raises:
        ValueError: there is no label.
    """
    total = label_frequency.sum()
    if total <= 0:
        raise ValueError("there are no labels to draw negatives from")
    shared = sampler.expected_count(num_negatives, unique)
    return shared + (batch_size - 1) * label_frequency / total if in_batch else shared
