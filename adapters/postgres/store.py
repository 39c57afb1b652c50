"""The log and its rows in one transaction: what use cases find, lock, load and append."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from psycopg import Cursor
from psycopg.rows import DictRow

from adapters.postgres import channels, claims, rows
from adapters.postgres.event_log import Datastore, EventRecorder
from application.mapper import Recorded
from application.platform import DuePipeline, Lease, Session, Snapshot
from projections.project import changes_of

_EVENTS: Final = (
    "SELECT e.originator_id, e.originator_version, e.topic, e.state"
    " FROM unnest(%s::uuid[], %s::bigint[]) AS wanted(id, after)"
    " JOIN stored_events e ON e.originator_id = wanted.id AND e.originator_version > wanted.after"
    " ORDER BY e.originator_id, e.originator_version"
)
_DUE_CUSTOMERS: Final = (
    "SELECT DISTINCT customer_id FROM (SELECT customer_id FROM customer_pipeline_configs"
    " WHERE is_active AND deleted_at IS NULL AND next_run_time <= %s ORDER BY next_run_time LIMIT %s) AS due"
)
_DUE: Final = (
    "SELECT c.config_id, c.customer_id, c.provider, c.domain, c.pipeline_template, c.schedule_cron, c.timezone,"
    " c.next_run_time, c.date_offset_days, c.catch_up, c.overlap, c.parameters,"
    " CASE WHEN c.overlap = 'queue' THEN 0 ELSE (SELECT count(*) FROM scheduled_pipeline_runs r"
    "  WHERE r.config_id = c.config_id AND r.state IN ('PENDING', 'RUNNING')) END AS active_runs"
    " FROM customer_pipeline_configs c WHERE c.customer_id = ANY(%s) AND c.is_active AND c.deleted_at IS NULL"
    " AND c.next_run_time <= %s ORDER BY c.next_run_time, c.config_id LIMIT %s FOR UPDATE OF c"
)
_CONFIGURATIONS: Final = (
    "SELECT DISTINCT ON (c.customer_id, c.provider, c.domain) c.customer_id, c.provider, c.domain,"
    " c.source_project_id, c.source_dataset, c.notification_emails"
    " FROM unnest(%s::text[], %s::text[], %s::text[]) AS w(customer_id, provider, domain)"
    " JOIN customer_provider_configs c USING (customer_id, provider, domain) WHERE c.deleted_at IS NULL"
    " ORDER BY c.customer_id, c.provider, c.domain, c.created_at DESC, c.config_id"
)
_TAKE_LEASES: Final = (
    "INSERT INTO run_leases (run_id, customer_id, worker_id, attempt, expires_at)"
    " SELECT *, clock_timestamp() + make_interval(secs => %s)"
    " FROM unnest(%s::text[], %s::text[], %s::text[], %s::integer[])"
    " ON CONFLICT (run_id) DO UPDATE SET worker_id = excluded.worker_id, attempt = excluded.attempt,"
    " expires_at = excluded.expires_at, stop_asked = false, begun = false"
)


class PostgresSession(Session):
    """One transaction's cursor, and what can be asked of it."""

    def __init__(self, cursor: Cursor[DictRow], recorder: EventRecorder) -> None:
        self._cursor = cursor
        self._recorder = recorder

    def _rows(self, sql: Any, parameters: Any) -> list[DictRow]:  # noqa: ANN401 - the driver's own types
        return self._cursor.execute(sql, parameters, prepare=True).fetchall()

    def now(self) -> datetime:
        at: datetime = self._rows("SELECT clock_timestamp() AS at", ())[0]["at"]
        return at

    def lock_customers(self, customer_ids: Sequence[str]) -> None:
        if customer_ids:
            self._rows(
                "SELECT 1 AS held FROM customer_subscriptions WHERE customer_id = ANY(%s)"
                " ORDER BY customer_id FOR UPDATE",
                (list(customer_ids),),
            )

    def lock_runs(self, run_ids: Sequence[str]) -> None:
        wanted = (sorted(run_ids),)
        self._rows(
            "SELECT 1 AS held FROM pipeline_execution_queue WHERE run_id = ANY(%s) ORDER BY run_id FOR UPDATE", wanted
        )
        self._rows("SELECT 1 AS held FROM run_leases WHERE run_id = ANY(%s) ORDER BY run_id FOR UPDATE", wanted)

    def events(self, after: Mapping[UUID, int]) -> Sequence[StoredEvent]:
        found = self._rows(_EVENTS, (list(after.keys()), list(after.values())))
        return [
            StoredEvent(
                originator_id=row["originator_id"],
                originator_version=row["originator_version"],
                topic=row["topic"],
                state=bytes(row["state"]),
            )
            for row in found
        ]

    def snapshots(self, stream_ids: Sequence[UUID]) -> Sequence[Snapshot]:
        found = self._rows(
            "SELECT stream_id, version, shape, state FROM snapshots WHERE stream_id = ANY(%s)", (list(stream_ids),)
        )
        return [Snapshot(r["stream_id"], r["version"], r["shape"], bytes(r["state"])) for r in found]

    def append(
        self, recorded: Sequence[Recorded], stored: Sequence[StoredEvent], snapshots: Sequence[Snapshot]
    ) -> None:
        positions = self._recorder.append(self._cursor, stored)
        placed = [
            Recorded(r.event, replace(r.envelope, position=position))
            for r, position in zip(recorded, positions, strict=True)
        ]
        self._cursor.execute(
            "INSERT INTO customer_events (customer_id, position) SELECT * FROM unnest(%s::text[], %s::bigint[])",
            ([r.envelope.customer_id for r in placed], positions),
            prepare=True,
        )
        rows.write(self._cursor, [change for r in placed for change in changes_of(r.event, r.envelope)])
        if snapshots:
            self._cursor.execute(
                "INSERT INTO snapshots (stream_id, version, shape, state)"
                " SELECT * FROM unnest(%s::uuid[], %s::bigint[], %s::integer[], %s::bytea[])"
                " ON CONFLICT (stream_id) DO UPDATE"
                " SET version = excluded.version, shape = excluded.shape, state = excluded.state",
                (
                    [s.stream_id for s in snapshots],
                    [s.version for s in snapshots],
                    [s.shape for s in snapshots],
                    [s.state for s in snapshots],
                ),
            )
        channels.announce(self._cursor, placed)

    def due_customers(self, now: datetime, limit: int) -> Sequence[str]:
        return [row["customer_id"] for row in self._rows(_DUE_CUSTOMERS, (now, limit))]

    def due_pipelines(self, customer_ids: Sequence[str], now: datetime, limit: int) -> Sequence[DuePipeline]:
        return [
            DuePipeline(
                config_id=row["config_id"],
                customer_id=row["customer_id"],
                provider=row["provider"],
                domain=row["domain"],
                template=row["pipeline_template"],
                cron=row["schedule_cron"],
                timezone=row["timezone"],
                next_run_time=row["next_run_time"],
                date_offset_days=row["date_offset_days"],
                catch_up=row["catch_up"],
                overlap=row["overlap"],
                parameters=row["parameters"],
                active_runs=row["active_runs"],
            )
            for row in self._rows(_DUE, (list(customer_ids), now, limit))
        ]

    def claimable_runs(self, limit: int, run_id: str | None) -> Sequence[tuple[str, str]]:
        return claims.lock_next(self._cursor, limit) if run_id is None else claims.lock_named(self._cursor, run_id)

    def configurations(
        self, wanted: Iterable[tuple[str, str, str]]
    ) -> Mapping[tuple[str, str, str], Mapping[str, Any]]:
        listed = sorted(wanted)
        columns = [[w[i] for w in listed] for i in range(3)]
        return {
            (row["customer_id"], row["provider"], row["domain"]): {
                "source_project_id": row["source_project_id"],
                "source_dataset": row["source_dataset"],
                "notification_emails": row["notification_emails"],
            }
            for row in (self._rows(_CONFIGURATIONS, columns) if listed else [])
        }

    def take_leases(self, leases: Sequence[Lease], seconds: float) -> None:
        if leases:
            self._cursor.execute(
                _TAKE_LEASES,
                (
                    seconds,
                    [lease.run_id for lease in leases],
                    [lease.customer_id for lease in leases],
                    [lease.worker_id for lease in leases],
                    [lease.attempt for lease in leases],
                ),
                prepare=True,
            )

    def drop_leases(self, run_ids: Sequence[str]) -> None:
        if run_ids:
            self._cursor.execute("DELETE FROM run_leases WHERE run_id = ANY(%s)", (list(run_ids),), prepare=True)

    def ask_to_stop(self, run_id: str) -> None:
        self._cursor.execute("UPDATE run_leases SET stop_asked = true WHERE run_id = %s", (run_id,))

    def expired_leases(self, limit: int) -> Sequence[Lease]:
        seen = self._rows(
            "SELECT q.run_id FROM run_leases l JOIN pipeline_execution_queue q USING (run_id)"
            " WHERE l.expires_at < clock_timestamp() ORDER BY l.expires_at LIMIT %s FOR UPDATE OF q SKIP LOCKED",
            (limit,),
        )
        found = self._rows(
            "SELECT run_id, customer_id, worker_id, attempt, begun FROM run_leases"
            " WHERE run_id = ANY(%s) AND expires_at < clock_timestamp() ORDER BY run_id FOR UPDATE",
            ([row["run_id"] for row in seen],),
        )
        return [Lease(r["run_id"], r["customer_id"], r["worker_id"], r["attempt"], r["begun"]) for r in found]

    def running_runs(self, customer_id: str) -> Sequence[str]:
        found = self._rows(
            "SELECT run_id FROM pipeline_execution_queue"
            " WHERE customer_id = %s AND state = 'RUNNING' AND deleted_at IS NULL AND priority > 0",
            (customer_id,),
        )
        return [row["run_id"] for row in found]


class PostgresStore:
    """The log, in PostgreSQL."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore
        self.recorder = EventRecorder(datastore)

    @contextmanager
    def transaction(self) -> Iterator[PostgresSession]:
        with self._datastore.transaction_cursor() as cursor:
            yield PostgresSession(cursor, self.recorder)
