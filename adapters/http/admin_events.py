"""The whole log, for operators."""

from typing import Annotated

from fastapi import Query
from pydantic import StringConstraints

from adapters.http.api import Parts
from adapters.http.auth import AdminCaller
from adapters.http.events import EventPage, EventsAsked, answer
from adapters.http.paging import PageAsked
from adapters.http.routing import admin_router
from domain.identity import CUSTOMER_ID

router = admin_router("/admin/events", "Audit trail")

CustomerId = Annotated[str, StringConstraints(pattern=f"^{CUSTOMER_ID.pattern}$")]


@router.get("", summary="Search the log")
def list_all_events(
    api: Parts,
    caller: AdminCaller,  # noqa: ARG001 - any operator
    paging: PageAsked,
    asked: EventsAsked,
    customer_id: Annotated[
        CustomerId | None, Query(description="Only events of this customer, its subscription and its runs.")
    ] = None,
) -> EventPage:
    """Everything that ever happened: who did it, when, and in which request. Filters narrow each other down.

    A customer's events and a stream's are found by an index; for the rest the log is searched a stretch at a time.
    `limit` counts events as they were recorded; one that came to be told as two is two items. An event that cannot be
    read is listed as `unreadable`, with the reason.
    """
    return answer(api, asked, paging, customer_id, for_operators=True)
