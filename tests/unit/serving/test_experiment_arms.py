"""Live experiments: who sees which model, what is recorded of it, and a challenger that fails."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_server import NAME

from watchnext.errors import InputError
from watchnext.recommend.recommender import Slate
from watchnext.serving.events import rows_of
from watchnext.serving.experiment import Experiment, ExperimentId, team_draft
from watchnext.serving.exploration import Exploration
from watchnext.serving.service import CHALLENGER_FAILED, Served, Service
from watchnext.serving.user_store import SqliteUserStore

AT = 1_768_000_000_000_000


def service_with(
    tmp_path: Path, versions: tuple[Served, Served], mode: str, share: float, explore: float = 0.0
) -> Service:
    experiment = Experiment(NAME, mode, share)
    experiment.challenger = versions[1]
    store = SqliteUserStore(tmp_path / "users.db")
    return Service(store, versions[0], Exploration(explore), experiment)


def recorded(service: Service, user_id: str) -> list[dict[str, Any]]:
    return sorted(rows_of(service.store.events(user_id))["impressions"], key=lambda row: row["position"])


def test_users_keep_their_arm_and_arms_have_their_share() -> None:
    one = ExperimentId(NAME, "ab", 0.1, 1, 2)
    assert ExperimentId.parse(str(one)) == one
    users = [f"user {number}" for number in range(20_000)]
    sees = [one.sees_challenger(user) for user in users]
    assert sees == [ExperimentId.parse(str(one)).sees_challenger(user) for user in users]
    assert 1_800 < sum(sees) < 2_200  # within five standard errors of 2,000
    # The next experiment's users are others: of those of this one a tenth again.
    following = [replace(one, challenger=3).sees_challenger(user) for user in users]
    both = sum(a and b for a, b in zip(sees, following, strict=True))
    assert 140 < both < 260


def test_arms_get_their_model_and_it_is_recorded(tmp_path: Path, versions: tuple[Served, Served]) -> None:
    service = service_with(tmp_path, versions, "ab", 0.5)
    arms = Counter()  # type: ignore[var-annotated]
    for number in range(20):
        user = f"user {number}"
        answer = service.recommend(user, 5, record=True, at=AT)
        again = service.recommend(user, 5, record=True, at=AT + 1)
        assert answer.arm == again.arm
        arms[answer.arm] += 1
        expected = {"champion": 1, "challenger": 2}[str(answer.arm)]
        assert answer.served.version.number == expected
        assert answer.is_champions_choice == (expected == 1)
        rows = [row for row in recorded(service, user) if row["request_id"] == answer.request_id]
        assert {(row["experiment"], row["arm"], row["model_version"]) for row in rows} == {
            ("watchnext:ab:0.5:1:2", answer.arm, expected)
        }
        assert len(rows) == 5
    assert min(arms.values()) >= 3
    assert service.experiment is not None
    told = service.experiment.told()
    assert (told["users_with_challenger"], told["users_without"]) == (arms["challenger"], arms["champion"])
    assert not told["sample_ratio_is_off"]
    unshown = service.recommend("user 1", 5, at=AT)
    assert (unshown.arm, unshown.served.version.number) == (None, 1)
    service.store.close()


def test_both_are_explored_and_one_version_is_no_experiment(
    tmp_path: Path, versions: tuple[Served, Served]
) -> None:
    service = service_with(tmp_path, versions, "ab", 0.5, explore=1.0)
    answers = [service.recommend(f"user {number}", 5, record=True, at=AT) for number in range(12)]
    assert {answer.arm for answer in answers} == {"champion", "challenger"}
    assert all(answer.is_drawn and answer.slate.videos[0].propensity for answer in answers)
    service.champion = versions[1]
    assert service.recommend("user 1", 5, record=True, at=AT).arm is None
    service.store.close()


def test_a_challenger_that_fails_is_covered_by_the_champion_in_its_arm(
    tmp_path: Path, versions: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its users stay in its arm: those left would be others."""

    def fails(*_: object, **__: object) -> Slate:
        raise RuntimeError("the model is broken")

    monkeypatch.setattr(versions[1].recommender, "recommend", fails)
    service = service_with(tmp_path, versions, "ab", 0.5)
    plain = Service(service.store, versions[0])
    seen = set()
    for number in range(10):
        user = f"user {number}"
        answer = service.recommend(user, 5, record=True, at=AT)
        assert answer.slate == plain.recommend(user, 5, at=AT).slate
        assert answer.served.version.number == 1
        failed = answer.arm == "challenger"
        assert answer.degraded == (CHALLENGER_FAILED if failed else "")
        assert {(row["arm"], row["model_version"]) for row in recorded(service, user)} == {(answer.arm, 1)}
        seen.add(answer.arm)
    assert seen == {"champion", "challenger"}
    assert service.experiment is not None
    assert 0 < service.experiment.failures < 10
    interleaved = service_with(tmp_path, versions, "interleave", 0.99)
    answer = interleaved.recommend("user 1", 5, record=True, at=AT + 1)
    assert (answer.degraded, answer.arm, answer.teams) == (CHALLENGER_FAILED, None, None)
    service.store.close()


def test_interleaved_slates_say_whose_each_place_is(tmp_path: Path, versions: tuple[Served, Served]) -> None:
    service = service_with(tmp_path, versions, "interleave", 0.5)
    alone = [Service(service.store, one) for one in versions]
    arms = set()
    for number in range(12):
        user = f"user {number}"
        slates = [one.recommend(user, 6, at=AT).slate for one in alone]
        answer = service.recommend(user, 6, record=True, at=AT, request_id=f"{number:032x}")
        arms.add(answer.arm)
        if answer.arm is None:
            assert answer.slate == slates[0]
            assert "experiment" not in recorded(service, user)[0]
            continue
        rows = recorded(service, user)
        assert [row["arm"] for row in rows] == answer.teams
        assert [row["model_version"] for row in rows] == [
            {"champion": 1, "challenger": 2}[str(team)] for team in answer.teams or ()
        ]
        assert {row["propensity"] for row in rows} == {None}
        for team, slate in zip(("champion", "challenger"), slates, strict=True):
            of_team = [row["video_id"] for row in rows if row["arm"] == team]
            assert len(of_team) == 3
            assert of_team == [video for video in slate.video_ids if video in of_team]
    assert arms == {None, "interleaved"}
    service.store.close()


def test_team_draft_by_hand() -> None:
    """In every round each team picks one, its best that is left; who is first is a fair coin."""
    first = Counter(team_draft(([1, 2, 3], [1, 4, 5]), 4, f"{n:032x}")[0][0] for n in range(2_000))
    assert 890 < first[0] < 1_110
    for number in range(20):
        drafted = team_draft(([1, 2, 3], [1, 4, 5]), 4, f"{number:032x}")
        assert {frozenset((drafted[0][0], drafted[1][0])), frozenset((drafted[2][0], drafted[3][0]))} == {
            frozenset((0, 1))
        }
        # Who comes second finds 1 taken.
        assert drafted[:2] in ([(0, 0), (1, 1)], [(1, 0), (0, 1)])
    assert team_draft(([], [7]), 3, "0" * 32) == [(1, 0)]


def test_what_is_no_experiment() -> None:
    for mode, share in (("abc", 0.1), ("ab", 0.0), ("ab", 1.0)):
        with pytest.raises(InputError):
            Experiment(NAME, mode, share)
