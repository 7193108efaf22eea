"""The HTTP face of a `Service`: what comes in is checked and bounded, what goes out says who answered."""

import asyncio
import contextlib
import datetime
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import APIKeyHeader
from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from watchnext import __version__
from watchnext.errors import InputError
from watchnext.features.history import to_microseconds
from watchnext.serving import messages, webhook
from watchnext.serving.catalogue import to_keep
from watchnext.serving.deployment import Deployment
from watchnext.serving.events import Event, EventTable
from watchnext.serving.metrics import Metrics
from watchnext.serving.mirror import Mirror
from watchnext.serving.monitoring import Monitor
from watchnext.serving.service import Answer, NoChampionError, Served, Service, check_video_id
from watchnext.serving.user_store import StoreUnavailableError

log = logging.getLogger("watchnext.serving")

T = TypeVar("T")

_COMPARE_WAIT_S = 3.0
_PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
_GUARDED = ("/v1/", "/metrics")
_KEY_HEADER = "X-API-Key"


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


def make_app(
    service: Service,
    deployment: Deployment,
    mirror: Mirror,
    *,
    api_key: str | None = None,
    limits: Limits | None = None,
    webhook_secret: str | None = None,
    ask_registry: Callable[[], None] = lambda: None,
    monitor: Monitor | None = None,
) -> FastAPI:
    """The application.

    Args:
        service: answers.
        deployment: what it follows, for `/readyz` and `/v1/models`.
        mirror: gets a copy of every slate that is shown.
        api_key: what clients of `/v1/*` and `/metrics` have to show; None: everybody may ask.
        limits: what is taken on at once.
        webhook_secret: by which the registry signs that something has changed; None: it does not say so.
        ask_registry: called when it does.
        monitor: is told of what was shown and watched.
    """
    limits = limits or Limits()
    monitor = monitor or Monitor(service)
    metrics = Metrics(service, deployment, mirror, monitor)
    desk = _Desk(limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        yield
        desk.close()

    app = FastAPI(
        title="watchnext",
        version=__version__,
        description="Slates of videos by the model that the registry names champion.",
        lifespan=lifespan,
        responses={
            status: {"model": messages.Problem, "description": description}
            for status, description in (
                (400, "not JSON"),
                (401, "no API key, or not the right one"),
                (408, "the body took too long to come"),
                (413, "the body is too large"),
                (422, "a field is missing, unknown, or out of bounds"),
                (
                    429,
                    "more requests of one address than the server takes: `Retry-After` says when to come again",
                ),
                (503, "not ready, overloaded, or the user state is unavailable"),
            )
        },
    )
    guarded: list[Any] = (
        []
        if api_key is None
        else [Depends(APIKeyHeader(name=_KEY_HEADER, auto_error=False))]  # said in OpenAPI, checked in _Edge
    )

    @app.post("/v1/recommend", response_model=messages.RecommendResponse, dependencies=guarded)
    async def recommend(body: messages.RecommendRequest, request: Request) -> Response:
        """A slate for a user, by falling expected watch time."""

        def answer() -> Answer:
            served = service.champion
            if served is None:
                raise NoChampionError
            return service.recommend(
                str(body.user_id),
                body.how_many,
                exclude=[check_video_id(served, one) for one in body.exclude],
                context=body.context.model_dump(),
                record=body.record,
            )

        answered = await desk.run(answer)
        if body.record and answered.is_champions_choice:
            took_ms = sum(answered.step_ms.values())
            context = body.context.model_dump(exclude_none=True)
            mirror.offer(answered, took_ms, body.how_many, body.exclude, context)
        if body.record:
            monitor.shown(answered, body.context.model_dump())
        metrics.answered(answered)
        began = time.perf_counter()
        response = JSONResponse(messages.told(answered))
        request.state.told = {
            "slate": answered.request_id,
            "version": answered.served.version.number,
            **{f"{step}_ms": round(took, 3) for step, took in answered.step_ms.items()},
            "encoding_ms": round((time.perf_counter() - began) * 1000.0, 3),
            **({"degraded": answered.degraded} if answered.degraded else {}),
        }
        return response

    @app.post("/v1/events", response_model=messages.EventsResponse, dependencies=guarded)
    async def events(body: messages.EventsRequest, request: Request) -> Response:
        """Watches, searches and impressions: kept once this answers 200, all of them or none."""

        def add() -> list[bool]:
            served = service.champion
            if served is None:
                raise NoChampionError
            # Each has an instant of its own, so that a batch without instants keeps its order.
            given = [_event(one, place, service.now(), served) for place, one in enumerate(body.events)]
            new = service.add(given)
            monitor.watched(given, new)
            return new

        new = await desk.run(add)
        accepted, duplicates = sum(new), len(new) - sum(new)
        metrics.took_events(accepted, duplicates)
        request.state.told = {"accepted": accepted, "duplicates": duplicates}
        return JSONResponse({"accepted": accepted, "duplicates": duplicates})

    @app.post("/v1/videos", response_model=messages.VideosResponse, dependencies=guarded)
    async def videos(body: messages.VideosRequest, request: Request) -> Response:
        """Videos that were uploaded or taken down: kept once this answers 200, in slates a few seconds later."""

        def put() -> None:
            served = service.champion
            if served is None:
                raise NoChampionError
            now = service.now()
            added = []
            for place, one in enumerate(body.added):
                uploaded_at = _instant(one.uploaded_at, now, f"added.{place}.uploaded_at")
                video_id = check_video_id(served, one.video_id)
                added.append({**one.model_dump(), "video_id": video_id, "uploaded_at": uploaded_at})
            gone = [check_video_id(served, one) for one in body.taken_down]
            service.store.put_videos(to_keep(added, gone, served))

        await desk.run(put)
        request.state.told = {"added": len(body.added), "taken_down": len(body.taken_down)}
        return JSONResponse(request.state.told)

    @app.post("/v1/compare", response_model=messages.CompareResponse, dependencies=guarded)
    async def compare(body: messages.CompareRequest) -> Response:
        """What champion and challenger would show a user now; neither is taken for shown."""
        context = body.context.model_dump(exclude_none=True)

        def both() -> dict[str, Any]:
            answered = service.recommend(str(body.user_id), body.how_many, context=context)
            challenger, why_not = mirror.ask(answered, body.how_many, context, _COMPARE_WAIT_S)
            return {"champion": messages.told(answered), "challenger": challenger, "why_not": why_not}

        return JSONResponse(await desk.run(both))

    @app.get("/v1/users", response_model=messages.UsersResponse, dependencies=guarded)
    async def users(at_most: messages.AtMost = 20) -> Response:
        """Some users that have events."""
        return JSONResponse({"user_ids": await desk.run(lambda: service.store.user_ids(at_most))})

    @app.get(
        "/v1/users/{user_id:path}/history", response_model=messages.HistoryResponse, dependencies=guarded
    )
    async def history(user_id: messages.Text, at_most: messages.AtMost = 20) -> Response:
        """How much is known of a user, and the last watches and searches, latest first."""
        return JSONResponse(
            await desk.run(lambda: messages.past(user_id, service.store.events(user_id), at_most))
        )

    @app.get("/", include_in_schema=False)
    @app.get("/page.css", include_in_schema=False)
    @app.get("/page.js", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page for people: three files, and nothing from elsewhere."""
        name = request.url.path.removeprefix("/") or "index.html"
        return FileResponse(_PAGE / name, headers=_PAGE_HEADERS)

    @app.get("/v1/models", response_model=messages.ModelsResponse, dependencies=guarded)
    async def models() -> messages.ModelsResponse:
        """The version that answers, versions that were refused, and whether the registry can be reached."""
        served = service.champion
        return messages.ModelsResponse(
            champion=None if served is None else _served_model(served, monitor),
            refused=[
                messages.Refused(version=one.version.number, reason=one.reason, at=_utc(one.at))
                for one in list(deployment.refusals.values())
            ],
            registry_reachable=deployment.reachable,
            registry_trouble=deployment.trouble,
            swaps=deployment.swaps,
            shadow=messages.Shadow(**mirror.told()),
            catalogue=messages.Catalogue(**service.catalogue.told()),
            experiment=(
                None if service.experiment is None else messages.Experiment(**service.experiment.told())
            ),
        )

    @app.get("/healthz", include_in_schema=True)
    async def healthz() -> dict[str, str]:
        """Whether the process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """Whether requests are answered: 200, or 503 with the reason."""
        if service.champion is not None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "message": _why_not(deployment)}, 503)

    if webhook_secret is not None:

        @app.post(webhook.PATH, status_code=202)
        async def registry_changed(request: Request) -> dict[str, str]:
            """What MLflow's webhook sends: the registry is asked at once."""
            if not webhook.is_signed(webhook_secret, request.headers, await request.body()):
                raise HTTPException(401, "this is not signed by the secret of the webhook, or too long ago")
            ask_registry()
            return {"status": "the registry is asked"}

    @app.get("/metrics", dependencies=guarded, response_class=Response)
    async def prometheus() -> Response:
        """Metrics as Prometheus reads them."""
        return Response(metrics.text(), media_type=metrics.content_type)

    def problem(request: Request, status: int, message: str, where: str = "") -> Response:
        content = {
            "message": message,
            "where": where,
            "request_id": request.scope["state"].get("request_id", ""),
        }
        # As ASCII: what a client sent may be no text that UTF-8 can say.
        return Response(
            json.dumps(content),
            status,
            media_type="application/json",
            headers={"Retry-After": "1"} if status == 503 else None,
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        if first["type"] == "json_invalid":
            return problem(request, 400, "the body is not JSON", where)
        return problem(request, 422, str(first["msg"])[:500], where)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return problem(request, error.status_code, str(error.detail))

    @app.exception_handler(InputError)
    async def unusable(request: Request, error: InputError) -> Response:
        return problem(request, 422, error.what, error.where)

    @app.exception_handler(NoChampionError)
    async def no_champion(request: Request, error: NoChampionError) -> Response:
        del error
        return problem(request, 503, _why_not(deployment))

    @app.exception_handler(StoreUnavailableError)
    async def no_store(request: Request, error: StoreUnavailableError) -> Response:
        log.error("the user state cannot be written", extra={"error": str(error)})
        return problem(request, 503, "the user state is unavailable, nothing was kept: send it again")

    @app.exception_handler(_OverloadedError)
    async def overloaded(request: Request, error: _OverloadedError) -> Response:
        del error
        return problem(request, 503, "too many requests are waiting: try again")

    app.add_middleware(_Edge, api_key=api_key, limits=limits, metrics=metrics)
    return app


class _OverloadedError(Exception):
    """More requests wait than may."""


class _Desk:
    """Threads that answer, and a bounded line before them."""

    def __init__(self, limits: Limits) -> None:
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="answer")
        self._at_most = limits.threads + limits.waiting
        self._taken = 0

    async def run(self, work: Callable[[], T]) -> T:
        if self._taken >= self._at_most:
            raise _OverloadedError
        self._taken += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._taken -= 1

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class _Edge:
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
                await refuse(401, f"no API key, or not the right one: send it as the header {_KEY_HEADER}")
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
        name = _KEY_HEADER.lower().encode()
        shown = next((value for key, value in scope["headers"] if key == name), b"")
        return hmac.compare_digest(shown, self._key)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | tuple[int, str] | None:
        """The whole body; or status and text of why it is not taken; or None if the client is gone."""
        too_large = (413, f"the body has more than {messages.MAX_BODY_BYTES} bytes")
        for key, value in scope["headers"]:
            if key == b"content-length" and value.isdigit() and int(value) > messages.MAX_BODY_BYTES:
                return too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > messages.MAX_BODY_BYTES:
                        return too_large
        except TimeoutError:
            return 408, f"the body did not come within {self._limits.body_timeout_s:g} s"
        return bytes(body)


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


