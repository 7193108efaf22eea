import numpy as np
import pytest
import tensorflow as tf

from watchnext.models.calibration import WatchTimeCurve


def seconds(curve, logits):
    return curve.expected_watch_time_s(tf.constant(logits, tf.float32)).numpy()


def test_a_curve_goes_through_its_points_and_between_them_straight_in_log_seconds():
    curve = WatchTimeCurve((-1.0, 1.0, 2.0), (2.0, 8.0, 80.0))
    assert seconds(curve, [-1.0, 1.0, 2.0]) == pytest.approx([2.0, 8.0, 80.0], rel=1e-5)
    assert seconds(curve, [0.0, 1.5]) == pytest.approx([(2 * 8) ** 0.5, (8 * 80) ** 0.5], rel=1e-5)
    # Beyond the ends the slopes go on: ln 4 / 2 and ln 10 a unit.
    assert seconds(curve, [-3.0, 3.0]) == pytest.approx([2 / 4, 800.0], rel=1e-5)


def test_watch_time_that_is_a_parabola_of_the_logit_in_its_logarithm_is_met_exactly():
    """T = exp(1 + z / 2 - z^2 / 20): rises up to z = 5."""
    logits = np.linspace(-3.0, 3.0, 2001)
    expected = np.exp(1.0 + logits / 2 - logits**2 / 20)
    curve = WatchTimeCurve.fitted(logits, expected)
    assert np.log(curve.seconds) == pytest.approx([1.0 + z / 2 - z * z / 20 for z in curve.logits], abs=1e-6)
    assert seconds(curve, logits) == pytest.approx(expected, rel=2e-3)


def test_the_mean_watch_time_of_the_day_is_met():
    """By the regression's own equation, whatever the watch time looks like; straight ends and chords cost little."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0.0, 1.0, 50_000)
    time = np.where(rng.random(50_000) < 0.2 + 0.3 * (logits > 0.5), rng.lognormal(3.0, 1.0, 50_000), 0.0)
    curve = WatchTimeCurve.fitted(logits, time)
    assert seconds(curve, logits).mean() == pytest.approx(time.mean(), rel=5e-3)


def test_a_day_that_odds_describe_gets_the_expected_watch_time_back():
    """Odds E[T] / (1 - P) with T of 30 s after a click: e^z = 30 P / (1 - P), so that E[T] = 30 e^z / (30 + e^z)."""
    rng = np.random.default_rng(2)
    logits = rng.normal(3.0, 1.0, 400_000)
    expected = 30 * np.exp(logits) / (30 + np.exp(logits))
    curve = WatchTimeCurve.fitted(logits, np.where(rng.random(len(logits)) < expected / 30, 30.0, 0.0))
    inner = (logits > 1.0) & (logits < 5.0)
    ratio = seconds(curve, logits[inner]) / expected[inner]
    assert ratio.min() > 0.93
    assert ratio.max() < 1.07


def test_the_order_never_changes():
    """Watch time exp(z - z^2 / 3), which falls from z = 1.5 on: the curve rises all the same."""
    logits = np.linspace(-2.0, 2.0, 20_001)
    time = np.exp(logits - logits**2 / 3)
    curve = WatchTimeCurve.fitted(logits, time)
    answer = seconds(curve, np.arange(-10.0, 10.0, 1e-3))
    assert (np.diff(answer) > 0).all()


@pytest.mark.parametrize(
    ("logits", "time"),
    [
        (np.arange(10.0), np.arange(10.0)),
        (np.zeros(1000), np.arange(1000.0)),
        (np.arange(1000.0), np.zeros(1000)),
        (np.arange(1000.0), np.arange(1000.0)[::-1]),
        (np.empty(0), np.empty(0)),
    ],
)
def test_a_day_that_says_nothing_of_the_watch_time_gives_no_curve(logits, time):
    """Too few with watch time, one logit for all, nothing watched, less watched the higher the logit, none at all."""
    assert WatchTimeCurve.fitted(logits, time) is None


def test_what_is_no_rising_curve_is_refused():
    for points in (
        ((0.0,), (1.0,)),
        ((0.0, 0.0), (1.0, 2.0)),
        ((0.0, 1.0), (2.0, 2.0)),
        ((0.0, 1.0), (0.0, 2.0)),
    ):
        with pytest.raises(ValueError, match="curve"):
            WatchTimeCurve(*points)
