"""What is known of one customer, in files that a person can read: to be given to them when they ask for it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.sql import SQL, Identifier

from adapters.bootstrap import Service
from adapters.event_views import event_view
from adapters.postgres.maintenance import maintenance
from adapters.process import Unable
from adapters.progress import Tell, untold
from application.mapper import Recorded
from application.shown import NEVER
from domain.customer import Status
from projections.rows import Table, Type
from projections.tables import CENTRAL

EVENTS: Final = "events.jsonl"
_PAGE: Final = 1_000
_SECRET: Final = NEVER | {"api_key_hash"}
"""Hashes; ciphertexts are told by their type."""


@dataclass(frozen=True, slots=True)
class Readable:
    """What was written: how many lines each file has."""

    directory: str
    customer_id: str
    lines: dict[str, int]


def export_readable(service: Service, customer_id: str, directory: Path, *, tell: Tell = untold) -> Readable:
    """Write a file of JSON lines for each table that has rows of the customer, and one for its audit trail.

    Names and e-mails are in clear, secrets, their hashes and ciphertexts nowhere. Nobody but the owner of the files can
    read them. The directory must be empty, or not there yet. Raises `Unable` when it is not, or when there is no such
    customer, and `Away` with the database or the keys.
    """
    tables = [table for table in CENTRAL if "customer_id" in table.names]
    lines: dict[str, int] = {}
    with maintenance(service.dsn, name="readable") as connection:
        _must_be_there(connection, customer_id)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise Unable(f"{directory} is not empty: choose a directory of its own.")
        directory.chmod(0o700)
        for number, table in enumerate(tables, 1):
            path = directory / f"{table.name}.jsonl"
            count = _write(path, _rows(connection, table, customer_id))
            if count:
                lines[path.name] = count
            else:
                path.unlink()
            tell("Tables", number, len(tables))
    lines[EVENTS] = _write(directory / EVENTS, _events(service, customer_id, tell))
    return Readable(str(directory), customer_id, lines)


def _must_be_there(connection: Connection[DictRow], customer_id: str) -> None:
    query = "SELECT status FROM customer_profiles WHERE customer_id = %s"
    found = connection.execute(query, (customer_id,)).fetchone()
    if found is None:
        raise Unable(f"There is no customer {customer_id}.")
    if found["status"] == Status.ERASED:
        raise Unable(f"{customer_id} was erased: nothing is left to be given to anybody.")


def _write(path: Path, lines: Iterator[Any]) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    count = 0
    with os.fdopen(descriptor, "wb") as file:
        for line in lines:
            file.write(msgspec.json.encode(line) + b"\n")
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def _rows(connection: Connection[DictRow], table: Table, customer_id: str) -> Iterator[dict[str, Any]]:
    """The customer's rows of the table in the order of their keys; memory stays flat."""
    columns = [c.name for c in table.columns if c.type is not Type.BYTES and c.name not in _SECRET]
    query = SQL("SELECT {} FROM {} WHERE customer_id = %s ORDER BY {}").format(
        SQL(", ").join(map(Identifier, columns)),
        Identifier(table.name),
        SQL(", ").join(map(Identifier, table.key)),
    )
    with connection.transaction(), connection.cursor("readable") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(query, (customer_id,))
        yield from cursor


def _events(service: Service, customer_id: str, tell: Tell) -> Iterator[dict[str, Any]]:
    """The customer's audit trail, oldest first, as the customer is shown it."""
    after = done = 0
    while placed := service.log.read_of(customer_id, after, _PAGE):
        for p in placed:
            yield event_view(Recorded(cast("Any", p.event), p.at), for_operators=False).model_dump(mode="json")
        after = placed[-1].at.position
        done += len(placed)
        tell("Events", done, done)
