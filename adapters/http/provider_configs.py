"""Where a customer's source data lies, and whom to tell when a run of it fails."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import Body
from pydantic import BaseModel

from adapters.http.api import Parts
from adapters.http.auth import Configurer
from adapters.http.idempotency import RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import WITH_BODY, customer_router
from adapters.postgres.reads.listing import Where, newest_first, one
from application.provider_configs import (
    ConfigureProvider,
    NewProviderConfig,
    RemoveProviderConfig,
    configure_provider,
    remove_provider_config,
)
from projections.tables import CUSTOMER_PROVIDER_CONFIGS

router = customer_router("/customers/{customer_id}/provider-configs", "Provider configurations")

EXAMPLE: Final = {
    "provider": "GCP",
    "domain": "COST",
    "source_project_id": "acme-gcp-project",
    "source_dataset": "billing_export",
    "notification_emails": ["ops@acmecorp.com"],
}


class ProviderConfigView(BaseModel):
    config_id: str
    customer_id: str
    provider: str
    domain: str
    source_project_id: str
    source_dataset: str
    notification_emails: list[str]
    is_active: bool
    created_at: datetime
    updated_at: datetime


@router.get("", summary="List provider configurations")
def list_configs(caller: Configurer, paging: PageAsked) -> Page[ProviderConfigView]:
    """Newest first; the newest of a provider and domain is the one in force."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(caller.reads, CUSTOMER_PROVIDER_CONFIGS, where, after=paging.after, limit=paging.more)
    return paging.page(rows, ProviderConfigView.model_validate, ("created_at", "config_id"))


@router.post("", summary="Configure a provider", responses=WITH_BODY)
def post_config(
    api: Parts, caller: Configurer, name: RequestName, body: Annotated[NewProviderConfig, Body(examples=[EXAMPLE])]
) -> ProviderConfigView:
    """Say in which project and dataset a provider's source data lies, and who gets a mail when a run fails."""
    command = ConfigureProvider(**caller.stamp, **body.model_dump(exclude_unset=True), config_id=name.new_id())
    config_id = configure_provider(command, api.service.platform)
    row = one(caller.reads, CUSTOMER_PROVIDER_CONFIGS, caller.customer_id, config_id)
    return ProviderConfigView.model_validate(row)


@router.delete("/{config_id}", summary="Remove a provider configuration", status_code=204)
def delete_config(api: Parts, caller: Configurer, config_id: str) -> None:
    """The configuration before it of the same provider and domain is in force again, if there is one."""
    remove_provider_config(RemoveProviderConfig(**caller.stamp, config_id=config_id), api.service.platform)
