"""API keys: issued, listed, revoked."""

from datetime import datetime

from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import CredentialsKeeper
from adapters.http.idempotency import SHOWN_ONCE, RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import customer_router, refusals
from adapters.postgres.reads.listing import Where, newest_first
from application.api_keys import IssueApiKey, RevokeApiKey, issue_api_key, revoke_api_key
from projections.tables import CUSTOMER_API_KEYS

router = customer_router("/customers/{customer_id}/api-keys", "API keys")


class ApiKeyView(BaseModel):
    """What is known of a key: never the key, and never its hash."""

    api_key_id: str
    customer_id: str
    last4: str
    is_active: bool = Field(description="False once revoked; an expired key shows by its expires_at.")
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


class IssuedApiKey(BaseModel):
    """A new key, in clear this once."""

    api_key_id: str
    customer_id: str
    api_key: str | None = Field(description="Null only where the answer to a repeated Idempotency-Key is given again.")
    expires_at: datetime
    message: str


@router.get("", summary="List API keys")
def list_keys(caller: CredentialsKeeper, paging: PageAsked) -> Page[ApiKeyView]:
    """Every key that was ever issued, newest first: its last four characters and its dates."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(caller.reads, CUSTOMER_API_KEYS, where, after=paging.after, limit=paging.more)
    return paging.page(rows, ApiKeyView.model_validate, ("created_at", "api_key_id"))


@router.post("", summary="Issue an API key", responses=refusals(409))
def post_key(api: Parts, caller: CredentialsKeeper, name: RequestName) -> IssuedApiKey:
    """A second key, good for 90 days; the first one goes on for 24 hours. At most two keys are active."""
    command = IssueApiKey(**caller.stamp, api_key_id=name.new_id())
    issued = issue_api_key(command, api.service.platform, api.service.vault)
    return IssuedApiKey(
        api_key_id=issued.api_key_id,
        customer_id=issued.customer_id,
        api_key=issued.api_key.get_secret_value() if issued.api_key else None,
        expires_at=issued.expires_at,
        message="Save this key now: it is shown only once." if issued.api_key else SHOWN_ONCE,
    )


@router.delete("/{key_id}", summary="Revoke an API key", status_code=204)
def delete_key(api: Parts, caller: CredentialsKeeper, key_id: str) -> None:
    """The key stops working at once."""
    revoke_api_key(RevokeApiKey(**caller.stamp, api_key_id=key_id), api.service.platform)
