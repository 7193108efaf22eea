"""The server, as clients meet it: a real process, a real registry, models that are right about a tiny world."""

import datetime as dt
import http.client
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer
from tiny_world import video_at, watch_time_s

from watchnext.errors import InputError
from watchnext.registry import Registry
from watchnext.serving.events import rows_of
from watchnext.serving.messages import (
    EventsResponse,
    ModelsResponse,
    Problem,
    RecommendResponse,
)
from watchnext.serving.server import serve
from watchnext.serving.user_store import SqliteUserStore


def watch(event_id: str, user_id: int | str, video_id: int | str, **fields: Any) -> dict[str, Any]:
    event = {"type": "watch", "id": event_id, "user_id": user_id, "video_id": video_id}
    return {**event, "watch_time_s": 60.0, "completed": True, **fields}


def test_a_slate_says_what_and_who_and_why(server: LiveServer) -> None:
    """User 3 watches the ring from place 30 on, two videos a day for eight days."""
    answer = server.recommend(3, how_many=200, context={"surface": "home"}, record=False)
    slate = RecommendResponse.model_validate(answer)
    assert (slate.user_id, slate.model.name, slate.model.version) == ("3", "watchnext", 1)
    assert slate.personal
    assert slate.degraded == ""
    expected = [video.expected_watch_time_s for video in slate.videos]
    assert expected == sorted(expected, reverse=True)
    assert expected == [pytest.approx(watch_time_s(int(video.video_id))) for video in slate.videos]
    following = next(video for video in slate.videos if video.video_id == video_at(46))
    assert following.sources["tower"] > 0.9
    assert following.uploaded_at is not None
    assert not {video_at(place) for place in range(30, 46)} & {video.video_id for video in slate.videos}


def test_what_was_told_a_moment_ago_counts(server: LiveServer) -> None:
    """An accepted watch is in the features of the next request, and what was watched is not shown again."""
    for place in (100, 200, 300):
        told = server.add(watch(f"moment {place}", "somebody quick", video_at(place)))
        assert EventsResponse.model_validate(told) == EventsResponse(accepted=1, duplicates=0)
        slate = server.recommend("somebody quick", how_many=500, record=False)
        scores = {video["video_id"]: video["sources"].get("tower", 0.0) for video in slate["videos"]}
        assert max(scores, key=lambda video: scores[video]) == video_at(place + 1)
        assert video_at(place) not in scores


def test_events_are_kept_once(server: LiveServer, serving_project: Path) -> None:
    first = watch("once", "somebody twice", video_at(7))
    assert server.add(first, first) == {"accepted": 1, "duplicates": 1}
    assert server.add({**first, "video_id": video_at(9)}) == {"accepted": 0, "duplicates": 1}
    store = SqliteUserStore(serving_project / "state" / "users.db")
    (kept,) = store.events("somebody twice")
    store.close()
    assert kept.row["video_id"] == video_at(7)


def test_a_slate_that_is_shown_becomes_impressions_and_a_watch_its_click(
    server: LiveServer, serving_project: Path
) -> None:
    context = {"surface": "home", "device": "tv", "logged_in": True}
    slate = server.recommend("somebody shown", how_many=5, context=context)
    server.recommend("somebody shown", how_many=5, record=False)
    clicked = slate["videos"][2]["video_id"]
    page = slate["request_id"]
    server.add(
        watch("the click", "somebody shown", clicked, request_id=page, watch_time_s=12.5),
        {"type": "search", "id": "s", "user_id": "somebody shown", "query": "piano"},
    )
    store = SqliteUserStore(serving_project / "state" / "users.db")
    rows = rows_of(store.events("somebody shown"))
    store.close()
    shown = sorted(rows["impressions"], key=lambda row: row["position"])
    assert [row["video_id"] for row in shown] == [video["video_id"] for video in slate["videos"]]
    assert {(row["request_id"], row["surface"], row["device"], row["logged_in"]) for row in shown} == {
        (page, "home", "tv", True)
    }
    assert [row["clicked"] for row in shown] == [False, False, True, False, False]
    assert shown[2]["watch_time_s"] == 12.5
    assert (
        dict(zip(shown[0]["sources"], shown[0]["source_scores"], strict=True))
        == slate["videos"][0]["sources"]
    )
    assert [row["query"] for row in rows["searches"]] == ["piano"]


def test_odd_requests_get_a_good_answer_or_a_clear_one(server: LiveServer) -> None:
    nobody = server.recommend("nobody ever heard of", how_many=10, record=False)
    assert len(nobody["videos"]) == 10
    assert not nobody["personal"]
    everything = [video_at(place) for place in range(400)]
    assert server.recommend(3, exclude=everything, record=False)["videos"] == []
    assert len(server.recommend(3, exclude=everything[:390], record=False)["videos"]) == 10
    assert len(server.recommend(3, how_many=500, exclude=["77", 5], record=False)["videos"]) == 400 - 16


def soon(seconds: float) -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)).isoformat()


