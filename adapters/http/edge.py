"""Around every request: its id, its whole body, its headers on the way out, its figures, and an answer to any fault."""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Final
from uuid import uuid4

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.http import errors
from adapters.http.figures import Figures
from adapters.http.limits import read_body
from adapters.http.rates import Standing

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,100}")

SECURITY_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
KEY_EXPIRES: Final = "X-API-Key-Expires"
"""When the key of the request ends (RFC 3339), in every answer to it from 14 days before on.

The standard headers with such a meaning, Sunset (RFC 8594) and Deprecation (RFC 9745), are about the address that was
asked for: a client or proxy that knows them would report that the route is going away, which it is not.
"""
_HSTS: Final = "max-age=31536000; includeSubDomains"


class Edge:
    """The outermost layer of the application. Nothing that happens inside it reaches the caller untold."""

    def __init__(self, app: ASGIApp, *, figures: Figures, https: bool) -> None:
        self._app = app
        self._figures = figures
        self._headers = {**SECURITY_HEADERS, **({"Strict-Transport-Security": _HSTS} if https else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else str(uuid4())
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = request_id
                for name, value in (*self._headers.items(), *_of_key(scope), *_of_limit(scope)):
                    out.setdefault(name, value)
            await send(message)

        request = Request(scope)
        try:
            try:
                body = await read_body(receive, headers)
            except HTTPException as refused:
                detail = str(refused.detail)
                await errors.problem(request, refused.status_code, detail, headers=refused.headers)(
                    scope, receive, answer
                )
            else:
                await self._app(scope, _replay(body, receive), answer)
        except ClientDisconnect:
            status = status or 499
        except Exception:
            logger.exception("%s %s failed (request %s)", scope["method"], errors.instance(request), request_id)
            if status:
                raise
            sentence = f"The service failed. Its operators find the reason under request {request_id}."
            await errors.problem(request, 500, sentence)(scope, receive, answer)
        finally:
            seconds = time.monotonic() - began
            route = errors.instance(request)
            self._figures.answered(scope["method"], route, status, seconds)
            logger.info("%s %s %d %.0f ms (request %s)", scope["method"], route, status, seconds * 1000, request_id)


def _of_key(scope: Scope) -> Iterator[tuple[str, str]]:
    if expires_at := scope["state"].get("key_expires_at"):
        yield KEY_EXPIRES, expires_at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _of_limit(scope: Scope) -> Iterator[tuple[str, str]]:
    standing: Standing | None = scope["state"].get("rate_limit")
    if standing is not None:
        yield from standing.headers.items()


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the server has to say."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
