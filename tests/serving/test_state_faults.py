"""User state that is locked, moved away, exchanged, without room, or behind a Redis that hangs: answers go on without it."""

import os
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_server import START_S, LiveServer
from redis_process import RedisProcess
from tiny_world import video_at

from watchnext.serving.events import Event
from watchnext.serving.service import STATE_UNAVAILABLE
from watchnext.serving.stores import open_store
from watchnext.serving.user_store import RETRY_S, StoreUnavailableError

SIDES = ("", "-wal", "-shm")


def watch(event_id: str, user_id: str, **fields: Any) -> dict[str, Any]:
    event = {"type": "watch", "id": event_id, "user_id": user_id, "video_id": video_at(60)}
    return {**event, "watch_time_s": 60.0, "completed": True, **fields}


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def users_file(project: Path) -> Path:
    return project / "state" / "users.db"


def move_aside(project: Path) -> Callable[[], None]:
    """The file and its write-ahead log, away and back."""
    file = users_file(project)
    moved = [Path(f"{file}{side}") for side in SIDES if Path(f"{file}{side}").exists()]
    for one in moved:
        one.rename(one.with_name(f"aside {one.name}"))

    def back() -> None:
        for side in SIDES:
            Path(f"{file}{side}").unlink(missing_ok=True)
        for one in moved:
            one.with_name(f"aside {one.name}").rename(one)

    return back


def exchange(project: Path) -> Callable[[], None]:
    """A whole user state, of nobody, in place of the one that the server has open."""
    back = move_aside(project)
    open_store(str(users_file(project))).close()
    return back


@pytest.mark.parametrize("fault", [move_aside, exchange])
def test_a_file_that_is_gone_or_another_costs_what_is_known_and_no_answer(
    server: LiveServer, serving_project: Path, fault: Callable[[Path], Callable[[], None]]
) -> None:
    """Nothing is acknowledged that would go into a file that nobody reads again; the file back, all is as before."""
    known = server.recommend(5, record=False)
    assert known["personal"]
    back = fault(serving_project)
    try:
        blind = server.recommend(5, how_many=20)
        assert (blind["degraded"], blind["personal"], len(blind["videos"])) == (STATE_UNAVAILABLE, False, 20)
        assert blind["videos"] == server.recommend("nobody", how_many=20, record=False)["videos"]
        status, told = server.post("/v1/events", {"events": [watch("lost", "somebody lost")]})
        assert (status, "send it again" in told["message"]) == (503, True)
        assert server.get("/v1/users")[0] == 503
        assert 'degraded="true"' in server.get("/metrics")[1]
    finally:
        back()
    until(lambda: server.recommend(5, record=False)["degraded"] == "")
    assert server.recommend(5, record=False)["videos"] == known["videos"]
    until(lambda: server.post("/v1/events", {"events": [watch("lost", "somebody lost")]})[0] == 200)
    assert server.recommend("somebody lost", record=False)["personal"]


def test_a_file_that_another_process_holds_is_read_and_not_waited_for(
    server: LiveServer, serving_project: Path
) -> None:
    """Slates are personal as before, and say that they left no trace. Who waits: `test_a_held_file_is_asked_by_few`."""
    holder = sqlite3.connect(users_file(serving_project), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        first = server.recommend(6)
        assert (first["degraded"], first["personal"]) == ("impressions not recorded", True)
        for _ in range(20):
            assert server.recommend(6)["degraded"] == "impressions not recorded"
        assert server.post("/v1/events", {"events": [watch("held", "somebody held")]})[0] == 503
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    until(lambda: server.recommend(6)["degraded"] == "")


def test_a_full_disk_keeps_nothing_and_answers_all(server: LiveServer, serving_project: Path) -> None:
    """No file may grow: what SQLite would write is refused by the system, as on a full disk."""
    file = users_file(serving_project)
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    smallest = min(Path(f"{file}{side}").stat().st_size for side in ("", "-wal"))
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (min(smallest, 4096), before[1]))
    try:
        until(lambda: server.recommend(7)["degraded"] != "")
        slate = server.recommend(7)
        assert slate["degraded"] in ("impressions not recorded", STATE_UNAVAILABLE)
        assert len(slate["videos"]) == 20
        status, _ = server.post("/v1/events", {"events": [watch("full", "somebody full")]})
        assert status == 503
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
    until(lambda: server.recommend(7)["degraded"] == "")
    assert server.add(watch("full", "somebody full")) == {"accepted": 1, "duplicates": 0}


def asked_by_few(ask: Callable[[], Any], attempts: list[Any], threads: int) -> None:
    """Of 20 calls of a store that is away those get through to it that come first, and then one in RETRY_S.

    Attempts are counted, not timed: a busy machine makes more of them, by as much as it makes the calls slower.
    """

    def keep_asking() -> None:
        for _ in range(20 // threads):
            with pytest.raises(StoreUnavailableError):
                ask()

    began = time.monotonic()
    asking = [threading.Thread(target=keep_asking) for _ in range(threads)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert 1 <= len(attempts) <= threads + (time.monotonic() - began) / RETRY_S


def test_a_held_file_is_asked_by_few(tmp_path: Path) -> None:
    """Each who asks for the lock waits a second for it."""
    store = open_store(str(tmp_path / "users.db"))
    holder = sqlite3.connect(tmp_path / "users.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    attempts: list[str] = []
    try:
        begin = store._transaction

        def counted() -> Any:
            attempts.append("asked")
            return begin()

        store._transaction = counted
        event = Event("Ann", "1", "searches", {"searched_at": 1, "query": "piano"})
        asked_by_few(lambda: store.add([event]), attempts, threads=1)
    finally:
        holder.close()
        store.close()


def test_a_redis_that_hangs_is_waited_for_by_few_calls_and_not_by_all(tmp_path: Path) -> None:
    """Frozen, it accepts connections and says nothing."""
    redis = RedisProcess(tmp_path)
    store = open_store(redis.address)
    try:
        assert store.events("Ann") == []
        os.kill(redis._process.pid, signal.SIGSTOP)
        attempts: list[str] = []
        read = store._client.hgetall

        def counted(key: str) -> Any:
            attempts.append(key)
            return read(key)

        store._client.hgetall = counted
        asked_by_few(lambda: store.events("Ann"), attempts, threads=2)
        os.kill(redis._process.pid, signal.SIGCONT)

        def answers() -> bool:
            try:
                return store.events("Ann") == []
            except StoreUnavailableError:
                return False

        until(answers)
        store.close()
    finally:
        os.kill(redis._process.pid, signal.SIGCONT)
        redis.kill()
