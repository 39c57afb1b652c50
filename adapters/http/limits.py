"""How much a request may bring, and what JSON it may hold: checked before anything is made of it."""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

MAX_BODY_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 64
BODY_SECONDS: Final = 20.0
"""How long a body may take to arrive."""

_DRAIN_BYTES: Final = 64 * 1024 * 1024
_DRAIN_SECONDS: Final = 5.0
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_SUSPECT: Final = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_HALF_A_CHARACTER: Final = re.compile("[\x00\ud800-\udfff]")
_INT64: Final = 2**63


async def read_body(receive: Receive, headers: Headers) -> bytes:
    """The whole body; raises `HTTPException` 413 for one that is too large and 408 for one that does not arrive."""
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > MAX_BODY_BYTES:
        if headers.get("expect", "").lower() != "100-continue":
            await _drain(receive)
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MAX_BODY_BYTES:
                    break
    except TimeoutError:
        raise HTTPException(408, "The body did not arrive in time.", {"Connection": "close"}) from None
    if len(body) > MAX_BODY_BYTES:
        await _drain(receive)
        raise _too_large()
    return bytes(body)


async def _drain(receive: Receive) -> None:
    """Take in what is on its way: a client that is cut off while it sends never reads the answer."""
    taken = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while taken < _DRAIN_BYTES:
                message = await receive()
                taken += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _too_large() -> HTTPException:
    sentence = f"The body is larger than {MAX_BODY_BYTES // 1024} kB."
    return HTTPException(413, sentence, {"Connection": "close"})


def strict_json(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    """A body as JSON that every later stage can hold: UTF-8, finite 64-bit numbers, whole characters, no NUL, not deep.

    Raises `HTTPException` 400 with a sentence that repeats nothing of the body.
    """
    _check_depth(body)
    try:
        value = json.loads(body.decode(), parse_int=_integer, parse_float=_finite, parse_constant=_not_a_number)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise HTTPException(400, f"The body is not valid JSON ({where}).") from None
    except UnicodeDecodeError:
        raise HTTPException(400, "The body is not UTF-8.") from None
    if _SUSPECT.search(body) and any(_HALF_A_CHARACTER.search(text) for text in _texts(value)):
        raise HTTPException(400, "The body holds a text with a NUL or with half of a surrogate pair.")
    return value


def _check_depth(body: bytes) -> None:
    depth = 0
    for match in _TOKEN.finditer(body):
        token = match[0][:1]
        if token in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise HTTPException(400, f"The body is nested more than {MAX_DEPTH} levels deep.")
        elif token in b"]}":
            depth -= 1


def _integer(text: str) -> int:
    # Nineteen digits and a sign: longer ones are not even converted.
    value = int(text) if len(text) <= 20 else _INT64
    if not -_INT64 <= value < _INT64:
        raise HTTPException(400, "The body holds a whole number of more than 64 bits.")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise HTTPException(400, "The body holds a number that is too large.")
    return value


def _not_a_number(_: str) -> NoReturn:
    raise HTTPException(400, "The body holds NaN or Infinity, which JSON does not have.")


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            for key, item in value.items():
                yield key
                yield from _texts(item)
