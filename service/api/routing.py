"""How routes are described, and how those are called that are asked most."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from service.api.views import ErrorEnvelope

# The two answers for all errors: the framework's own description of a 422 would be wrong here.
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorEnvelope},
    "5XX": {"model": ErrorEnvelope},
    422: {"model": ErrorEnvelope},
}


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request, the services and strings of its path, nothing else, and answers itself.

    The framework describes it like any other. But when it is called there is nothing to look up, convert or check,
    which for a look at a job takes longer than the look.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What is called with each request."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            answer: Response = await endpoint(request, services=request.app.state.services, **request.path_params)
            return answer

        return handle


def make_router(prefix: str, tag: str, route_class: type[APIRoute] = APIRoute) -> APIRouter:
    """A router whose routes say how errors look."""
    return APIRouter(prefix=prefix, tags=[tag], responses=_ERRORS, route_class=route_class)
