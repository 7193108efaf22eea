"""The HTTP face of a `Service`: what comes in is checked and bounded, what goes out says who answered."""

import contextlib
import datetime
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import APIKeyHeader
from starlette.exceptions import HTTPException

from watchnext import __version__
from watchnext.errors import InputError
from watchnext.features.history import to_microseconds
from watchnext.serving import messages, webhook
from watchnext.serving.catalogue import to_keep
from watchnext.serving.deployment import Deployment
from watchnext.serving.desk import Desk, OverloadedError
from watchnext.serving.edge import KEY_HEADER, Edge, Limits
from watchnext.serving.events import Event, EventTable
from watchnext.serving.metrics import Metrics
from watchnext.serving.mirror import Mirror
from watchnext.serving.monitoring import Monitor
from watchnext.serving.page_routes import page_routes
from watchnext.serving.service import Answer, NoChampionError, Served, Service, check_video_id
from watchnext.serving.user_store import StoreUnavailableError

log = logging.getLogger("watchnext.serving")


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
        monitor: is told of what was shown.
    """
    limits = limits or Limits()
    monitor = monitor or Monitor(service)
    metrics = Metrics(service, deployment, mirror, monitor)
    desk = Desk(limits)

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
        else [Depends(APIKeyHeader(name=KEY_HEADER, auto_error=False))]  # said in OpenAPI, checked in Edge
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
        response = Response(messages.told_as_json(answered), media_type="application/json")
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
            return service.add(given)

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

    app.include_router(page_routes(service, mirror, desk, guarded))

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

    @app.exception_handler(OverloadedError)
    async def overloaded(request: Request, error: OverloadedError) -> Response:
        del error
        return problem(request, 503, "too many requests are waiting: try again")

    app.add_middleware(Edge, api_key=api_key, limits=limits, metrics=metrics)
    return app


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
