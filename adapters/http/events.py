"""A customer's own audit trail."""

from datetime import datetime
from typing import Any, Final

import msgspec
from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import CustomerCaller
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import customer_router
from adapters.postgres.reads import events
from application.mapper import Recorded

router = customer_router("/customers/{customer_id}/events", "Audit trail")

_NEVER_SHOWN: Final = frozenset({"key_hash", "sealed_key", "sealed"})


class EventView(BaseModel):
    """What happened, when, and who caused it."""

    position: int = Field(description="The event's place in the log.")
    type: str = Field(examples=["customer.credential-added@1"])
    at: datetime
    actor: str = Field(description="`customer:{id}`, `admin`, `anyone`, `scheduler`, `worker:{id}` or `service`.")
    stream_id: str
    version: int = Field(description="The event's place in its stream.")
    request_id: str | None
    correlation_id: str = Field(description="Shared by everything that one outside request led to.")
    causation_id: str | None
    command_id: str
    data: dict[str, Any] = Field(description="The event itself, without hashes and ciphertexts.")


@router.get("", summary="Read the audit trail")
def list_events(api: Parts, caller: CustomerCaller, paging: PageAsked) -> Page[EventView]:
    """Every event of the customer, its subscription and its runs, newest first."""
    found = events.newest(api.service.datastore, caller.customer_id, before=paging.before_position, limit=paging.more)
    recorded = [{"position": stored.id, "event": api.service.mapper.to_domain_event(stored)} for stored in found]
    return paging.page(recorded, lambda row: _view(row["event"]), ("position",))


def _view(recorded: Recorded) -> EventView:
    at = recorded.envelope
    data = msgspec.to_builtins(recorded.event)
    return EventView(
        position=at.position,
        type=at.topic,
        at=at.at,
        actor=at.by.actor,
        stream_id=str(at.stream_id),
        version=at.version,
        request_id=at.by.request_id,
        correlation_id=at.by.correlation_id,
        causation_id=at.by.causation_id,
        command_id=at.by.command_id,
        data={name: value for name, value in data.items() if name not in _NEVER_SHOWN},
    )
