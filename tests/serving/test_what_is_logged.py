"""The log names requests and tells nothing of users, addresses of stores keep their passwords, and nobody is a stranger."""

import json
import os
import subprocess
import sys
from pathlib import Path

from live_server import LiveServer
from redis_process import RedisProcess
from tiny_world import video_at

from watchnext.recommend.state import UserFacts
from watchnext.serving.stores import STORE_VARIABLE
from watchnext.serving.user_store import SqliteUserStore


def test_an_answer_and_its_line_have_one_request_id_and_users_are_not_in_the_log(server: LiveServer) -> None:
    """Neither who asked, nor what they watched or searched for, whether it was taken or refused."""
    who, what = "somebody discreet", "a question that is private"
    search = {"type": "search", "id": "only once", "user_id": who, "query": what}
    watch = {"type": "watch", "id": "twice", "user_id": who, "video_id": video_at(5), "watch_time_s": 7.5}
    server.add(search, {**watch, "completed": True})
    assert server.post("/v1/events", {"events": [{**search, "query": what * 100}]})[0] == 422
    assert server.post("/v1/recommend", {"user_id": who, "exclude": [what]})[0] == 422
    assert server.get(f"/v1/users/{who.replace(' ', '%20')}/history")[0] == 200
    connection = server.connect()
    body = json.dumps({"user_id": who, "record": False}).encode()
    connection.request("POST", "/v1/recommend", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    slate = json.loads(answer.read())
    connection.close()
    line = server.wait_for("request", request_id=answer.headers["X-Request-Id"])
    assert (line["slate"], line["status"], line["path"]) == (slate["request_id"], 200, "/v1/recommend")
    assert slate["personal"]
    logged = json.dumps(server.log)
    assert who not in logged
    assert who.replace(" ", "%20") not in logged
    assert what not in logged


def test_somebody_who_has_done_nothing_yet_gets_what_is_popular(
    server: LiveServer, serving_project: Path
) -> None:
    """Known from the table of users alone, and answered like somebody unknown."""
    store = SqliteUserStore(serving_project / "state" / "users.db")
    store.put_facts({"somebody new": UserFacts(region="region 1")})
    store.close()
    new = server.recommend("somebody new", record=False)
    assert (new["personal"], new["degraded"], len(new["videos"])) == (False, "", 20)
    assert new["videos"] == server.recommend("nobody at all", record=False)["videos"]


def test_the_password_of_a_store_is_told_to_nobody(serving_project: Path, tmp_path: Path) -> None:
    """Of a Redis that is not there: the start fails, and says why without it."""
    redis = RedisProcess(tmp_path)
    redis.kill()
    password = "only-the-server-knows-this"
    done = subprocess.run(
        [sys.executable, "-m", "watchnext.cli", "serve", "--port", "0"],
        cwd=serving_project,
        env={**os.environ, STORE_VARIABLE: redis.address.replace("//", f"//:{password}@")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "no Redis answers" in done.stdout + done.stderr
    assert password not in done.stdout + done.stderr
