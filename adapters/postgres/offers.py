"""Workers that have nothing to do offer themselves, and are handed runs as they are asked for."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import DictRow

from adapters.postgres.channels import HANDED
from adapters.postgres.event_log import Datastore
from application.ports import RunOrder
from application.session import Idle, Lease

OFFER_LOCK: Final = 0x0C0F_FEE2
"""With the hash of an offer's id, the advisory lock by which the database knows that who made it lives and listens."""

_LEAST_S: Final = 2.0
_PATIENCE: Final = "200ms"

# An offer whose lock can be had belongs to nobody any more. Those that others are about to take are passed over: nobody
# waits, and runs that are asked for together go to several workers.
_SEEK: Final = (
    "SELECT o.offer_id, o.worker_id FROM idle_workers o WHERE o.free > 0 AND o.expires_at > clock_timestamp()"
    " AND NOT pg_try_advisory_xact_lock_shared(%s, hashtext(o.offer_id::text))"
    " ORDER BY o.free DESC, o.offer_id LIMIT 1 FOR UPDATE OF o SKIP LOCKED"
)
_HAND_OVER: Final = (
    "WITH taken AS (UPDATE idle_workers SET free = free - 1 WHERE offer_id = %(offer)s),"
    " leased AS (INSERT INTO run_leases (run_id, customer_id, worker_id, attempt, expires_at, handed_to)"
    "  VALUES (%(run)s, %(customer)s, %(worker)s, %(attempt)s, clock_timestamp() + make_interval(secs => %(seconds)s),"
    "  %(offer)s))"
    " SELECT pg_notify(%(channel)s, %(offer)s::text)"
)
# What a crash of the server undoes is offered again soon, so nobody waits for the disk. Nor for long for a transaction
# that found the offer and stands still: the worker has other things to do.
_OFFER: Final = (
    "WITH quick AS MATERIALIZED ("
    "  SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', %(patience)s, true)),"
    " forgotten AS (DELETE FROM idle_workers WHERE offer_id IN (SELECT offer_id FROM idle_workers"
    "  WHERE expires_at < clock_timestamp() - interval '1 hour' AND offer_id <> %(offer)s FOR UPDATE SKIP LOCKED))"
    " INSERT INTO idle_workers (offer_id, worker_id, free, expires_at)"
    " SELECT %(offer)s, %(worker)s, %(free)s, clock_timestamp() + make_interval(secs => %(seconds)s) FROM quick"
    " ON CONFLICT (offer_id) DO UPDATE SET free = excluded.free, expires_at = excluded.expires_at"
)
_WITHDRAW: Final = (
    "WITH quick AS MATERIALIZED ("
    "  SELECT set_config('synchronous_commit', 'off', true), set_config('lock_timeout', %(patience)s, true))"
    " DELETE FROM idle_workers USING quick WHERE offer_id = %(offer)s"
)
# Begun from here on, as by the first renewal of a claimed run's lease, and nobody waits for the disk. A server that
# crashed knows only of the seconds that were `left`: until the lease is renewed for good, the run is the worker's for
# no longer. Where too few are left for that, it is not begun.
_TAKE_UP: Final = (
    "WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),"
    " handed AS MATERIALIZED (SELECT l.run_id, l.begun, l.expires_at FROM run_leases l WHERE l.worker_id = %(worker)s"
    "  AND l.handed_to = %(offer)s AND CASE WHEN l.begun THEN %(begun)s AND l.expires_at > clock_timestamp()"
    "   ELSE l.expires_at > clock_timestamp() + make_interval(secs => %(least)s) END"
    "  AND l.run_id <> ALL(%(besides)s) ORDER BY l.begun DESC, l.run_id LIMIT %(most)s FOR UPDATE OF l),"
    " taken AS (UPDATE run_leases l SET expires_at = clock_timestamp() + make_interval(secs => %(seconds)s),"
    "  begun = true FROM handed, quick WHERE l.run_id = handed.run_id"
    "  RETURNING l.run_id, l.attempt, l.stop_asked, handed.begun,"
    "  extract(epoch FROM handed.expires_at - clock_timestamp())::float8 AS left)"
    " SELECT t.run_id, t.attempt, t.stop_asked, t.begun, t.left, r.customer_id, r.provider, r.domain,"
    " r.pipeline_template, r.trigger_type, r.run_date, r.parameters, to_json(c) AS configuration"
    " FROM taken t JOIN scheduled_pipeline_runs r USING (run_id) LEFT JOIN LATERAL ("
    "  SELECT p.source_project_id, p.source_dataset, p.notification_emails FROM customer_provider_configs p"
    "  WHERE (p.customer_id, p.provider, p.domain) = (r.customer_id, r.provider, r.domain) AND p.deleted_at IS NULL"
    "  ORDER BY p.created_at DESC, p.config_id LIMIT 1) AS c ON true"
)


