"""What is true of a log and its tables whatever happened to those who wrote them."""

from typing import Any

from psycopg.sql import SQL, Identifier

from adapters.postgres.beside import TEMPORARY, Beside
from adapters.postgres.checkpoints import PostgresLog
from adapters.postgres.maintenance import maintenance
from projections.tables import CENTRAL
from tests.application.world import World

_TORN = (
    "SELECT originator_id FROM stored_events GROUP BY originator_id"
    " HAVING min(originator_version) <> 1 OR max(originator_version) <> count(*)"
)
_DIFFERENT = (
    "SELECT {name} AS table, to_jsonb(d)::text AS row FROM"
    " ((TABLE {live} EXCEPT ALL TABLE {beside}) UNION ALL (TABLE {beside} EXCEPT ALL TABLE {live})) AS d"
)


def torn(world: World) -> list[dict[str, Any]]:
    """Streams with a gap, and rows that are not what the log says; empty when all is whole."""
    with maintenance(world.dsn, name="whole") as connection:
        found: list[dict[str, Any]] = connection.execute(_TORN).fetchall()
        beside = Beside(connection, TEMPORARY, CENTRAL)
        beside.create()
        beside.write(PostgresLog(world.store.recorder, world.mapper).read(0, 1_000_000))
        for table in CENTRAL:
            different = SQL(_DIFFERENT).format(
                name=table.name, live=Identifier(beside.live, table.name), beside=beside.named(table.name)
            )
            found += connection.execute(different).fetchall()
    return found
