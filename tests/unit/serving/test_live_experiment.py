"""A server that explores and experiments, as its options say, until it is killed; what it showed is exported afterwards."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from live_server import NAME, START_S, LiveServer, assign

from watchnext import cli
from watchnext.registry import Registry


@pytest.fixture
def experimenting(serving_project: Path) -> Iterator[LiveServer]:
    """Version 2 is the challenger of half of the users; half of all slates are drawn."""
    assign(serving_project, "challenger", 2)
    options = "--explore 0.5 --experiment ab --share 0.5 --shadow-share 0 --stale-after-days 1 --settle-s 0"
    running = LiveServer(serving_project, *options.split(), "--store", "state/experiment.db")
    try:
        yield running.wait_until_ready()
    finally:
        running.end(signal.SIGKILL)
        if Registry.open(serving_project).role(NAME, "challenger") is not None:
            assign(serving_project, "challenger", None)


def metric(server: LiveServer, name: str) -> float:
    for line in server.get("/metrics")[1].splitlines():
        if line.startswith(name + " "):
            return float(line.removeprefix(name))
    raise AssertionError(name)


def until_challenger_is(server: LiveServer, number: int | None) -> None:
    until = time.monotonic() + START_S
    while server.get("/v1/models")[1]["experiment"]["challenger_loaded"] != number:
        assert time.monotonic() < until, server.log[-5:]
        time.sleep(0.05)


def until_pages_are_settled(server: LiveServer, number: int) -> None:
    """Pages are added up by a thread that looks once a second, which a request does not wait for."""
    until = time.monotonic() + START_S
    name = f'watchnext_settled_watch_time_seconds{{version="{number}",which="expected"}} '
    while not any(line.startswith(name) for line in server.get("/metrics")[1].splitlines()):
        assert time.monotonic() < until, server.log[-5:]
        time.sleep(0.05)
    assert metric(server, name.strip()) > 0


def test_an_experiment_is_lived_and_survives_a_kill(
    experimenting: LiveServer, serving_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = experimenting
    until_challenger_is(server, 2)
    slates = {f"live {n}": server.recommend(f"live {n}", how_many=5) for n in range(24)}
    arms = {user: slate["arm"] for user, slate in slates.items()}
    assert {(slate["arm"], slate["model"]["version"]) for slate in slates.values()} == {
        ("champion", 1),
        ("challenger", 2),
    }
    assert {slate["drawn"] for slate in slates.values()} == {True, False}
    for user, slate in slates.items():
        watch = {"type": "watch", "id": "w", "user_id": user, "video_id": slate["videos"][0]["video_id"]}
        server.add({**watch, "watch_time_s": 10.0, "completed": True, "request_id": slate["request_id"]})
    assert {user: server.recommend(user)["arm"] for user in slates} == arms
    told = server.get("/v1/models")[1]
    sides = list(arms.values())
    assert told["experiment"] == {
        "id": "watchnext:ab:0.5:1:2",
        "mode": "ab",
        "share": 0.5,
        "challenger_loaded": 2,
        "why_not": "",
        "users_with_challenger": sides.count("challenger"),
        "users_without": sides.count("champion"),
        "sample_ratio_is_off": False,
        "challenger_failures": 0,
    }
    assert told["champion"]["is_stale"]
    assert told["champion"]["age_days"] > 1
    assert metric(server, "watchnext_champion_is_stale") == 1.0
    assert metric(server, 'watchnext_experiment_users{challenger="true"}') == sides.count("challenger")
    assert metric(server, "watchnext_experiment_sample_ratio_is_off") == 0.0
    assert metric(server, "watchnext_slates_drawn_total") >= sum(one["drawn"] for one in slates.values())
    until_pages_are_settled(server, 1)
    until_pages_are_settled(server, 2)
    assert server.wait_for("the champion is old")["version"] == 1

    assign(serving_project, "challenger", None)
    until_challenger_is(server, None)
    why_not = server.get("/v1/models")[1]["experiment"]["why_not"]
    assert why_not == "the registry names no challenger of watchnext"
    assert server.recommend("nobody's", how_many=5, record=False)["arm"] is None

    server.end(signal.SIGKILL)
    monkeypatch.chdir(serving_project)
    cli.export_events(tmp_path / "logs", None, "state/experiment.db")
    served = pq.read_table("state/experiment/served").to_pylist()
    assert len(served) == 48
    assert {row["user_id"]: row["arm"] for row in served} == arms
    assert len(pq.read_table("state/experiment/watched")) == 24
    shown = pq.read_table(tmp_path / "logs" / "impressions").to_pylist()
    by_page = {slate["request_id"]: slate for slate in slates.values()}
    first = [row for row in shown if row["request_id"] in by_page]
    assert len(first) == 24 * 5
    for row in first:
        slate = by_page[row["request_id"]]
        assert row["video_id"] == slate["videos"][row["position"]]["video_id"]
        assert row["model_version"] == slate["model"]["version"]
        assert 0 < row["propensity"] < 1
        assert row["clicked"] == (row["position"] == 0)
