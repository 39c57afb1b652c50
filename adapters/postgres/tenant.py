"""A customer's own rows and nothing else: row-level security for what is read on a customer's behalf.

A statement that forgets whose rows it wants shows those of the customer who asks, and never another's: the database
adds the condition. The service itself, operators and whoever else may read the tables are not concerned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from psycopg import Cursor
from psycopg.rows import DictRow

from adapters.postgres.event_log import Datastore, pipelined
from adapters.postgres.privileges import TENANT

_BIND: Final = b"SELECT set_config('role', %s, true), set_config('convergence.customer_id', %s, true)"


@dataclass(frozen=True, slots=True)
class TenantReads:
    """The datastore as one customer may read it.

    Where `migrate` was not allowed to make roles it reads as the service does: `doctor` says so.
    """

    datastore: Datastore
    customer_id: str

    @contextmanager
    def reading(self) -> Iterator[Cursor[DictRow]]:
        """A cursor for statements that see this customer's rows only, in a transaction of their own.

        The first statement travels together with what binds it: the whole costs one round trip more than a bare one.
        """
        with self.datastore.connected() as connection:
            if not self.datastore.binds_tenants(connection):
                with connection.cursor() as cursor:
                    yield cursor
                return
            with pipelined(connection) as cursor:
                cursor.execute(_BIND, (TENANT, self.customer_id), prepare=True)
                yield cursor
