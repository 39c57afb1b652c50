"""Who follows the log sees every event, however many write at the same time."""

from collections.abc import Iterator, Sequence

import psycopg
import pytest

from adapters.postgres.checkpoints import PostgresLog
from tests.application.world import World
from tests.faults.racing import Racers
from tests.faults.tailing import UNORDERED, behind, give_commands, insert, without_lock

WRITERS, COMMANDS = 16, 12


@pytest.fixture(scope="module")
def writers(shared_database, tmp_path_factory) -> Iterator[Racers]:
    with Racers(WRITERS, shared_database, tmp_path_factory.mktemp("keys") / "key") as made:
        yield made


@pytest.fixture
def world(database_url, writers) -> Iterator[World]:
    with World(database_url, writers.key_file) as made:
        yield made


def followed(world: World, writers: Racers, commands: int) -> None:
    for number in range(WRITERS):
        world.onboard(f"customer{number}", "SCALE")
        much = {"max_pipelines_per_day": 100_000, "max_pipelines_per_month": 100_000}
        world.limits(f"customer{number}", **much, max_concurrent_pipelines=100_000)
    log = PostgresLog(world.store.recorder, world.mapper)
    writers.dsn = world.dsn

    def read(after: int) -> Sequence[int]:
        return [placed.at.position for placed in log.read(after, 1_000)]

    seen = behind(lambda: writers.race(give_commands, world.at, commands), read)
    every = {placed.at.position for placed in log.read(0, 10_000_000)}
    assert len(every) >= WRITERS * commands * 2
    assert seen == every


def test_a_reader_behind_sixteen_processes_misses_nothing(world, writers):
    followed(world, writers, COMMANDS)


@pytest.mark.soak
def test_a_reader_behind_sixteen_processes_misses_nothing_for_long(world, writers):
    followed(world, writers, 1_000)


def missed(dsn: str, writers: Racers, *, ordered: bool, times: int) -> set[int]:
    """The positions that a reader did not see, of batches of very different sizes.

    It looks at nothing but positions: one that was slow would not be there when it matters.
    """
    writers.dsn = dsn
    if not ordered:
        recorder = without_lock(dsn)
        recorder.create_table()
        recorder.datastore.close()
    table = "stored_events" if ordered else UNORDERED
    query = f"SELECT notification_id FROM {table} WHERE notification_id > %s ORDER BY 1 LIMIT %s"
    with psycopg.connect(dsn, autocommit=True) as connection, World(dsn, writers.key_file) as world:

        def read(after: int, limit: int = 500) -> Sequence[int]:
            return [position for (position,) in connection.execute(query, (after, limit), prepare=True)]

        seen = behind(lambda: writers.race(insert, world.at, times, ordered), read)
        every = set(read(0, 10_000_000))
    assert len(every) >= WRITERS * times
    assert seen <= every
    return every - seen


def test_batches_of_all_sizes_are_seen(database_url, writers):
    assert missed(database_url, writers, ordered=True, times=24) == set()


def test_with_database_functions_they_are_not(database_url, writers):
    """The control: the library's own way to be faster, which the service refuses to be set to."""
    assert any(missed(database_url, writers, ordered=False, times=48) for _ in range(8))
