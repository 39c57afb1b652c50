"""How routers are made here, and which errors their routes are documented with."""

from typing import Any, Final

from fastapi import APIRouter, Depends

from adapters.http.auth import BY_ADMIN, BY_CUSTOMER
from adapters.http.idempotency import Route
from adapters.http.parameters import only_known_parameters

API: Final = "/api/v1"

_MEANINGS: Final = {
    400: "The request is malformed: not JSON, nested too deeply, a number or text that cannot be held.",
    401: "No key, or one that is unknown, expired or revoked: the same answer for each.",
    403: "Another customer's id (existing or not), a suspended account, or beyond what the plan allows.",
    404: "There is no such thing for this caller.",
    409: "The state of the thing does not allow this now, or the same request is being carried out.",
    412: "The thing was changed since it was read (If-Match).",
    413: "The body is larger than 256 kB.",
    415: "The body is not JSON.",
    422: "Well-formed but wrong. Names the field and what is wrong, never what was sent.",
    429: "A quota of the plan is used up, or too many requests or wrong keys came. Retry-After says when to come back.",
    500: "A fault of the service, logged under the X-Request-ID of the answer.",
    503: "A backend of the service is away. Try again, with the same Idempotency-Key: what was done is not done twice.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for the OpenAPI document."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in sorted(statuses)}


def customer_router(prefix: str, tag: str) -> APIRouter:
    """Routes below /api/v1 that a customer's key or the admin key opens."""
    return APIRouter(
        prefix=API + prefix,
        tags=[tag],
        route_class=Route,
        dependencies=BY_CUSTOMER,
        responses=refusals(400, 401, 403, 404, 422, 429, 503),
    )


def admin_router(prefix: str, tag: str) -> APIRouter:
    """Routes below /api/v1 that the admin key opens."""
    return APIRouter(
        prefix=API + prefix,
        tags=[tag],
        route_class=Route,
        dependencies=[*BY_ADMIN, Depends(only_known_parameters)],
        responses=refusals(400, 401, 422, 429, 503),
    )


WITH_BODY: Final = refusals(400, 409, 413, 415)
"""What a route that takes a body may answer besides."""
