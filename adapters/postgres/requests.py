"""Requests that named themselves, and the answers they got."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from adapters.postgres.event_log import Datastore

KEPT: Final = timedelta(hours=24)
"""How long a name stands for one request."""
_ABANDONED: Final = timedelta(seconds=15)
"""A request that has no answer after this time is not waited for: sent again, it finds what it has done."""

# Expired rows are cleared away by new ones, a few at a time, so that no job is needed.
_CLEAR: Final = (
    "WITH old AS (SELECT caller, key FROM idempotent_requests"
    " WHERE created_at < clock_timestamp() - %s ORDER BY created_at LIMIT 10 FOR UPDATE SKIP LOCKED)"
    " DELETE FROM idempotent_requests r USING old WHERE (r.caller, r.key) = (old.caller, old.key)"
)
_CLEAR_DONE: Final = (
    "WITH old AS (SELECT command_id, command FROM commands_done"
    " WHERE done_at < clock_timestamp() - %s ORDER BY done_at LIMIT 10 FOR UPDATE SKIP LOCKED)"
    " DELETE FROM commands_done d USING old WHERE (d.command_id, d.command) = (old.command_id, old.command)"
)
_CLAIM: Final = (
    "INSERT INTO idempotent_requests AS r (caller, key, fingerprint) VALUES (%(caller)s, %(key)s, %(fingerprint)s)"
    " ON CONFLICT (caller, key) DO UPDATE SET fingerprint = excluded.fingerprint, status = NULL, headers = NULL,"
    "  body = NULL, created_at = clock_timestamp()"
    " WHERE r.created_at < clock_timestamp() - %(kept)s"
    "  OR (r.status IS NULL AND r.fingerprint = excluded.fingerprint"
    "   AND r.created_at < clock_timestamp() - %(abandoned)s)"
    " RETURNING created_at"
)
_LOOK: Final = "SELECT fingerprint, status, headers, body FROM idempotent_requests WHERE caller = %s AND key = %s"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """The request is this caller's to carry out. `since` tells it from a later one with the same key."""

    caller: str
    key: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Replay:
    """The request was answered."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key belongs to another request."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """The same request is being carried out."""


def claim(datastore: Datastore, caller: str, key: str, fingerprint: str) -> Claimed | Replay | Mismatch | InProgress:
    """Take the request for oneself, or learn what became of the one that came before. Keys are kept for a day."""
    with datastore.reading() as cursor:
        cursor.execute(_CLEAR, (KEPT,), prepare=True)
        cursor.execute(_CLEAR_DONE, (KEPT,), prepare=True)
        values = {
            "caller": caller,
            "key": key,
            "fingerprint": fingerprint,
            "kept": KEPT,
            "abandoned": _ABANDONED,
        }
        taken = cursor.execute(_CLAIM, values, prepare=True).fetchone()
        if taken is not None:
            return Claimed(caller, key, taken["created_at"])
        row = cursor.execute(_LOOK, (caller, key), prepare=True).fetchone()
    if row is None:
        return InProgress()  # it was released this moment
    if row["fingerprint"] != fingerprint:
        return Mismatch()
    if row["status"] is None:
        return InProgress()
    return Replay(Answer(row["status"], row["headers"], bytes(row["body"])))


def finish(datastore: Datastore, claimed: Claimed, answer: Answer) -> None:
    """Keep the answer for whoever sends the request again."""
    with datastore.reading() as cursor:
        cursor.execute(
            "UPDATE idempotent_requests SET status = %s, headers = %s::jsonb, body = %s"
            " WHERE caller = %s AND key = %s AND created_at = %s",
            (answer.status, json.dumps(dict(answer.headers)), answer.body, claimed.caller, claimed.key, claimed.since),
            prepare=True,
        )


def release(datastore: Datastore, claimed: Claimed) -> None:
    """Give the key back: the request may be sent again. What it has done it does not do twice."""
    with datastore.reading() as cursor:
        cursor.execute(
            "DELETE FROM idempotent_requests WHERE caller = %s AND key = %s AND created_at = %s",
            (claimed.caller, claimed.key, claimed.since),
            prepare=True,
        )