def test_clocks_that_are_ahead(server: LiveServer) -> None:
    """By a little: the event has happened now. By more: it is refused."""
    ahead = watch("ahead", "somebody ahead", video_at(50), watched_at=soon(30))
    assert server.add(ahead) == {"accepted": 1, "duplicates": 0}
    slate = server.recommend("somebody ahead", how_many=500, record=False)
    assert slate["personal"]
    status, told = server.post("/v1/events", {"events": [{**ahead, "id": "b", "watched_at": soon(900)}]})
    assert (status, told["where"]) == (422, "events.0.watched_at")
    assert "before it has happened" in told["message"]


RECOMMEND, EVENTS = "/v1/recommend", "/v1/events"
MALFORMED: list[tuple[str, bytes, int]] = [
    (RECOMMEND, b"", 422),
    (RECOMMEND, b"{", 400),
    (RECOMMEND, b"null", 422),
    (RECOMMEND, b"[]", 422),
    (RECOMMEND, b'"7"', 422),
    (RECOMMEND, b"\xff\xfe\xfd", 400),
    (RECOMMEND, '{"user_id": "ü"}'.encode("latin-1"), 400),
    (RECOMMEND, b"{}", 422),
    (RECOMMEND, b'{"user_id": null}', 422),
    (RECOMMEND, b'{"user_id": true}', 422),
    (RECOMMEND, b'{"user_id": 7.5}', 422),
    (RECOMMEND, b'{"user_id": NaN}', 422),
    (RECOMMEND, b'{"user_id": [7]}', 422),
    (RECOMMEND, b'{"user_id": ""}', 422),
    (RECOMMEND, b'{"user_id": "\\ud800"}', 422),
    (RECOMMEND, b'{"\\ud800": 1, "user_id": 7}', 422),
    (RECOMMEND, b'{"user_id": 1' + b"0" * 30 + b"}", 422),
    (RECOMMEND, b'{"user_id": 1' + b"0" * 5000 + b"}", 400),
    (RECOMMEND, b'{"user_id": "' + b"7" * 1000 + b'"}', 422),
    (RECOMMEND, b'{"user_id": 7, "how_many": 0}', 422),
    (RECOMMEND, b'{"user_id": 7, "how_many": -1}', 422),
    (RECOMMEND, b'{"user_id": 7, "how_many": 501}', 422),
    (RECOMMEND, b'{"user_id": 7, "how_many": "20"}', 422),
    (RECOMMEND, b'{"user_id": 7, "how_many": 1e999}', 422),
    (RECOMMEND, b'{"user_id": 7, "how_much": 5}', 422),
    (RECOMMEND, b'{"user_id": 7, "exclude": "all"}', 422),
    (RECOMMEND, b'{"user_id": 7, "exclude": ["not a number"]}', 422),
    (RECOMMEND, b'{"user_id": 7, "exclude": ["9223372036854775808"]}', 422),
    (RECOMMEND, b'{"user_id": 7, "exclude": [' + b"1," * 2000 + b"1]}", 422),
    (RECOMMEND, b'{"user_id": 7, "context": {"age_years": NaN}}', 422),
    (RECOMMEND, b'{"user_id": 7, "context": {"age_years": -1}}', 422),
    (RECOMMEND, b'{"user_id": 7, "context": {"at": 5}}', 422),
    (RECOMMEND, b"[" * 100_000, 400),
    (RECOMMEND, b'{"user_id": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, 400),
    (RECOMMEND, b'{"user_id": "' + b"7" * (1 << 20) + b'"}', 413),
    (EVENTS, b'{"events": []}', 422),
    (EVENTS, b'{"events": {}}', 422),
    (EVENTS, b'{"events": [{}]}', 422),
    (EVENTS, b'{"events": [{"type": "nap", "id": "1", "user_id": 7}]}', 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, "not a number")]}).encode(), 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, 1, watch_time_s=float("nan"))]}).encode(), 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, 1, watch_time_s=float("inf"))]}).encode(), 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, 1, watch_time_s=-1.0)]}).encode(), 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, 1, watched_at="yesterday")]}).encode(), 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, 1, watched_at="2026-01-01T00:00:00")]}).encode(), 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, 1, completed="yes")]}).encode(), 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, 1, watched_at=10**30)]}).encode(), 422),
    (EVENTS, json.dumps({"events": [watch("m", 7, 1)] * 1001}).encode(), 422),
    ("/v1/nothing", b"{}", 404),
    ("/v1/models", b"{}", 405),
]


@pytest.mark.parametrize(("path", "body", "status"), MALFORMED)
def test_what_is_malformed_is_refused_with_a_message(
    server: LiveServer, path: str, body: bytes, status: int
) -> None:
    got, told = server.send("POST", path, body)
    assert got == status, told
    problem = Problem.model_validate(told)
    assert problem.message
    assert len(problem.request_id) == 32


def test_nothing_of_a_refused_batch_is_kept(server: LiveServer, serving_project: Path) -> None:
    good = watch("good", "somebody half", video_at(3))
    status, told = server.post("/v1/events", {"events": [good, watch("bad", "somebody half", "text")]})
    assert (status, told["where"]) == (422, "video_id")
    store = SqliteUserStore(serving_project / "state" / "users.db")
    assert store.events("somebody half") == []
    store.close()


