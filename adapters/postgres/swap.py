"""Putting tables built beside the live ones in their place, while commands go on.

A command that holds a row of a live table keeps it from being replaced, and while its replacement waits for that
command, others wait behind it. So it waits for a moment only, gives up, and comes back: no command waits for longer.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from psycopg import Connection, errors
from psycopg.rows import DictRow
from psycopg.sql import SQL, Identifier

from adapters.postgres import channels
from adapters.postgres.beside import Beside
from adapters.postgres.event_log import LOG_LOCK
from projections.rows import Scope
from projections.tables import CUSTOMER_PROFILES

LOCK_MS: Final = 100
"""How long commands are made to wait, at most, for a swap that then does not take place."""
_LOG_LOCK_MS: Final = 50
_HELD_MS: Final = 500
"""How long the server lets a swap hold the tables when its client went silent."""
# Commands lock rows in this order; who takes the tables in another one meets them head-on.
_FIRST: Final = ("pipeline_execution_queue", "customer_subscriptions", "customer_pipeline_configs")
_ERASED: Final = SQL(
    " AND (l.position IS NOT NULL OR NOT EXISTS (SELECT FROM {profiles} p WHERE p.customer_id = n.customer_id"
    " AND p.status = 'ERASED' AND p.position > %(position)s))"
)


class Held(Exception):  # noqa: N818 - it says how the tables are
    """Others work with the tables at this moment. Nothing was changed; try again."""


def differences(connection: Connection[DictRow], beside: Beside, position: int) -> Mapping[str, Mapping[str, int]]:
    """For each central table how many live rows are `changed`, `missing` and `extra`, where any are.

    The tables beside stand at `position`. Live rows that events have touched since are passed over, and those of
    customers who were erased since; a row at a position that the log has not reached is none of those.
    """
    found: dict[str, Mapping[str, int]] = {}
    for name, table in beside.tables.items():
        if table.scope is not Scope.CENTRAL:
            continue
        names = [Identifier(column) for column in (*table.names, "position")]
        query = SQL(
            "SELECT count(*) FILTER (WHERE l.position IS NOT NULL AND n.position IS NOT NULL) AS changed,"
            " count(*) FILTER (WHERE l.position IS NULL) AS missing,"
            " count(*) FILTER (WHERE n.position IS NULL) AS extra"
            " FROM {live} l FULL JOIN {new} n ON {same} WHERE ({ours}) IS DISTINCT FROM ({theirs}){erased}"
            " AND (l.position IS NULL OR l.position <= %(position)s"
            "  OR l.position > (SELECT coalesce(max(notification_id), 0) FROM stored_events))"
        ).format(
            live=Identifier(beside.live, name),
            erased=_ERASED.format(profiles=Identifier(beside.live, CUSTOMER_PROFILES.name))
            if "customer_id" in table.names
            else SQL(""),
            new=beside.named(name),
            same=SQL(" AND ").join(SQL("l.{0} = n.{0}").format(Identifier(column)) for column in table.key),
            ours=SQL(", ").join(SQL("l.{}").format(column) for column in names),
            theirs=SQL(", ").join(SQL("n.{}").format(column) for column in names),
        )
        [row] = connection.execute(query, {"position": position}).fetchall()
        if any(row.values()):
            found[name] = dict(row)
    return found


def swap(
    connection: Connection[DictRow], beside: Beside, catch_up: Callable[[], None], *, also: Callable[[], None]
) -> float:
    """Put the central tables of `beside` in the place of their live twins; returns for how many seconds they were held.

    In one transaction, in which nothing is appended to the log: `catch_up` writes what was appended last, and must be
    quick; `also` belongs to it. Raises `Held` when others hold a table or the log; all is as it was then.
    """
    names = [name for name, table in beside.tables.items() if table.scope is Scope.CENTRAL]
    names.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    held_from = 0.0
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('synchronous_commit', 'on', true)")
            _limit(connection, "idle_in_transaction_session_timeout", _HELD_MS)
            # Of the statement, not of each lock: one statement takes one table after the other.
            _limit(connection, "statement_timeout", LOCK_MS)
            tables = SQL(", ").join(Identifier(beside.live, name) for name in names)
            connection.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables))
            held_from = time.monotonic()
            _limit(connection, "statement_timeout", _LOG_LOCK_MS)
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOG_LOCK,))
            _limit(connection, "statement_timeout", _HELD_MS)
            catch_up()
            with connection.pipeline():
                for name in names:
                    connection.execute(SQL("DROP TABLE {}").format(Identifier(beside.live, name)))
                    connection.execute(
                        SQL("ALTER TABLE {} SET SCHEMA {}").format(beside.named(name), Identifier(beside.live))
                    )
            # What was remembered of keys may have been read from a row that somebody had edited.
            connection.execute("SELECT pg_notify(%s, '')", (channels.KEYS,))
            also()
    except (errors.QueryCanceled, errors.LockNotAvailable, errors.DeadlockDetected) as error:
        raise Held("Others work with the tables.") from error
    return time.monotonic() - held_from


def _limit(connection: Connection[DictRow], setting: str, milliseconds: int) -> None:
    connection.execute("SELECT set_config(%s, %s, true)", (setting, f"{milliseconds}ms"))
