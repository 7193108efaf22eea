"""A server follows the registry, and what it does not take."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import START_S, LiveServer, assign
from tiny_world import make_bundle, watch_time_s

from watchnext.bundle import Bundle
from watchnext.decisions.gate import _register
from watchnext.registry import DATABASE, Registry
from watchnext.tracking import Tracker


@pytest.fixture
def following(server: LiveServer, serving_project: Path) -> Iterator[LiveServer]:
    """The server, and version 1 champion again afterwards."""
    yield server
    assign(serving_project, "champion", 1)
    until_version(server, 1)


def models(server: LiveServer) -> dict[str, Any]:
    status, told = server.get("/v1/models")
    assert status == 200, told
    return dict(told)


def until_version(server: LiveServer, number: int) -> None:
    until = time.monotonic() + START_S
    while models(server)["champion"]["version"] != number:
        assert time.monotonic() < until, server.log[-20:]
        time.sleep(0.02)


def made_by(slate: dict[str, Any]) -> set[int]:
    """The versions whose ranker gives such expected watch times: 1 is right about the world, 2 is upside down."""
    versions = set()
    for video in slate["videos"]:
        right = watch_time_s(video["video_id"])
        laws = {1: right, 2: 600.0 - right}
        fitting = {one for one, law in laws.items() if abs(law - video["expected_watch_time_s"]) < 0.01}
        versions |= fitting or {0}
    return versions


def stays(server: LiveServer, reason: str, version: int) -> None:
    """Version 1 answers, and the refusal is told everywhere."""
    until = time.monotonic() + START_S
    while not any(one["version"] == version for one in models(server)["refused"]):
        assert time.monotonic() < until, server.log[-20:]
        time.sleep(0.02)
    told = models(server)
    assert told["champion"]["version"] == 1
    assert reason in told["refused"][0]["reason"]
    assert "watchnext_champion_refused 1.0" in server.get("/metrics")[1]
    assert any(line["message"] == "refused" and reason in line["error"] for line in server.log)
    assert made_by(server.recommend(3, record=False)) == {1}


def registered(root: Path, bundle: Bundle) -> int:
    return _register(
        Registry.open(root), "watchnext", bundle, Tracker.open(root).pipeline_run("1-1.00")
    ).number


def test_a_version_that_cannot_answer_is_refused(
    following: LiveServer, serving_project: Path, world_features: Path, tmp_path: Path
) -> None:
    """Scores that are no numbers; then the same version with a file that was changed since it was registered."""
    number = registered(serving_project, make_bundle(tmp_path, world_features, watch_time_sign=float("nan")))
    assign(serving_project, "champion", number)
    stays(following, "no usable slate", number)

    registry = Registry.open(serving_project)
    files = registry.bundle(registry.version("watchnext", number)).path
    with (files / "ranker" / "saved_model.pb").open("ab") as file:
        file.write(b"\0")
    assign(serving_project, "champion", 1)
    until = time.monotonic() + START_S
    while models(following)["refused"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    assign(serving_project, "champion", number)
    stays(following, "saved_model.pb", number)


def test_a_registry_that_is_not_there_changes_nothing(following: LiveServer, serving_project: Path) -> None:
    """No champion any more, no database, and one that is none; and it is followed again when it is back."""
    database = serving_project / DATABASE
    aside = database.with_name("aside.db")
    asked = models(following)["swaps"]

    def settled(reachable: bool) -> None:
        until = time.monotonic() + START_S
        while models(following)["registry_reachable"] is not reachable:
            assert time.monotonic() < until, server_log
            time.sleep(0.02)
        assert made_by(following.recommend(3, record=False)) == {1}

    server_log = following.log
    assign(serving_project, "champion", None)
    time.sleep(0.5)
    settled(True)
    shutil.move(database, aside)
    try:
        time.sleep(0.5)
        settled(True)
        database.write_text("this is not a database, and long enough to be looked at" * 40)
        settled(False)
        assert "watchnext_registry_reachable 0.0" in following.get("/metrics")[1]
    finally:
        shutil.move(aside, database)
    settled(True)
    assert models(following)["swaps"] == asked
    assign(serving_project, "champion", 2)
    until_version(following, 2)
