"""Webhook endpoints: where a customer's notifications are posted."""

from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

from fastapi import Body
from pydantic import BaseModel, Field

from adapters.http.api import Api, Parts
from adapters.http.auth import Acting, Configurer
from adapters.http.idempotency import SIGNING_SHOWN_ONCE, RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import WITH_BODY, customer_router
from adapters.notifications import outbox
from adapters.notifications.addresses import host_must_be_public
from adapters.notifications.listing import is_endpoint
from adapters.postgres.reads.listing import Where, newest_first, one
from application.webhooks import (
    AddWebhookEndpoint,
    NewWebhookEndpoint,
    RemoveWebhookEndpoint,
    add_webhook_endpoint,
    remove_webhook_endpoint,
)
from domain.notification import Kind, Occasion
from domain.refusals import NotFound
from projections.tables import CUSTOMER_WEBHOOK_ENDPOINTS

router = customer_router("/customers/{customer_id}/webhook-endpoints", "Notifications")

EXAMPLE: Final = {"url": "https://hooks.acmecorp.com/convergence", "kinds": ["run.failed", "quota.100"]}


class WebhookEndpointView(BaseModel):
    """An endpoint without its secret."""

    endpoint_id: str
    customer_id: str
    url: str
    kinds: list[str]
    created_at: datetime


class AddedWebhookEndpoint(WebhookEndpointView):
    """A new endpoint, with its secret in clear this once."""

    secret: str | None = Field(description="Null only where the answer to a repeated Idempotency-Key is given again.")
    message: str


class Queued(BaseModel):
    """The notification that will be posted."""

    notification_id: UUID


@router.get("", summary="List webhook endpoints")
def list_endpoints(caller: Configurer, paging: PageAsked) -> Page[WebhookEndpointView]:
    """Where notifications are posted, newest first, without the secrets."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(caller.reads, CUSTOMER_WEBHOOK_ENDPOINTS, where, after=paging.after, limit=paging.more)
    return paging.page(rows, WebhookEndpointView.model_validate, ("created_at", "endpoint_id"))


@router.post("", summary="Add a webhook endpoint", responses=WITH_BODY)
def post_endpoint(
    api: Parts, caller: Configurer, name: RequestName, body: Annotated[NewWebhookEndpoint, Body(examples=[EXAMPLE])]
) -> AddedWebhookEndpoint:
    """Have notifications posted to a public https address: of the kinds that are named, or of all.

    Each is signed as [Standard Webhooks](https://www.standardwebhooks.com) says, with the secret that this answer
    shows once. Status 2xx within ten seconds takes it; anything else is tried again for three days; 410 removes the
    endpoint. At most ten.
    """
    host_must_be_public(body.url, anywhere=api.service.settings.webhook_private_addresses)
    command = AddWebhookEndpoint(**caller.stamp, url=body.url, kinds=body.kinds, endpoint_id=name.new_id())
    secret = add_webhook_endpoint(command, api.service.platform, api.service.vault)
    row = one(caller.reads, CUSTOMER_WEBHOOK_ENDPOINTS, caller.customer_id, command.endpoint_id)
    return AddedWebhookEndpoint(
        **WebhookEndpointView.model_validate(row).model_dump(),
        secret=secret.get_secret_value() if secret else None,
        message="Save this secret now: it is shown only once." if secret else SIGNING_SHOWN_ONCE,
    )


@router.delete("/{endpoint_id}", summary="Remove a webhook endpoint", status_code=204)
def delete_endpoint(api: Parts, caller: Configurer, endpoint_id: str) -> None:
    """Nothing is posted there any more, also not what waits to be."""
    remove_webhook_endpoint(RemoveWebhookEndpoint(**caller.stamp, endpoint_id=endpoint_id), api.service.platform)


@router.post("/{endpoint_id}/test", summary="Test a webhook endpoint", status_code=202)
def post_test(api: Parts, caller: Configurer, name: RequestName, endpoint_id: str) -> Queued:
    """Post a notification of the kind `test`. What became of it: GET …/notifications?kind=test."""
    return _tell(api, caller, endpoint_id, name.new_id())


def _tell(api: Api, caller: Acting, endpoint_id: str, name: str) -> Queued:
    occasion = Occasion(kind=Kind.TEST, customer_id=caller.customer_id, name=name, occurred_at=caller.at)
    with api.service.datastore.transaction_cursor() as cursor:
        if not is_endpoint(cursor, caller.customer_id, endpoint_id):
            raise NotFound("No such webhook endpoint.")
        outbox.add(cursor, [occasion], receiver=endpoint_id)
    return Queued(notification_id=occasion.notification_id)
