"""Who has had which secret of a customer opened, for operators."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import AdminActing
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import admin_router, refusals
from adapters.postgres.decryptions import of_customer

router = admin_router("/admin/customers", "Administration")


class DecryptionView(BaseModel):
    """One opening of a secret, recorded before the secret was handed out. Never the secret."""

    at: datetime
    customer_id: str
    purpose: str = Field(description="What the secret is: `api-key`, `credential`, `webhook`.")
    record_id: str = Field(description="The api_key_id, credential_id or endpoint_id.")
    actor: str = Field(description="Who had it opened, as the audit trail names actors.", examples=["worker:worker-1"])
    reason: str | None = Field(description="`run`, `reveal`, `reseal`; null where only the purpose says it.")
    run_id: str | None
    attempt: int | None
    request_id: str | None


@router.get("/{customer_id}/decryptions", summary="List opened secrets", responses=refusals(404))
def list_decryptions(api: Parts, caller: AdminActing, paging: PageAsked) -> Page[DecryptionView]:
    """Who has had which secret opened, for what, and in which run or request; newest first.

    Personal data are opened with every event that is read, and are not listed.
    """
    rows = of_customer(api.service.datastore, caller.customer_id, before=paging.before_position, limit=paging.more)
    return paging.page(rows, _view, ("id",))


def _view(row: dict[str, Any]) -> DecryptionView:
    return DecryptionView(**row)
