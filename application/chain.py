"""The hash over the log: whoever changes, removes, adds or moves an event changes every hash after it."""

import hashlib
from typing import Final
from uuid import UUID

START: Final = bytes(32)
"""What stands before the first event."""


def digest(stream_id: UUID, version: int, topic: str, customer_id: str | None, state: bytes) -> bytes:
    """The SHA-256 of one event as it is stored, wherever in the log it stands."""
    hasher = hashlib.sha256(stream_id.bytes)
    hasher.update(version.to_bytes(8, "big"))
    for part in (topic.encode(), (customer_id or "").encode(), state):
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.digest()


def link(before: bytes, position: int, event_digest: bytes) -> bytes:
    """The hash over the log up to and with the event at this position; `before` is the one up to the event before."""
    return hashlib.sha256(before + position.to_bytes(8, "big") + event_digest).digest()
