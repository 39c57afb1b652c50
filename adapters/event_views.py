"""An event of the log as people see it, over HTTP and at the command line."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NoReturn

from eventsourcing.persistence import Notification
from pydantic import BaseModel, Field

from application.mapper import EventMapper, Recorded, UnreadableEvent, envelope_of
from application.ports import Opener, SealedFor, Vault
from application.shown import shown
from domain.envelope import Envelope

SEALED: Final = "(cannot be opened)"
"""What stands for a person's name or e-mail whose key is gone, or not to be had here."""


class EventView(BaseModel):
    """What happened, when, and who caused it."""

    position: int = Field(description="The event's place in the log.")
    type: str = Field(examples=["customer.credential-added@1"])
    at: datetime | None = Field(description="Null where the event cannot be read.")
    actor: str = Field(
        description="`customer:{id}/{api_key_id}`, `admin`, `anyone`, `stripe`, or a process of the service by the"
        " WORKER_ID that names it: `scheduler:{id}`, `worker:{id}`, `service:{id}`. Operators see which admin it was:"
        " `admin/next` is ADMIN_API_KEY_NEXT, `admin/cli:{user}` a command line.",
        examples=["customer:acme_corp/9d2f6a3e-8b1c-4f0e-9c55-2c1de5f1a9e4"],
    )
    customer_id: str = Field(description="Whose event it is; empty where it is nobody's.")
    stream_id: str
    version: int = Field(description="The event's place in its stream.")
    request_id: str | None = Field(description="The HTTP request in which it happened.")
    correlation_id: str = Field(description="Shared by everything that one request or command set off.")
    causation_id: str | None = Field(description="The command_id of the events that led to this one.")
    command_id: str = Field(description="Shared by all events that were decided together.")
    data: dict[str, Any] = Field(description="The event itself, without hashes and ciphertexts.")
    unreadable: str | None = Field(default=None, description="Why the event cannot be read; null for one that can.")


class Closed:
    """A vault for those who look on without keys: it opens nothing."""

    def prepare(self, customer_id: str) -> NoReturn:
        raise self._refused(customer_id)

    def seal(self, plaintext: bytes, owner: SealedFor) -> NoReturn:  # noqa: ARG002 - the port's signature
        raise self._refused(owner.customer_id)

    def open(self, ciphertext: bytes, owner: SealedFor, by: Opener | None = None) -> bytes:  # noqa: ARG002 - the port's
        """Raises `ValueError`."""
        raise self._refused(owner.customer_id)

    @staticmethod
    def _refused(customer_id: str) -> ValueError:
        return ValueError(f"Events are read without the keys of {customer_id}.")


class Lenient(Closed):
    """A vault for those who look on: what it cannot open, since the key is gone or not here, is shown as closed."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def open(self, ciphertext: bytes, owner: SealedFor, by: Opener | None = None) -> bytes:
        """Raises `Away` when the wrapping key is away."""
        try:
            return self._vault.open(ciphertext, owner, by)
        except ValueError:
            return SEALED.encode()


def reader(vault: Vault) -> EventMapper:
    """Reads events for people."""
    return EventMapper(Lenient(vault))


def to_customers(actor: str) -> str:
    """An actor as customers are told it: of operators, that it was one."""
    return "admin" if actor.partition("/")[0] == "admin" else actor


def to_operators(actor: str) -> str:
    """An actor as operators are told it: whole."""
    return actor


def views(stored: Notification, mapper: EventMapper, *, for_operators: bool) -> Iterator[EventView]:
    """A stored event as it is told now: usually one; or the place where one stands that cannot be read."""
    try:
        recorded = mapper.to_domain_events(stored)
    except UnreadableEvent as unreadable:
        yield _unreadable(stored, unreadable, for_operators=for_operators)
    else:
        yield from (event_view(r, for_operators=for_operators) for r in recorded)


def event_view(recorded: Recorded, *, for_operators: bool) -> EventView:
    """One event."""
    return EventView(data=shown(recorded.event), **_circumstances(recorded.envelope, for_operators=for_operators))


def _circumstances(at: Envelope, *, for_operators: bool) -> dict[str, Any]:
    return {
        "position": at.position,
        "type": at.topic,
        "at": at.at,
        "actor": at.by.actor if for_operators else to_customers(at.by.actor),
        "customer_id": at.customer_id,
        "stream_id": str(at.stream_id),
        "version": at.version,
        "request_id": at.by.request_id,
        "correlation_id": at.by.correlation_id,
        "causation_id": at.by.causation_id,
        "command_id": at.by.command_id,
    }


def _unreadable(stored: Notification, why: UnreadableEvent, *, for_operators: bool) -> EventView:
    envelope = envelope_of(stored)
    if envelope is not None:
        return EventView(data={}, unreadable=str(why), **_circumstances(envelope, for_operators=for_operators))
    return EventView(
        position=stored.id,
        type=stored.topic,
        at=None,
        actor="",
        customer_id="",
        stream_id=str(stored.originator_id),
        version=stored.originator_version,
        request_id=None,
        correlation_id="",
        causation_id=None,
        command_id="",
        data={},
        unreadable=str(why),
    )
