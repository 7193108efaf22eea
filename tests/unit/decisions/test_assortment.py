"""What slates are made of, counted by hand."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from watchnext.decisions.assortment import Catalogue, assortment, small_channels

NOON = dt.datetime(2026, 5, 6, 12, tzinfo=dt.UTC)


def uploaded_us(*days_before_noon: float | None) -> np.ndarray:
    noon_us = NOON.timestamp() * 1e6
    return np.array([np.nan if days is None else noon_us - days * 86_400e6 for days in days_before_noon])


def test_small_channels_have_the_last_fifth_of_the_impressions() -> None:
    """Of 100 impressions a and b have 5 and 15 together, c 80. Seen to fail with the largest counted first."""
    channels = pa.array(["c", "a", "b", "c", None])
    assert small_channels(channels, np.array([50, 5, 15, 30, 900])).tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert small_channels(channels, np.array([50, 5, 16, 30, 0])).tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]


def test_figures_by_hand() -> None:
    """Two slates of two, the second a day later: video 4 is then 1 + 6.5 days old, and new no more."""
    catalogue = Catalogue(
        pa.array([1, 2, 3, 4, 5, 6]),
        uploaded_us(100.0, 10.0, 1.0, 6.5, None, -3.0),  # 6 is uploaded later: nobody could show it
        np.array([False, True, False, False, True, True]),
    )
    found = assortment([[1, 4], [4, 2]], [NOON, NOON + dt.timedelta(days=1)], catalogue)
    assert found == {
        "catalogue_coverage": 3 / 5,
        "video_age_p50_days": pytest.approx((7.5 + 11.0) / 2),  # of 6.5, 7.5, 11 and 100
        "new_videos_share": 1 / 4,
        "small_channels_share": 1 / 4,
    }


def test_what_logs_do_not_say_is_left_out() -> None:
    bare = Catalogue(pa.array(["x", "y"]), None, None)
    assert assortment([["x"], ["x"], []], [NOON] * 3, bare) == {"catalogue_coverage": 1 / 2}
    assert assortment([[], []], [NOON] * 2, bare) == {}
    unknown = Catalogue(pa.array(["x", "y"]), uploaded_us(None, None), np.array([True, False]))
    assert assortment([["x", "new"]], [NOON], unknown) == {
        "catalogue_coverage": 1.0,
        "small_channels_share": 0.5,
    }