def _event(given: messages.AnyEvent, place: int, now: int, served: Served) -> Event:
    """The event that is kept.

    Raises:
        InputError: its video id is not of the type that the model's are, or it lies in the future.
    """
    where = f"events.{place}"
    table: EventTable
    row: dict[str, Any] = given.model_dump(exclude={"id", "type", "user_id"})
    if isinstance(given, messages.WatchEvent):
        table = "watches"
        length = int(given.watch_time_s * 1_000_000.0 + 0.5)
        row["watched_at"] = _instant(given.watched_at, now - length, f"{where}.watched_at")
    elif isinstance(given, messages.SearchEvent):
        table = "searches"
        row["searched_at"] = _instant(given.searched_at, now, f"{where}.searched_at")
    else:
        table = "impressions"
        row["shown_at"] = _instant(given.shown_at, now, f"{where}.shown_at")
    if "video_id" in row:
        row["video_id"] = check_video_id(served, row["video_id"])
    return Event(str(given.user_id), given.id, table, row)


def _instant(given: datetime.datetime | None, latest: int, where: str) -> int:
    """Microseconds of an instant; a clock that is ahead a little is taken to show now.

    Raises:
        InputError: it is further ahead than clocks are.
    """
    at = latest if given is None else to_microseconds(given)
    if at > latest + int(messages.CLOCK_SKEW_S * 1_000_000.0):
        raise InputError("an event cannot be kept before it has happened (a watch: ended)", where=where)
    return min(at, latest)


def _utc(timestamp: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC)


def _served_model(served: Served, monitor: Monitor) -> messages.ServedModel:
    bundle = served.recommender.bundle
    return messages.ServedModel(
        name=served.version.name,
        version=served.version.number,
        bundle_digest=bundle.digest,
        source=bundle.source,
        trained_until_at=bundle.trained_until_at,
        since_at=_utc(served.since_at),
        age_days=monitor.age_days(served),
        is_stale=monitor.is_stale(served),
    )


def _why_not(deployment: Deployment) -> str:
    """Why nothing is served."""
    if deployment.reachable is None:
        return "the registry has not been asked yet"
    if not deployment.reachable:
        return "the registry cannot be reached"
    for refusal in list(deployment.refusals.values()):
        return f"version {refusal.version.number} of {deployment.name} was refused: {refusal.reason}"
    return f"{deployment.name} has no champion, or it is being loaded: `dvc repro` makes one"
