"""A customer's profile, plan and limits: read and changed."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import Body, Response
from pydantic import BaseModel, EmailStr, Field

from adapters.http.api import Parts
from adapters.http.auth import Configurer, CustomerCaller
from adapters.http.etags import Match, etag
from adapters.http.routing import WITH_BODY, customer_router, refusals
from adapters.postgres.event_log import Reads
from adapters.postgres.reads import keys, profiles
from application.command import Line, Request
from application.customers import ChangeContact, change_contact
from domain.customer import KEY_WARNING
from domain.refusals import NotFound

router = customer_router("/customers/{customer_id}", "Customers")


class SubscriptionView(BaseModel):
    """The plan, and the limits in force: an operator's exceptions included."""

    plan_name: str
    status: str
    max_team_members: int
    max_providers: int
    max_pipelines_per_day: int
    max_pipelines_per_month: int
    max_concurrent_pipelines: int


class KeyWarning(BaseModel):
    api_key_id: str
    name: str
    last4: str
    expires_at: datetime
    days_left: int
    message: str


class CustomerView(BaseModel):
    """One customer. `tenant_id` and `tenant_dataset_id` carry the same value as `customer_id`."""

    customer_id: str
    tenant_id: str
    tenant_dataset_id: str
    company_name: str
    admin_email: str
    status: str
    subscription_plan: str
    stripe_customer_id: str | None
    dataset_created: bool
    schedules_paused: bool = Field(description="No scheduled pipeline runs until the schedules are resumed.")
    created_at: datetime
    updated_at: datetime
    subscription: SubscriptionView
    warnings: list[KeyWarning] = Field(default=[], description="API keys that end soon.")


class ContactChange(Request):
    """Only what is given changes."""

    company_name: Line | None = None
    admin_email: EmailStr | None = None


def view(row: Mapping[str, Any]) -> CustomerView:
    """One customer as the API shows it."""
    subscription = SubscriptionView.model_validate({**row, "status": row["subscription_status"]})
    paused = bool(row["schedules_paused"])
    return CustomerView.model_validate({**row, "subscription": subscription, "schedules_paused": paused})


def tag(row: Mapping[str, Any]) -> str:
    """The customer's ETag; the same values in the same order as the check of If-Match takes them."""
    return etag(
        row["company_name"],
        row["admin_email"],
        row["status"],
        row["plan_name"],
        row["subscription_status"],
        row["max_team_members"],
        row["max_providers"],
        row["max_pipelines_per_day"],
        row["max_pipelines_per_month"],
        row["max_concurrent_pipelines"],
    )


def read_customer(reads: Reads, customer_id: str, now: datetime, response: Response) -> CustomerView:
    """The customer with its warnings; puts its ETag on the response."""
    row = profiles.profile(reads, customer_id)
    if row is None:
        raise NotFound("No such customer.")
    response.headers["ETag"] = tag(row)
    return view(row).model_copy(update={"warnings": _warnings(reads, customer_id, now)})


def _warnings(reads: Reads, customer_id: str, now: datetime) -> list[KeyWarning]:
    """A key that a newer one outlives needs no warning: it was replaced."""
    lasting = keys.lasting(reads, customer_id, now)
    return [_warning(key, key["expires_at"] - now) for key in lasting if key["expires_at"] - now <= KEY_WARNING]


def _warning(key: Mapping[str, Any], left: timedelta) -> KeyWarning:
    days = math.ceil(left / timedelta(days=1))
    named = f" {key['name']!r}" if key["name"] else ""
    message = (
        f"The API key{named} ending in {key['last4']} expires in {days} day{'' if days == 1 else 's'}. "
        "Issue a new one with POST /api/v1/customers/{customer_id}/api-keys."
    )
    return KeyWarning.model_validate({**key, "days_left": days, "message": message})


@router.get("", summary="Read a customer")
def get_customer(api: Parts, caller: CustomerCaller, response: Response) -> CustomerView:
    """Profile, plan and limits, and a warning from the 76th day of an API key on. The ETag is for If-Match."""
    return read_customer(caller.reads, caller.customer_id, api.now(), response)


@router.patch("", summary="Change the contact of a customer", responses=WITH_BODY | refusals(412))
def patch_customer(
    api: Parts,
    caller: Configurer,
    match: Match,
    response: Response,
    body: Annotated[ContactChange, Body(examples=[{"company_name": "ACME Corporation Ltd."}])],
) -> CustomerView:
    """Another company name or admin e-mail. With If-Match the change is made only if nobody else made one meanwhile."""
    command = ChangeContact(**caller.stamp, **body.model_dump(exclude_unset=True))
    change_contact(command, match.on(api.service.platform, caller.customer_id))
    return read_customer(caller.reads, caller.customer_id, api.now(), response)
