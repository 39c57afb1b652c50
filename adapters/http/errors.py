"""Every error has one body, and one table says which refusal is which status."""

import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

from application.mapper import UnreadableEvent
from application.ports import Away, Full, KeyDestroyed
from application.session import Superseded
from domain.refusals import Conflict, Forbidden, Invalid, Limit, NotFound, QuotaExceeded

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]

RETRY_SECONDS: Final = 5
"""When to come back to a backend that is away."""
REPAIR_SECONDS: Final = 60
"""When to come back to what somebody has to repair first."""
PLACE_SECONDS: Final = 15
"""When to come back for a concurrent place: nobody knows when a run ends."""


class PreconditionFailed(Exception):  # noqa: N818 - it says what happened
    """What the caller had seen has changed since (If-Match)."""


STATUS: Final[Mapping[type[Exception], int]] = {
    Invalid: 422,
    NotFound: 404,
    Conflict: 409,
    Forbidden: 403,
    QuotaExceeded: 429,
    Away: 503,
    Superseded: 503,
    UnreadableEvent: 503,
    KeyDestroyed: 503,
    PreconditionFailed: 412,
}
_SENTENCES: Final[Mapping[int, str]] = {
    404: "There is nothing at this address.",
    405: "This address does not take this method.",
}
_WINDOW_SECONDS: Final = {Limit.DAILY: 86_400, Limit.MONTHLY: 30 * 86_400}


_AWAY: Final = "A backend of the service does not answer. Please try again."
_UNSURE: Final = (
    "A backend of the service does not answer, and what was asked for may have been done or not. Send the same request"
    " again: under an Idempotency-Key it is done once, however often it is sent."
)
_UNREADABLE: Final = (
    "Something that the service has recorded about this cannot be read. Nothing was changed. The operators are told;"
    " it works again once they have repaired it."
)
_READING: Final = frozenset({"GET", "HEAD"})


