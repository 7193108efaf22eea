"""Clients that take their time, or come in crowds: they are let go, and the others are served meanwhile."""

import json
import socket
import time

from live_server import LiveServer

HEAD_S = BODY_S = WRITE_S = 10.0
"""What a server waits for a head, a body, and an answer's being read."""

PATIENCE_S = 60.0
FAILURES = ("a request failed", "Exception in ASGI application\n")
BODY = json.dumps({"user_id": 3, "how_many": 500, "record": False}).encode()


def dial(server: LiveServer, receive_buffer: int | None = None) -> socket.socket:
    host, port = server.address.rsplit(":", 1)
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(PATIENCE_S)
    client.connect((host, int(port)))
    return client


def request(body: bytes = BODY) -> bytes:
    return (
        b"POST /v1/recommend HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def until_closed(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    try:
        while piece := client.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return received


def until_it_is_let_go(server: LiveServer, client: socket.socket) -> None:
    """Sending fails once the other side has gone, which takes two tries to learn."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            client.sendall(b"\r\n")
        except (BrokenPipeError, ConnectionResetError):
            return
        time.sleep(0.1)
    raise AssertionError(f"the connection is kept: {server.log[-5:]}")


def test_slow_heads_bodies_and_readers_are_let_go_and_others_are_served(server: LiveServer) -> None:
    """All at once, since each has to be waited for: a head byte by byte, a body that stops, answers nobody reads."""
    silent, head, body, reader = dial(server), dial(server), dial(server), dial(server, receive_buffer=4096)
    began = time.monotonic()
    body.sendall(request()[:-5])
    reader.setblocking(False)
    sent = 0
    try:
        while True:  # until neither side's buffers take more
            sent += reader.send(request())
    except BlockingIOError:
        assert sent > len(request())
    trickle = iter(b"GET /healthz HTTP/1.1\r\nX-Slow: " + b"z" * 10_000)
    while time.monotonic() < began + 0.5 * HEAD_S:
        head.sendall(bytes([next(trickle)]))
        assert server.get("/healthz")[0] == 200
        assert len(server.recommend(5, how_many=5, record=False)["videos"]) == 5
        time.sleep(0.05)
    for client, what in ((silent, b"headers"), (head, b"headers"), (body, b"body")):
        answer = until_closed(client)
        assert answer.startswith(b"HTTP/1.1 408"), answer
        assert what in answer
    assert time.monotonic() - began > 0.9 * HEAD_S
    reader.settimeout(PATIENCE_S)
    until_it_is_let_go(server, reader)
    for client in (silent, head, body, reader):
        client.close()
    # The reader had sent many at once: those that were answered, or yet to be, when it was let go are no failures.
    last = server.recommend(5, how_many=5, record=False)["request_id"]
    server.wait_for("request", slate=last)
    failed = [line for line in server.log if line["message"] in FAILURES]
    assert not failed, failed[0]["traceback"]


def test_a_head_without_end_is_cut(server: LiveServer) -> None:
    for begin in (b"GET /healthz HTTP/1.1\r\nX-Long: ", b"GET /"):
        client = dial(server)
        try:
            client.sendall(begin)
            for _ in range(100):
                client.sendall(b"z" * 4096)
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = until_closed(client)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), answer
        client.close()
    assert server.get("/healthz")[0] == 200


def test_a_crowd_that_says_nothing_keeps_nobody_out(server: LiveServer) -> None:
    """More connections than a server keeps: each further one pushes out the one that has been silent for longest."""
    kept = server.connect()
    assert server.send("GET", "/healthz", connection=kept)[0] == 200
    crowd = [dial(server) for _ in range(700)]
    try:
        for _ in range(5):
            assert len(server.recommend(5, how_many=5, record=False)["videos"]) == 5
        gone = 0
        for client in crowd[:100]:
            client.setblocking(False)
            try:
                gone += client.recv(1) == b""
            except ConnectionResetError:
                gone += 1
            except BlockingIOError:
                pass
        assert gone == 100
    finally:
        for client in crowd:
            client.close()
        kept.close()
    assert server.get("/healthz")[0] == 200
