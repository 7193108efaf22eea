import numpy as np
import pytest
import tensorflow as tf

from watchnext.models import calibration
from watchnext.models.calibration import WatchTimeCurve


def seconds(curve, logits):
    return curve.expected_watch_time_s(tf.constant(logits, tf.float32)).numpy()


def test_a_curve_goes_through_its_points_and_between_them_straight_in_log_seconds():
    curve = WatchTimeCurve((-1.0, 1.0, 2.0), (2.0, 8.0, 80.0))
    assert seconds(curve, [-1.0, 1.0, 2.0]) == pytest.approx([2.0, 8.0, 80.0], rel=1e-5)
    assert seconds(curve, [0.0, 1.5]) == pytest.approx([(2 * 8) ** 0.5, (8 * 80) ** 0.5], rel=1e-5)
    # Beyond the ends the slopes go on: ln 4 / 2 and ln 10 a unit.
    assert seconds(curve, [-3.0, 3.0]) == pytest.approx([2 / 4, 800.0], rel=1e-5)


def test_bins_whose_watch_time_falls_become_one(monkeypatch):
    """Four bins of two: means of 1, 6, 4 and 20 s; the second and the third are one of 5 s at their mean logit."""
    monkeypatch.setattr(calibration, "BINS", 4)
    monkeypatch.setattr(calibration, "LEAST_OF_A_BIN", 2)
    logits = np.array([0.0, 2.0, 3.0, 5.0, 6.0, 8.0, 9.0, 9.0])
    time = np.array([0.0, 2.0, 12.0, 0.0, 4.0, 4.0, 40.0, 0.0])
    order = np.random.default_rng(1).permutation(8)
    curve = WatchTimeCurve.fitted(logits[order], time[order])
    assert curve.logits == pytest.approx((1.0, (3 + 5 + 6 + 8) / 4, 9.0))
    assert curve.seconds == pytest.approx((1.0, 5.0, 20.0))


def test_a_day_that_odds_describe_gets_the_expected_watch_time_back():
    """Odds E[T] / (1 - P) with T of 30 s after a click: e^z = 30 P / (1 - P), so that E[T] = 30 e^z / (30 + e^z)."""
    rng = np.random.default_rng(2)
    logits = rng.normal(3.0, 1.0, 400_000)
    expected = 30 * np.exp(logits) / (30 + np.exp(logits))
    curve = WatchTimeCurve.fitted(logits, np.where(rng.random(len(logits)) < expected / 30, 30.0, 0.0))
    inner = (logits > 1.0) & (logits < 5.0)
    ratio = seconds(curve, logits[inner]) / expected[inner]
    assert ratio.min() > 0.95
    assert ratio.max() < 1.05


def test_the_order_never_changes():
    """Watch time that is noise, and falls with the logit in the middle: the curve rises all the same."""
    rng = np.random.default_rng(3)
    logits = np.sort(rng.normal(0.0, 1.0, 20_000).astype(np.float32))
    time = rng.exponential(10.0, len(logits)) * np.where(np.abs(logits) < 0.5, 0.2, 1.0 + (logits > 0))
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
    """Too few impressions, one logit for all, nothing watched, less watched the higher the logit, none at all."""
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
