"""Two servers on two machines, behind one Redis, one registry and one proxy: whoever asks meets one recommender."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import NAME, START_S, LiveServer
from team_servers import Team, machine
from tiny_world import video_at

from watchnext.bundle import Bundle
from watchnext.decisions.gate import _register
from watchnext.registry import Registry
from watchnext.serving.pipeline_events import load_events
from watchnext.serving.stores import open_store
from watchnext.tracking import Tracker

GUIDE = Path(__file__).parents[2] / "docs" / "scale.md"


def until(holds: Callable[[], bool], *servers: LiveServer) -> None:
    end = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < end, [server.log[-10:] for server in servers]
        time.sleep(0.1)


def models(server: LiveServer) -> dict[str, Any]:
    status, told = server.get("/v1/models")
    assert status == 200, told
    return dict(told)


def slates_asked_of(server: LiveServer) -> int:
    """By its metrics."""
    counts = re.findall(
        r'^watchnext_requests_total\{[^}]*path="/v1/recommend"[^}]*\} ([\d.]+)$',
        server.get("/metrics")[1],
        re.MULTILINE,
    )
    return int(sum(float(count) for count in counts))


class Replicas:
    """Both servers, and the machine that promotes."""

    def __init__(self, here: Path, servers: tuple[LiveServer, LiveServer]) -> None:
        self.here = here
        self.servers = servers
        self.killed: list[LiveServer] = []

    def crown(self, number: int) -> None:
        """As `compare_shadow` does."""
        registry = Registry.open(self.here)
        champion = registry.role(NAME, "champion")
        registry.crown(
            registry.version(NAME, number), over=champion, reason="a test", evidence="offline", run_id=""
        )
        until(
            lambda: all(models(one)["champion"]["version"] == number for one in self.servers), *self.servers
        )

    def slates(self, user_id: int | str, **fields: Any) -> list[Any]:
        """What each of them answers."""
        return [one.recommend(user_id, record=False, **fields)["videos"] for one in self.servers]


@pytest.fixture(scope="module")
def replicas(
    team: Team,
    right_bundle: Bundle,
    wrong_bundle: Bundle,
    world_tables: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Replicas]:
    """One follows the registry by the tracking server, the other in its database; version 1 is champion."""
    folder = tmp_path_factory.mktemp("replicas")
    store = open_store(team.redis.address)
    load_events(world_tables, store)
    store.close()
    with pytest.MonkeyPatch.context() as patch:
        here = machine(folder / "promoting", team.by_server(), patch)
        registry, run_id = Registry.open(here), Tracker.open(here).pipeline_run("1-1.00")
        numbers = [
            _register(registry, NAME, bundle, run_id).number for bundle in (right_bundle, wrong_bundle)
        ]
        assert numbers == [1, 2]
        registry.crown(registry.version(NAME, 1), over=None, reason="first", evidence="gate", run_id="")
        servers = []
        for name, variables in (("one", team.by_server()), ("other", team.by_database())):
            root = folder / name
            root.mkdir()
            variables = {**variables, "WATCHNEXT_STORE": team.redis.address}
            servers.append(LiveServer(root, "--model", NAME, variables=variables))
        for server in servers:
            server.wait_until_ready()
        running = Replicas(here, (servers[0], servers[1]))
        yield running
        assert all(server.end() == 0 for server in servers if server not in running.killed)
        for server in servers:
            assert team.conceals_passwords(json.dumps(server.log))
        assert team.conceals_passwords(team.tracking.log.read_text(encoding="utf-8"))


def test_both_give_the_same_slates(replicas: Replicas) -> None:
    for user_id in (0, 3, 17, "nobody ever heard of"):
        one, other = replicas.slates(user_id, how_many=50)
        assert one == other
        assert len(one) == 50
    assert replicas.slates(3)[0] != replicas.slates(17)[0]


def test_what_one_was_told_counts_in_the_next_slate_of_the_other(replicas: Replicas) -> None:
    """Meant to fail with state that a server keeps to itself: each has answered for this user before it is asked again."""
    user_id = "somebody who moves about"
    replicas.slates(user_id)
    for place in range(6):
        told, asked = replicas.servers[place % 2], replicas.servers[1 - place % 2]
        video = video_at(50 * place)
        event = {"type": "watch", "id": f"moves {place}", "user_id": user_id, "video_id": video}
        assert told.add({**event, "watch_time_s": 60.0, "completed": True})["accepted"] == 1
        slate = asked.recommend(user_id, how_many=500, record=False)["videos"]
        scores = {one["video_id"]: one["sources"].get("tower", 0.0) for one in slate}
        assert max(scores, key=lambda one: scores[one]) == video_at(50 * place + 1)
        assert video not in scores
        assert told.recommend(user_id, how_many=500, record=False)["videos"] == slate
    assert replicas.servers[0].add({**event, "watch_time_s": 1.0, "completed": False})["duplicates"] == 1


def test_a_video_that_is_taken_down_is_shown_by_neither(replicas: Replicas) -> None:
    one, other = replicas.servers
    gone = replicas.slates(5)[0][0]["video_id"]
    assert one.post("/v1/videos", {"taken_down": [gone]})[0] == 200
    until(lambda: all(gone not in {v["video_id"] for v in slate} for slate in replicas.slates(5)), one, other)
    fact = {"video_id": gone, "channel_id": 1, "topics": ["any"], "duration_s": 60.0}
    assert other.post("/v1/videos", {"added": [fact]})[0] == 200
    until(lambda: all(gone in {v["video_id"] for v in slate} for slate in replicas.slates(5)), one, other)


def test_both_follow_a_promotion(replicas: Replicas) -> None:
    before = replicas.slates(3)
    try:
        replicas.crown(2)
        one, other = replicas.slates(3)
        assert one == other != before[0]
    finally:
        replicas.crown(1)
    assert replicas.slates(3) == before


def test_a_registry_that_goes_down_stops_neither(replicas: Replicas, team: Team) -> None:
    """PostgreSQL is killed. Slates and events go on, trouble is said without a password, and promotions go on after."""
    before = replicas.slates(3)
    team.database.kill()
    try:
        until(
            lambda: not any(models(one)["registry_reachable"] for one in replicas.servers), *replicas.servers
        )
        assert replicas.slates(3) == before
        for server in replicas.servers:
            trouble = models(server)["registry_trouble"]
            assert "does not answer" in trouble
            assert team.conceals_passwords(trouble)
    finally:
        team.database.start()
    until(lambda: all(models(one)["registry_reachable"] for one in replicas.servers), *replicas.servers)
    try:
        replicas.crown(2)
    finally:
        replicas.crown(1)
    assert replicas.slates(3) == before


@contextlib.contextmanager
def proxy_of_the_guide(folder: Path, servers: tuple[LiveServer, LiveServer]) -> Iterator[str]:
    """HAProxy with the settings that docs/scale.md shows, on ports of a test's own; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (settings,) = re.findall(r"```haproxy\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    real = {
        "127.0.0.1:8080": address,
        "127.0.0.1:8081": servers[0].address,
        "127.0.0.1:8082": servers[1].address,
    }
    for written in real:
        assert settings.count(written) == 1, written
    settings = re.sub(r"127\.0\.0\.1:808[012]", lambda found: real[found[0]], settings)
    path = folder / "haproxy.cfg"
    path.write_text(settings, encoding="utf-8")
    process = subprocess.Popen(["haproxy", "-db", "-f", str(path)])
    try:
        yield address
    finally:
        process.terminate()
        process.wait()


