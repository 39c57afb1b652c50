"""When the next waiting run becomes ready, for workers that sleep until then."""

from typing import Final

from adapters.postgres.event_log import Datastore

# The clock in a query of its own: as a volatile function it would keep the index from being used.
_NEXT: Final = (
    "SELECT extract(epoch FROM not_before - clock_timestamp())::float8 AS seconds FROM pipeline_execution_queue"
    " WHERE state = 'PENDING' AND deleted_at IS NULL AND not_before IS NOT NULL"
    " AND not_before > (SELECT clock_timestamp() - make_interval(secs => %s)) ORDER BY not_before LIMIT 1"
)


def seconds_until_ready(datastore: Datastore, *, since_s: float) -> float | None:
    """How long until the first waiting run that has to wait may start, by the database's clock; None without one.

    Runs that became ready in the last `since_s` seconds count, with a time of zero or below: whoever looked before
    then has not seen them ready. Those that have been ready for longer wait for something else, and do not count.
    """
    with datastore.reading() as cursor:
        row = cursor.execute(_NEXT, (since_s,), prepare=True).fetchone()
    return None if row is None else float(row["seconds"])
