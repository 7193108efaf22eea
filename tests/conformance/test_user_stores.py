"""What every store of user state has to keep to, so that a server does not notice which one it has."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from redis_process import RedisProcess

from watchnext.features.history import UserHistory
from watchnext.features.ranking_features import VideoFacts
from watchnext.recommend.state import UserFacts
from watchnext.serving import user_store
from watchnext.serving.events import Event, history_of, id_of
from watchnext.serving.stores import is_redis, open_store
from watchnext.serving.user_store import UserStore

NOW = 1_800_000_000_000_000
HOUR = 3_600_000_000


@pytest.fixture(scope="module")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    running = RedisProcess(tmp_path_factory.mktemp("redis"))
    yield running.address
    running.kill()


@pytest.fixture(params=["redis", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store of each kind is, as the setting `--store` names it."""
    if request.param == "sqlite":
        return str(tmp_path / "users.db")
    import redis

    address = str(request.getfixturevalue("redis_address"))
    with redis.Redis.from_url(address) as client:
        client.flushall()
    return address


@pytest.fixture
def reopen(place: str) -> Iterator[Callable[[], UserStore]]:
    """Open the test's store once more, as another server would."""
    opened: list[UserStore] = []

    def one_more() -> UserStore:
        opened.append(open_store(place))
        return opened[-1]

    yield one_more
    for one in opened:
        one.close()


@pytest.fixture
def store(reopen: Callable[[], UserStore]) -> UserStore:
    return reopen()


def watch(user_id: str, video_id: int | str, at: int, **columns: object) -> Event:
    row = {"video_id": video_id, "watched_at": at, "watch_time_s": 60.0, "completed": True, **columns}
    return Event(user_id, id_of("watches", row), "watches", row)


def shown(user_id: str, request_id: str, video_id: int | str, at: int, **columns: object) -> Event:
    row = {"request_id": request_id, "video_id": video_id, "shown_at": at, "clicked": False}
    row |= {"watch_time_s": 0.0, "device": "tv", "logged_in": True, **columns}
    return Event(user_id, id_of("impressions", row), "impressions", row)


def search(user_id: str, query: str, at: int) -> Event:
    row = {"searched_at": at, "query": query}
    return Event(user_id, id_of("searches", row), "searches", row)


def facts_of(video_id: int | str) -> VideoFacts:
    return VideoFacts(video_id, f"channel {int(video_id) % 3}", [f"topic {int(video_id) % 4}", "all"])


def answers(history: UserHistory, before: int) -> tuple[object, ...]:
    """Everything that features ask a history."""
    return (
        history.completed_watches(before),
        history.last_completed(50, before),
        history.last_shown_unwatched(50, before),
        history.last_context(before),
        history.begun_videos(before),
        history.last_watches(50, before),
        history.last_watched_at(before),
        [history.channel_watches(f"channel {one}", before) for one in range(3)],
        history.impressions(before),
        history.watches_of_clicks(before),
        [history.impressions_of(video, before) for video in range(30)],
        sorted(history.shown_videos(before)),
        history.last_search_tokens(50, before),
        history.last_search_query(before),
        history.watches_by_topic(before),
    )


def asked(store: UserStore, user_id: str) -> list[tuple[object, ...]]:
    history = history_of(store.events(user_id), facts_of)
    return [answers(history, NOW + hours * HOUR) for hours in range(-30, 2, 3)]


