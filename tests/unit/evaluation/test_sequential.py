"""An interval that may be looked at fifty times, and arms that have lost users."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from watchnext.errors import InputError
from watchnext.evaluation.sequential import sample_ratio_is_off, sequential_difference

LOOKS, EXPERIMENTS = 50, 600


def looks_of(rng: np.random.Generator, *, users_return: bool) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Watch time of the users of both arms without any difference, [2, users, days], and users and days at each look.

    Either users come in one by one and are measured once, or the same ones come every day.
    """
    users, days = (600, LOOKS) if users_return else (100 + 30 * LOOKS, 1)
    level = rng.exponential(300.0, size=(2, users, 1))
    values = level + rng.exponential(600.0, size=(2, users, days))
    if users_return:
        return values, [(users, day) for day in range(1, LOOKS + 1)]
    return values, [(100 + 30 * look, 1) for look in range(LOOKS)]


@pytest.mark.parametrize("users_return", [False, True])
def test_fifty_looks_are_wrong_no_more_often_than_one(users_return: bool) -> None:
    """Meant to fail with an interval of fixed level, which fifty looks make wrong several times as often."""
    rng = np.random.default_rng(17)
    missed = missed_by_fixed = 0
    for _ in range(EXPERIMENTS):
        values, looks = looks_of(rng, users_return=users_return)
        found = []
        for users, days in looks:
            means = values[:, :users, :days].mean(axis=2)
            found.append(sequential_difference(means[0], means[1], planned_users=2 * 600))
        missed += any(not one.low <= 0 <= one.high for one in found)
        missed_by_fixed += any(abs(one.value) > norm.ppf(0.975) * one.standard_error for one in found)
    assert binomtest(missed, EXPERIMENTS).proportion_ci(0.95, method="exact").high <= 0.05
    assert missed_by_fixed / EXPERIMENTS > 0.1


def test_a_difference_is_found_and_the_plan_is_where_it_is_found_best() -> None:
    rng = np.random.default_rng(5)
    champion, challenger = rng.exponential(600, size=20_000), rng.exponential(600, size=20_000) * 1.05
    found = sequential_difference(challenger, champion, planned_users=40_000)
    assert found.low > 0
    assert found.low < found.value < found.high
    widths = [
        sequential_difference(challenger, champion, planned_users=users).high
        - sequential_difference(challenger, champion, planned_users=users).low
        for users in (4_000, 40_000, 400_000)
    ]
    assert widths[1] == min(widths)
    assert 2.2 < widths[1] / 2 / found.standard_error < 3.2, "1.96 for a single look"


@pytest.mark.parametrize(("share", "challenger_share"), [(0.5, 0.5), (0.1, 0.1)])
def test_sound_arms_are_called_off_at_most_as_often_as_stated(share: float, challenger_share: float) -> None:
    rng = np.random.default_rng(8)
    off = 0
    for _ in range(1_000):
        arms = np.cumsum(rng.random(50 * 40) < share)[39::40]
        off += any(
            sample_ratio_is_off(
                int(n), 40 * (look + 1) - int(n), challenger_share=challenger_share, error_rate=0.05
            )
            for look, n in enumerate(arms)
        )
    assert binomtest(off, 1_000).proportion_ci(0.95, method="exact").high <= 0.05


def test_arms_that_lost_users_are_seen() -> None:
    assert sample_ratio_is_off(4_700, 5_300)
    assert not sample_ratio_is_off(4_950, 5_050)
    assert sample_ratio_is_off(5_000, 5_000, challenger_share=0.55)
    with pytest.raises(InputError, match="leaves one arm empty"):
        sample_ratio_is_off(1, 1, challenger_share=1.0)


GOOD = np.arange(200.0)


@pytest.mark.parametrize(
    ("challenger", "champion", "planned", "words"),
    [
        (np.zeros(0), GOOD, 1_000, "0 users of the challenger are too few"),
        (GOOD, GOOD[:1], 1_000, "1 users of the champion are too few"),
        (np.append(GOOD, np.nan), GOOD, 1_000, "1 of the challenger's 201 values are no numbers"),
        (np.ones(200), np.ones(200), 1_000, "the same value"),
        (GOOD, GOOD, 10, "cannot be planned"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    challenger: np.ndarray, champion: np.ndarray, planned: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        sequential_difference(challenger, champion, planned_users=planned)
