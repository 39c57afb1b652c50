"""Cloud credentials: handed over, listed, revoked, and never given back."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import Body
from pydantic import BaseModel

from adapters.http.api import Parts
from adapters.http.auth import CredentialsKeeper
from adapters.http.idempotency import RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import WITH_BODY, customer_router
from adapters.postgres.reads.listing import Where, newest_first, one
from application.credentials import AddCredential, NewCredential, RevokeCredential, add_credential, revoke_credential
from projections.tables import CUSTOMER_CLOUD_CREDENTIALS

router = customer_router("/customers/{customer_id}/credentials", "Credentials")

EXAMPLE: Final = {
    "provider": "GCP",
    "credential_type": "SERVICE_ACCOUNT",
    "credential_name": "GCP Billing Reader",
    "credentials": {
        "type": "service_account",
        "project_id": "acme-gcp-project",
        "private_key_id": "...",
        "private_key": "...",
        "client_email": "...",
    },
    "project_id": "acme-gcp-project",
}


class CredentialView(BaseModel):
    """A credential without its content."""

    credential_id: str
    customer_id: str
    provider: str
    credential_type: str
    credential_name: str
    project_id: str | None
    is_active: bool
    created_at: datetime
    updated_at: datetime


@router.get("", summary="List cloud credentials")
def list_credentials(caller: CredentialsKeeper, paging: PageAsked) -> Page[CredentialView]:
    """The credentials in force, newest first, without their content."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(caller.reads, CUSTOMER_CLOUD_CREDENTIALS, where, after=paging.after, limit=paging.more)
    return paging.page(rows, CredentialView.model_validate, ("created_at", "credential_id"))


@router.post("", summary="Add a cloud credential", responses=WITH_BODY)
def post_credential(
    api: Parts, caller: CredentialsKeeper, name: RequestName, body: Annotated[NewCredential, Body(examples=[EXAMPLE])]
) -> CredentialView:
    """Store a credential, encrypted as it comes in; only the customer's own runs ever open it.

    Providers are GCP, AWS, AZURE, OCI, OPENAI and ANTHROPIC, as many different ones as the plan allows. A GCP
    SERVICE_ACCOUNT is Google's JSON key file.
    """
    command = AddCredential(**caller.stamp, **body.model_dump(exclude_unset=True), credential_id=name.new_id())
    credential_id = add_credential(command, api.service.platform, api.service.vault)
    row = one(caller.reads, CUSTOMER_CLOUD_CREDENTIALS, caller.customer_id, credential_id)
    return CredentialView.model_validate(row)


@router.delete("/{credential_id}", summary="Revoke a cloud credential", status_code=204)
def delete_credential(api: Parts, caller: CredentialsKeeper, credential_id: str) -> None:
    """No run opens the credential any more."""
    revoke_credential(RevokeCredential(**caller.stamp, credential_id=credential_id), api.service.platform)
