"""Connections of clients that are slow, many, or send no HTTP: each is bounded, so that the others are served.

uvicorn bounds how long a connection may idle between two requests, and nothing else: a head (request line and
headers) may trickle in for ever and grow without end, and an answer that nobody reads is kept for ever. The body is
bounded where it is read, in `serving.edge`.
"""

import asyncio
import collections
import json
import time
from dataclasses import dataclass
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take.

    Attributes:
        at_most: connections at once. The one that has kept its next request back for longest makes room for a new one.
        head_s: from the first byte of a request, or from connecting, to the end of its headers.
        head_bytes: request line and headers.
        write_s: how long an answer may wait to be read.
    """

    at_most: int = 512
    head_s: float = 10.0
    head_bytes: int = 65_536
    write_s: float = 10.0


def bounded(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """uvicorn's protocol, within `limits`; for the setting `http` of `uvicorn.Config`."""

    class Connection(HttpToolsProtocol):
        _in_head = True
        _head_bytes = 0
        _named_bytes = 0
        _head_since = 0.0
        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None
        _unanswered: collections.deque[RequestResponseCycle]

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._unanswered = collections.deque()
            if len(self.connections) >= limits.at_most:
                self._make_room()
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_timer = _cancelled(self._head_timer)
            self._write_timer = _cancelled(self._write_timer)
            # uvicorn tells the request that came last. One before it, of a client that sent several at once, would write
            # to a transport that is closed, which looks like a failure of the server.
            for cycle in self._unanswered:
                cycle.disconnected = True
                cycle.message_event.set()
            self._unanswered.clear()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._await_head()
                self._head_bytes += len(data)
            super().data_received(data)
            if self._in_head and self._head_bytes > limits.head_bytes:
                self._refuse_head()

        def on_message_begin(self) -> None:
            self._await_head()
            self._named_bytes = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._named_bytes += len(url)
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._named_bytes += len(name) + len(value)
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if self._named_bytes > limits.head_bytes:
                raise ValueError(
                    "the headers are too large"
                )  # for the parser, which gives up: see `send_400_response`
            self._in_head, self._head_bytes = False, 0
            self._head_timer = _cancelled(self._head_timer)
            super().on_headers_complete()
            while self._unanswered and self._unanswered[0].response_complete:
                self._unanswered.popleft()
            if self.cycle is not None:
                self._unanswered.append(self.cycle)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_head = True

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._give_up_later()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._give_up_later()

        def resume_writing(self) -> None:
            self._write_timer = _cancelled(self._write_timer)
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._give_up_later()

        def send_400_response(self, msg: str) -> None:
            del msg
            if self._named_bytes > limits.head_bytes:
                self._refuse_head()
            else:
                self._refuse(400, "this is not HTTP")

        @property
        def head_since(self) -> float | None:
            """Since when the client owes a head; None while it waits for an answer or sends a body."""
            idle = self._in_head and (self.cycle is None or self.cycle.response_complete)
            return self._head_since if idle else None

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_since = time.monotonic()
                self._head_timer = self.loop.call_later(limits.head_s, self._head_is_late)

        def _head_is_late(self) -> None:
            self._refuse(408, f"the headers did not come within {limits.head_s:g} s")

        def _make_room(self) -> None:
            owing = [
                (one.head_since, place, one)
                for place, one in enumerate(self.connections)
                if isinstance(one, Connection) and one.head_since is not None
            ]
            if owing:
                longest = min(owing)[2]
                self.connections.discard(longest)
                longest.transport.abort()

        def _refuse_head(self) -> None:
            self._refuse(431, f"request line and headers have more than {limits.head_bytes} bytes")

        def _refuse(self, status: int, message: str) -> None:
            if self.transport.is_closing():
                return
            body = json.dumps({"message": message, "where": "", "request_id": ""})
            self.transport.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
            )
            self.transport.close()
            self._give_up_later()

        def _give_up_later(self) -> None:
            # Closing waits for whatever is yet to be read.
            _cancelled(self._write_timer)
            self._write_timer = self.loop.call_later(limits.write_s, self.transport.abort)

    return Connection


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
