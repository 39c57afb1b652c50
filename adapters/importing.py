"""Importing an archive into an empty store: all of it or nothing, with what the log does not say made up for."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, zip_longest
from pathlib import Path
from typing import Final, NoReturn

import psycopg
from eventsourcing.persistence import Notification
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composed, Identifier

from adapters.archive.manifest import Damaged, EventLine
from adapters.archive.reading import Archive
from adapters.archive.writing import replace
from adapters.bootstrap import key_wrapper
from adapters.kms.local import KeyFileRefused
from adapters.kms.vault import EnvelopeVault, StoredKey
from adapters.postgres import channels, erasures, schema
from adapters.postgres.beside import TEMPORARY, Beside
from adapters.postgres.maintenance import maintenance
from adapters.process import Unable
from adapters.progress import Tell, untold
from adapters.settings import Settings
from application.mapper import EventMapper, UnreadableEvent, envelope_of
from application.ports import KeyWrapper
from domain.projection import NOTIFICATIONS, POSTGRES, EventSkipped
from projections.follow import Placed
from projections.tables import CENTRAL

_PAGE: Final = 5_000
_KEPT: Final = ("stored_events", "data_keys", "log_seals", "snapshots", "run_leases", "erasures")
"""What has to be empty beside the projected tables."""

_LOCK: Final = "LOCK TABLE stored_events, data_keys, log_seals, checkpoints IN SHARE ROW EXCLUSIVE MODE"
_MAY: Final = (
    "SELECT has_sequence_privilege(pg_get_serial_sequence('stored_events', 'notification_id'), 'UPDATE') AS may"
)
_EVENTS: Final = (
    "COPY stored_events (notification_id, originator_id, originator_version, topic, state, customer_id)"
    " FROM STDIN (FORMAT BINARY)"
)
_SEALS: Final = (
    "COPY log_seals (last_position, first_position, events, digests, hash, sealed_at) FROM STDIN (FORMAT BINARY)"
)
_DATA_KEYS: Final = (
    "COPY imported_keys (customer_id, purpose, wrapped, created_at, name, version, retired_at, seals_personal)"
    " FROM STDIN (FORMAT BINARY)"
)
_KEYS_OF: Final = (
    "SELECT purpose, wrapped, name, retired_at, seals_personal FROM imported_keys WHERE customer_id = lower(%s)"
    " ORDER BY created_at DESC"
)
_SET_POSITION: Final = "SELECT setval(pg_get_serial_sequence('stored_events', 'notification_id'), %s)"
# Their workers are not of this store: as if all of them had died, their runs are taken over.
_LEASES: Final = (
    "INSERT INTO run_leases (run_id, customer_id, worker_id, attempt, expires_at, begun)"
    " SELECT run_id, customer_id, worker_id, attempt, clock_timestamp(), true FROM {} WHERE state = 'RUNNING'"
)
_PASSED: Final = (
    "INSERT INTO checkpoints (projection, position) VALUES (%s, %s)"
    " ON CONFLICT (projection) DO UPDATE SET position = excluded.position, updated_at = clock_timestamp()"
)
_WAKE: Final = "SELECT pg_notify(channel, '') FROM unnest(%s::text[]) AS c(channel)"


@dataclass(frozen=True, slots=True)
class Imported:
    """What is in the store now."""

    directory: str
    customer_id: str | None
    events: int
    last_position: int
    hash: str
    rows: int
    """In all operational tables."""
    running: int
    """Runs that were running when the log ended: they are taken over, at the cost of an attempt."""


def restore(dsn: str, archive: Archive, settings: Settings, *, tell: Tell = untold) -> Imported:
    """Put the archive's log into the empty store at `dsn`, at the same positions, and make the tables from it.

    Checksums and chain are compared before, and the chain again as the events go in. Needs the login that owns the
    tables, and the wrapping key. Nothing is in the store unless all of it is; signed heads are in their file just
    before that. Raises `Unable` with a sentence, `Away` when the database or the wrapping key is.
    """
    archive.check_files(tell)
    keys = _wrapper(settings, archive)
    with maintenance(dsn, name="import", as_owner=True) as connection:
        importing = _Import(connection, archive)
        importing.must_be_possible(settings.heads_file)
        importing.make_rows(keys, tell)
        with connection.transaction():
            connection.execute(_LOCK)
            importing.must_be_empty()
            done = importing.take_in(tell)
            if archive.manifest.heads is not None:
                settings.heads_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                replace(settings.heads_file, (line + b"\n" for line in archive.heads()))
        importing.count_rows()
    return done


def _wrapper(settings: Settings, archive: Archive) -> KeyWrapper:
    path = settings.data_dir / "keys" / "wrapping.key"
    wrapped = archive.manifest.data_keys
    if settings.kms_keyring is None and wrapped is not None and wrapped.lines and not path.exists():
        raise Unable(f"The wrapping key is not there: copy the one that the log was written with to {path}.")
    try:
        return key_wrapper(settings)
    except (ValueError, KeyFileRefused) as error:
        raise Unable(str(error)) from error


class _Keys:
    """The archive's data keys, in a table that ends with the connection."""

    def __init__(self, connection: Connection[DictRow], archive: Archive) -> None:
        self._connection = connection
        connection.execute("CREATE TEMPORARY TABLE imported_keys (LIKE data_keys INCLUDING INDEXES)")
        with (
            connection.cursor() as cursor,
            cursor.copy(_DATA_KEYS) as copy,
        ):
            copy.set_types(["text", "text", "bytea", "timestamptz", "bytea", "text", "timestamptz", "bool"])
            for key in archive.data_keys():
                personal = key.purpose == "credentials" if key.seals_personal is None else key.seals_personal
                row = (key.customer_id, key.purpose, key.wrapped, key.created_at, key.name, key.version)
                copy.write_row((*row, key.retired_at, personal))

    def keys(self, customer_id: str) -> Sequence[StoredKey]:
        rows = self._connection.execute(_KEYS_OF, (customer_id,), prepare=True).fetchall()
        return [
            StoredKey(
                purpose=row["purpose"],
                wrapped=bytes(row["wrapped"]),
                name=None if row["name"] is None else bytes(row["name"]),
                retired=row["retired_at"] is not None,
                seals_personal=row["seals_personal"],
            )
            for row in rows
        ]

    def get(self, customer_id: str, purpose: str) -> bytes | None:
        """The one that seals."""
        found = (key.wrapped for key in self.keys(customer_id) if key.purpose == purpose and not key.retired)
        return next(found, None)

    def _refused(self, customer_id: str, *_: object, **__: object) -> NoReturn:
        raise ValueError(f"The data keys of {customer_id} are only read here: reading a log makes and changes none.")

    add = replace = delete = _refused


