"""Slates and their propensities, held against enumeration, arithmetic and chance."""

import itertools

import numpy as np
import pytest

from watchnext.data.slates import (
    Proposal,
    Requests,
    SlateSampler,
    first_distinct,
    hashed,
    plackett_luce_marginals,
    spread,
    uniform,
)


def enumerated(weights: np.ndarray) -> np.ndarray:
    """[item, position] by going through every order of the items."""
    marginals = np.zeros((len(weights), len(weights)))
    for order in itertools.permutations(range(len(weights))):
        probability, left = 1.0, weights.sum()
        for item in order:
            probability *= weights[item] / left
            left -= weights[item]
        for position, item in enumerate(order):
            marginals[item, position] += probability
    return marginals


@pytest.mark.parametrize(
    "weights",
    [[1.0, 1.0], [3.0, 1.0, 2.0], [100.0, 1.0, 10.0, 30.0, 2.5], [0.2, 0.9, 0.01, 0.5, 0.33, 0.07]],
    ids=str,
)
def test_marginals_equal_enumeration(weights: list[float]) -> None:
    """Fails when the race is decided by w rather than by 1 - exp(-w t) (seen with a `left` that forgot the rates)."""
    expected = enumerated(np.array(weights))
    found = plackett_luce_marginals(np.array([weights]), len(weights))[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_marginals_of_three_by_arithmetic() -> None:
    found = plackett_luce_marginals(np.array([[3.0, 2.0, 1.0]]), 2)[0]
    assert found[0, 0] == pytest.approx(3 / 6, abs=1e-10)
    # Second: after item 1 (2/6, then 3 of 4) or after item 2 (1/6, then 3 of 5).
    assert found[0, 1] == pytest.approx(2 / 6 * 3 / 4 + 1 / 6 * 3 / 5, abs=1e-10)


def test_marginals_sum_to_one() -> None:
    weights = np.stack([(1.0 + np.arange(24)) ** -0.9, np.ones(24)])
    found = plackett_luce_marginals(weights, 24)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=2), 1.0, atol=1e-9)
    np.testing.assert_allclose(found[1], 1 / 24, atol=1e-9)


def test_marginals_refuse_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="positive"):
        plackett_luce_marginals(np.array([[1.0, 0.0]]), 1)
    with pytest.raises(ValueError, match="positions"):
        plackett_luce_marginals(np.array([[1.0, 2.0]]), 3)


@pytest.mark.parametrize("per_request", [False, True], ids=["shared weights", "weights of each request"])
def test_propensities_are_the_frequencies_of_the_draws(per_request: bool) -> None:
    """Seen to fail when the propensity left out the uniform share, and when it was that of the first position."""
    requests, weights = (4_000 if per_request else 200_000), np.array([4.0, 2.0, 1.0, 0.5, 0.25])
    videos = np.tile(np.array([7, 3, 9, 1, 5], dtype=np.int32), (requests, 1))
    proposal = Proposal(videos, np.tile(weights, (requests, 1)) if per_request else weights, 0.3)
    draw = SlateSampler().draw(proposal, np.arange(requests).astype(np.uint64), 3, seed=5)
    expected = 0.7 * enumerated(weights)[:, :3] + 0.3 / 5
    for item, video in enumerate(videos[0]):
        for position in range(3):
            here = draw.video[:, position] == video
            sigma = np.sqrt(expected[item, position] / requests)
            assert here.mean() == pytest.approx(expected[item, position], abs=4.5 * sigma)
            np.testing.assert_allclose(draw.propensity[here, position], expected[item, position], atol=1e-8)


def test_a_request_is_drawn_with_the_same_luck_in_any_company() -> None:
    videos = np.tile(np.arange(6, dtype=np.int32), (10, 1))
    proposal, key = Proposal(videos, np.ones(6), 0.5), np.arange(10).astype(np.uint64)
    all_of_them = SlateSampler().draw(proposal, key, 4, seed=1)
    alone = SlateSampler().draw(Proposal(videos[3:4], np.ones(6), 0.5), key[3:4], 4, seed=1)
    np.testing.assert_array_equal(all_of_them.video[3:4], alone.video)
    other = SlateSampler().draw(proposal, key, 4, seed=2)
    assert (other.video != all_of_them.video).any()


def test_noise_is_uniform_and_its_streams_are_unrelated() -> None:
    first, second = (uniform(3, stream, np.arange(100_000)) for stream in (1, 2))
    for values in (first, second):
        assert values.mean() == pytest.approx(1 / 2, abs=0.005)
        assert values.var() == pytest.approx(1 / 12, abs=0.002)
        assert 0 < values.min() < 0.001 < 0.999 < values.max() < 1
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02
    assert hashed(3, 1, 5, 6) != hashed(3, 1, 6, 5)


def test_first_distinct_takes_wanted_ones_first() -> None:
    nominated = np.array([[4, 4, 2, 9, 2, 1]], dtype=np.int32)
    unwanted = np.array([[True, True, False, False, False, False]])
    assert first_distinct(nominated, unwanted, 3).tolist() == [[2, 9, 1]]
    assert first_distinct(nominated, unwanted, 4).tolist() == [[2, 9, 1, 4]]
    with pytest.raises(ValueError, match="distinct"):
        first_distinct(nominated, unwanted, 5)


def test_spread_finds_distinct_videos_that_are_there() -> None:
    uploaded_us = np.arange(100, dtype=np.int64) * 10
    requests = Requests(
        np.arange(50, dtype=np.int32), np.full(50, 600, dtype=np.int64), np.arange(50).astype(np.uint64)
    )
    found = spread(requests, uploaded_us, 0, 24)
    assert all(len(set(row)) == 24 for row in found.tolist())
    assert found.min() < 3
    assert 55 < found.max() < 60
    with pytest.raises(ValueError, match="fewer than 61"):
        spread(requests, uploaded_us, 0, 61)
