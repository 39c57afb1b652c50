"""Which scope a key needs for each route, said in the OpenAPI document: it is read from the routes themselves."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from adapters.http.auth import API_KEY

EXTENSION: Final = "x-required-scope"


def required(route: APIRoute) -> str | None:
    """The scope that a customer's key needs for the route; None where any key will do, or none does."""
    found = set(_scopes(route.dependant))
    if len(found) > 1:
        raise ValueError(f"{route.path} asks for several scopes: {', '.join(sorted(found))}")
    return found.pop() if found else None


def _scopes(dependant: Dependant) -> Iterator[str]:
    yield from dependant.own_oauth_scopes or ()
    for inner in dependant.dependencies:
        yield from _scopes(inner)


def describe(document: dict[str, Any], routes: Iterable[BaseRoute]) -> None:
    """Say it with every operation: in its description, in its security requirement, and as `x-required-scope`."""
    for route in routes:
        scope = required(route) if isinstance(route, APIRoute) else None
        if not isinstance(route, APIRoute) or scope is None:
            continue
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            operation[EXTENSION] = scope
            operation["description"] = f"{operation.get('description', '')}\n\nA key needs the scope `{scope}`.".strip()
            # OpenAPI 3.1 lets the requirement of any scheme name what is needed beside it.
            operation["security"] = [
                {name: [scope] if name == API_KEY.scheme_name else wanted for name, wanted in requirement.items()}
                for requirement in operation["security"]
            ]
