"""The hash over the log: whoever changes, removes, adds or moves an event changes every hash after it.

Seals keep it beside the log, for each stretch of events; signed heads carry it out of the database. Both are formats
for years: what is hashed and what is signed here stays as it is.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from struct import Struct
from typing import Final
from uuid import UUID

START: Final = bytes(32)
"""What stands before the first event."""
STRETCH: Final = 1_000
"""The most events under one seal."""
SHORT: Final = 16
"""Bytes of an event's digest that a seal keeps of it: enough that nobody finds another event with the same ones."""

_ENTRY: Final = Struct(f">q{SHORT}s")
_SIGNED: Final = "convergence log head 1"


def digest(stream_id: UUID, version: int, topic: str, customer_id: str | None, state: bytes) -> bytes:
    """The SHA-256 of one event as it is stored, wherever in the log it stands."""
    named, owner = topic.encode(), (customer_id or "").encode()
    # In one piece: a hasher that is updated part by part costs half as much again.
    parts = (
        stream_id.bytes,
        version.to_bytes(8, "big"),
        len(named).to_bytes(8, "big"),
        named,
        len(owner).to_bytes(8, "big"),
        owner,
        len(state).to_bytes(8, "big"),
        state,
    )
    return hashlib.sha256(b"".join(parts)).digest()


def link(before: bytes, position: int, event_digest: bytes) -> bytes:
    """The hash over the log up to and with the event at this position; `before` is the one up to the event before."""
    return hashlib.sha256(before + position.to_bytes(8, "big") + event_digest).digest()


def entry(position: int, event_digest: bytes) -> bytes:
    """What a seal keeps of one event: where it stands, and the beginning of its digest."""
    return _ENTRY.pack(position, event_digest[:SHORT])


def entries(digests: bytes) -> Iterator[tuple[int, bytes]]:
    """The events of a seal: their positions, and the beginnings of their digests. `ValueError` for other bytes."""
    if len(digests) % _ENTRY.size:
        raise ValueError("This is no list of digests.")
    yield from _ENTRY.iter_unpack(digests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What the log was at one moment, signed: so many events up to this position, which hash to this."""

    position: int
    events: int
    hash: str
    """Hexadecimal."""
    sealed_at: datetime
    """When it was signed, by the clock of the machine that did."""
    key_id: str
    public_key: str
    """Ed25519, base64: a copy can be checked anywhere."""
    signature: str


def signed(*, position: int, events: int, log_hash: str, sealed_at: datetime, key_id: str) -> bytes:
    """The bytes that a head's signature is over."""
    at = sealed_at.astimezone(UTC).isoformat(timespec="microseconds")
    return f"{_SIGNED}\n{position}\n{events}\n{log_hash}\n{at}\n{key_id}".encode()
