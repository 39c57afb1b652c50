"""Rebuilds of projected tables, each a row: who asked for it and why, how far it is, what it found and mended."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from adapters.postgres.event_log import Datastore
from domain.refusals import Conflict
from projections.follow import Overtaken
from projections.targets import Target


class State(StrEnum):
    """REQUESTED until a process takes it up, then at one of its stages; DONE and FAILED are ends."""

    REQUESTED = "REQUESTED"
    BUILDING = "BUILDING"
    LOADING = "LOADING"
    COMPARING = "COMPARING"
    SWAPPING = "SWAPPING"
    DONE = "DONE"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """One rebuild as it stands. `position` is how far the log was read; `error` a sentence free of secrets."""

    rebuild_id: UUID
    tables: tuple[str, ...]
    target: Target
    state: State
    asked_by: str
    reason: str | None
    asked_at: datetime
    started_at: datetime | None
    updated_at: datetime
    ended_at: datetime | None
    version: str | None
    position: int
    log_end: int
    warehouse_swapped: bool
    loaded: Mapping[str, int]
    """Rows loaded into BigQuery, for each table, those of all datasets added up."""
    differences: Mapping[str, Mapping[str, int]]
    """For each table of PostgreSQL how many live rows were `changed`, `missing` and `extra`, where any were."""
    error: str | None


_COLUMNS: Final = ", ".join(Rebuild.__dataclass_fields__)
_ASK: Final = (
    "INSERT INTO rebuilds (rebuild_id, tables, target, asked_by, reason) VALUES (%s, %s, %s, %s, %s)"  # noqa: S608
    f" ON CONFLICT DO NOTHING RETURNING {_COLUMNS}"
)
_UNFINISHED: Final = f"SELECT {_COLUMNS} FROM rebuilds WHERE ended_at IS NULL"  # noqa: S608
_NEWEST: Final = f"SELECT {_COLUMNS} FROM rebuilds ORDER BY asked_at DESC LIMIT %s"  # noqa: S608
_ONE: Final = f"SELECT {_COLUMNS} FROM rebuilds WHERE rebuild_id = %s"  # noqa: S608


def ask(
    datastore: Datastore,
    rebuild_id: str,
    *,
    tables: Collection[str],
    target: Target,
    asked_by: str,
    reason: str | None,
) -> Rebuild:
    """Record that somebody wants these tables rebuilt; with an id that is known, that is how that one stands.

    Raises `Conflict` while another rebuild is not finished.
    """
    with datastore.reading() as cursor:
        row = cursor.execute(_ASK, (rebuild_id, sorted(tables), target, asked_by, reason)).fetchone()
        row = row or cursor.execute(_ONE, (rebuild_id,)).fetchone()
    if row is None:
        raise Conflict("A rebuild is not finished yet: there is one at a time.")
    return _rebuild(row)


def unfinished(datastore: Datastore) -> Rebuild | None:
    """The rebuild that is waiting, being done, or was left by a process that ended."""
    with datastore.reading() as cursor:
        row = cursor.execute(_UNFINISHED).fetchone()
    return None if row is None else _rebuild(row)


def newest(datastore: Datastore, limit: int = 1) -> list[Rebuild]:
    """The rebuilds asked for last, the newest first."""
    with datastore.reading() as cursor:
        return [_rebuild(row) for row in cursor.execute(_NEWEST, (limit,))]


def find(connection: Connection[DictRow], rebuild_id: UUID) -> Rebuild:
    """Raises `LookupError`."""
    row = connection.execute(_ONE, (rebuild_id,)).fetchone()
    if row is None:
        raise LookupError(f"there is no rebuild {rebuild_id}")
    return _rebuild(row)


def begin(connection: Connection[DictRow], rebuild_id: UUID, version: str) -> None:
    """From now on it is built, from the log's beginning, by this version of the code."""
    connection.execute(
        "UPDATE rebuilds SET state = %s, version = %s, position = 0, loaded = '{}', differences = '{}',"
        " warehouse_swapped = false, updated_at = clock_timestamp(),"
        " started_at = coalesce(started_at, clock_timestamp()) WHERE rebuild_id = %s",
        (State.BUILDING, version, rebuild_id),
    )


def advance(connection: Connection[DictRow], rebuild_id: UUID, expected: int, to: int, log_end: int) -> None:
    """Move its checkpoint, in the transaction of the rows; raises `Overtaken` when another process moved it."""
    done = connection.execute(
        "UPDATE rebuilds SET position = %s, log_end = %s, updated_at = clock_timestamp()"
        " WHERE rebuild_id = %s AND position = %s AND ended_at IS NULL",
        (to, log_end, rebuild_id, expected),
        prepare=True,
    )
    if done.rowcount != 1:
        raise Overtaken(f"rebuild {rebuild_id}")


def note(connection: Connection[DictRow], rebuild_id: UUID, **columns: Any) -> None:  # noqa: ANN401 - its columns
    """Set its `state`, `loaded`, `differences` or `warehouse_swapped`; raises `Overtaken` when it has ended."""
    values = {name: Jsonb(value) if isinstance(value, Mapping) else value for name, value in columns.items()}
    sets = "".join(f", {name} = %({name})s" for name in values)
    done = connection.execute(
        f"UPDATE rebuilds SET updated_at = clock_timestamp(){sets}"  # noqa: S608
        " WHERE rebuild_id = %(rebuild_id)s AND ended_at IS NULL",
        {**values, "rebuild_id": rebuild_id},
    )
    if done.rowcount != 1:
        raise Overtaken(f"rebuild {rebuild_id}")


def end(connection: Connection[DictRow], rebuild_id: UUID, state: State, error: str | None = None) -> None:
    """It is DONE, or FAILED with a sentence; raises `Overtaken` when it had ended before."""
    done = connection.execute(
        "UPDATE rebuilds SET state = %s, error = %s, updated_at = clock_timestamp(), ended_at = clock_timestamp()"
        " WHERE rebuild_id = %s AND ended_at IS NULL",
        (state, error, rebuild_id),
    )
    if done.rowcount != 1:
        raise Overtaken(f"rebuild {rebuild_id}")


def _rebuild(row: DictRow) -> Rebuild:
    return Rebuild(
        **{
            **row,
            "tables": tuple(row["tables"]),
            "target": Target(row["target"]),
            "state": State(row["state"]),
        }
    )