def life_of(user_id: str, seed: int) -> list[Event]:
    """Two days of somebody: pages, watches (some of them clicks), searches, and a past before the logs."""
    draw = random.Random(seed)
    events = []
    for page in range(8):
        at = NOW - draw.randrange(24 * HOUR)
        videos = draw.sample(range(30), 5)
        events += [shown(user_id, f"page {page}", video, at) for video in videos]
        events.append(watch(user_id, videos[0], at + HOUR // 60, request_id=f"page {page}"))
        events.append(watch(user_id, videos[1], at + HOUR // 30, completed=bool(page % 2)))
        events.append(search(user_id, f"Piano lesson {page}", at - HOUR))
    for position in range(3):
        row = {"position": position, "video_id": draw.randrange(30), "completed": position != 1}
        events.append(Event(user_id, id_of("history", row), "history", row))
    return events


def test_somebody_unknown_has_nothing(store: UserStore) -> None:
    assert store.events("nobody") == []
    assert store.facts("nobody") == UserFacts()
    assert store.forget("nobody") == 0
    assert store.user_ids(5) == []
    assert store.add([]) == []


def test_what_was_added_is_there_for_everybody(store: UserStore, reopen: Callable[[], UserStore]) -> None:
    events = [*life_of("7", 1), *life_of("ein Nutzer: ü/7", 2)]
    other = reopen()
    assert store.add(events) == [True] * len(events)
    for user_id in ("7", "ein Nutzer: ü/7"):
        mine = sorted((event for event in events if event.user_id == user_id), key=lambda event: event.id)
        assert sorted(other.events(user_id), key=lambda event: event.id) == mine
    assert sorted(other.user_ids(5)) == ["7", "ein Nutzer: ü/7"]
    assert len(other.user_ids(1)) == 1


def test_an_event_counts_once_by_its_id_and_the_first_one_stays(store: UserStore) -> None:
    first = watch("7", 12, NOW - HOUR)
    again = Event("7", first.id, "watches", {**first.row, "watch_time_s": 1.0})
    assert store.add([first, again]) == [True, False]
    assert store.add([again, watch("7", 13, NOW)]) == [False, True]
    assert store.add([Event("8", first.id, "watches", first.row)]) == [True], "another user's own event"
    assert next(event for event in store.events("7") if event.id == first.id) == first


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_log_gives_one_state_in_any_batches_and_order(store: UserStore, size: int) -> None:
    """Every event twice."""
    events = life_of("7", 3)
    expected = [answers(history_of(events, facts_of), NOW + hours * HOUR) for hours in range(-30, 2, 3)]
    replayed = events * 2
    random.Random(size).shuffle(replayed)
    news = [
        new for start in range(0, len(replayed), size) for new in store.add(replayed[start : start + size])
    ]
    assert sum(news) == len(events)
    assert asked(store, "7") == expected
    assert len({str(one) for one in expected}) > 5, "the instants that are asked for differ"


def test_a_late_event_stands_where_it_belongs(store: UserStore) -> None:
    store.add([watch("7", 1, NOW - 3 * HOUR), watch("7", 3, NOW - HOUR)])
    store.add([watch("7", 2, NOW - 2 * HOUR)])
    history = history_of(store.events("7"), facts_of)
    assert history.last_completed(5, NOW) == [1, 2, 3]
    assert history.last_completed(5, NOW - 90 * HOUR // 60) == [1, 2]


def test_a_walk_finds_every_user_once(store: UserStore) -> None:
    assert list(store.walk()) == []
    events = [search(user, "piano", at) for user in ("a", "b:c", "ü") for at in (NOW, NOW + HOUR)]
    store.add(events)
    found = {of_user[0].user_id: of_user for of_user in store.walk()}
    assert len(list(store.walk())) == 3
    assert {event for of_user in found.values() for event in of_user} == set(events)
    assert all({event.user_id for event in of_user} == {user} for user, of_user in found.items())


def test_what_became_of_videos_is_told_since_a_revision(
    store: UserStore, reopen: Callable[[], UserStore]
) -> None:
    assert store.videos_since(0) == (0, {})
    store.put_videos({"7": "null", "ü": '{"topics":[]}'})
    first, all_of_them = reopen().videos_since(0)
    assert all_of_them == {"7": "null", "ü": '{"topics":[]}'}
    assert store.videos_since(first) == (first, {})
    store.put_videos({"7": "{}"})
    second, since = store.videos_since(first)
    assert second > first
    assert since["7"] == "{}"
    assert store.videos_since(0)[1] == {"7": "{}", "ü": '{"topics":[]}'}
    assert list(store.walk()) == []


def test_facts_are_replaced(store: UserStore, reopen: Callable[[], UserStore]) -> None:
    one = UserFacts("de", 31.5, None, {"plan": "family", "campaign": None})
    store.put_facts({"7": one, "8": UserFacts(region="fr")})
    assert reopen().facts("7") == one
    store.put_facts({"7": UserFacts(region="at")})
    assert (store.facts("7"), store.facts("8")) == (UserFacts(region="at"), UserFacts(region="fr"))


def test_what_is_forgotten_is_gone(store: UserStore, place: str, tmp_path: Path) -> None:
    """Of this user alone, and from the files of the embedded store too."""
    store.add([*life_of("7", 1), search("8", "unforgettable", NOW)])
    store.put_facts({"7": UserFacts(region="Atlantis")})
    store.add([search("7", "confidential", NOW)])
    assert store.forget("7") == len(life_of("7", 1)) + 1
    assert (store.events("7"), store.facts("7"), store.user_ids(5)) == ([], UserFacts(), ["8"])
    assert store.forget("7") == 0
    if is_redis(place):
        return
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"unforgettable" in kept
    assert b"confidential" not in kept
    assert b"Atlantis" not in kept


def test_no_page_keeps_a_copy_of_who_was_forgotten(tmp_path: Path) -> None:
    """SQLite leaves copies in the free space of pages whose rows it moved: without `VACUUM` in two of these files,
    where events have ids that clients drew, as these have."""
    users = [*(f"somebody {one}" for one in range(39)), "<leaves>"]
    for seed in range(20):
        draw = random.Random(seed)
        events = [
            search(draw.choice(users), "x" * draw.randrange(60, 300), NOW + step) for step in range(600)
        ]
        path = tmp_path / f"{seed}.db"
        store = open_store(str(path))
        store.add([replace(event, id=f"{draw.getrandbits(128):032x}") for event in events])
        assert b"<leaves>" in b"".join(one.read_bytes() for one in tmp_path.glob(f"{seed}.db*"))
        store.forget("<leaves>")
        assert b"<leaves>" not in b"".join(one.read_bytes() for one in tmp_path.glob(f"{seed}.db*")), seed
        store.close()


def test_the_log_of_writes_is_moved_into_the_file_aside_from_requests(tmp_path: Path) -> None:
    """SQLite itself would not begin before ten thousand pages (`_LOG_PAGES`)."""
    store = open_store(str(tmp_path / "users.db"))
    store.add([search("7", "what stands in the log", NOW)])
    until = time.monotonic() + 60.0
    while b"what stands in the log" not in (tmp_path / "users.db").read_bytes():
        assert time.monotonic() < until
        time.sleep(0.05)
    store.close()


def test_who_cannot_be_forgotten_altogether_yet_is_not_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who reads keeps the log of writes from being emptied, and there the deleted rows stand."""
    monkeypatch.setattr(user_store, "_EMPTIED_WITHIN_S", 0.0)
    path = tmp_path / "users.db"
    first = open_store(str(path))
    first.add([search("7", "confidential", NOW)])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
    with pytest.raises(user_store.StoreUnavailableError, match="is being read"):
        first.forget("7")
    reader.close()
    again = open_store(str(path))
    assert again.forget("7") == 0
    assert b"confidential" not in b"".join(one.read_bytes() for one in tmp_path.iterdir())
    again.close()
    first.close()


def test_who_reads_for_a_moment_is_waited_for_before_somebody_counts_as_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    store = open_store(str(path))
    store.add([search("7", "confidential", NOW)])
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
    # Longer than SQLite itself would wait.
    ends = threading.Timer(2 * user_store._BUSY_TIMEOUT_S, reader.close)
    ends.start()
    assert store.forget("7") == 1
    assert b"confidential" not in b"".join(one.read_bytes() for one in tmp_path.iterdir())
    ends.join()
    store.close()


def test_threads_and_openings_at_once_lose_nothing(store: UserStore, reopen: Callable[[], UserStore]) -> None:
    stores = [store, reopen()]

    def add(place: int) -> list[bool]:
        return stores[place % 2].add([watch("7", place % 30, NOW + step) for step in range(place, place + 5)])

    with ThreadPoolExecutor(8) as pool:
        news = [new for added in pool.map(add, range(100)) for new in added]
    events = store.events("7")
    assert len(events) == len({event.id for event in events}) == sum(news)
    assert {event.id for event in events} == {
        watch("7", place % 30, NOW + step).id for place in range(100) for step in range(place, place + 5)
    }


def test_what_was_acknowledged_survives_a_kill(place: str, reopen: Callable[[], UserStore]) -> None:
    """A writer tells of every event after it was added, and is killed in the middle of it."""
    script = """
        import sys
        from watchnext.serving.events import Event
        from watchnext.serving.stores import open_store
        store = open_store(sys.argv[1])
        for step in range(1_000_000):
            row = {"searched_at": step, "query": "x" * 200}
            store.add([Event("7", f"{step} {part}", "searches", row) for part in range(3)])
            print(step, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(200)]
        os.kill(writer.pid, signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith("\n")]
    kept = {event.id for event in reopen().events("7")}
    assert {f"{step} {part}" for step in told for part in range(3)} <= kept
    assert len(kept) % 3 == 0, "a batch is there whole or not at all"
