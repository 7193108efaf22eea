"""Drawn slates and their propensities, against arithmetic, enumeration and the frequencies of the draws."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from live_server import NAME

from watchnext.bundle import Bundle
from watchnext.data.slates import Proposal, SlateSampler
from watchnext.errors import InputError
from watchnext.features.ranking_features import RequestContext
from watchnext.recommend.recommender import Recommender
from watchnext.registry import Registry
from watchnext.serving.exploration import MOST_SLOTS, Exploration
from watchnext.serving.service import Answer, Served, Service
from watchnext.serving.user_store import SqliteUserStore

IDS = [f"{number:032x}" for number in range(40_000)]


def test_propensities_equal_enumeration_of_four_candidates() -> None:
    """Every order of four candidates, with its probability."""
    weights = np.array([1.0, 1 / 2, 1 / 3, 1 / 4])
    expected = np.zeros((4, 2))
    for order in itertools.permutations(range(4)):
        left, luce = weights.sum(), 1.0
        for item in order:
            luce *= weights[item] / left
            left -= weights[item]
        drawn = 0.9 * luce + 0.1 / 24
        probability = 0.3 * drawn + 0.7 * (order == (0, 1, 2, 3))
        for position in range(2):
            expected[order[position], position] += probability
    found = Exploration(0.3, uniform_share=0.1).propensities(4, 2)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    # By hand, the first place: 12/25 by Plackett-Luce, 1/4 uniformly.
    assert found[0, 0] == pytest.approx(0.7 + 0.3 * (0.9 * 12 / 25 + 0.1 / 4))


def test_draws_come_as_often_as_their_propensities_say() -> None:
    """Within five standard errors each. Seen to fail where the uniform part or the slates not drawn were left out."""
    exploration = Exploration(0.5, uniform_share=0.2)
    counts = np.zeros((6, 3))
    for request_id in IDS:
        draw = exploration.of(request_id, 3)
        assert draw is not None
        ranks, propensities = draw(6, 3)
        counts[ranks, range(3)] += 1
        assert propensities == exploration.propensities(6, 3)[ranks, range(3)].tolist()
    expected = exploration.propensities(6, 3)
    error = np.sqrt(expected * (1 - expected) / len(IDS))
    np.testing.assert_array_less(np.abs(counts / len(IDS) - expected), 5 * error + 1e-12)


def test_columns_sum_to_one_at_the_size_of_a_request() -> None:
    for candidates, slots in ((200, 20), (256, MOST_SLOTS), (700, 20), (5, 5), (1, 1)):
        found = Exploration(1.0).propensities(candidates, slots)
        np.testing.assert_allclose(found.sum(axis=0), 1.0, atol=1e-9)
        assert found.min() >= 0.0


def test_what_the_simulator_logs_is_the_same_probability() -> None:
    ours = Exploration(1.0, uniform_share=0.1).propensities(24, 10)
    proposal = Proposal(np.tile(np.arange(24), (500, 1)), 1.0 / (1.0 + np.arange(24)), 0.1)
    draw = SlateSampler().draw(proposal, np.arange(500), 10, seed=3)
    np.testing.assert_allclose(draw.propensity, ours[draw.video, np.arange(10)], rtol=1e-12)


def test_an_id_draws_the_same_again_and_others_draw_otherwise() -> None:
    def drawn(request_id: str) -> list[int]:
        draw = Exploration(1.0).of(request_id, 10)
        assert draw is not None
        assert draw.is_drawn
        return list(draw(50, 10)[0])

    assert drawn(IDS[7]) == drawn(IDS[7])
    assert len({tuple(drawn(one)) for one in IDS[:50]}) == 50


def test_what_is_never_drawn_and_what_is_no_share() -> None:
    assert Exploration(0.0).of(IDS[0], 10) is None
    assert Exploration(1.0).of(IDS[0], MOST_SLOTS + 1) is None
    with pytest.raises(InputError, match="share"):
        Exploration(1.5)


def test_impressions_have_the_propensity_of_their_place(
    serving_project: Path, right_bundle: Bundle, tmp_path: Path
) -> None:
    """Ranks are looked up in the ranking of the same request, which is what a service without exploration gives."""
    version = Registry.open(serving_project).version(NAME, 1)
    store = SqliteUserStore(tmp_path / "users.db")
    served = Served(version, Recommender.open(right_bundle))
    exploration = Exploration(0.5)
    exploring, plain = Service(store, served, exploration), Service(store, served)
    at = 1_768_000_000_000_000

    def shown(request_id: str) -> Answer:
        return exploring.recommend(f"user {request_id}", 5, record=True, at=at, request_id=request_id)

    everything = plain.recommend("user", 5, record=False, at=at).slate
    # 200 of the 400 videos are candidates; what is not among the first ones is found by asking for the whole ranking.
    ranking = list(
        served.recommender.recommend(None, RequestContext("user", at), everything.ranked).video_ids
    )
    assert len(ranking) == everything.ranked
    answers = [shown(one) for one in IDS[:20]]
    assert {answer.is_drawn for answer in answers} == {True, False}
    for answer in answers:
        rows = [event.row for event in store.events(answer.user_id)]
        by_place = sorted(rows, key=lambda row: row["position"])
        assert [row["video_id"] for row in by_place] == list(answer.slate.video_ids)
        table = exploration.propensities(len(ranking), 5)
        assert [row["propensity"] for row in by_place] == [
            pytest.approx(table[ranking.index(row["video_id"]), place]) for place, row in enumerate(by_place)
        ]
        assert {row["model_version"] for row in by_place} == {1}
        if not answer.is_drawn:
            assert answer.slate.video_ids == everything.video_ids
    again = exploring.recommend("another", 5, record=True, at=at, request_id=answers[0].request_id)
    assert again.slate.video_ids == answers[0].slate.video_ids
    unrecorded = exploring.recommend("user", 5, at=at, request_id=answers[0].request_id)
    assert unrecorded.slate == everything
    store.close()
