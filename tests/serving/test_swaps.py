"""Champions change under load: every answer is whole, of one version, and what the old ones took is given back.

With `--in-full` 100 times, and the memory of the server is then held to be flat; else 10 times.
"""

import gc
import json
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from live_server import START_S, LiveServer, assign

from watchnext.registry import Registry
from watchnext.serving.deployment import Deployment, Served

USERS = range(4)


def version_of(server: LiveServer) -> int:
    return int(server.get("/v1/models")[1]["champion"]["version"])


def change_to(server: LiveServer, project: Path, number: int) -> None:
    assign(project, "champion", number)
    until = time.monotonic() + START_S
    while version_of(server) != number:
        assert time.monotonic() < until, server.log[-20:]
        time.sleep(0.02)


def slates(server: LiveServer) -> dict[int, Any]:
    return {user: server.recommend(user, record=False)["videos"] for user in USERS}


def test_swaps_under_load_fail_no_request_and_mix_no_slate(
    server: LiveServer, serving_project: Path, in_full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every slate, scores and sources included, is the one that the version that it names gives that user."""
    swaps = 100 if in_full else 10
    swaps_before = server.get("/v1/models")[1]["swaps"]
    expected = {1: slates(server)}
    change_to(server, serving_project, 2)
    expected[2] = slates(server)
    assert all(expected[1][user] != expected[2][user] for user in USERS)

    answers: list[tuple[int, int, Any, float]] = []
    stop = threading.Event()

    def keep_asking(user: int) -> None:
        connection = server.connect()
        body = json.dumps({"user_id": user, "record": False}).encode()
        while not stop.is_set():
            began = time.perf_counter()
            status, answer = server.send("POST", "/v1/recommend", body, connection)
            answers.append((user, status, answer, (time.perf_counter() - began) * 1000.0))
        connection.close()

    memory_mb: list[float] = []
    process = psutil.Process(server.process.pid)
    clients = [threading.Thread(target=keep_asking, args=(user,)) for user in USERS]
    for client in clients:
        client.start()
    try:
        for place in range(swaps):
            change_to(server, serving_project, 1 + place % 2)
            memory_mb.append(process.memory_info().rss / 2**20)
    finally:
        stop.set()
        for client in clients:
            client.join()
        change_to(server, serving_project, 1)
    assert server.get("/v1/models")[1]["swaps"] >= swaps_before + swaps + 1
    took_ms = np.array([took for *_, took in answers])
    line = {
        "swaps": swaps,
        "answers": len(answers),
        "failed": sum(status != 200 for _, status, _, _ in answers),
        "mixed": sum(
            answer["videos"] != expected[answer["model"]["version"]][user] for user, _, answer, _ in answers
        ),
        "rss_mb_first_tenth": round(float(np.mean(memory_mb[: swaps // 10])), 1),
        "rss_mb_last_tenth": round(float(np.mean(memory_mb[-(swaps // 10) :])), 1),
        "rss_mb_most": round(max(memory_mb), 1),
        "p50_ms": round(float(np.percentile(took_ms, 50)), 1),
        "p99_ms": round(float(np.percentile(took_ms, 99)), 1),
    }
    with capsys.disabled():
        print(json.dumps(line))  # noqa: T201
    assert (line["failed"], line["mixed"]) == (0, 0)
    named = [answer["model"]["version"] for _, _, answer, _ in answers]
    assert min(named.count(1), named.count(2)) > swaps
    if in_full:
        assert memory_mb[-1] < 1.05 * memory_mb[swaps // 10]


def test_an_old_champion_is_given_back(serving_project: Path) -> None:
    """Nothing keeps what was served once another is: neither its models nor its index."""
    champion: list[Served] = []

    def swap(served: Served) -> None:
        champion[:] = [served]

    deployment = Deployment(Registry.open(serving_project), "watchnext", swap)
    assert deployment.check()
    old = champion[0].recommender
    held = [weakref.ref(one) for one in (old, old.searcher, old.corpus)]
    del old
    try:
        assign(serving_project, "champion", 2)
        assert deployment.check()
        gc.collect()
        assert champion[0].version.number == 2
        assert [one() for one in held] == [None, None, None]
    finally:
        assign(serving_project, "champion", 1)
