"""A registry that is locked, or a tracking server that goes away and comes back: requests do not notice, operators do."""

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import NAME, START_S, LiveServer, assign
from mlflow.webhooks.delivery import _generate_hmac_signature
from tracking_server import TrackingServer

from watchnext.registry import DATABASE
from watchnext.serving.user_store import SqliteUserStore
from watchnext.serving.webhook import PATH, SECRET_VARIABLE

SECRET = "what only the registry and the server know"
API_KEY = "what only clients and the server know"
REQUESTS_PER_S = 20


def until(holds: Callable[[], bool], server: LiveServer) -> None:
    end = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < end, server.log[-10:]
        time.sleep(0.1)


def models(server: LiveServer) -> dict[str, Any]:
    """What `/v1/models` says, asked no more often than may be."""
    while (answer := server.get("/v1/models"))[0] == 429:
        time.sleep(0.2)
    return dict(answer[1])


def test_a_registry_that_is_locked_changes_nothing(server: LiveServer, serving_project: Path) -> None:
    """Another process holds the database file for longer than a reader waits."""
    before = server.recommend(3, record=False)["videos"]
    holder = sqlite3.connect(serving_project / DATABASE, isolation_level=None, timeout=30.0)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        asked = 0
        while models(server)["registry_reachable"]:
            assert server.recommend(3, record=False)["videos"] == before
            asked += 1
            time.sleep(0.1)
        assert "locked" in models(server)["registry_trouble"]
        assert server.recommend(3, record=False)["videos"] == before
        assert asked
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    until(lambda: models(server)["registry_reachable"] is True, server)
    assert models(server)["registry_trouble"] == ""


def test_without_a_champion_the_last_one_serves_and_it_is_said(
    server: LiveServer, serving_project: Path
) -> None:
    assign(serving_project, "champion", None)
    try:
        until(lambda: models(server)["registry_trouble"] != "", server)
        told = models(server)
        assert told["registry_trouble"] == f"the registry names no champion of {NAME}"
        assert (told["champion"]["version"], told["registry_reachable"]) == (1, True)
        assert len(server.recommend(3, record=False)["videos"]) == 20
    finally:
        assign(serving_project, "champion", 1)
    until(lambda: models(server)["registry_trouble"] == "", server)


@pytest.fixture(scope="module")
def tracking(serving_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """The registry of the shared project, copied, behind an MLflow server."""
    database = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    shutil.copy2(serving_project / DATABASE, database)
    running = TrackingServer(database.parent, f"sqlite:///{database}")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def guarded(tracking: TrackingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that follows it, polls once an hour, and has a key, a secret and a limit."""
    root = tmp_path_factory.mktemp("guarded")
    SqliteUserStore(root / "state" / "users.db").close()
    running = LiveServer(
        root,
        *("--model", NAME, "--poll-s", "3600", "--requests-per-s", str(REQUESTS_PER_S)),
        api_key=API_KEY,
        variables={"MLFLOW_TRACKING_URI": tracking.uri, SECRET_VARIABLE: SECRET},
    ).wait_until_ready()
    yield running
    assert running.end() == 0
    logged = json.dumps(running.log)
    assert SECRET not in logged
    assert API_KEY not in logged


def poke(server: LiveServer, secret: str = SECRET, sent_at: float | None = None) -> int:
    """What MLflow sends, by its own signature."""
    body = json.dumps({"entity": "model_version_alias", "action": "created", "data": {}})
    timestamp = str(int(time.time() if sent_at is None else sent_at))
    headers = {
        "X_MLflow_Delivery_Id": "1",
        "X_MLflow_Timestamp": timestamp,
        "X_MLflow_Signature": _generate_hmac_signature(secret, "1", timestamp, body),
    }
    return server.send("POST", PATH, body.encode(), **headers)[0]


def test_a_webhook_tells_of_a_promotion_at_once(guarded: LiveServer, tracking: TrackingServer) -> None:
    """By MLflow itself; and nobody else is listened to."""
    client = tracking.client()
    client.create_webhook(
        "follow", f"http://{guarded.address}{PATH}", ["model_version_alias.created"], secret=SECRET
    )
    assert models(guarded)["champion"]["version"] == 1
    client.set_registered_model_alias(NAME, "champion", "2")
    until(lambda: models(guarded)["champion"]["version"] == 2, guarded)
    assert poke(guarded, secret="something else") == 401
    assert poke(guarded, sent_at=time.time() - 3600.0) == 401
    assert guarded.send("POST", PATH, b"{}")[0] == 401


def test_a_tracking_server_that_goes_away_changes_nothing(
    guarded: LiveServer, tracking: TrackingServer
) -> None:
    """Killed, it is reported; back, it is followed again."""
    before = guarded.recommend("Ann", record=False)
    tracking.stop()
    assert poke(guarded) == 202
    until(lambda: models(guarded)["registry_reachable"] is False, guarded)
    assert "cannot be reached" in models(guarded)["registry_trouble"]
    after = guarded.recommend("Ann", record=False)
    assert (after["videos"], after["model"]) == (before["videos"], before["model"])
    tracking.start()
    number = 3 - before["model"]["version"]
    tracking.client().set_registered_model_alias(NAME, "champion", str(number))
    assert poke(guarded) == 202
    until(lambda: models(guarded)["champion"]["version"] == number, guarded)
    told = models(guarded)
    assert (told["registry_reachable"], told["registry_trouble"]) == (True, "")


def test_an_address_that_asks_too_often_is_told_to_wait(guarded: LiveServer) -> None:
    """Who has no key is counted too; probes of health are not; and a moment later all is well again."""
    time.sleep(1.1)
    statuses = []
    connection = guarded.connect()
    for _ in range(20 * REQUESTS_PER_S):
        connection.request("GET", "/v1/models", headers={"X-API-Key": API_KEY})
        answer = connection.getresponse()
        content = json.loads(answer.read())
        statuses.append(answer.status)
        if answer.status == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            assert f"{REQUESTS_PER_S} times within a second" in content["message"]
            break
    connection.close()
    assert statuses[-1] == 429
    assert len(statuses) > REQUESTS_PER_S
    assert guarded.get("/healthz")[0] == 200
    time.sleep(1.1)
    assert guarded.get("/v1/models")[0] == 200
    for _ in range(20 * REQUESTS_PER_S):
        status, _ = guarded.send("GET", "/v1/models", X_API_Key="a guess")
        if status == 429:
            break
        assert status == 401
    assert status == 429
    time.sleep(1.1)