class FieldProblem(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """What every error answers: a sentence, and RFC 9457's members beside it. It repeats nothing of what was sent."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "detail": "Daily pipeline quota exceeded. Used 25/25 pipelines today.",
                    "customer_id": "acme_corp",
                    "quota_reset_time": "2025-11-18T00:00:00Z",
                    "status_code": 429,
                    "type": "urn:convergence:problem:daily-quota-exceeded",
                    "title": "Too Many Requests",
                    "status": 429,
                    "instance": "/api/v1/pipelines/run/:customer_id/:provider/:domain/:template",
                }
            ]
        }
    )

    detail: str = Field(description="A sentence for a person.")
    customer_id: str | None = Field(default=None, description="The customer that the request was for, once proven.")
    quota_reset_time: str | None = Field(default=None, description="When the daily quota starts again, in UTC.")
    quota_reset_date: str | None = Field(default=None, description="When the monthly quota starts again, in UTC.")
    status_code: int
    type: str = Field(description="Names the kind of problem.")
    title: str
    status: int
    instance: str = Field(description="The route, with `:name` for what stood in the address.")
    errors: list[FieldProblem] | None = Field(default=None, description="What is wrong with which field (422).")


def problem(
    request: HTTPConnection,
    status: int,
    detail: str,
    *,
    kind: str | None = None,
    headers: Mapping[str, str] | None = None,
    **members: Any,  # noqa: ANN401 - members of the body
) -> Response:
    """The answer to a request that is refused; `members` stand behind customer_id, before status_code."""
    title = HTTPStatus(status).phrase
    customer_id = getattr(request.state, "customer_id", None)
    errors = members.pop("errors", None)
    body: dict[str, Any] = {"detail": detail}
    if customer_id is not None:
        body["customer_id"] = customer_id
    body |= members
    body |= {
        "status_code": status,
        "type": f"urn:convergence:problem:{kind or title.lower().replace(' ', '-')}",
        "title": title,
        "status": status,
        "instance": instance(request),
    }
    if errors is not None:
        body["errors"] = errors
    return JSONResponse(body, status, dict(headers or {}), media_type="application/problem+json")


def instance(request: HTTPConnection) -> str:
    """The route of a request: an address itself would repeat what the caller put there."""
    path: str = getattr(request.scope.get("route"), "path", "/")
    return path.replace("{", ":").replace("}", "")


FORESEEN: Final[tuple[type[Exception], ...]] = (*STATUS, HTTPException, RequestValidationError)


def install(app: FastAPI, now: Clock) -> None:
    """Make the app answer every error this way."""

    async def handle(request: Request, error: Exception) -> Response:
        answered = answer(request, error, now)
        if answered is None:
            raise error
        return answered

    for kind in FORESEEN:
        app.add_exception_handler(kind, handle)


def answer(request: HTTPConnection, error: Exception, now: Clock) -> Response | None:
    """The answer to an error that is foreseen, None for a fault."""
    match error:
        case QuotaExceeded():
            return _quota(request, error, now())
        case RequestValidationError():
            return _wrong_fields(request, error)
        case HTTPException():
            return _plain(request, error)
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if status is None:
        return None
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        logger.warning("%s: %s", instance(request), error)
        return _unavailable(request, error)
    return problem(request, status, str(error))


def _unavailable(request: HTTPConnection, error: Exception) -> Response:
    if isinstance(error, UnreadableEvent | KeyDestroyed):
        headers = {"Retry-After": str(REPAIR_SECONDS)}
        return problem(request, 503, _UNREADABLE, kind="unreadable-event", headers=headers)
    return problem(request, 503, _away(request, error), headers={"Retry-After": str(RETRY_SECONDS)})


def _away(request: HTTPConnection, error: Exception) -> str:
    if isinstance(error, Full):
        return str(error)
    return _AWAY if request.scope.get("method") in _READING else _UNSURE


def _plain(request: HTTPConnection, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    sentence = error.detail if error.detail != phrase else _SENTENCES.get(error.status_code, phrase)
    return problem(request, error.status_code, sentence, headers=error.headers)


def _quota(request: HTTPConnection, error: QuotaExceeded, now: datetime) -> Response:
    members: dict[str, str] = {}
    seconds = PLACE_SECONDS
    if error.resets_at is not None:
        members["quota_reset_time"] = error.resets_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        seconds = _until(error.resets_at, now)
    if error.resets_on is not None:
        members["quota_reset_date"] = error.resets_on.isoformat()
        first = datetime(error.resets_on.year, error.resets_on.month, error.resets_on.day, tzinfo=UTC)
        seconds = _until(first, now)
    window = _WINDOW_SECONDS.get(error.limit)
    policy = f'"{error.limit}";q={error.allowed}' + (f";w={window}" if window else "")
    headers = {
        "Retry-After": str(seconds),
        "RateLimit": f'"{error.limit}";r=0;t={seconds}',
        "RateLimit-Policy": policy,
    }
    kind = "concurrent-limit-reached" if error.limit is Limit.CONCURRENT else f"{error.limit}-quota-exceeded"
    return problem(request, 429, str(error), kind=kind, headers=headers, **members)


def _until(then: datetime, now: datetime) -> int:
    return max(1, -int((now - then).total_seconds() // 1))


def _wrong_fields(request: HTTPConnection, error: RequestValidationError) -> Response:
    problems: dict[tuple[str, str], None] = {}
    for wrong in error.errors():
        location, message = wrong["loc"], str(wrong["msg"]).removeprefix("Value error, ")
        if wrong["type"] == "extra_forbidden":
            # Its name is the caller's own text: a secret pasted one line too high must not come back.
            location, message = location[:-1], "has a field that is not known here"
        elif message.startswith("value is not a valid email address"):
            message = "must be an e-mail address"
        elif wrong["type"] in {"model_type", "model_attributes_type", "dict_type"}:
            message = "must be a JSON object"
        problems[_field(location), message] = None
    sentence = "; ".join(f"{field}: {message}" for field, message in problems)
    errors = [{"field": field, "message": message} for field, message in problems]
    return problem(request, 422, sentence, errors=errors)


def _field(location: Iterable[str | int]) -> str:
    where, *rest = location
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    return name.lstrip(".") or str(where)
