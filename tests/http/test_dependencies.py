"""Only what asks the database on the way to a route gets a thread for that."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Query
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from adapters.http.admin_erasure import _operator
from adapters.http.api import at_once
from adapters.http.app import ROUTERS


def below(dependant: Dependant) -> Iterator[Callable[..., Any]]:
    for inner in dependant.dependencies:
        yield inner.call
        yield from below(inner)


def test_of_the_routes():
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    calls = {call for route in routes for call in below(route.dependant)}
    assert len(calls) > 10
    asked = {c for c in calls if not inspect.iscoroutinefunction(c) and not inspect.iscoroutinefunction(c.__call__)}
    assert asked == {_operator}


class Limit:
    def __init__(self, limit: int = Query(default=5, le=9)) -> None:
        self.limit = limit
        self.thread = threading.get_ident()


@pytest.mark.parametrize(("dependency", "same"), [(at_once(Limit), True), (Limit, False)])
def test_what_is_made_at_once_is_made_where_the_request_is_and_asks_for_the_same(dependency, same):
    """The control is how the framework makes it by itself."""
    app = FastAPI()

    @app.get("/")
    async def there(limit: Limit = Depends(dependency)) -> dict[str, Any]:  # noqa: B008, FAST002 - the control has no type
        return {"limit": limit.limit, "same": limit.thread == threading.get_ident()}

    async def asked(limit: int) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tests") as client:
            return await client.get("/", params={"limit": limit})

    assert asyncio.run(asked(7)).json() == {"limit": 7, "same": same}
    assert asyncio.run(asked(10)).status_code == 422
