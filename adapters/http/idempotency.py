"""Requests that name themselves: commands with an Idempotency-Key have one effect, however often they are sent.

The name decides the ids of what a request makes and of its commands, and a command that was stored is not carried out
again: also a request whose answer nobody has seen, since the database was cut off as it was storing it, can be sent
again by everybody to whom it belongs.

The answer is kept for a day and given again to the same caller, key and request. What an answer shows only once, an
API key, is not kept: the same answer comes back without it. Answers that say "not now" (401, 403, 429 and above 499)
are not kept, so that the same request can succeed later.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final
from uuid import UUID, uuid5

from fastapi import Depends, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from adapters.http import errors
from adapters.http.api import Api, api_of
from adapters.http.auth import API_KEY, Identity, identify, must_allow
from adapters.http.limits import strict_json
from adapters.http.required_scopes import required
from adapters.postgres import requests
from adapters.postgres.requests import Answer, InProgress, Mismatch, Replay
from application.command import new_id
from application.ports import Away

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_NAMESPACE: Final = UUID("a1f3c0de-52b7-5c1e-8f6a-7d0b6c1e9b42")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
SHOWN_ONCE: Final = "This request was carried out before, and an API key is shown only once."
SIGNING_SHOWN_ONCE: Final = "This request was carried out before, and a signing secret is shown only once."
_ONCE_ONLY: Final = {"api_key": SHOWN_ONCE, "secret": SIGNING_SHOWN_ONCE}
_KEPT_HEADERS: Final = ("content-type", "location", "etag")
_NOT_NOW: Final = frozenset({401, 403, 429})
_WITH_JSON: Final = re.compile(r"application/(?:[a-z0-9.!#$&^_-]+\+)?json\s*(?:;.*)?", re.IGNORECASE)


_NAMES: Final = (
    "Names this request: sending it again has no second effect and gets the same answer, for a day."
    " Choose a new one, such as a UUID, for every request."
)
_UNTOLD: Final = frozenset({"PUT", "PATCH", "DELETE"})
"""Methods whose routes make nothing that needs an id, and so do not ask for the name themselves."""
_IN_HEADER: Final = {
    "name": "idempotency-key",
    "in": "header",
    "required": False,
    "description": _NAMES,
    "schema": {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "Idempotency-Key"},
}


class _StrictRequest(Request):
    """A request whose JSON every later stage can hold."""

    async def json(self) -> Any:  # noqa: ANN401 - any JSON
        return strict_json(await self.body())


class Route(APIRoute):
    """A route as all of ours are: JSON or 415, strictly read, and commands that can be repeated safely."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401 - the library's
        super().__init__(path, endpoint, **options)
        if self.methods and self.methods & _UNTOLD:
            self.openapi_extra = {"parameters": [_IN_HEADER]}

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None
        by_customer = any(given.dependency is API_KEY for given in self.dependencies)
        scope = required(self)
        scopes = None if scope is None else [scope]

        async def strict(request: Request) -> Response:
            request = _StrictRequest(request.scope, request.receive)
            if takes_body and await request.body():
                content_type = request.headers.get("content-type", "")
                if not _WITH_JSON.fullmatch(content_type):
                    raise HTTPException(415, "The body must be JSON, with Content-Type: application/json.")
            key = request.headers.get("idempotency-key")
            if request.method in _READING or key is None:
                return await handle(request)
            if not _KEY.fullmatch(key):
                raise HTTPException(400, "Idempotency-Key must be 1 to 255 visible ASCII characters.")
            identity = await identify(request)
            if by_customer and identity.kind == "customer":
                # What one key did another of the same customer may repeat, but not learn of without the right to do it.
                must_allow(identity, scopes)
            return await _once(request, key, identity, handle)

        return strict


async def _once(request: Request, key: str, identity: Identity, handle: Handler) -> Response:
    api, caller = api_of(request), identity.caller
    fingerprint = await _fingerprint(request)
    datastore = api.service.datastore
    request.state.command_id = Named(key, "command", caller, fingerprint).new_id()
    claim = await run_in_threadpool(requests.claim, datastore, caller, key, fingerprint)
    match claim:
        case Replay(answer=answer):
            return _replayed(answer)
        case Mismatch():
            raise HTTPException(422, "This Idempotency-Key was used for another request. Choose a new one.")
        case InProgress():
            sentence = "The first request with this Idempotency-Key has not been answered yet."
            raise HTTPException(409, sentence, {"Retry-After": "1"})
    try:
        response = await _answer(request, handle, api)
    except BaseException:
        await run_in_threadpool(_forget, api, claim)
        raise
    if response.status_code >= 500 or response.status_code in _NOT_NOW:
        await run_in_threadpool(_forget, api, claim)
    else:
        await run_in_threadpool(_keep, api, claim, response)
    return response


async def _answer(request: Request, handle: Handler, api: Api) -> Response:
    try:
        return await handle(request)
    except RequestValidationError:
        raise
    except errors.FORESEEN as refusal:
        answered = errors.answer(request, refusal, api.now)
        if answered is None:
            raise
        return answered


async def _fingerprint(request: Request) -> str:
    path = request.scope["path"].encode("utf-8", "surrogateescape")
    if query := request.scope["query_string"]:
        path += b"?" + query
    return hashlib.sha256(b"\n".join((request.method.encode(), path, await request.body()))).hexdigest()


def _replayed(answer: Answer) -> Response:
    return Response(answer.body, answer.status, {**answer.headers, "Idempotency-Replayed": "true"})


def _keep(api: Api, claim: requests.Claimed, response: Response) -> None:
    headers = {name: value for name, value in response.headers.items() if name in _KEPT_HEADERS}
    answer = Answer(response.status_code, headers, _without_secrets(bytes(response.body)))
    try:
        requests.finish(api.service.datastore, claim, answer)
    except Away as away:
        # It was done, and its caller is told so. A repeat finds the same ids, because they follow from the key.
        logger.warning("an answer could not be kept for repeats: %s", away)


def _forget(api: Api, claim: requests.Claimed) -> None:
    try:
        requests.release(api.service.datastore, claim)
    except Away as away:
        logger.warning("an Idempotency-Key stays taken for a while: %s", away)


def _without_secrets(body: bytes) -> bytes:
    for name, message in _ONCE_ONLY.items():
        if f'"{name}"'.encode() in body:
            content = json.loads(body)
            content[name] = None
            content["message"] = message
            return bytes(JSONResponse(content).body)
    return body


class Named:
    """The ids that a request gives to what it makes: always the same ones for the same request of the same name."""

    def __init__(self, key: str | None, *what: str) -> None:
        self.key = key
        self._what = what

    def new_id(self) -> str:
        """A new id, or the one that follows from the name."""
        return new_id() if self.key is None else str(uuid5(_NAMESPACE, " ".join((self.key, *self._what))))


async def _named(
    request: Request,
    idempotency_key: Annotated[str | None, Header(description=_NAMES)] = None,
) -> Named:
    caller = (await identify(request)).caller
    return Named(idempotency_key, caller, await _fingerprint(request))


RequestName = Annotated[Named, Depends(_named)]
