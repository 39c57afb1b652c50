"""Live tables compared with what they ought to be, row by row, inside the database."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from psycopg import Connection
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.rows import DictRow
from psycopg.sql import SQL, Composed, Identifier

from adapters.postgres.beside import Beside, collation
from adapters.postgres.event_log import LOG_LOCK
from adapters.postgres.json_rows import json_of
from adapters.postgres.schema import TYPES
from projections.rows import Table
from projections.tables import CUSTOMER_PIPELINE_CONFIGS, PIPELINE_EXECUTION_QUEUE

_READ_ROWS: Final = 2_000
_PATIENCE: Final = (
    "SELECT set_config('lock_timeout', '2s', true),"
    # Everybody waits for whoever holds the log: the server ends one that hangs, or that stands still.
    " set_config('statement_timeout', '10s', true), set_config('idle_in_transaction_session_timeout', '3s', true)"
)

Pair = tuple[dict[str, Any] | None, dict[str, Any] | None]
"""A row as it ought to be, and as it is: None for one that is not there."""


class Comparison:
    """The live tables of a database beside what the log says of them, on one connection that nobody else uses.

    With a `customer_id` only that customer's rows count. Instants, dates and bytes are given as text: somebody may
    have put in what Python has no value for.
    """

    def __init__(self, connection: Connection[DictRow], beside: Beside, customer_id: str | None = None) -> None:
        self._connection = connection
        self._beside = beside
        self._customer_id = customer_id
        for kind, loader in (("timestamptz", _InstantText), ("date", _Text), ("bytea", _Hex)):
            connection.adapters.register_loader(kind, loader)
        # Cursors here are read to their end.
        connection.execute("SET cursor_tuple_fraction = 1")

    @contextmanager
    def moment(self, tables: Sequence[Table]) -> Iterator[int]:
        """Within the block the live tables stand still as they are now, with the log up to the position it yields.

        Rows are written in the same transactions as the events they follow from, so that in one snapshot of the
        database they are what exactly those events say. Nobody waits for it, except who would drop a table.
        """
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            for table in tables:
                # Before the snapshot is taken: of a table that is put in place after it, it would show no rows.
                self._connection.execute(SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(self._live(table)))
            yield self._end()

    def _end(self) -> int:
        row = self._connection.execute("SELECT coalesce(max(notification_id), 0) AS e FROM stored_events").fetchone()
        return int(row["e"]) if row else 0

    def prepare(self, tables: Sequence[Table]) -> None:
        """Let the planner know how much was written beside."""
        for table in tables:
            self._connection.execute(SQL("ANALYZE {}").format(self._beside.named(table.name)))

    def differing(self, table: Table, keys: Sequence[tuple[Any, ...]] | None = None) -> Iterator[Pair]:
        """The rows that are not what they ought to be, in the order of their keys; of all, or of those with these keys.

        Only they leave the database.
        """
        columns = [*table.names, "position"]
        sides = {
            name: SQL(", ").join(SQL("{}.{}").format(SQL(name), Identifier(c)) for c in columns) for name in ("e", "l")
        }
        named = SQL(", ").join(
            SQL("{}.{} AS {}").format(SQL(side), Identifier(c), Identifier(f"{side} {c}"))
            for side in ("e", "l")
            for c in columns
        )
        query = SQL(
            "SELECT {named} FROM {expected} AS e FULL JOIN {live} AS l ON {same}"
            " WHERE e.{first} IS NULL OR l.{first} IS NULL OR ROW({e}) IS DISTINCT FROM ROW({l}) ORDER BY {order}"
        ).format(
            named=named,
            expected=self._expected(table, keys),
            live=self._found(table, keys),
            same=_same(table, "e", "l"),
            first=Identifier(table.key[0]),
            e=sides["e"],
            l=sides["l"],
            order=SQL(", ").join(
                SQL("coalesce(e.{0}, l.{0}){1}").format(Identifier(c), collation(table, c)) for c in table.key
            ),
        )
        for row in self._stream(table, query, keys):
            yield _side(row, "e ", columns, table), _side(row, "l ", columns, table)

    def rows(self, table: Table) -> Iterator[dict[str, Any]]:
        """The live rows in the order of their keys, text as its bytes; memory stays flat."""
        order = SQL(", ").join(SQL("l.{}{}").format(Identifier(c), collation(table, c)) for c in table.key)
        yield from self._stream(
            table, SQL("SELECT l.* FROM {} AS l ORDER BY {}").format(self._found(table, None), order)
        )

    def expected(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        """The rows with these keys as they ought to be, in the order of the key."""
        order = SQL(", ").join(SQL("e.{}{}").format(Identifier(c), collation(table, c)) for c in table.key)
        query = SQL("SELECT e.* FROM {} AS e ORDER BY {}").format(self._expected(table, keys), order)
        yield from self._stream(table, query, keys)

    @contextmanager
    def held(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> Iterator[int]:
        """Within the block nothing is appended to the log; yields its end. The block commits, or changes nothing.

        Waits two seconds for each lock and no longer, in the order in which commands take theirs; raises psycopg's
        errors of locks, after which it can be tried again. Who does nothing in it for three seconds has lost it, and
        the connection.
        """
        with self._connection.transaction():
            self._connection.execute(_PATIENCE)
            for statement in self._locks(table):
                self._connection.execute(statement, self._parameters(table, keys))
            self._connection.execute(SQL("SELECT pg_advisory_xact_lock({})").format(LOG_LOCK))
            yield self._end()

    def remove(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> int:
        """Delete those of the live rows with these keys that ought not to be; how many. To be called while `held`."""
        query = SQL(
            "DELETE FROM {live} AS l USING {wanted} WHERE {here}"
            " AND NOT EXISTS (SELECT FROM {beside} AS e WHERE {same})"
        ).format(
            live=self._live(table),
            wanted=self._wanted(table),
            here=_same(table, "l", "w"),
            beside=self._beside.named(table.name),
            same=_same(table, "e", "l"),
        )
        return self._connection.execute(query, self._parameters(table, keys)).rowcount

    def put(self, table: Table, keys: Sequence[tuple[Any, ...]]) -> int:
        """Make the live rows with these keys what they ought to be; how many were not. To be called while `held`."""
        columns = (*table.names, "position")
        others = [c for c in columns if c not in table.key]
        query = SQL(
            "INSERT INTO {live} AS l ({columns}) SELECT {columns} FROM {expected} AS e ON CONFLICT ({key}) DO UPDATE"
            " SET {sets} WHERE ROW({old}) IS DISTINCT FROM ROW({new})"
        ).format(
            live=self._live(table),
            columns=SQL(", ").join(map(Identifier, columns)),
            expected=self._expected(table, keys),
            key=SQL(", ").join(map(Identifier, table.key)),
            sets=SQL(", ").join(SQL("{0} = excluded.{0}").format(Identifier(c)) for c in others),
            old=SQL(", ").join(SQL("l.{}").format(Identifier(c)) for c in others),
            new=SQL(", ").join(SQL("excluded.{}").format(Identifier(c)) for c in others),
        )
        return self._connection.execute(query, self._parameters(table, keys)).rowcount

    def _locks(self, table: Table) -> Iterator[Composed]:
        """What commands that write the rows hold before they take the log's lock, in their order."""
        live, wanted, here = self._live(table), self._wanted(table), _same(table, "l", "w")
        if table is PIPELINE_EXECUTION_QUEUE:
            yield SQL("SELECT 1 FROM {} AS l JOIN {} ON {} ORDER BY l.run_id FOR UPDATE OF l").format(
                live, wanted, here
            )
        if "customer_id" in table.names:
            yield SQL(
                "SELECT 1 FROM {schema}.customer_subscriptions AS c WHERE c.customer_id IN"
                " (SELECT l.customer_id FROM {live} AS l JOIN {wanted} ON {here} UNION"
                " SELECT e.customer_id FROM {beside} AS e JOIN {wanted} ON {there}) ORDER BY c.customer_id FOR UPDATE"
            ).format(
                schema=Identifier(self._beside.live),
                live=live,
                wanted=wanted,
                here=here,
                beside=self._beside.named(table.name),
                there=_same(table, "e", "w"),
            )
        if table is CUSTOMER_PIPELINE_CONFIGS:
            yield SQL("SELECT 1 FROM {} AS l JOIN {} ON {} ORDER BY l.config_id FOR UPDATE OF l").format(
                live, wanted, here
            )

    def _live(self, table: Table) -> Composed:
        return SQL("{}.{}").format(Identifier(self._beside.live), Identifier(table.name))

    def _expected(self, table: Table, keys: Sequence[tuple[Any, ...]] | None) -> Composed:
        named = self._beside.named(table.name)
        if keys is None:
            return named
        return SQL("(SELECT e.* FROM {} AS e JOIN {} ON {})").format(named, self._wanted(table), _same(table, "e", "w"))

    def _found(self, table: Table, keys: Sequence[tuple[Any, ...]] | None) -> Composed:
        live = self._live(table)
        if keys is not None:
            wanted = self._wanted(table)
            return SQL("(SELECT l.* FROM {} AS l JOIN {} ON {})").format(live, wanted, _same(table, "l", "w"))
        if self._customer_id is None:
            return live
        # Also a row of the customer's that somebody gave to another one.
        return SQL(
            "(SELECT l.* FROM {live} AS l WHERE l.customer_id = %(customer_id)s UNION ALL"
            " SELECT l.* FROM {beside} AS e JOIN {live} AS l ON {same}"
            " WHERE l.customer_id IS DISTINCT FROM %(customer_id)s)"
        ).format(live=live, beside=self._beside.named(table.name), same=_same(table, "e", "l"))

    def _wanted(self, table: Table) -> Composed:
        types = {c.name: TYPES[c.type] for c in table.columns}
        record = SQL(", ").join(SQL("{} {}").format(Identifier(c), types[c]) for c in table.key)
        return SQL("json_to_recordset(%(keys)s) AS w({})").format(record)

    def _parameters(self, table: Table, keys: Sequence[tuple[Any, ...]] | None) -> dict[str, Any]:
        lines = [dict(zip(table.key, key, strict=True)) for key in keys or ()]
        return {"customer_id": self._customer_id, "keys": json_of(lines)}

    def _stream(
        self, table: Table, query: Composed, keys: Sequence[tuple[Any, ...]] | None = None
    ) -> Iterator[DictRow]:
        with self._connection.transaction(), self._connection.cursor(f"compared_{table.name}") as cursor:
            cursor.itersize = _READ_ROWS
            cursor.execute(query, self._parameters(table, keys))
            yield from cursor


def _side(row: DictRow, prefix: str, columns: Sequence[str], table: Table) -> dict[str, Any] | None:
    if row[prefix + table.key[0]] is None:
        return None
    return {column: row[prefix + column] for column in columns}


def _same(table: Table, left: str, right: str) -> Composed:
    return SQL(" AND ").join(SQL("{0}.{2} = {1}.{2}").format(SQL(left), SQL(right), Identifier(c)) for c in table.key)


class _Text(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).decode()


class _Hex(Loader):
    def load(self, data: Buffer) -> str:
        return bytes(data).removeprefix(b"\\x").decode()


class _InstantText(Loader):
    """In UTC, always with microseconds; infinity stays what it is."""

    def load(self, data: Buffer) -> str:
        text = bytes(data).decode()
        if not text.endswith("+00"):
            return text
        day, _, moment = text[:-3].partition(" ")
        seconds, _, fraction = moment.partition(".")
        return f"{day}T{seconds}.{fraction:0<6}Z"
