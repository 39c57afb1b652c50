"""Customers that were erased: the note of what is still to be done, and what the log says."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Final

from eventsourcing.persistence import StoredEvent
from psycopg import Connection, Cursor
from psycopg.rows import DictRow
from psycopg.sql import SQL, Identifier

from adapters.postgres.event_log import Datastore
from adapters.postgres.privileges import APPEND_ONLY
from application.mapper import envelope_of
from domain.identity import customer_stream, subscription_stream
from projections.tables import CENTRAL

LAST_WRITES_S: Final = 60.0
"""How long a worker that executed a run of the customer may go on before it hears: as long as a lease."""
_APART: Final = frozenset(
    {*APPEND_ONLY, "data_keys", "erasures", "bigquery_grants", *(table.name for table in CENTRAL)}
)
"""Tables with whose rows something else happens: the log stays, keys are the vault's, projected rows follow events.

What BigQuery was told of readers is what it has to be told to forget.
"""

_NOTE: Final = (
    "INSERT INTO erasures (customer_id, erased_at, quiet_at) VALUES (%s, %s, %s + make_interval(secs => %s))"
    " ON CONFLICT DO NOTHING"
)
# A run that was cancelled or taken over a moment ago may still be executed as one that runs may.
_WORKING: Final = (
    "SELECT EXISTS (SELECT FROM scheduled_pipeline_runs WHERE customer_id = %(id)s AND actual_start_time IS NOT NULL"
    " AND state <> 'COMPLETED' AND (state = 'RUNNING' OR updated_at > %(at)s - make_interval(secs => %(seconds)s)))"
    " AS working"
)
_COLUMNS: Final = "customer_id, erased_at, quiet_at, done, problem, completed_at"
_UNFINISHED: Final = f"SELECT {_COLUMNS} FROM erasures WHERE completed_at IS NULL ORDER BY erased_at"  # noqa: S608 - columns
_TRIED: Final = (
    "UPDATE erasures SET tried_at = clock_timestamp(), problem = %s, completed_at = CASE WHEN done ?& %s::text[]"  # noqa: S608 - columns
    f" THEN coalesce(completed_at, clock_timestamp()) END WHERE customer_id = %s RETURNING {_COLUMNS}"
)
# It is the last event: a customer's stream may be long.
_ERASED: Final = (
    "SELECT topic LIKE 'customer.erased@%%' AS erased FROM stored_events WHERE originator_id = %s"
    " ORDER BY originator_version DESC LIMIT 1"
)
_PAST: Final = (
    "SELECT f.originator_id, f.topic, f.state, f.customer_id FROM stored_events f"
    " WHERE f.originator_id = ANY(%s) AND f.originator_version = 1 AND NOT EXISTS (SELECT FROM stored_events e"
    "  WHERE e.originator_id = f.originator_id AND e.topic LIKE 'customer.erased@%%')"
)
_BESIDE: Final = (
    "SELECT c.table_name AS name FROM information_schema.columns c JOIN information_schema.tables t"
    " USING (table_schema, table_name) WHERE c.table_schema = current_schema() AND c.column_name = 'customer_id'"
    " AND t.table_type = 'BASE TABLE' ORDER BY 1"
)
# An operator's answers too, where they name the customer as a whole word. Those of other customers do not.
_ANSWERS: Final = (
    "DELETE FROM idempotent_requests WHERE caller = 'customer:' || %(id)s OR (caller NOT LIKE 'customer:%%'"
    " AND (encode(body, 'escape') ~ %(named)s OR headers::text ~ %(named)s))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """How far the erasure of a customer has come: each step of what is `done` with its instant."""

    customer_id: str
    erased_at: datetime
    quiet_at: datetime
    """From when on nothing writes for the customer any more."""
    done: Mapping[str, str]
    problem: str | None
    completed_at: datetime | None


def note(cursor: Cursor[DictRow], customer_id: str, at: datetime) -> None:
    """Note an erasure in the transaction that stores its event, before that one removes the rows."""
    row = cursor.execute(_WORKING, {"id": customer_id, "at": at, "seconds": LAST_WRITES_S}).fetchone()
    cursor.execute(_NOTE, (customer_id, at, at, LAST_WRITES_S if row and row["working"] else 0.0))


def unfinished(datastore: Datastore) -> list[Erasure]:
    """What was begun and not completed, the oldest first."""
    with datastore.reading() as cursor:
        return [Erasure(**row) for row in cursor.execute(_UNFINISHED).fetchall()]


def find(datastore: Datastore, customer_id: str) -> Erasure | None:
    """The erasure of the customer of exactly that id, if it was erased."""
    with datastore.reading() as cursor:
        query = f"SELECT {_COLUMNS} FROM erasures WHERE customer_id = %s"  # noqa: S608 - columns, named above
        row = cursor.execute(query, (customer_id,)).fetchone()
    return None if row is None else Erasure(**row)


def note_done(datastore: Datastore, customer_id: str, step: str) -> None:
    """A step succeeded; done again, it keeps its first instant."""
    with datastore.reading() as cursor:
        cursor.execute(
            "UPDATE erasures SET done = jsonb_build_object(%s::text, clock_timestamp()) || done WHERE customer_id = %s",
            (step, customer_id),
        )


def note_try(datastore: Datastore, customer_id: str, problem: str | None, *, every: Sequence[str]) -> Erasure:
    """What an attempt came to: what it waits for, if anything; it is complete once `every` step is done."""
    with datastore.reading() as cursor:
        row = cursor.execute(_TRIED, (problem, list(every), customer_id)).fetchone()
    if row is None:
        raise LookupError(f"the erasure of {customer_id} was not noted")
    return Erasure(**row)


def last_position(datastore: Datastore, customer_id: str) -> int:
    """Where the customer's last event stands in the log, 0 without one."""
    with datastore.reading() as cursor:
        row = cursor.execute(
            "SELECT max(notification_id) AS last FROM stored_events WHERE customer_id = %s", (customer_id,)
        ).fetchone()
    return (row["last"] if row else None) or 0


