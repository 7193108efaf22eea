"""Around every request, whatever it asks: a request id, the API key, bounds of the body, one line in the log, metrics."""

import asyncio
import hmac
import json
import logging
import time
import uuid
from dataclasses import dataclass

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from watchnext.serving import messages
from watchnext.serving.metrics import Metrics

log = logging.getLogger("watchnext.serving")

KEY_HEADER = "X-API-Key"
_GUARDED = ("/v1/", "/metrics")
_READ_BYTES = 4 * messages.MAX_BODY_BYTES
"""What is somewhat too large is read to its end and not kept: who is turned away while still sending meets a closed
connection, and not the answer that says why. What is larger is turned away at once."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        threads: requests that are answered at once.
        waiting: requests that may wait for a thread; further ones are turned away (503).
        body_timeout_s: how long a client may take to send its body.
        requests_per_s: of one address, where an API key would be asked for; 0: as many as it likes.
    """

    threads: int = 2
    waiting: int = 64
    body_timeout_s: float = 10.0
    requests_per_s: int = 0


class Edge:
    """Around everything: a request id, the API key, the bounds of the body, one line in the log, the metrics."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, limits: Limits, metrics: Metrics) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.encode()
        self._limits = limits
        self._metrics = metrics
        self._rate = RateLimitItemPerSecond(limits.requests_per_s) if limits.requests_per_s else None
        self._rates = FixedWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        async def refuse(code: int, text: str, *more: tuple[bytes, bytes]) -> None:
            headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *more]
            await sending({"type": "http.response.start", "status": code, "headers": headers})
            content = {"message": text, "where": "", "request_id": request_id}
            await sending({"type": "http.response.body", "body": json.dumps(content).encode()})

        try:
            if self._rate is not None and not self._is_in_time(scope):
                text = f"this address has asked {self._limits.requests_per_s} times within a second"
                await refuse(429, text, (b"retry-after", b"1"))
            elif not self._may(scope):
                await refuse(401, f"no API key, or not the right one: send it as the header {KEY_HEADER}")
            else:
                body = await self._body(scope, receive)
                if isinstance(body, bytes):
                    await self._app(scope, _replayed(body, receive), sending)
                elif body is not None:
                    await refuse(*body)
        except Exception:
            log.exception("a request failed", extra={"request_id": request_id})
            if status == 0:
                await refuse(500, "this is a defect of the server; its log has the same request id")
        finally:
            took_s = time.perf_counter() - began
            route = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.request(path, scope["method"], status, took_s)
            log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "took_ms": round(took_s * 1000.0, 3),
                    **state.get("told", {}),
                },
            )

    def _is_in_time(self, scope: Scope) -> bool:
        """Whether an address asks no more often than it may. Who guesses at keys is counted too."""
        if not scope["path"].startswith(_GUARDED):
            return True
        client = scope.get("client")
        assert self._rate is not None
        return self._rates.hit(self._rate, client[0] if client else "")

    def _may(self, scope: Scope) -> bool:
        if self._key is None or not scope["path"].startswith(_GUARDED):
            return True
        name = KEY_HEADER.lower().encode()
        shown = next((value for key, value in scope["headers"] if key == name), b"")
        return hmac.compare_digest(shown, self._key)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | tuple[int, str] | None:
        """The whole body; or status and text of why it is not taken; or None if the client is gone."""
        too_large = (413, f"the body has more than {messages.MAX_BODY_BYTES} bytes")
        for key, value in scope["headers"]:
            if key == b"content-length" and value.isdigit() and int(value) > _READ_BYTES:
                return too_large
        read = 0
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    read += len(part)
                    if read <= messages.MAX_BODY_BYTES:
                        body += part
                    elif read > _READ_BYTES:
                        return too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            return 408, f"the body did not come within {self._limits.body_timeout_s:g} s"
        return bytes(body) if read <= messages.MAX_BODY_BYTES else too_large


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already, and after it whatever comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