class _Import:
    """The steps of one import, on one connection: tables of its own first, then everything in one transaction."""

    def __init__(self, connection: Connection[DictRow], archive: Archive) -> None:
        self._connection = connection
        self._archive = archive
        self._erased: dict[str, datetime] = {}
        row = connection.execute("SELECT current_schema() AS live").fetchone()
        self._live = row["live"] if row else "public"

    def _named(self, table: str) -> Identifier:
        return Identifier(self._live, table)

    def _value(self, query: Composed | SQL) -> object:
        row = self._connection.execute(query).fetchone()
        return next(iter(row.values())) if row else None

    def must_be_possible(self, heads_file: Path) -> None:
        if not schema.is_current(self._connection):
            raise Unable("The database's schema is not this version's: run `convergence migrate` first.")
        if not self._value(SQL(_MAY)):
            raise Unable(
                "The database's login may not set positions: import as the one that runs `convergence migrate`."
            )
        self.must_be_empty()
        if heads_file.exists() and heads_file.stat().st_size:
            with heads_file.open("rb") as standing:
                for found, wanted in zip_longest(standing, self._archive.heads()):
                    if found is None or wanted is None or found.rstrip() != wanted:
                        raise Unable(f"{heads_file} holds signed heads of another log: move it away.")

    def must_be_empty(self) -> None:
        """Raises `Unable` when there is anything that an import could contradict."""
        for name in (*_KEPT, *(table.name for table in CENTRAL)):
            if self._value(SQL("SELECT EXISTS (SELECT FROM {})").format(self._named(name))):
                raise Unable(f"The store is not empty, {name} has rows: import into one that was never used.")

    def make_rows(self, keys: KeyWrapper, tell: Tell) -> None:
        """Compare the chain, and make all rows of the operational tables, for nobody else to see."""
        mapper = EventMapper(EnvelopeVault(keys, _Keys(self._connection, self._archive)), self._erased.__contains__)
        skipped = self._skipped(mapper, tell)
        beside = Beside(self._connection, TEMPORARY, CENTRAL)
        beside.create()
        for page in self._pages(tell):
            beside.write(_placed(mapper, page, skipped))
        self._beside = beside

    def _skipped(self, mapper: EventMapper, tell: Tell) -> frozenset[int]:
        """The events that an operator had the operational tables pass over. On the way, who was erased is noted."""
        skipped = set()
        for line, _ in self._archive.events(tell, "Chain"):
            if line.topic.startswith("customer.erased@") and (envelope := envelope_of(_stored(line))) is not None:
                self._erased[envelope.customer_id] = envelope.at
            if line.topic.startswith("projection."):
                decoded = [recorded.event for recorded in mapper.to_domain_events(_stored(line))]
                skipped |= {e.position for e in decoded if isinstance(e, EventSkipped) and e.projection == POSTGRES}
        return frozenset(skipped)

    def _pages(self, tell: Tell) -> Iterator[list[EventLine]]:
        lines = (line for line, _ in self._archive.events(tell, "Rows"))
        while page := list(islice(lines, _PAGE)):
            yield page

    def take_in(self, tell: Tell) -> Imported:
        """Everything into the store, in the transaction that the caller began."""
        manifest = self._archive.manifest
        self._copy_events(tell)
        rows = 0
        for number, table in enumerate(CENTRAL, 1):
            columns = SQL(", ").join(map(Identifier, (*table.names, "position")))
            insert = SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {}").format(
                self._named(table.name), self._beside.named(table.name), columns=columns
            )
            rows += self._connection.execute(insert).rowcount
            tell("Tables", number, len(CENTRAL))
        self._connection.execute(SQL("INSERT INTO data_keys SELECT * FROM imported_keys"))
        erasures.note_imported(self._connection, self._erased)
        running = self._connection.execute(SQL(_LEASES).format(self._named("scheduled_pipeline_runs"))).rowcount
        if manifest.events:
            self._connection.execute(_SET_POSITION, (manifest.last_position,))
            # Customers have been told of all of it. Every other projection reads the log from its beginning.
            self._connection.execute(_PASSED, (NOTIFICATIONS, manifest.last_position))
        self._connection.execute(_WAKE, ([channels.LOG, channels.QUEUE, channels.SCHEDULES],))
        return Imported(
            directory=str(self._archive.directory),
            customer_id=manifest.customer_id,
            events=manifest.events,
            last_position=manifest.last_position,
            hash=manifest.hash.hex(),
            rows=rows,
            running=running,
        )

    def _copy_events(self, tell: Tell) -> None:
        try:
            with self._connection.cursor() as cursor, cursor.copy(_EVENTS) as copy:
                copy.set_types(["int8", "uuid", "int8", "text", "bytea", "text"])
                for e, _ in self._archive.events(tell, "Log"):
                    copy.write_row((e.position, e.stream_id, e.version, e.topic, e.stored, e.customer_id))
            with self._connection.cursor() as cursor, cursor.copy(_SEALS) as copy:
                copy.set_types(["int8", "int8", "int4", "bytea", "bytea", "timestamptz"])
                for s in self._archive.seals():
                    copy.write_row((s.last_position, s.first_position, s.events, s.digests, s.hash, s.sealed_at))
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            reason = type(error).__name__
            raise Damaged(
                f"{self._archive.directory} holds what no log has ({reason}): nothing was imported."
            ) from error

    def count_rows(self) -> None:
        """Tell the planner what the tables are like now."""
        for name in (*_KEPT, *(table.name for table in CENTRAL)):
            self._connection.execute(SQL("ANALYZE {}").format(self._named(name)))


def _stored(line: EventLine) -> Notification:
    return Notification(
        id=line.position,
        originator_id=line.stream_id,
        originator_version=line.version,
        topic=line.topic,
        state=line.stored,
    )


def _placed(mapper: EventMapper, page: list[EventLine], skipped: Collection[int]) -> list[Placed]:
    placed: list[Placed] = []
    for line in page:
        if line.position in skipped:
            continue
        try:
            placed += [Placed(r.event, r.envelope) for r in mapper.to_domain_events(_stored(line))]
        except UnreadableEvent as error:
            raise Unable(f"The tables cannot be made from position {line.position} on. {error}") from error
    return placed
