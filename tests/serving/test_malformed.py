"""Requests that no client should send: each gets a 4xx that says why, none a 5xx, none an answer that never comes.

With `--in-full` there are 10,000 of them, else some hundred; either way half are drawn from the OpenAPI description by
schemathesis, half are made by hand and sent as bytes.
"""

import collections
import contextlib
import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from live_server import LiveServer
from schemathesis import GenerationMode

from watchnext.serving.pipeline_events import load_events
from watchnext.serving.user_store import SqliteUserStore

NEVER_S = 30.0
"""After so long, an answer does not come. Nothing here makes the server wait for as long as it waits for a client."""

OPERATIONS = (
    ("/v1/recommend", "POST"),
    ("/v1/events", "POST"),
    ("/v1/compare", "POST"),
    ("/v1/videos", "POST"),
    ("/v1/users", "GET"),
)
JSON = b"application/json"
WATCH = {"type": "watch", "id": "m", "user_id": 7, "video_id": 1, "watch_time_s": 1.0, "completed": True}
VALID: dict[str, dict[str, Any]] = {
    "/v1/recommend": {
        "user_id": 7,
        "how_many": 5,
        "exclude": [1],
        "record": False,
        "context": {"device": "tv"},
    },
    "/v1/compare": {"user_id": 7, "how_many": 5, "context": {"age_years": 30.0}},
    "/v1/events": {"events": [WATCH]},
    "/v1/videos": {
        "added": [{"video_id": 900_001, "channel_id": 1, "topics": ["jazz"], "duration_s": 60.0}],
        "taken_down": [900_002],
    },
}