@dataclass(frozen=True, slots=True)
class Handed:
    """A run that was handed over, and that was to be taken up within the `left` seconds.

    `begun`: it was taken up before, and the answer did not come.
    """

    order: RunOrder
    stop_asked: bool
    begun: bool
    left: float


def seek(cursor: Cursor[DictRow]) -> None:
    """Look for an offer: `found` says whether there is one."""
    cursor.execute(_SEEK, (OFFER_LOCK,), prepare=True)


def found(cursor: Cursor[DictRow]) -> Idle | None:
    """What `seek` has come to."""
    rows = cursor.fetchall()
    return Idle(rows[0]["offer_id"], rows[0]["worker_id"]) if rows else None


def hand_over(cursor: Cursor[DictRow], lease: Lease, to: Idle, seconds: float) -> None:
    """The run is the worker's, who hears of it when the transaction commits, and must take it up within `seconds`."""
    wanted = {
        "offer": to.offer_id,
        "run": lease.run_id,
        "customer": lease.customer_id,
        "worker": lease.worker_id,
        "attempt": lease.attempt,
        "seconds": seconds,
        "channel": HANDED,
    }
    cursor.execute(_HAND_OVER, wanted, prepare=True)


def offer(datastore: Datastore, offer_id: UUID, worker_id: str, free: int, seconds: float) -> None:
    """So many runs may be handed to the worker, within so many seconds. Raises `Away` with the database."""
    wanted = {"offer": offer_id, "worker": worker_id, "free": free, "seconds": seconds, "patience": _PATIENCE}
    with datastore.reading() as cursor:
        cursor.execute(_OFFER, wanted, prepare=True)


def withdraw(datastore: Datastore, offer_id: UUID) -> None:
    """Nothing more is handed over once this returns.

    Raises `Away` with the database, and when a transaction that has found the offer does not end.
    """
    with datastore.reading() as cursor:
        cursor.execute(_WITHDRAW, {"offer": offer_id, "patience": _PATIENCE}, prepare=True)


def take_up(
    datastore: Datastore,
    offer_id: UUID,
    worker_id: str,
    seconds: float,
    *,
    most: int = 1000,
    besides: Collection[str] = (),
    begun: bool = False,
) -> Sequence[Handed]:
    """At most so many runs that were handed over and wait to be begun, held for `seconds` from now on.

    With `begun` also those that were taken up, `besides` these. Raises `Away` with the database.
    """
    wanted: dict[str, Any] = {
        "offer": offer_id,
        "worker": worker_id,
        "seconds": seconds,
        "least": _LEAST_S,
        "most": most,
        "besides": list(besides),
        "begun": begun,
    }
    with datastore.reading() as cursor:
        rows = cursor.execute(_TAKE_UP, wanted, prepare=True).fetchall()
    return [Handed(_order(row, worker_id), row["stop_asked"], row["begun"], row["left"]) for row in rows]


def _order(row: DictRow, worker_id: str) -> RunOrder:
    # Handed over are first attempts only, which are never the last.
    return RunOrder(
        run_id=row["run_id"],
        customer_id=row["customer_id"],
        provider=row["provider"],
        domain=row["domain"],
        template=row["pipeline_template"],
        attempt=row["attempt"],
        trigger_type=row["trigger_type"],
        run_date=row["run_date"],
        parameters=row["parameters"],
        configuration=row["configuration"] or {},
        worker_id=worker_id,
    )
