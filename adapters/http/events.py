"""A customer's own audit trail."""

from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Query
from pydantic import AfterValidator, Field, StringConstraints

from adapters.event_views import EventView, reader, to_customers, to_operators, views
from adapters.http.api import Api, Parts, at_once
from adapters.http.auth import Configurer
from adapters.http.paging import Instant, Page, PageAsked, Paging, cursor
from adapters.http.routing import customer_router
from adapters.postgres.event_log import Reads
from adapters.postgres.reads import events
from adapters.postgres.reads.events import SCANNED, Wanted

router = customer_router("/customers/{customer_id}/events", "Audit trail")

VISIBLE: Final = r"^[!#-\[\]-~]{1,200}$"
"""Printable ASCII without spaces, quotes and backslashes: what actors and ids are made of."""


class Order(StrEnum):
    NEWEST_FIRST = "desc"
    OLDEST_FIRST = "asc"


def _whole_parts(actor: str) -> str:
    """`customer:` means the same as `customer`."""
    shortened = actor.rstrip(":/")
    if not shortened:
        raise ValueError("must name an actor")
    return shortened


Visible = Annotated[str, StringConstraints(pattern=VISIBLE)]
Actor = Annotated[Visible, AfterValidator(_whole_parts)]


class EventPage(Page[EventView]):
    """Events in the order that was asked for."""

    searched_to: int = Field(
        description=f"The log was searched to this position, included: one answer reads at most {SCANNED} events,"
        " finds what is among them, and with `next_cursor` says where to go on. There may be none on a page that has"
        " a next one."
    )


class Asked:
    """Which events are asked for, and in which order."""

    def __init__(
        self,
        *,
        stream_id: Annotated[
            UUID | None, Query(description="Only events of this stream, a run's run_id for one.")
        ] = None,
        type_: Annotated[
            Visible | None,
            Query(
                alias="type",
                description="Only events whose type begins so: `customer.` for all about customers, `run.failed` for"
                " one type in every version.",
            ),
        ] = None,
        actor: Annotated[
            Actor | None,
            Query(
                description="Only events of this actor, or of all whose first parts these are: `customer:acme_corp`"
                " finds every key of that customer, `admin` all operators."
            ),
        ] = None,
        correlation_id: Annotated[
            Visible | None, Query(description="Only what that request or command set off; often an X-Request-ID.")
        ] = None,
        since: Annotated[Instant | None, Query(alias="from", description="Only events at or after this.")] = None,
        until: Annotated[Instant | None, Query(alias="to", description="Only events before this.")] = None,
        order: Annotated[Order, Query(description="`desc`: the newest first.")] = Order.NEWEST_FIRST,
    ) -> None:
        self.wanted = Wanted(
            stream_id=stream_id, type=type_, actor=actor, correlation_id=correlation_id, since=since, until=until
        )
        self.oldest_first = order is Order.OLDEST_FIRST


EventsAsked = Annotated[Asked, Depends(at_once(Asked))]


def answer(
    api: Api, asked: Asked, paging: Paging, customer_id: str | None, *, for_operators: bool, reads: Reads | None = None
) -> EventPage:
    """The events that are asked for; of a customer, if one is named, and then read through `reads`."""
    wanted = replace(asked.wanted, customer_id=customer_id)
    found = events.search(
        api.service.datastore,
        wanted,
        after=paging.before_position,
        limit=paging.limit,
        reads=reads,
        oldest_first=asked.oldest_first,
        shown_actor=to_operators if for_operators else to_customers,
    )
    mapper = reader(api.service.vault)
    seen = [view for stored in found.events for view in views(stored, mapper, for_operators=for_operators)]
    return EventPage(
        items=[view for view in seen if wanted.of_type(view.type)],
        next_cursor=None if found.next is None else cursor([str(found.next)]),
        searched_to=found.searched_to,
    )


@router.get("", summary="Read the audit trail")
def list_events(api: Parts, caller: Configurer, paging: PageAsked, asked: EventsAsked) -> EventPage:
    """What happened to the customer, its subscription and its runs: who did it, when, and in which request.

    `limit` counts events as they were recorded; one that came to be told as two is two items. An event that cannot be
    read is listed as `unreadable`, with the reason.
    """
    by_operator = caller.identity.kind == "admin"
    return answer(api, asked, paging, caller.customer_id, for_operators=by_operator, reads=caller.reads)
