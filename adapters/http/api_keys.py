"""API keys: issued, listed, revoked."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import Body
from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import CredentialsKeeper
from adapters.http.idempotency import SHOWN_ONCE, RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import WITH_BODY, customer_router
from adapters.key_views import ApiKeyView, key_view
from adapters.postgres.key_uses import last_uses
from adapters.postgres.reads.listing import Where, newest_first
from application.api_keys import IssueApiKey, RevokeApiKey, Scopes, issue_api_key, revoke_api_key
from application.command import Line, Request
from application.customers import Issued
from domain.scopes import Scope
from projections.tables import CUSTOMER_API_KEYS

router = customer_router("/customers/{customer_id}/api-keys", "API keys")

EXAMPLE: Final = {"name": "CI", "scopes": ["runs:write"]}


class NewApiKey(Request):
    """What a new key is to be."""

    name: Line | None = Field(default=None, description="A new key replaces the one before of the same name.")
    scopes: Scopes | None = Field(
        default=None, description="What it may be used for: everything when they are left out. runs:write reads, too."
    )


class ReplacedKey(BaseModel):
    api_key_id: str
    works_until: datetime


class IssuedApiKey(BaseModel):
    """A new key, in clear this once."""

    api_key_id: str
    customer_id: str
    api_key: str | None = Field(description="Null only where the answer to a repeated Idempotency-Key is given again.")
    name: str
    scopes: list[Scope] | None = Field(description="What it may be used for, null for everything.")
    expires_at: datetime
    replaced: list[ReplacedKey] = Field(description="Keys of the same name that go on for a while.")
    message: str


@router.get("", summary="List API keys")
def list_keys(api: Parts, caller: CredentialsKeeper, paging: PageAsked) -> Page[ApiKeyView]:
    """Every key that was ever issued, newest first: what it may be used for, its dates, and when it was last used."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(caller.reads, CUSTOMER_API_KEYS, where, after=paging.after, limit=paging.more)
    uses = last_uses(api.service.datastore, [row["api_key_id"] for row in rows])

    def view(row: Mapping[str, Any]) -> ApiKeyView:
        return key_view(row, uses.get(row["api_key_id"]), api.now())

    return paging.page(rows, view, ("created_at", "api_key_id"))


@router.post("", summary="Issue an API key", responses=WITH_BODY)
def post_key(
    api: Parts,
    caller: CredentialsKeeper,
    name: RequestName,
    body: Annotated[NewApiKey | None, Body(examples=[EXAMPLE])] = None,
) -> IssuedApiKey:
    """A key good for 90 days; the one before of the same name goes on for 24 hours. At most two of a name are active.

    Nobody hands on more than they have: a key can issue keys only of scopes that it has itself.
    """
    asked = body or NewApiKey()
    command = IssueApiKey(
        **caller.stamp, name=asked.name, scopes=asked.scopes, held=caller.identity.scopes, api_key_id=name.new_id()
    )
    issued = issue_api_key(command, api.service.platform, api.service.vault)
    return IssuedApiKey(
        api_key_id=issued.api_key_id,
        customer_id=issued.customer_id,
        api_key=issued.api_key.get_secret_value() if issued.api_key else None,
        name=asked.name or "",
        scopes=None if asked.scopes is None else sorted(set(asked.scopes)),
        expires_at=issued.expires_at,
        replaced=[ReplacedKey(api_key_id=key, works_until=until) for key, until in issued.replaced.items()],
        message=_message(issued),
    )


def _message(issued: Issued) -> str:
    if issued.api_key is None:
        return SHOWN_ONCE
    old = [f" The key before works until {until:%Y-%m-%d %H:%M:%S} UTC." for until in issued.replaced.values()]
    return "Save this key now: it is shown only once." + "".join(old)


@router.delete("/{key_id}", summary="Revoke an API key", status_code=204)
def delete_key(api: Parts, caller: CredentialsKeeper, key_id: str) -> None:
    """The key stops working at once, and within a second in every process of the service."""
    revoke_api_key(RevokeApiKey(**caller.stamp, api_key_id=key_id), api.service.platform)
