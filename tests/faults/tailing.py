"""Sixteen processes that write, and one that reads behind them: through the service, and as the library can be set."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

from adapters.postgres.event_log import EventRecorder
from tests.application.world import World

UNORDERED = "unordered_events"
Read = Callable[[int], Sequence[int]]
"""The next positions after one, as far as a reader sees them."""


def give_commands(world: World, number: int, _: Barrier, times: int) -> None:
    """Runs of every writer's own customer: what an API process does."""
    for _ in range(times):
        world.request(f"customer{number}")


def without_lock(dsn: str) -> PostgresApplicationRecorder:
    """The library's recorder with its database functions, which take no lock."""
    parts = urlsplit(dsn)
    datastore = PostgresDatastore(
        dbname=parts.path.removeprefix("/"),
        host=parts.hostname or "",
        port=parts.port or 5432,
        user=parts.username or "",
        password=unquote(parts.password or ""),
        pool_size=1,
        enable_db_functions=True,
    )
    return PostgresApplicationRecorder(datastore, events_table_name=UNORDERED)


def insert(world: World, number: int, _: Barrier, times: int, ordered: bool) -> None:  # noqa: FBT001 - as the race hands it on
    """Batches of a few events, and of hundreds, which take longer to write than the others that come meanwhile."""
    recorder = EventRecorder(world.datastore) if ordered else without_lock(world.dsn)
    try:
        for turn in range(times):
            stream = uuid4()
            many = 400 if (turn + number) % 16 == 0 else 2
            recorder.insert_events([StoredEvent(stream, version, "topic", b"{}") for version in range(1, many + 1)])
    finally:
        if not ordered:
            recorder.datastore.close()


def behind(write: Callable[[], object], read: Read) -> set[int]:
    """What a reader saw that followed the log until `write` had returned, and then to its end."""
    seen: set[int] = set()
    position = 0
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        last = False
        while not last:
            last = writing.done()
            while found := read(position):
                seen.update(found)
                position = found[-1]
        writing.result()
    return seen
