"""Causal evidence from logged pages: a world in which each video is worth what it is worth, wherever it is shown."""

import numpy as np
import pytest

from watchnext.decisions.causal import Page, pool_of, random_exposure_check, watch_time_check
from watchnext.decisions.slates import Shown
from watchnext.errors import InputError

WORTH_S = (10.0, 20.0, 30.0, 40.0, 50.0)
WORSE, BETTER = [0, 1, 2], [4, 3, 2]
POSITIONS = len(WORSE)


def pages(
    count: int,
    champion: list[int] = WORSE,
    challenger: list[int] = BETTER,
    propensity: float | None = 1 / len(WORTH_S),
) -> list[Page]:
    """Pages of videos drawn at random for each position, a few of each user."""
    rng = np.random.default_rng(4)
    made = []
    for number in range(count):
        videos = rng.integers(len(WORTH_S), size=POSITIONS)
        shown = [
            Shown(int(video), position, propensity, WORTH_S[video] * rng.exponential())
            for position, video in enumerate(videos)
        ]
        made.append(Page(number // 3, shown, (champion, challenger)))
    return made


def mean_worth(video_id: int | str) -> float:
    return float(np.mean(WORTH_S))


@pytest.mark.parametrize(
    ("champion", "challenger", "outcome", "sign"),
    [(WORSE, BETTER, "passed", 1), (BETTER, WORSE, "failed", -1)],
)
def test_the_slates_that_users_watch_longer_are_found(
    champion: list[int], challenger: list[int], outcome: str, sign: int
) -> None:
    """The truth is (50 + 40 + 30 - 10 - 20 - 30) / 3 = 20 s per impression. Meant to fail with the two swapped."""
    check, metrics = watch_time_check(pages(1_500, champion, challenger), mean_worth)
    assert check.outcome == outcome
    for name in ("snips_s", "doubly_robust_s"):
        assert metrics[f"causal_{name}"] * sign == pytest.approx(20.0, rel=0.2)
        assert metrics[f"causal_{name}_low"] < metrics[f"causal_{name}"] < metrics[f"causal_{name}_high"]
    assert metrics["challenger_effective_rows"] == pytest.approx(1_500 * POSITIONS / len(WORTH_S), rel=0.1)


def test_later_challengers_of_a_day_have_to_be_better_by_more() -> None:
    """A third of the places is worth 10 s more. Meant to fail with one level for all, which fifty equals pass by luck."""
    log = pages(400, [*WORSE[:2], WORSE[1]], WORSE)
    first, second = (watch_time_check(log, mean_worth, place)[0] for place in (1, 2))
    assert (first.outcome, second.outcome) == ("passed", "not judged")
    assert "intervals of 96% over users (challenger 1 of the shadow day)" in first.bound
    assert "intervals of 98.67% over users (challenger 2 of the shadow day)" in second.bound
    third, _ = random_exposure_check(exposures(10, [1, 2], [1, 3], pool=20), 20, float, 3)
    assert "(challenger 3 of the shadow day)" in third.bound


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (pages(30), "effective rows of 90"),
        (pages(300, propensity=None), "900 of 900 rows have impressions without a propensity"),
        (pages(300, propensity=0.0), "propensities that are not above 0"),
        (pages(300, propensity=0.5), "the mean weight is 0.4"),
        (pages(300, challenger=WORSE), "the same on every row"),
        (pages(300, challenger=[]), "the log is empty"),
    ],
)
def test_what_a_log_cannot_tell_is_not_judged(log: list[Page], words: str) -> None:
    check, metrics = watch_time_check(log, mean_worth)
    assert (check.outcome, metrics) == ("not judged", {})
    assert words in check.value


def exposures(times: int, champion: list[int], challenger: list[int], pool: int) -> list[Page]:
    """Each video of the pool is shown so many times, to another user each time, and watched for its number of seconds."""
    return [
        Page(
            video + pool * time,
            [Shown(video, 0, None, float(video) + (1.0 if time % 2 else -1.0))],
            (champion, challenger),
        )
        for time in range(times)
        for video in range(pool)
    ]


def test_random_exposures_as_arithmetic() -> None:
    """A place of the slate 1, 2, 3 earns 2 s, one of 7, 8, 12 earns 9 s. Meant to fail with the pool of another size.

    Of 100 exposures of each of 20 videos, 300 are of either slate, with a weight of (1 / 3) / (1 / 20) each.
    """
    check, metrics = random_exposure_check(
        exposures(100, [1, 2, 3], [12, 7, 8], pool=20), 20, lambda video: float(video)
    )
    assert (check.name, check.outcome) == ("watch_time_s_per_random_exposure", "passed")
    for name in ("snips_s", "doubly_robust_s"):
        assert metrics[f"causal_{name}"] == pytest.approx((7 + 8 + 12) / 3 - (1 + 2 + 3) / 3)
    assert metrics["champion_effective_rows"] == pytest.approx(300)
    assert metrics["challenger_effective_rows"] == pytest.approx(300)
    back, _ = random_exposure_check(exposures(100, [12, 7, 8], [1, 2, 3], pool=20), 20, lambda _: 0.0)
    assert back.outcome == "failed"
    few, _ = random_exposure_check(exposures(10, [1, 2, 3], [12, 7, 8], pool=20), 20, lambda _: 0.0)
    assert (few.outcome, "30 effective rows of 200" in few.value) == ("not judged", True)
    other_pool, _ = random_exposure_check(exposures(100, [1, 2, 3], [12, 7, 8], pool=20), 40, lambda _: 0.0)
    assert (other_pool.outcome, "the mean weight is 2.00" in other_pool.value) == ("not judged", True)


def test_a_pool_is_counted_where_it_can_be() -> None:
    assert pool_of([*range(20)] * 5) == 20
    assert pool_of(np.random.default_rng(1).integers(50, size=2_000).tolist()) == 50
    with pytest.raises(InputError, match="80 random exposures of 20 videos are too few"):
        pool_of([*range(20)] * 4)
    with pytest.raises(InputError, match="not uniform") as refused:
        pool_of([*range(20)] * 50 + [7] * 60)
    assert refused.value.offenders == ("7: 110 times, 53.0 on average",)
