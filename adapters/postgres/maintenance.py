"""Connections for long work on the whole log: patient, and free to join tables as large sets are joined."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import psycopg
from psycopg import Connection
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import set_json_loads

from adapters.postgres.event_log import connection_arguments, translated
from adapters.postgres.privileges import take_role


@contextmanager
def maintenance(dsn: str, *, name: str, as_owner: bool = False) -> Iterator[Connection[DictRow]]:
    """A connection of its own in the service's role, in autocommit, without a limit on how long a statement takes.

    `as_owner` leaves it in the login's own role, for what the service may not do. Raises `Away` when the database is
    away.
    """
    arguments = connection_arguments(dsn, name=name)
    arguments["options"] += " -c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c plan_cache_mode=auto"
    arguments["options"] += " -c enable_seqscan=on -c enable_hashjoin=on -c enable_mergejoin=on"
    with (
        translated(),
        psycopg.Connection[DictRow].connect(**arguments, autocommit=True, row_factory=dict_row) as connection,
    ):
        set_json_loads(msgspec.json.decode, connection)
        if not as_owner:
            take_role(connection)
        yield connection