def tables_beside(cursor: Connection[DictRow] | Cursor[DictRow]) -> list[str]:
    """The tables beside the log whose rows say by a column whose they are, and go with their customer."""
    return [row["name"] for row in cursor.execute(_BESIDE).fetchall() if row["name"] not in _APART]


def remove_records(datastore: Datastore, customer_id: str) -> None:
    """Delete what is kept of a customer beside the log and the projected tables."""
    with datastore.transaction_cursor() as cursor:
        for table in tables_beside(cursor):
            cursor.execute(SQL("DELETE FROM {} WHERE customer_id = %s").format(Identifier(table)), (customer_id,))
        streams = [customer_stream(customer_id), subscription_stream(customer_id)]
        cursor.execute("DELETE FROM snapshots WHERE stream_id = ANY(%s)", (streams,))
        cursor.execute(_ANSWERS, {"id": customer_id, "named": rf"\m{re.escape(customer_id)}\M"})


def reborn(connection: Connection[DictRow] | Cursor[DictRow], erased: Mapping[str, datetime]) -> Iterator[str]:
    """Those of these customers, each with the instant of its erasure, that the log knows and does not know as erased.

    One that was onboarded after that instant is another customer, of another log: it is not among them.
    """
    streams = {customer_stream(customer_id): at for customer_id, at in erased.items()}
    for row in connection.execute(_PAST, (list(streams),)).fetchall():
        first = envelope_of(StoredEvent(row["originator_id"], 1, row["topic"], bytes(row["state"])))
        if first is None or first.at <= streams[row["originator_id"]]:
            yield row["customer_id"]


def note_imported(connection: Connection[DictRow], erased: Mapping[str, datetime]) -> None:
    """Note the erasures of a log that comes from elsewhere: all of what is to be done is looked after here too."""
    with connection.cursor() as cursor:
        cursor.executemany(_NOTE, [(customer_id, at, at, 0.0) for customer_id, at in erased.items()])


class ErasedCustomers:
    """Which customers were erased, as the log says.

    It is asked in the midst of transactions, as data keys are: the datastore has to be theirs, or another of its own.
    """

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore
        self._known: set[str] = set()
        self._lock = Lock()

    def __contains__(self, customer_id: object) -> bool:
        """Raises `Away` with the database. Asked only where a key is missing, it remembers those that were erased."""
        if not isinstance(customer_id, str):
            return False
        with self._lock:
            if customer_id in self._known:
                return True
        with self._datastore.reading() as cursor:
            row = cursor.execute(_ERASED, (customer_stream(customer_id),), prepare=True).fetchone()
        erased = bool(row and row["erased"])
        if erased:
            with self._lock:
                self._known.add(customer_id)
        return erased
