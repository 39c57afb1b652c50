"""Notifications for operators: those of all customers, and another try for what was given up."""

from typing import Annotated
from uuid import UUID

from fastapi import Query

from adapters.http.api import Parts
from adapters.http.auth import AdminCaller
from adapters.http.idempotency import RequestName
from adapters.http.notification_views import NotificationView, place
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import admin_router, refusals
from adapters.notifications import deliveries, listing
from domain.notification import DeliveryState, Kind

router = admin_router("/admin/notifications", "Administration")


@router.get("", summary="List the notifications of all customers")
def list_all_notifications(  # noqa: PLR0917 - what a query may say
    api: Parts,
    caller: AdminCaller,  # noqa: ARG001 - any operator
    paging: PageAsked,
    state: Annotated[DeliveryState | None, Query(description="Only those with a delivery in this state.")] = None,
    kind: Annotated[Kind | None, Query(description="Only those of this kind.")] = None,
    customer_id: Annotated[str | None, Query(max_length=50, description="Only this customer's.")] = None,
) -> Page[NotificationView]:
    """Newest first. `state=DEAD` are those that were given up at a receiver."""
    rows = listing.newest_first(
        api.service.datastore,
        customer_id=customer_id,
        kind=kind,
        state=state,
        after=place(paging),
        limit=paging.more,
    )
    return paging.page(rows, NotificationView.model_validate, ("created_at", "notification_id"))


@router.post("/{notification_id}/replay", summary="Replay a notification", responses=refusals(404, 409))
def post_replay(
    api: Parts,
    caller: AdminCaller,  # noqa: ARG001 - any operator
    name: RequestName,  # noqa: ARG001 - what is replayed already is refused
    notification_id: UUID,
) -> NotificationView:
    """Try the deliveries that were given up again, from the beginning. It keeps its id: receivers can tell."""
    datastore = api.service.datastore
    deliveries.replay(datastore, notification_id)
    [row] = listing.newest_first(datastore, notification_id=notification_id, limit=1)
    return NotificationView.model_validate(row)