def ask(address: str, user_id: int) -> tuple[int, list[Any]]:
    """Status and slate, by a connection of its own."""
    connection = http.client.HTTPConnection(address, timeout=60.0)
    body = json.dumps({"user_id": user_id, "record": False})
    try:
        connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = json.loads(answer.read())
    finally:
        connection.close()
    return answer.status, content.get("videos", [])


@pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="no haproxy here: apt-get install haproxy (.ci/run does)"
)
def test_they_share_the_load_and_one_stands_in_for_the_other(replicas: Replicas, tmp_path: Path) -> None:
    """Behind the proxy of the guide. The last test of this file: it kills one of them."""
    one, other = replicas.servers
    expected = {user_id: replicas.slates(user_id)[0] for user_id in range(4)}
    before = [slates_asked_of(server) for server in replicas.servers]
    with proxy_of_the_guide(tmp_path, replicas.servers) as address:

        def is_up() -> bool:
            with contextlib.suppress(OSError):
                return ask(address, 0)[0] == 200
            return False

        until(is_up)
        for place in range(40):
            assert ask(address, place % 4) == (200, expected[place % 4])
        shares = [slates_asked_of(server) - was for server, was in zip(replicas.servers, before, strict=True)]
        assert min(shares) >= 15, shares
        replicas.killed.append(other)
        other.end(signal.SIGKILL)
        for place in range(20):
            assert ask(address, place % 4) == (200, expected[place % 4])
    assert slates_asked_of(one) >= before[0] + shares[0] + 20
