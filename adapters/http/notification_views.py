"""Notifications as they are shown, to the customer and to operators."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from adapters.http.paging import Paging
from application.command import as_uuid
from domain.notification import DeliveryState, Kind
from domain.refusals import Invalid


class DeliveryView(BaseModel):
    """What became of a notification at one receiver."""

    by: Literal["mail", "webhook"]
    endpoint_id: str | None = Field(description="Null for a mail.")
    state: DeliveryState
    attempts: int
    last_error: str | None
    next_attempt_at: datetime | None = Field(description="Null once no attempt follows.")
    ended_at: datetime | None


class NotificationView(BaseModel):
    """What was told, or is to be. `about` holds ids and numbers."""

    notification_id: UUID = Field(description="Also the webhook-id, and the Message-ID of the mail before its @.")
    customer_id: str
    kind: Kind
    about: dict[str, Any]
    occurred_at: datetime
    created_at: datetime
    deliveries: list[DeliveryView]


def place(paging: Paging) -> tuple[datetime, UUID] | None:
    """Where the page before ended; raises `Invalid`."""
    after = paging.after
    if after is None:
        return None
    key = as_uuid(after.key)
    if key is None:
        raise Invalid("cursor: is not a next_cursor of this list")
    return after.created_at, key
