"""The log and its rows in one transaction: what use cases find, lock, load and append."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from eventsourcing.persistence import StoredEvent
from psycopg.rows import DictRow

from adapters.postgres import billing, channels, claims, due, erasures, offers, rows
from adapters.postgres.event_log import Datastore, EventRecorder, PipelinedCursor
from adapters.postgres.json_rows import json_of
from adapters.postgres.requests import KEPT
from application.mapper import Recorded
from application.session import DueAccount, DuePipeline, From, Idle, Lane, Lease, Locked, Session, Snapshot
from domain.projection import Stop
from projections.fold import fold
from projections.project import central_rows
from projections.rows import Change

# A snapshot has no topic; in the order of versions it comes before the events after it. Lists of ids and numbers are
# sent as one text here: the driver makes arrays element by element. Each stream is looked up by itself, OFFSET 0 says:
# no plan, made when the log was short, may read more of it than the events that are asked for.
_LOAD: Final = (
    b"WITH wanted AS MATERIALIZED (SELECT w.id, s.version, s.state, s.shape, coalesce(s.version, w.after) AS after FROM"
    b" unnest(string_to_array(%s, ',')::uuid[], string_to_array(%s, ',')::integer[],"
    b" string_to_array(%s, ',')::bigint[]) AS w(id, shape, after) LEFT JOIN LATERAL (SELECT k.version, k.state, k.shape"
    b"  FROM snapshots k WHERE k.stream_id = w.id AND k.shape = w.shape OFFSET 0) AS s ON true)"
    b" SELECT id, version, NULL AS topic, state, shape FROM wanted WHERE version IS NOT NULL"
    b" UNION ALL"
    b" SELECT w.id, e.version, e.topic, e.state, 0 FROM wanted w CROSS JOIN LATERAL ("
    b"  SELECT l.originator_version AS version, l.topic, l.state FROM stored_events l"
    b"  WHERE l.originator_id = w.id AND l.originator_version > w.after OFFSET 0) AS e"
    b" ORDER BY 1, 2"
)
_CONFIGURATIONS: Final = (
    "SELECT DISTINCT ON (c.customer_id, c.provider, c.domain) c.customer_id, c.provider, c.domain,"
    " c.source_project_id, c.source_dataset, c.notification_emails"
    " FROM unnest(%s::text[], %s::text[], %s::text[]) AS w(customer_id, provider, domain)"
    " JOIN customer_provider_configs c USING (customer_id, provider, domain) WHERE c.deleted_at IS NULL"
    " ORDER BY c.customer_id, c.provider, c.domain, c.created_at DESC, c.config_id"
)
_UNFINISHED: Final = (
    "SELECT run_id FROM scheduled_pipeline_runs WHERE customer_id = %s AND state IN ('PENDING', 'RUNNING')"
    " AND run_id <> ALL(%s) ORDER BY run_id"
)
_TAKE_LEASES: Final = (
    "INSERT INTO run_leases (run_id, customer_id, worker_id, attempt, expires_at)"
    " SELECT l.*, clock_timestamp() + make_interval(secs => %s)"
    " FROM json_to_recordset(%s) AS l(run_id text, customer_id text, worker_id text, attempt integer)"
    " ON CONFLICT (run_id) DO UPDATE SET worker_id = excluded.worker_id, attempt = excluded.attempt,"
    " expires_at = excluded.expires_at, stop_asked = false, begun = false"
)
# The clock is read after each lock was got: what the last row says is when all of them were held.
_HOLD_CUSTOMERS: Final = (
    "SELECT clock_timestamp() AS at FROM (SELECT 1 FROM customer_subscriptions"
    " WHERE customer_id = ANY(string_to_array(%s, ',')) ORDER BY customer_id FOR UPDATE) AS held"
)
_HOLD_QUEUE: Final = (
    "SELECT 1 AS held FROM pipeline_execution_queue WHERE run_id = ANY(string_to_array(%s, ','))"
    " ORDER BY run_id FOR UPDATE"
)
_HOLD_LEASES: Final = (
    "SELECT 1 AS held FROM run_leases WHERE run_id = ANY(string_to_array(%s, ',')) ORDER BY run_id FOR UPDATE"
)
_TAKE_UP: Final = (
    "INSERT INTO commands_done AS d (command_id, command) VALUES (%s, %s) ON CONFLICT (command_id, command)"
    " DO UPDATE SET done_at = clock_timestamp() WHERE d.done_at < clock_timestamp() - %s RETURNING 1 AS taken"
)
_WAS_TAKEN_UP: Final = (
    "SELECT 1 AS taken FROM commands_done WHERE command_id = %s AND command = %s AND done_at >= clock_timestamp() - %s"
)
_HOLD_CHECKPOINT: Final = (
    "SELECT e.notification_id AS position, e.topic FROM checkpoints c"
    " JOIN stored_events e ON e.notification_id = c.problem_position WHERE c.projection = %s FOR UPDATE OF c"
)
_DROP_LEASES: Final = "DELETE FROM run_leases WHERE run_id = ANY(string_to_array(%s, ','))"
_KEEP_SNAPSHOTS: Final = (
    b"INSERT INTO snapshots (stream_id, version, shape, state) SELECT i, v, f, convert_to(s, 'UTF8')"
    b" FROM json_to_recordset(%s) AS s(i uuid, v bigint, f integer, s text)"
    b" ON CONFLICT (stream_id) DO UPDATE SET version = excluded.version, shape = excluded.shape, state = excluded.state"
)


class PostgresSession(Session):
    """One transaction's cursor, and what can be asked of it."""

    def __init__(self, cursor: PipelinedCursor, recorder: EventRecorder, picker: claims.Picker) -> None:
        self._cursor = cursor
        self._recorder = recorder
        self._picker = picker
        self.appended = False
        self.rekeyed: set[str] = set()

    def _rows(self, sql: Any, parameters: Any) -> list[DictRow]:  # noqa: ANN401 - the driver's own types
        return self._cursor.execute(sql, parameters, prepare=True).fetchall()

    def now(self) -> datetime:
        at: datetime = self._rows("SELECT clock_timestamp() AS at", ())[0]["at"]
        return at

    def take_up(self, command_id: str, command: str) -> bool:
        return bool(self._rows(_TAKE_UP, (command_id, command, KEPT)))

    def was_taken_up(self, command_id: str, command: str) -> bool:
        return bool(self._rows(_WAS_TAKEN_UP, (command_id, command, KEPT)))

    def lock_customers(self, customer_ids: Sequence[str]) -> datetime:
        return self.lock_and_load(customer_ids, {}).since

    def lock_and_load(
        self, customer_ids: Sequence[str], wanted: Mapping[UUID, From], *, seeking: bool = False
    ) -> Locked:
        if not customer_ids:
            return Locked(self.now(), self.load(wanted))
        holding, sought = self._cursor.another(), self._cursor.another()
        holding.execute(_HOLD_CUSTOMERS, (",".join(customer_ids),), prepare=True)
        if seeking:
            offers.seek(sought)
        # What is loaded is what there is once they are held: a statement sees what was committed before it began.
        loaded = self.load(wanted)
        held = holding.fetchall()
        idle = offers.found(sought) if seeking else None
        return Locked(held[-1]["at"] if held else self.now(), loaded, idle)

    def lock_runs(self, run_ids: Sequence[str]) -> None:
        wanted = (",".join(sorted(run_ids)),)
        self._cursor.execute(_HOLD_QUEUE, wanted, prepare=True)
        self._cursor.execute(_HOLD_LEASES, wanted, prepare=True)

    def load(self, wanted: Mapping[UUID, From]) -> Sequence[Snapshot | StoredEvent]:
        if not wanted:
            return []
        shapes, after = zip(*wanted.values(), strict=True)
        asked = [",".join(map(str, values)) for values in (wanted, shapes, after)]
        found = self._cursor.execute(_LOAD, asked, prepare=True, binary=True).fetchall()
        return [
            Snapshot(row["id"], row["version"], row["shape"], row["state"])
            if row["topic"] is None
            else StoredEvent(row["id"], row["version"], row["topic"], row["state"])
            for row in found
        ]

    def append(
        self,
        recorded: Sequence[Recorded],
        stored: Sequence[StoredEvent],
        snapshots: Sequence[Snapshot],
        *,
        new_runs: bool = False,
    ) -> None:
        changes = [
            Change(row, number, r.envelope.customer_id)
            for number, r in enumerate(recorded, 1)
            for row in central_rows(r.event, r.envelope)
        ]
        forgotten, changed = fold(changes)
        writes = rows.writes_of(changed, just_appended=len(stored), new_runs=new_runs)
        if snapshots:
            states = [{"i": s.stream_id, "v": s.version, "f": s.shape, "s": s.state.decode()} for s in snapshots]
            writes.append((_KEEP_SNAPSHOTS, [json_of(states)]))
        # Sent without waiting in between, up to the COMMIT: others wait for the log's lock until all of it is done.
        # All that a customer has may take seconds to delete, and who deletes it has locked the customer.
        for statement, parameters in rows.deletes_of(forgotten, just_appended=True):
            self._cursor.execute(statement, parameters)
        self._recorder.append(self._cursor, stored, [r.envelope.customer_id for r in recorded])
        for statement, parameters in writes:
            self._cursor.execute(statement, parameters, prepare=True)
        self.rekeyed |= channels.announce(self._cursor, recorded)
        self.appended = True

    def due_customers(
        self, now: datetime, limit: int, lane: Lane, besides: Collection[str] = frozenset()
    ) -> Mapping[str, int]:
        return due.customers(self._cursor, now, limit, lane, besides)

    def due_pipelines(
        self, customer_ids: Sequence[str], now: datetime, limit: int, besides: Collection[str] = frozenset()
    ) -> Sequence[DuePipeline]:
        return due.pipelines(self._cursor, customer_ids, now, limit, besides)

    def overlapped_runs(self, customer_ids: Sequence[str], now: datetime) -> Mapping[str, Sequence[str]]:
        return due.overlapped_runs(self._cursor, customer_ids, now)

    def claimable_runs(self, limit: int, run_id: str | None) -> Sequence[tuple[str, str]]:
        if run_id is not None:
            return claims.lock_named(self._cursor, run_id)
        return self._picker.lock_next(self._cursor, limit)

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
            self._cursor.execute(_TAKE_LEASES, (seconds, json_of(leases)), prepare=True)

    def hand_over(self, lease: Lease, to: Idle, seconds: float) -> None:
        offers.hand_over(self._cursor, lease, to, seconds)

    def drop_leases(self, run_ids: Sequence[str]) -> None:
        if run_ids:
            self._cursor.execute(_DROP_LEASES, (",".join(run_ids),), prepare=True)

    def ask_to_stop(self, run_ids: Sequence[str]) -> None:
        self._cursor.execute("UPDATE run_leases SET stop_asked = true WHERE run_id = ANY(%s)", (list(run_ids),))

    def expired_leases(self, limit: int, besides: Collection[str] = frozenset()) -> Sequence[Lease]:
        seen = self._rows(
            "SELECT q.run_id FROM run_leases l JOIN pipeline_execution_queue q USING (run_id)"
            " WHERE l.expires_at < (SELECT clock_timestamp()) AND l.run_id <> ALL(%s)"
            " ORDER BY l.expires_at LIMIT %s FOR UPDATE OF q SKIP LOCKED",
            (list(besides), limit),
        )
        found = self._rows(
            "SELECT run_id, customer_id, worker_id, attempt, begun FROM run_leases"
            " WHERE run_id = ANY(%s) AND expires_at < clock_timestamp() ORDER BY run_id FOR UPDATE",
            ([row["run_id"] for row in seen],),
        )
        return [Lease(r["run_id"], r["customer_id"], r["worker_id"], r["attempt"], r["begun"]) for r in found]

    def lock_stop(self, projection: str) -> Stop | None:
        found = self._rows(_HOLD_CHECKPOINT, (projection,))
        return Stop(position=found[0]["position"], topic=found[0]["topic"]) if found else None

    def unfinished_runs(self, customer_id: str, besides: Collection[str] = frozenset()) -> Sequence[str]:
        return [row["run_id"] for row in self._rows(_UNFINISHED, (customer_id, list(besides)))]

    def note_erasure(self, customer_id: str, at: datetime) -> None:
        erasures.note(self._cursor, customer_id, at)

    def lock_billing(self, stripe_customer_id: str) -> None:
        billing.lock(self._cursor, stripe_customer_id)

    def due_billing(self, now: datetime, limit: int, besides: Collection[str] = frozenset()) -> Sequence[DueAccount]:
        return billing.lock_due(self._cursor, now, limit, besides)

    def onboarded_with(self, stripe_customer_id: str) -> Sequence[str]:
        return billing.onboarded_with(self._cursor, stripe_customer_id)

    def running_runs(self, customer_id: str) -> Sequence[str]:
        found = self._rows(
            "SELECT run_id FROM pipeline_execution_queue"
            " WHERE customer_id = %s AND state = 'RUNNING' AND deleted_at IS NULL AND priority > 0",
            (customer_id,),
        )
        return [row["run_id"] for row in found]


class PostgresStore:
    """The log, in PostgreSQL. `picker` chooses what is claimed next."""

    def __init__(self, datastore: Datastore, picker: claims.Picker | None = None) -> None:
        self._datastore = datastore
        self._picker = picker or claims.Picker()
        self.recorder = EventRecorder(datastore)
        self.on_rekeyed: list[Callable[[Collection[str]], None]] = []
        """Told which customers' keys prove something else, before whoever changed that here is answered.

        Other processes hear of it a little later.
        """

    @contextmanager
    def transaction(self) -> Iterator[PostgresSession]:
        with self._datastore.pipelined_cursor() as cursor:
            session = PostgresSession(cursor, self.recorder, self._picker)
            yield session
        if session.appended:
            self._datastore.has_stored()
        if session.rekeyed:
            for tell in self.on_rekeyed:
                tell(session.rekeyed)
