"""A live experiment from the first slate to the crown: what a server keeps and exports is what the comparison reads."""

import random
from pathlib import Path

import pytest
from decision_stages import Stages

from watchnext.decisions.experiment import read_experiment
from watchnext.decisions.replay import Live
from watchnext.recommend.recommender import Recommender
from watchnext.registry import Registry
from watchnext.serving.event_logs import export_events
from watchnext.serving.events import Event, id_of
from watchnext.serving.experiment import Experiment
from watchnext.serving.exploration import Exploration
from watchnext.serving.service import Served, Service
from watchnext.serving.user_store import SqliteUserStore

AT_US = 1_768_000_000_000_000
MINUTE_US = 60_000_000
USERS = 240


def serve_experiment(stages: Stages, mode: str) -> tuple[Path, int, float]:
    """Every user asks once and watches what stands first, twice as long where the challenger put it there.

    Returns:
        The exported folder, how many users see the experiment, and the seconds that these watched in all.
    """
    registry = Registry.open(stages.root)
    champion, challenger = (
        Served(registry.version("watchnext", number), Recommender.open(bundle))
        for number, bundle in ((1, stages.champion), (2, stages.challenger))
    )
    experiment = Experiment("watchnext", mode, 0.5 if mode == "ab" else 0.7)
    experiment.challenger = challenger
    store = SqliteUserStore(stages.root / "state" / f"{mode}.db")
    service = Service(store, champion, Exploration(0.0), experiment)
    draw = random.Random(7)  # a request's id is the seed of its coin
    users, total_s = 0, 0.0
    for user in range(USERS):
        page = service.recommend(
            str(user), 4, record=True, at=AT_US + user, request_id=f"{draw.getrandbits(128):032x}"
        )
        whose = page.arm if page.teams is None else page.teams[0]
        watch_time_s = (20.0 + user % 10) * (2.0 if whose == "challenger" else 1.0)
        if page.arm is not None:
            users += 1
            total_s += watch_time_s
        row = {
            "video_id": page.slate.video_ids[0],
            "watched_at": page.at + MINUTE_US,
            "watch_time_s": watch_time_s,
            "completed": True,
            "origin": "home",
            "request_id": page.request_id,
        }
        assert all(service.add([Event(str(user), id_of("watches", row), "watches", row)]))
    folder = stages.root / "state" / mode
    export_events(store, stages.root / "state" / f"logs of {mode}", folder)
    store.close()
    return folder, users, total_s


@pytest.mark.parametrize("mode", ["ab", "interleave"])
def test_what_a_server_exports_crowns_who_is_watched_longer(stages: Stages, mode: str) -> None:
    """Nothing between the server's state and the registry is made up.

    Meant to fail with arms or teams exchanged, and where the share of users that an interleaved experiment is shown to was
    taken for the challenger's share of first places: its arms then never were those of the coin.
    """
    folder, users, total_s = serve_experiment(stages, mode)
    seen = read_experiment(folder, champion=1, challenger=2)
    assert (seen.mode, sum(seen.arms)) == (mode, users)
    assert (users == USERS) == (mode == "ab")
    assert seen.user_days == users
    assert float(seen.challenger.sum() + seen.champion.sum()) == pytest.approx(total_s)
    live = Live(experiment=str(folder), planned_users=200)
    crowned = stages.compare(evidence="causal", live=live)
    assert (crowned["verdict"], crowned["evidence"]) == ("crown", "causal"), crowned["reason"]
    assert crowned["experiment_users"] == users
    assert crowned["experiment_s_low"] > 0
    assert stages.standing()[0] == {"champion": 2, "previous": 1}
