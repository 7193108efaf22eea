"""What the page for people is made of: its three files, and what it asks that no other client needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from watchnext.serving import messages
from watchnext.serving.desk import Desk
from watchnext.serving.mirror import Mirror
from watchnext.serving.service import Service

_COMPARE_WAIT_S = 3.0
_PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


def page_routes(service: Service, mirror: Mirror, desk: Desk, guarded: Sequence[Any]) -> APIRouter:
    """The page and its routes.

    Args:
        service: answers.
        mirror: asks the challenger.
        desk: threads to answer in.
        guarded: dependencies of routes that want the API key.
    """
    routes = APIRouter()

    @routes.post("/v1/compare", response_model=messages.CompareResponse, dependencies=list(guarded))
    async def compare(body: messages.CompareRequest) -> Response:
        """What champion and challenger would show a user now; neither is taken for shown."""
        context = body.context.model_dump(exclude_none=True)

        def both() -> dict[str, Any]:
            answered = service.recommend(str(body.user_id), body.how_many, context=context)
            challenger, why_not = mirror.ask(answered, body.how_many, context, _COMPARE_WAIT_S)
            return {"champion": messages.told(answered), "challenger": challenger, "why_not": why_not}

        return JSONResponse(await desk.run(both))

    @routes.get("/v1/users", response_model=messages.UsersResponse, dependencies=list(guarded))
    async def users(at_most: messages.AtMost = 20) -> Response:
        """Some users that have events."""
        return JSONResponse({"user_ids": await desk.run(lambda: service.store.user_ids(at_most))})

    @routes.get(
        "/v1/users/{user_id:path}/history",
        response_model=messages.HistoryResponse,
        dependencies=list(guarded),
    )
    async def history(user_id: messages.Text, at_most: messages.AtMost = 20) -> Response:
        """How much is known of a user, and the last watches and searches, latest first."""
        return JSONResponse(
            await desk.run(lambda: messages.past(user_id, service.store.events(user_id), at_most))
        )

    @routes.get("/", include_in_schema=False)
    @routes.get("/page.css", include_in_schema=False)
    @routes.get("/page.js", include_in_schema=False)
    async def page(request: Request) -> Response:
        """The page for people: three files, and nothing from elsewhere."""
        name = request.url.path.removeprefix("/") or "index.html"
        return FileResponse(_PAGE / name, headers=_PAGE_HEADERS)

    return routes
