"""Leaked API keys: reported by whoever finds one, and revoked at once."""

import logging
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import Anyone
from adapters.http.idempotency import Route
from adapters.http.keyless import PER_SOURCE
from adapters.http.routing import API, WITH_BODY, refusals
from adapters.postgres.reads import keys
from application.api_keys import ReportLeak, report_leak
from application.command import Line, Request

logger = logging.getLogger(__name__)
router = APIRouter(
    prefix=API, tags=["API keys"], route_class=Route, responses=refusals(422, 429, 503), dependencies=PER_SOURCE
)

EXAMPLE: Final[dict[str, Any]] = {"sha256": "0" * 64, "url": "https://github.com/acme/tools/blob/main/run.sh"}


class FoundKey(Request):
    """A key that somebody found where it should not be, without the key."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$", description="The SHA-256 of the whole key, in hex.")]
    url: Line | None = Field(default=None, description="Where it was found. Its owner is told the host.")


class Thanks(BaseModel):
    status: Literal["accepted"] = "accepted"
    message: str = "Thank you. If this is a key of ours that works, it does not any more, and its owner is told."


@router.post("/api-keys/leaks", summary="Report a leaked API key", status_code=202, responses=WITH_BODY)
def post_leak(api: Parts, caller: Anyone, body: Annotated[FoundKey, Body(examples=[EXAMPLE])]) -> Thanks:
    """Anybody may report a key; one that works is revoked at once, and its owner is told.

    The answer is the same whether there is such a key or not. Who can name the hash of one that there is has the key
    in hand, or reads the table of keys: neither learns anything from how long the answer takes.
    """
    found = keys.holder(api.service.datastore, body.sha256.lower())
    if found is not None:
        command = ReportLeak(**caller.stamp, customer_id=found.customer_id, api_key_id=found.api_key_id, url=body.url)
        report_leak(command, api.service.platform)
        logger.warning("API key %s of %s was reported as leaked", found.api_key_id, found.customer_id)
    return Thanks()
