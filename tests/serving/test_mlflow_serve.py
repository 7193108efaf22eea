"""`mlflow models serve -m models:/watchnext@champion` gives the slate that the server gives for the same request."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from live_server import NAME, START_S, LiveServer

from watchnext.registry import Registry

REQUESTS: list[dict[str, Any]] = [
    {"user_id": "11", "how_many": 30},
    {"user_id": "3", "how_many": 5, "exclude": [1046, 1047], "context": {"surface": "home", "device": "tv"}},
    {"user_id": "4", "how_many": 7, "context": {"region": "region 1", "logged_in": True, "age_years": 31.5}},
    {"user_id": "nobody ever heard of"},
]


def as_row(request: dict[str, Any]) -> dict[str, Any]:
    """A request of `POST /v1/recommend` as a row of MLflow's table."""
    return {
        **{name: value for name, value in request.items() if name != "context"},
        **request.get("context", {}),
    }


def invoke(port: int, row: dict[str, Any]) -> dict[str, Any]:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"dataframe_records": [row]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=60.0) as answer:
        (prediction,) = json.load(answer)["predictions"]
    return dict(prediction)


def test_mlflow_serves_the_same_slates(server: LiveServer, serving_project: Path) -> None:
    """Somebody with a past, with videos left out, with facts given, and somebody unknown; scores included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = Registry.open(serving_project).tracking_uri
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
    ]
    command += ["--model-uri", f"models:/{NAME}@champion", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    log = serving_project / "mlflow-serve.log"
    with log.open("wb") as out:
        served = subprocess.Popen(
            command, cwd=serving_project, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            until = time.monotonic() + START_S
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5.0).close()
                    break
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    assert served.poll() is None, log.read_text()
                    assert time.monotonic() < until, log.read_text()
                    time.sleep(0.2)
            for request in REQUESTS:
                told = server.recommend(**request, record=False)
                answer = invoke(port, as_row(request))
                assert answer == {
                    "user_id": told["user_id"],
                    "video_ids": [video["video_id"] for video in told["videos"]],
                    "expected_watch_time_s": [video["expected_watch_time_s"] for video in told["videos"]],
                    "personal": told["personal"],
                    "degraded": "",
                }
        finally:
            os.killpg(served.pid, 15)
            served.wait(timeout=60)
