"""PostgreSQL dies in the middle of work: nothing acknowledged is lost, callers are told, and all goes on by itself."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from uuid import uuid4

import psutil
import psycopg
import pytest

from adapters.embedded.child import free_port
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres import leases
from adapters.postgres.checkpoints import PostgresCheckpoints, PostgresLog, leading
from adapters.postgres.schema import migrate
from application.ports import Away
from tests.application.world import World, until

WRITERS, ROUNDS = 4, 3


@pytest.fixture
def server(tmp_path) -> Iterator[EmbeddedPostgres]:
    """A server of one's own that keeps what it has acknowledged, also when it crashes."""
    with EmbeddedPostgres(tmp_path / "postgres", free_port()) as made:
        with psycopg.connect(made.dsn, row_factory=psycopg.rows.dict_row) as connection:
            migrate(connection)
        yield made


@pytest.fixture
def world(server, tmp_path) -> Iterator[World]:
    with World(server.dsn, tmp_path / "key") as made:
        made.onboard()
        made.limits(max_pipelines_per_day=1_000_000, max_pipelines_per_month=1_000_000)
        yield made


def kill(server: EmbeddedPostgres) -> None:
    """SIGKILL for the server and all its processes."""
    postmaster = psutil.Process(server.pid)
    for process in [postmaster, *postmaster.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def come_back(world: World) -> float:
    """Seconds until the service answers again."""
    began = time.monotonic()

    def answers() -> bool:
        try:
            world.request()
        except Away:
            return False
        return True

    until(answers, seconds=60)
    return time.monotonic() - began


class Writers:
    """Requests that are repeated until they are acknowledged, by so many at once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.acknowledged: list[str] = []
        self.away = 0
        self.stop = Event()

    def write(self, _: int) -> None:
        while not self.stop.is_set():
            run_id = str(uuid4())
            while True:
                try:
                    self.world.request(run_id=run_id)
                except Away:
                    self.away += 1
                    if self.stop.wait(0.02):
                        return
                else:
                    self.acknowledged.append(run_id)
                    break


def kept(world: World) -> set[str]:
    return {row["run_id"] for row in world.rows("scheduled_pipeline_runs")}


def test_what_was_acknowledged_is_there_after_every_crash(server, world):
    writers = Writers(world)
    with ThreadPoolExecutor(WRITERS) as threads:
        writing = [threads.submit(writers.write, n) for n in range(WRITERS)]
        try:
            for _ in range(ROUNDS):
                before = len(writers.acknowledged)
                until(lambda before=before: len(writers.acknowledged) > before + 40, seconds=60)
                kill(server)
            before = len(writers.acknowledged)
            until(lambda: len(writers.acknowledged) > before + 10, seconds=60)
        finally:
            writers.stop.set()
        for writer in writing:
            writer.result()
    assert writers.away >= ROUNDS
    assert set(writers.acknowledged) <= kept(world)
    assert len(world.rows("scheduled_pipeline_runs")) == world.usage()[0]
    assert len(writers.acknowledged) == len(set(writers.acknowledged))
    notified = [n.id for n in world.store.recorder.select_notifications(start=0, limit=1_000_000)]
    assert notified == sorted(set(notified))


def test_a_server_that_acknowledges_too_early_loses_some(server, world):
    """The control: commits that are not waited for."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("ALTER DATABASE convergence SET synchronous_commit = off")
    lost: set[str] = set()
    for _ in range(5):
        with World(server.dsn, _key_of(world), size=WRITERS) as hurried:
            hurried.at = world.at
            writers = Writers(hurried)
            with ThreadPoolExecutor(WRITERS) as threads:
                writing = [threads.submit(writers.write, n) for n in range(WRITERS)]
                until(lambda writers=writers: len(writers.acknowledged) > 40, seconds=60)
                kill(server)
                acknowledged = set(writers.acknowledged)
                writers.stop.set()
                for writer in writing:
                    writer.result()
        come_back(world)
        lost |= acknowledged - kept(world)
        if lost:
            break
    assert lost


def _key_of(world: World) -> Path:
    return world.vault._wrapper._path


def test_idle_connections_that_died_with_the_server_are_replaced(server, world):
    kill(server)
    assert come_back(world) < 20
    for _ in range(3):
        world.request()


def test_whatever_is_asked_of_a_database_that_is_away_says_so(tmp_path):
    """Within ten seconds, also what goes through the event store library, which would try again and again."""
    nobody = f"postgresql://someone:secret@127.0.0.1:{free_port()}/nothing"
    with World(nobody, tmp_path / "key", size=8) as world:
        log, checkpoints = PostgresLog(world.store.recorder, world.mapper), PostgresCheckpoints(world.datastore)

        def lead() -> None:
            with leading(nobody, "p"):
                pass

        asked = [
            world.request,
            lambda: log.read(0, 10),
            log.end,
            lambda: checkpoints.position("p"),
            lambda: checkpoints.advance("p", 0, 1),
            lambda: leases.renew(world.datastore, "w1", [], 60),
            lambda: world.data_keys.get("acme", "x"),
            lead,
        ]

        def answer(ask: Callable[[], object]) -> str:
            with pytest.raises(Away) as raised:
                ask()
            return str(raised.value)

        began = time.monotonic()
        with ThreadPoolExecutor(len(asked)) as threads:
            answers = set(threads.map(answer, asked))
        assert time.monotonic() - began < 10
    assert answers == {"The database does not answer."}


@pytest.mark.soak
def test_a_server_that_was_away_for_long_is_found_again_within_seconds(server, world):
    server.stop()
    end = time.monotonic() + 40
    while time.monotonic() < end:
        with pytest.raises(Away):
            world.request()
    server.start()
    assert come_back(world) < 10
