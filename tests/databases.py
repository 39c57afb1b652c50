"""Databases that tests make and drop again."""

from typing import Final

import psycopg
from psycopg import sql
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

_IN_USE: Final = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectInUse)


def drop(server_dsn: str, name: str) -> None:
    """Drop a database together with any session that still uses it.

    The server's own housekeeping may look at it at that moment, which is not ours to end: that takes no time.
    """
    statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    retrying = Retrying(
        retry=retry_if_exception_type(_IN_USE), wait=wait_fixed(0.2), stop=stop_after_delay(30), reraise=True
    )
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        retrying(connection.execute, statement)


def cut_off(connection: psycopg.Connection, name: str) -> None:
    """End every session of a database but the server's own, such as its housekeeping's."""
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
        (name,),
    )
