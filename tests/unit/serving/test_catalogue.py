"""Videos that come and go while a server runs, told by HTTP."""

import datetime as dt
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import START_S, LiveServer
from tiny_world import video_at

from watchnext.recommend.recommender import Recommender
from watchnext.serving.catalogue import Catalogue
from watchnext.serving.served import Served
from watchnext.serving.service import Service, load
from watchnext.serving.user_store import SqliteUserStore

NEW = 5000


def tell(server: LiveServer, **change: Any) -> None:
    """Tell of a change, and wait until it is served."""
    before = catalogue(server)["revision"]
    status, told = server.post("/v1/videos", change)
    assert status == 200, told
    until = time.monotonic() + START_S
    while catalogue(server)["revision"] == before:
        assert time.monotonic() < until, server.log[-5:]
        time.sleep(0.02)


def catalogue(server: LiveServer) -> dict[str, int]:
    return dict(server.get("/v1/models")[1]["catalogue"])


def shown(server: LiveServer, user: str = "3") -> dict[int, dict[str, Any]]:
    slate = server.recommend(user, how_many=500, record=False)
    return {video["video_id"]: video for video in slate["videos"]}


@pytest.fixture
def changing(server: LiveServer) -> Iterator[LiveServer]:
    """The server, with all videos of the bundle and no others afterwards."""
    yield server
    tell(server, added=[{"video_id": video_at(46)}], taken_down=[NEW, NEW + 1])


def test_videos_come_and_go_without_a_restart(changing: LiveServer, serving_project: Path) -> None:
    server = changing
    before = shown(server)
    assert NEW not in before
    assert video_at(46) in before  # what this user watches next, named by the tower
    now = dt.datetime.now(dt.UTC)
    tell(
        server,
        added=[
            {"video_id": NEW, "channel_id": 3, "topics": ["topic 1"], "duration_s": 90.0},
            {"video_id": NEW + 1, "uploaded_at": (now - dt.timedelta(days=30)).isoformat()},
        ],
        taken_down=[video_at(46)],
    )
    after = shown(server)
    # By its channel and topics the tower knows where it lies, and names nothing to somebody without a past.
    assert set(after[NEW]["sources"]) == {"tower", "fresh"}
    assert set(shown(server, "nobody yet")[NEW]["sources"]) == {"fresh"}
    assert after[NEW]["sources"]["fresh"] > 0.99
    assert after[NEW]["uploaded_at"] is not None
    # Too old to be fresh, and nobody has watched it: it is what a slate is filled up with.
    assert after[NEW + 1]["sources"] == {}
    assert video_at(46) not in after
    assert set(after) == set(before) - {video_at(46)} | {NEW, NEW + 1}
    for video in set(after) & set(before):
        assert after[video]["expected_watch_time_s"] == before[video]["expected_watch_time_s"]
    # A watch of it is taken, and it then is not shown again, as any other.
    server.add(
        {"type": "watch", "id": "n", "user_id": "3n", "video_id": NEW, "watch_time_s": 9.0, "completed": True}
    )
    assert NEW not in shown(server, "3n")
    assert NEW in shown(server, "4n")

    # Another process that reads the same state, as one that was started anew does.
    service = load("models:/watchnext@champion", serving_project, str(serving_project / "state" / "users.db"))
    again = service.recommend("3", 500).slate.video_ids
    assert set(again) == set(after)
    service.store.close()

    tell(server, taken_down=[NEW], added=[{"video_id": video_at(46)}])
    last = shown(server)
    assert NEW not in last
    assert set(last[video_at(46)]["sources"]) == set(before[video_at(46)]["sources"])


def test_what_does_not_fit_is_refused_as_a_whole(server: LiveServer) -> None:
    before = catalogue(server)
    for change, where in (
        ({"added": [{"video_id": "not a number"}]}, "video_id"),
        ({"added": [{"video_id": 1}, {"video_id": 2, "channel_id": "text"}]}, "added.1.channel_id"),
        ({"added": [{"video_id": 1}], "taken_down": [1]}, "taken_down"),
        ({"added": [{"video_id": 1, "uploaded_at": "2100-01-01T00:00:00Z"}]}, "added.0.uploaded_at"),
        ({"added": [{"video_id": 1, "length": 3}]}, "body.added.0.length"),
        ({"taken_down": [1] * 1001}, "body.taken_down"),
    ):
        status, told = server.post("/v1/videos", change)
        assert (status, told["where"]) == (422, where), told
    time.sleep(0.3)
    assert catalogue(server) == before


def test_every_version_that_is_served_follows(
    tmp_path: Path, versions: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that comes after a change, and one whose change fails goes on as it is."""
    store = SqliteUserStore(tmp_path / "users.db")
    shown_by: dict[str, Served | None] = {}
    following = Catalogue(store)
    puts = {
        name: following.following(lambda one, name=name: shown_by.__setitem__(name, one))
        for name in ("champion", "challenger")
    }
    puts["champion"](versions[0])
    assert shown_by["champion"] is versions[0]
    store.put_videos({str(NEW): "{}", str(video_at(7)): "null", "text": "{}"})
    puts["challenger"](versions[1])
    assert following.told() == {"revision": following.revision, "added": 2, "taken_down": 1}
    for name in ("champion", "challenger"):
        served = shown_by[name]
        assert served is not None
        slate = Service(store, served).recommend("somebody", 500).slate.video_ids
        assert NEW in slate
        assert video_at(7) not in slate
    assert not following.check()

    def fails(*_: object) -> Recommender:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Recommender, "with_catalogue", fails)
    before = dict(shown_by)
    store.put_videos({str(NEW): "null"})
    assert not following.check()
    assert shown_by == before
    puts["challenger"](None)
    assert shown_by["challenger"] is None
    store.close()


def test_a_store_that_is_away_is_told_once_and_changes_nothing(
    tmp_path: Path, versions: tuple[Served, Served], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "users.db"
    store = SqliteUserStore(path)
    shown_by: list[Served | None] = []
    following = Catalogue(store)
    following.following(shown_by.append)(versions[0])
    path.rename(tmp_path / "away.db")
    with caplog.at_level(logging.ERROR, "watchnext.serving"):
        assert not any([following.check(), following.check()])
    assert [record.message for record in caplog.records] == ["the catalogue cannot be read"]
    assert shown_by == [versions[0]]
    store.close()