@pytest.fixture(scope="module")
def server(
    serving_project: Path, world_tables: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """One with a state of its own: what turns out to be valid changes the catalogue."""
    place = tmp_path_factory.mktemp("malformed") / "users.db"
    store = SqliteUserStore(place)
    load_events(world_tables, store)
    store.close()
    running = LiveServer(serving_project, "--store", str(place)).wait_until_ready()
    yield running
    assert running.end() == 0


def test_what_schemathesis_makes_of_the_description(
    server: LiveServer, in_full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cases that break the schema, per operation. A few turn out to keep to it, and are answered."""
    many = 1_250 if in_full else 40
    description = schemathesis.openapi.from_url(f"http://{server.address}/openapi.json")
    seen: collections.Counter[int] = collections.Counter()
    slowest_s = 0.0
    with requests.Session() as session:
        for path, method in OPERATIONS:

            @settings(
                max_examples=many,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                verbosity=Verbosity.quiet,
            )
            @given(case=description[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE))
            def send(case: schemathesis.Case) -> None:
                nonlocal slowest_s
                try:
                    answer = case.call(session=session, timeout=NEVER_S)
                except (UnicodeError, requests.exceptions.InvalidHeader):
                    return  # nothing that the client library can put into a request
                slowest_s = max(slowest_s, answer.elapsed)
                seen[answer.status_code] += 1
                assert answer.status_code < 500, (case.body, answer.content)
                if answer.status_code >= 400:
                    assert answer.json()["message"]

            send()
    told(capsys, "schemathesis", seen, slowest_s)
    refused = sum(count for status, count in seen.items() if status >= 400)
    assert sum(seen.values()) > 0.5 * many * len(OPERATIONS)
    assert refused > 0.5 * sum(seen.values())
    assert server.get("/readyz")[0] == 200


def http(path: str, body: bytes, *headers: bytes, method: bytes = b"POST", kind: bytes = JSON) -> bytes:
    """A request as bytes."""
    head = [method + b" " + path.encode() + b" HTTP/1.1", b"Host: here", b"Content-Type: " + kind, *headers]
    if not any(header.lower().startswith((b"content-length", b"transfer-encoding")) for header in headers):
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*head, b"", body])


def anything(draw: random.Random) -> Any:
    """A value that most fields do not take."""
    makers: list[Callable[[], Any]] = [
        lambda: None,
        lambda: draw.choice([True, False]),
        lambda: draw.choice([0, -1, 1 << 31, 1 << 63, 1 << 64, -(1 << 63) - 1, 10**400]),
        lambda: draw.choice([0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")]),
        lambda: draw.choice(
            ["", " ", "\0", "\ud800", "\u202e", "ß" * 70, "7" * 10_000, "' OR 1=1 --", "../.."]
        ),
        lambda: [],
        lambda: [draw.choice([1, "a", None, [[]]])] * draw.choice([1, 50, 5_000]),
        lambda: {},
        lambda: {"a": {"b": [{}]}},
        lambda: {"user_id": 7},
        lambda: draw.choice(
            ["2026-01-01", "yesterday", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00"]
        ),
    ]
    return draw.choice(makers)()


def wrong_values(draw: random.Random, path: str) -> bytes:
    """A valid request with a field of it replaced, renamed, or left out."""
    body = json.loads(json.dumps(VALID[path]))
    target = body
    if path == "/v1/events":
        body["events"] *= draw.choice([1, 1, 3])
        target = draw.choice([body, body["events"][-1], body["events"][-1]])
    elif path == "/v1/videos":
        target = draw.choice([body, body["added"][0], body["added"][0]])
    elif draw.random() < 0.3:
        target = body["context"]
    name = draw.choice([*target, "no such field"])
    kind = draw.choice(["replace", "replace", "replace", "rename", "leave out"])
    value = target.pop(name, 1)
    if kind == "replace":
        target[name] = anything(draw)
    elif kind == "rename":
        target[f"{name}_"] = value
    return http(path, json.dumps(body).encode())


def not_json(draw: random.Random, path: str) -> bytes:
    """Bytes that are no JSON, or hardly."""
    whole = json.dumps(VALID[path]).encode()
    depth = draw.choice([100, 10_000, 200_000])
    bodies: list[bytes] = [
        whole[: draw.randrange(len(whole))],
        whole + draw.choice([b"}", b"x", b"\0", whole]),
        draw.randbytes(draw.choice([1, 64, 4096])),
        b"[" * depth,
        b'{"user_id":' * depth,
        b"[" * depth + b"]" * depth,
        b'{"user_id": 7, ' + b'"user_id": 7, ' * 1000 + b'"how_many": {}}',
        whole.decode().encode(draw.choice(["utf-16", "utf-32", "utf-16-be"])),
        b"\xef\xbb\xbf" + b"{}",
        b"user_id=7&how_many=20",
        b"<user_id>7</user_id>",
        b"-" * 100_000,
        b"1" * 500_000,
        b'"' + b"\\u0000" * 50_000 + b'"',
        b'{"user_id": "' + b"\xc0\xaf\xed\xa0\x80" + b'"}',
        b" " * (1 << 20) + whole,
    ]
    return http(path, draw.choice(bodies))


def wrong_headers(draw: random.Random, path: str) -> bytes:
    """A body that would be good, under headers that are not."""
    body = json.dumps(VALID[path]).encode()
    return draw.choice(
        [
            http(
                path,
                body,
                kind=draw.choice([b"text/plain", b"application/xml", b"multipart/form-data", b"\xff"]),
            ),
            http(path, body, b"Content-Length: %d" % (1 << 40)),
            http(path, body, b"Content-Length: -1"),
            http(path, body, b"Content-Length: 1e3"),
            http(path, body, b"Content-Length: 5", b"Content-Length: 6"),
            http(path, body, b"Content-Length: 5", b"Transfer-Encoding: chunked"),
            http(path, b"zz\r\n" + body, b"Transfer-Encoding: chunked"),
            http(path, b"-5\r\nhello\r\n", b"Transfer-Encoding: chunked"),
            http(path, b"ffffffffffffffffff\r\nhello", b"Transfer-Encoding: chunked"),
            http(path, b"5\r\nhel" + b"lo, and more", b"Transfer-Encoding: chunked"),
            http(path, b"0\r\n\r\n", b"Transfer-Encoding: chunked"),
            http(path, body, b"Transfer-Encoding: gzip"),
            http(path, body, b"Content-Encoding: gzip", kind=b"text/html"),
            http(path, body, method=draw.choice([b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE"])),
            http(path, body, method=draw.choice([b"BREW", b"", b"\0", b"get"])),
            http(
                path
                + draw.choice(["/", "/x", "%00", "/../..", "\u00fc".encode("latin-1").decode("latin-1")]),
                body,
            ),
            http(
                "/v1/users?at_most=" + draw.choice(["0", "-1", "x", "1e9", "%ff", "9" * 5000]),
                b"",
                method=b"GET",
            ),
            http(
                "/v1/users/" + draw.choice(["%00", "a" * 1000, "%F0%28", "x" * 9000]) + "/history?at_most=0",
                b"",
            ),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(32),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"hello\r\n\r\n",
            http(path, body, b"X-Long: " + b"z" * 100_000),
            http(path, body, b"no colon here"),
            http(path, body, b"X-Null: a\0b"),
        ]
    )


def by_hand(draw: random.Random) -> Iterator[bytes]:
    makers = (wrong_values, wrong_values, not_json, wrong_headers)
    while True:
        yield draw.choice(makers)(draw, draw.choice(list(VALID)))


def exchange(server: LiveServer, request: bytes) -> tuple[int, bytes]:
    """Status and body of the first answer; status 0 if there is none before the server closes.

    The sending side is closed once an answer has come, or after a moment: who announced more than was sent has gone.
    """
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=1.0) as client:
        # It may be refused before all of it was sent; the answer is there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(request)
        received = b""
        until = time.monotonic() + NEVER_S
        is_open = True
        while time.monotonic() < until:
            try:
                piece = client.recv(1 << 20)
            except TimeoutError:
                if is_open:
                    client.shutdown(socket.SHUT_WR)
                    is_open = False
                continue
            except ConnectionResetError:
                break
            received += piece
            if not piece or is_whole(received):
                break
        else:
            raise AssertionError(f"no answer to {request[:300]!r}")
    if not received:
        return 0, b""
    status = int(received.split(b" ", 2)[1])
    return status, received.partition(b"\r\n\r\n")[2]


def is_whole(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return body.endswith(b"0\r\n\r\n") if length is None else len(body) >= int(length[1])


def test_what_is_made_by_hand(server: LiveServer, in_full: bool, capsys: pytest.CaptureFixture[str]) -> None:
    many = 5_000 if in_full else 300
    requests_by_hand = by_hand(random.Random(6))
    seen: collections.Counter[int] = collections.Counter()
    slowest_s = 0.0
    for _ in range(many):
        request = next(requests_by_hand)
        began = time.monotonic()
        status, body = exchange(server, request)
        slowest_s = max(slowest_s, time.monotonic() - began)
        seen[status] += 1
        assert status < 500, (request[:500], body)
        if status >= 400:
            assert b'"message"' in body, (request[:500], body)
    told(capsys, "by hand", seen, slowest_s)
    assert sum(seen[status] for status in (400, 404, 405, 413, 422, 431)) > 0.7 * many
    assert {400, 404, 405, 413, 422, 431} <= set(seen)
    assert server.get("/readyz")[0] == 200
    failed = [line for line in server.log if line["message"] == "a request failed"]
    assert not failed, failed[0]["traceback"]


def told(
    capsys: pytest.CaptureFixture[str], what: str, seen: collections.Counter[int], slowest_s: float
) -> None:
    line = {
        "made": what,
        "sent": sum(seen.values()),
        **{str(status): seen[status] for status in sorted(seen)},
    }
    with capsys.disabled():
        print(json.dumps({**line, "slowest_s": round(slowest_s, 3)}))  # noqa: T201
