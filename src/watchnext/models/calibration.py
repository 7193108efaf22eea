"""From the logit of a ranker to the expected watch time that is served: an increasing curve, fitted on a later day.

Weighted logistic regression orders impressions by watch-time odds. Which odds order best, and which are the expected watch
time, are two questions (docs/training.md): the curve answers the second and leaves the order of the first alone.
"""

import dataclasses

import numpy as np
import tensorflow as tf

LEAST_SLOPE = 0.1
"""Of log seconds over the logit: the order of logits that differ by more than float32's rounding never changes."""
LEAST_CLICKED = 100
"""Impressions with watch time that a fit wants."""
POINTS = 33
TAIL = 0.005
"""Share of the logits at either end beyond which the curve goes on straight."""
NEWTON_STEPS = 50


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

        Log seconds are a parabola of the logit, by Poisson regression on the watch time in seconds,

            E[T | z] = exp(b_0 + b_1 z + b_2 z^2),      sum of (T - E[T | z]) z^k = 0 for k = 0, 1, 2

        so that the day's mean watch time is met. With one parameter less the odds E[T] / (1 - P), which bend against E[T]
        where clicks are frequent, are not; a mean per bin of logits, which needs no form, is as uncertain as few watches
        make it. That the variance goes with the mean, as the regression takes it, is what rare clicks with watch times of
        one distribution do. Where the parabola rises by less than LEAST_SLOPE or falls, the curve rises by LEAST_SLOPE.

        Args:
            logits: [num_impressions].
            watch_time_s: [num_impressions] seconds, 0 without a click.

        Returns:
            None where the day does not say it: fewer than LEAST_CLICKED impressions with watch time, or one logit for all,
            or no more watched the higher the logit.
        """
        z = np.asarray(logits, np.float64)
        if np.count_nonzero(watch_time_s) < LEAST_CLICKED or np.ptp(z) == 0.0:
            return None
        center, width = z.mean(), z.std()
        forms = _parabola((z - center) / width)
        mean_s = watch_time_s.mean(dtype=np.float64)
        weights = np.array([np.log(mean_s), 0.0, 0.0])
        for _ in range(NEWTON_STEPS):
            expected = np.exp(np.clip(forms @ weights, -30.0, 30.0))
            curvature = (forms * expected[:, np.newaxis]).T @ forms
            step = np.linalg.lstsq(curvature, forms.T @ (watch_time_s - expected), rcond=None)[0]
            weights += step / max(1.0, np.abs(step).max())
            if np.abs(step).max() < 1e-9:
                break
        lowest, highest = np.quantile(z, [TAIL, 1.0 - TAIL])
        at = np.linspace(lowest, highest, POINTS)
        if not np.diff(at).min() > 0.0:
            return None
        log_s = _parabola((at - center) / width) @ weights
        if not log_s[-1] - log_s[0] >= LEAST_SLOPE * (at[-1] - at[0]):
            return None
        rises = np.maximum(np.diff(log_s), LEAST_SLOPE * np.diff(at))
        log_s = log_s[0] + np.r_[0.0, np.cumsum(rises)]
        return cls(tuple(at.tolist()), tuple(np.exp(log_s).tolist()))

    def expected_watch_time_s(self, logits: tf.Tensor) -> tf.Tensor:
        """[num_impressions] logits -> [num_impressions] expected watch time, seconds."""
        at = np.asarray(self.logits, np.float64)
        log_s = np.log(self.seconds)
        slopes = np.diff(log_s) / np.diff(at)
        knot = tf.searchsorted(tf.constant(at[1:-1], tf.float32), logits)
        table = tf.constant(np.stack([at[:-1], log_s[:-1], slopes], axis=1), tf.float32)
        begin, log_begin, slope = tf.unstack(tf.gather(table, knot), axis=-1)
        return tf.exp(log_begin + (logits - begin) * slope)


def _parabola(x: np.ndarray) -> np.ndarray:
    """[N] -> [N, 3]: 1, x, x^2."""
    return np.stack([np.ones_like(x), x, x * x], axis=1)
