"""Routes: direct ones are described like the others, and called with what they take."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, Request, Response
from fastapi.testclient import TestClient

from service.api.routing import DirectRoute, make_router


async def _services() -> str:
    raise AssertionError("a direct route has the services at hand")


def described(direct: bool) -> FastAPI:
    """An application with one route."""
    router = make_router("/things", "tag", DirectRoute) if direct else make_router("/things", "tag")

    @router.get("/{name}", response_model=dict[str, str])
    async def look(request: Request, name: str, services: Annotated[str, Depends(_services)]) -> Response:
        """How it looks."""
        return Response(f"{request.method} {name} {services}", 201)

    app = FastAPI()
    app.state.services = "all of them"
    app.routes.extend(router.routes)
    return app


def test_a_direct_route_answers_itself() -> None:
    answer = TestClient(described(direct=True)).get("/things/one%20thing")
    assert (answer.status_code, answer.text) == (201, "GET one thing all of them")
    with pytest.raises(AssertionError, match="at hand"):
        TestClient(described(direct=False)).get("/things/one")


def test_the_description_is_the_same() -> None:
    schema = described(direct=True).openapi()
    assert schema == described(direct=False).openapi()
    look = schema["paths"]["/things/{name}"]["get"]
    assert look["parameters"][0]["name"] == "name" and look["tags"] == ["tag"]
    assert {"200", "4XX", "5XX", "422"} == set(look["responses"])
