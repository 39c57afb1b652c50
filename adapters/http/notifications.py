"""Notifications: what a customer was told by mail and at its endpoints, and what became of it."""

from typing import Annotated

from fastapi import Query

from adapters.http.auth import Configurer
from adapters.http.notification_views import NotificationView, place
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import customer_router
from adapters.notifications import listing
from domain.notification import DeliveryState, Kind

router = customer_router("/customers/{customer_id}/notifications", "Notifications")


@router.get("", summary="List notifications")
def list_notifications(
    caller: Configurer,
    paging: PageAsked,
    state: Annotated[DeliveryState | None, Query(description="Only those with a delivery in this state.")] = None,
    kind: Annotated[Kind | None, Query(description="Only those of this kind.")] = None,
) -> Page[NotificationView]:
    """What the customer was told in the last 90 days, newest first, with every delivery and its last error."""
    rows = listing.newest_first(
        caller.reads,
        customer_id=caller.customer_id,
        kind=kind,
        state=state,
        after=place(paging),
        limit=paging.more,
    )
    return paging.page(rows, NotificationView.model_validate, ("created_at", "notification_id"))
