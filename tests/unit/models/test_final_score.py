"""What slates are ordered by: goldens as arithmetic, and what holds of every declared score."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchnext.errors import InputError
from watchnext.models.final_score import FinalScore

QUANTILES = {"duration_s": np.array([10.0, 40.0, 100.0])}


def declared(power: float) -> FinalScore:
    return FinalScore.of({"score": {"duration_power": power}}, QUANTILES)


def test_the_default_is_expected_watch_time_itself() -> None:
    expected = np.array([3.0, 1.0, 2.0], np.float32)
    for recommend in ({}, {"score": {"duration_power": 0.0}}):
        score = FinalScore.of(recommend, {})
        assert score(expected, np.array([1.0, 9.0, np.nan])).tolist() == expected.tolist()
        assert score(expected, None).tolist() == expected.tolist()


def test_power_one_is_the_share_that_is_watched() -> None:
    """An unknown duration counts as the median of training, 40 s; one of nothing as a second."""
    scores = declared(1.0)(np.array([30.0, 20.0, 20.0, 2.0]), np.array([60.0, 25.0, np.nan, 0.0]))
    assert scores == pytest.approx([30 / 60, 20 / 25, 20 / 40, 2 / 1])
    assert declared(0.5)(np.array([30.0]), np.array([9.0])) == pytest.approx([30 / 3])
    assert declared(1.0)(np.array([30.0, 60.0]), None) == pytest.approx([30 / 40, 60 / 40])


@given(
    power=st.floats(0.0, 2.0),
    duration_s=st.floats(0.0, 1e6) | st.just(float("nan")),
    expected_s=st.lists(st.floats(1e-3, 1e5), min_size=2, max_size=5),
)
def test_the_score_rises_with_expected_watch_time(
    power: float, duration_s: float, expected_s: list[float]
) -> None:
    """Of equal durations the order is that of expected watch time. Seen to fail with scores rounded to tenths."""
    rising = np.sort(np.array(expected_s))
    scores = declared(power)(rising, np.full(len(rising), duration_s))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) >= 0).all()
    apart = np.diff(rising) > 1e-9 * rising[1:]
    assert (np.diff(scores)[apart] > 0).all()


def test_logs_without_durations_have_no_share() -> None:
    for quantiles in ({}, {"duration_s": np.array([])}):
        with pytest.raises(InputError, match="no durations") as refused:
            FinalScore.of({"score": {"duration_power": 1.0}}, quantiles)
        assert "recommend.score.duration_power" in str(refused.value)
