"""Which customers' readers BigQuery has to be told of, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from adapters.postgres.event_log import Datastore, Reads

AGAIN: Final = timedelta(hours=1)
"""How often BigQuery is told again what it should know: somebody may have changed it there."""
_FIRST_S: Final = 5
_LONGEST_S: Final = 900

_DUE: Final = (
    "SELECT coalesce(r.customer_id, g.customer_id) AS customer_id, coalesce(r.position, g.position) AS position,"
    " coalesce(r.active, '{}') AS active, coalesce(r.revoked, '{}') AS revoked"
    " FROM (SELECT customer_id, max(position) AS position,"
    "   array_agg(principal ORDER BY principal) FILTER (WHERE deleted_at IS NULL) AS active,"
    "   array_agg(principal ORDER BY principal) FILTER (WHERE deleted_at IS NOT NULL) AS revoked"
    "  FROM customer_bigquery_readers WHERE principal IS NOT NULL GROUP BY customer_id) r"
    " FULL JOIN bigquery_grants g ON g.customer_id = r.customer_id"
    # Customers who never had a reader are in neither. One who was erased is only in what BigQuery was told.
    " WHERE r.customer_id IS NULL OR g.customer_id IS NULL OR g.due_at <= clock_timestamp()"
    " OR (r.position > g.position AND g.problem IS NULL)"
    " ORDER BY 2 LIMIT %s"
)
_APPLIED: Final = (
    "INSERT INTO bigquery_grants (customer_id, position, applied_at, due_at)"
    " VALUES (%(customer)s, %(position)s, clock_timestamp(), clock_timestamp() + %(again)s)"
    " ON CONFLICT (customer_id) DO UPDATE SET position = excluded.position, applied_at = excluded.applied_at,"
    " attempts = 0, due_at = excluded.due_at, problem = NULL"
)
_FAILED: Final = (
    "INSERT INTO bigquery_grants AS g (customer_id, position, attempts, due_at, problem)"
    " VALUES (%(customer)s, 0, 1, clock_timestamp() + make_interval(secs => %(first)s), %(problem)s)"
    " ON CONFLICT (customer_id) DO UPDATE SET attempts = g.attempts + 1, problem = excluded.problem,"
    " due_at = clock_timestamp() + make_interval(secs => least(%(first)s * 2 ^ least(g.attempts, 20), %(longest)s))"
)


@dataclass(frozen=True, slots=True)
class Readers:
    """Who may read a customer's data, as of a position of the log, and who may no longer."""

    customer_id: str
    position: int
    active: Sequence[str]
    revoked: Sequence[str]


@dataclass(frozen=True, slots=True)
class Known:
    """Of which grants BigQuery knows, and what keeps it from knowing more."""

    grant_ids: frozenset[str]
    problem: str | None


def due(datastore: Datastore, *, limit: int = 100) -> list[Readers]:
    """The customers whose readers BigQuery does not know, or has not been told of for an hour."""
    with datastore.reading() as cursor:
        rows = cursor.execute(_DUE, (limit,), prepare=True).fetchall()
    return [
        Readers(
            customer_id=row["customer_id"],
            position=row["position"],
            active=row["active"],
            # Who was granted it again may read.
            revoked=sorted(set(row["revoked"]) - set(row["active"])),
        )
        for row in rows
    ]


def applied(datastore: Datastore, readers: Readers) -> None:
    """BigQuery knows these readers."""
    if not readers.active and not readers.revoked:
        with datastore.transaction_cursor() as cursor:
            cursor.execute("DELETE FROM bigquery_grants WHERE customer_id = %s", (readers.customer_id,))
        return
    wanted: Mapping[str, Any] = {"customer": readers.customer_id, "position": readers.position, "again": AGAIN}
    with datastore.transaction_cursor() as cursor:
        cursor.execute(_APPLIED, wanted)


def failed(datastore: Datastore, readers: Readers, problem: str) -> None:
    """BigQuery could not be told: it is tried again after 5 seconds, then half as often each time, up to 15 minutes."""
    wanted = {"customer": readers.customer_id, "problem": problem, "first": _FIRST_S, "longest": _LONGEST_S}
    with datastore.transaction_cursor() as cursor:
        cursor.execute(_FAILED, wanted)


def tell_again(datastore: Datastore) -> None:
    """BigQuery is to be told of everybody's readers again: tables were put in the place of others there."""
    with datastore.transaction_cursor() as cursor:
        cursor.execute("UPDATE bigquery_grants SET due_at = clock_timestamp() WHERE due_at > clock_timestamp()")


def known(reads: Reads, customer_id: str) -> Known:
    """What BigQuery knows of a customer's readers."""
    with reads.reading() as cursor:
        row = cursor.execute(
            "SELECT g.problem, array(SELECT grant_id FROM customer_bigquery_readers r"
            "  WHERE r.customer_id = g.customer_id AND r.position <= g.position AND r.deleted_at IS NULL) AS ids"
            " FROM bigquery_grants g WHERE g.customer_id = %s",
            (customer_id,),
            prepare=True,
        ).fetchone()
    return Known(frozenset(), None) if row is None else Known(frozenset(row["ids"]), row["problem"])
