"""From the logit of a ranker to the expected watch time that is served: an increasing curve, fitted on a later day.

Weighted logistic regression orders impressions by watch-time odds. Which odds order best, and which are the expected watch
time, are two questions (docs/training.md): the curve answers the second and leaves the order of the first alone.
"""

import dataclasses

import numpy as np
import tensorflow as tf

LEAST_SLOPE = 0.1
"""Of log seconds over the logit: the order of logits that differ by more than float32's rounding never changes."""
BINS = 20
"""Of equal count: as many as leave the mean of each sure, and a curve that bends."""
LEAST_OF_A_BIN = 200
LEAST_SECONDS = 1e-3


@dataclasses.dataclass(frozen=True)
class WatchTimeCurve:
    """Expected watch time as a function of the logit: log seconds linear between points, and on at the last slopes.

    Args:
        logits: [num_points] strictly ascending, two at least.
        seconds: [num_points] strictly ascending, positive.
    """

    logits: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.logits) != len(self.seconds) or len(self.logits) < 2:
            raise ValueError("a curve has two points at least, each with a logit and seconds")
        if not (np.diff(self.logits) > 0).all() or not (np.diff([0.0, *self.seconds]) > 0).all():
            raise ValueError("a curve rises with the logit, from above 0 s")

    @classmethod
    def fitted(cls, logits: np.ndarray, watch_time_s: np.ndarray) -> "WatchTimeCurve | None":
        """The curve of a day that the ranker did not learn from.

        Impressions are cut into bins of equal count by logit; where the mean watch time falls from one bin to the
        next, both become one (isotonic regression, pool adjacent violators). A point is a bin's mean logit, and its
        mean watch time.

        Args:
            logits: [num_impressions].
            watch_time_s: [num_impressions] seconds, 0 without a click.

        Returns:
            None where fewer than two points are left: too few impressions, or the watch time does not rise.
        """
        bins = min(BINS, len(logits) // LEAST_OF_A_BIN)
        order = np.argsort(logits, kind="stable")
        # Count, sum of logits and of seconds of each pool.
        pools: list[np.ndarray] = []
        for part in np.array_split(order, bins) if bins else []:
            sums = (values[part].sum(dtype=np.float64) for values in (logits, watch_time_s))
            pools.append(np.array([len(part), *sums]))
            while len(pools) > 1 and not _rises(pools[-2], pools[-1]):
                last = pools.pop()
                pools[-1] = pools[-1] + last
        if len(pools) < 2:
            return None
        count, logit, seconds = np.stack(pools).T
        means_s = np.maximum(seconds / count, LEAST_SECONDS)
        return cls(tuple((logit / count).tolist()), tuple(means_s.tolist()))

    def expected_watch_time_s(self, logits: tf.Tensor) -> tf.Tensor:
        """[num_impressions] logits -> [num_impressions] expected watch time, seconds."""
        at = np.asarray(self.logits, np.float64)
        log_s = np.log(self.seconds)
        slopes = np.diff(log_s) / np.diff(at)
        knot = tf.searchsorted(tf.constant(at[1:-1], tf.float32), logits)
        table = tf.constant(np.stack([at[:-1], log_s[:-1], slopes], axis=1), tf.float32)
        begin, log_begin, slope = tf.unstack(tf.gather(table, knot), axis=-1)
        return tf.exp(log_begin + (logits - begin) * slope)


def _rises(lower: np.ndarray, upper: np.ndarray) -> bool:
    """Whether the mean watch time rises from one pool to the next, by LEAST_SLOPE in log seconds at least."""
    (_, logit, seconds), (_, next_logit, next_seconds) = lower / lower[0], upper / upper[0]
    if next_logit <= logit:
        return False
    log_s, next_log_s = np.log(np.maximum([seconds, next_seconds], LEAST_SECONDS))
    return bool(next_log_s - log_s >= LEAST_SLOPE * (next_logit - logit))