def test_a_body_without_end_is_cut(server: LiveServer) -> None:
    """Sent in pieces, without a length. What is somewhat too large is answered, whatever is turned away at once."""
    somewhat = server.connect()
    pieces = (b"x" * 65536 for _ in range(40))
    somewhat.request("POST", RECOMMEND, pieces, {"Content-Type": "application/json"}, encode_chunked=True)
    assert somewhat.getresponse().status == 413
    somewhat.close()
    connection = server.connect()
    pieces = (b"x" * 65536 for _ in range(128))
    try:
        connection.request(
            "POST", RECOMMEND, pieces, {"Content-Type": "application/json"}, encode_chunked=True
        )
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # turned away before all of it was sent
    finally:
        connection.close()
    assert server.get("/healthz")[0] == 200


def test_what_operators_ask(server: LiveServer) -> None:
    server.recommend(5, record=False)
    assert server.get("/healthz") == (200, {"status": "alive"})
    assert server.get("/readyz") == (200, {"status": "ready"})
    models = ModelsResponse.model_validate(server.get("/v1/models")[1])
    assert models.champion is not None
    assert (models.champion.version, models.champion.source) == (1, "simulated")
    assert models.registry_reachable
    assert models.refused == []
    status, text = server.get("/metrics")
    assert status == 200
    assert "watchnext_champion_version 1.0" in text
    assert 'watchnext_requests_total{method="POST",path="/v1/recommend",status="200"}' in text
    assert 'watchnext_step_seconds_count{step="ranker"}' in text
    status, described = server.get("/openapi.json")
    assert {"/v1/recommend", "/v1/events", "/healthz", "/readyz", "/metrics", "/v1/models"} <= set(
        described["paths"]
    )
    line = server.wait_for("request", path="/v1/recommend", status=200)
    assert line["version"] == 1
    assert {"request_id", "took_ms", "state_ms", "ranker_ms", "slate"} <= set(line)


def test_only_who_has_the_key_may_ask_and_the_log_does_not_tell_it(serving_project: Path) -> None:
    """Killed and started again besides: what was acknowledged is there, and a SIGTERM lets requests finish."""
    key = "a key of more than sixteen characters"
    event = watch("kept", "somebody killed", video_at(60))
    server = LiveServer(serving_project, api_key=key).wait_until_ready()
    try:
        for shown in ("", "wrong", key[:-1], key + "x"):
            for path in (RECOMMEND, "/v1/models", "/metrics", "/v1/nothing"):
                status, told = server.send("GET", path, X_API_Key=shown)
                assert (status, "X-API-Key" in told["message"]) == (401, True)
        assert server.get("/v1/models")[0] == 200
        assert server.send("GET", "/readyz", X_API_Key="")[0] == 200
        assert server.add(event) == {"accepted": 1, "duplicates": 0}
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        assert key not in json.dumps(server.log)

        server = LiveServer(serving_project, api_key=key).wait_until_ready()
        assert server.add(event) == {"accepted": 0, "duplicates": 1}
        assert server.recommend("somebody killed", record=False)["personal"]
        answers: list[int] = []
        ended: list[str] = []

        def keep_asking() -> None:
            connection = server.connect()
            body = json.dumps({"user_id": 3, "how_many": 300, "record": False}).encode()
            while True:
                try:
                    answers.append(server.send("POST", RECOMMEND, body, connection)[0])
                except (
                    ConnectionRefusedError,
                    http.client.RemoteDisconnected,
                    ConnectionResetError,
                ) as error:
                    ended.append(type(error).__name__)
                    return

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert server.end(signal.SIGTERM) == 0
        for thread in threads:
            thread.join(timeout=30)
        taken = [line for line in server.log if line["message"] == "request" and line["path"] == RECOMMEND]
        assert len(answers) > 10
        assert set(answers) == {200}
        assert len(taken) - 1 == len(answers), "every request that was taken was answered"
        assert server.log[-1]["message"] == "ended"
    finally:
        server.end(signal.SIGKILL)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_without_a_key_no_other_machine_is_let_in(host: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can be reached from other machines"):
        serve(tmp_path, "watchnext", host=host, port=0, store=str(tmp_path / "users.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_can_be_guessed_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too easy to guess"):
        serve(
            tmp_path, "watchnext", host="0.0.0.0", port=0, store=str(tmp_path / "users.db"), api_key="secret"
        )


def test_a_port_that_is_taken_is_named(server: LiveServer, tmp_path: Path) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(InputError, match=f"port {port}"):
        serve(tmp_path, "watchnext", host="127.0.0.1", port=port, store=str(tmp_path / "users.db"))


def test_the_registry_is_only_read(server: LiveServer, serving_project: Path) -> None:
    """Serving writes no event and no alias."""
    assert server.get("/readyz")[0] == 200
    assert Registry.open(serving_project).history("watchnext") == []
