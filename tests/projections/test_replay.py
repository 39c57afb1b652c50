"""A replay of the log makes the same rows, bit for bit: in any batches, after any crash, on any machine."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres import rows
from adapters.postgres.checkpoints import PostgresCheckpoints, PostgresLog, leading
from adapters.postgres.event_log import Datastore
from application.mapper import UnreadableEvent
from domain import customer_events, run_events, subscription_events
from projections.customers import FORGOTTEN
from projections.follow import Overtaken, Placed, catch_up, rows_into
from projections.project import changes_of
from projections.rows import Change, Forget
from projections.tables import CENTRAL
from tests.application.busy import Busy
from tests.application.world import World
from tests.databases import drop

STEPS = 260


def digests(datastore: Datastore) -> dict[str, str]:
    """SHA-256 over the canonical rows of each table."""
    found = {}
    with datastore.reading() as cursor:
        for table in CENTRAL:
            query = sql.SQL("SELECT to_jsonb(t)::text AS row FROM {} t ORDER BY {}").format(
                sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, table.key))
            )
            lines = [row["row"] for row in cursor.execute(query)]
            found[table.name] = f"{len(lines)} rows, {hashlib.sha256(repr(lines).encode()).hexdigest()}"
    return found


class Copy:
    """The same tables in another database: a RowWriter."""

    def __init__(self, datastore: Datastore) -> None:
        self.datastore = datastore

    def write(self, changes: Sequence[Change]) -> None:
        with self.datastore.transaction_cursor() as cursor:
            rows.write(cursor, changes)


@contextmanager
def database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A database made like the template, for as long as the block."""
    name = f"copy_{uuid4().hex}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(create)
        yield urlsplit(server.dsn)._replace(path=f"/{name}").geturl()
    drop(server.dsn, name)


@pytest.fixture
def copy(postgres_server, migrated_template) -> Iterator[Copy]:
    with database(postgres_server, migrated_template) as dsn:
        datastore = Datastore(dsn)
        yield Copy(datastore)
        datastore.close()


def log_of(world: World) -> PostgresLog:
    return PostgresLog(world.store.recorder, world.mapper)


def events_of(world: World) -> Sequence[Placed]:
    return log_of(world).read(0, 1_000_000)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keys") / "key"


@pytest.fixture(scope="module")
def lived(postgres_server, migrated_template, key_file) -> Iterator[World]:
    """A world after a busy time, to be read only. What its tables looked like on the way is in `cuts`."""
    with database(postgres_server, migrated_template) as dsn, World(dsn, key_file) as world:
        busy = Busy(world, seed=4711).begin()
        world.cuts = {}
        for step in range(STEPS):
            busy.step()
            if step % 61 == 17:
                world.cuts[log_of(world).end()] = digests(world.datastore)
        busy.rarities()
        yield world


def test_the_busy_time_has_everything_in_it(lived):
    """The control of all that follows: a history in which little happened would prove little."""
    seen = {type(placed.event) for placed in events_of(lived)}
    every = {
        *customer_events.CustomerEvent.__args__,
        *subscription_events.SubscriptionEvent.__args__,
        *run_events.RunEvent.__args__,
    }
    assert every - seen == set()


@pytest.mark.parametrize("batch", [1, 7, 100_000])
def test_a_replay_in_other_batches_makes_the_same_tables(lived, copy, batch):
    events = events_of(lived)
    for start in range(0, len(events), batch):
        copy.write([c for placed in events[start : start + batch] for c in changes_of(placed.event, placed.at)])
    assert digests(copy.datastore) == digests(lived.datastore)


def test_a_replay_up_to_any_cut_makes_the_tables_of_that_time(lived, copy):
    events = events_of(lived)
    done = 0
    assert len(lived.cuts) >= 4
    for cut, then in lived.cuts.items():
        copy.write([c for p in events if done < p.at.position <= cut for c in changes_of(p.event, p.at)])
        assert digests(copy.datastore) == then
        done = cut


@pytest.mark.parametrize("table", CENTRAL, ids=lambda table: table.name)
def test_a_lost_change_is_noticed(lived, copy, table):
    """The control: leave out one change of a table, of somebody who is not erased."""
    changes = [c for p in events_of(lived) for c in changes_of(p.event, p.at)]
    erased = {change.customer_id for change in changes if isinstance(change.row, Forget)}
    lasting = (i for i, change in enumerate(changes) if change.row.table is table and change.customer_id not in erased)
    del changes[max(lasting)]
    copy.write(changes)
    live = digests(lived.datastore)
    assert [name for name, digest in digests(copy.datastore).items() if live[name] != digest] == [table.name]


def test_an_erasure_that_leaves_rows_is_noticed(lived, copy):
    """The control: in every table that it is about."""
    changes = [c for p in events_of(lived) for c in changes_of(p.event, p.at)]
    copy.write([change for change in changes if not isinstance(change.row, Forget)])
    live = digests(lived.datastore)
    left = {name for name, digest in digests(copy.datastore).items() if live[name] != digest}
    assert left == {table.name for table in FORGOTTEN}


def test_a_row_that_somebody_edited_is_noticed(lived, copy):
    copy.write([c for p in events_of(lived) for c in changes_of(p.event, p.at)])
    with copy.datastore.reading() as cursor:
        cursor.execute("UPDATE customer_usage SET pipelines_run_today = pipelines_run_today + 1")
    live = digests(lived.datastore)
    assert [table for table, digest in digests(copy.datastore).items() if live[table] != digest] == ["customer_usage"]


class CrashError(Exception):
    """The projector died here."""


def follow_through_crashes(world: World, copy: Copy, page: int) -> int:
    """Catch up while every second page crashes after its effect and before its checkpoint; how many crashed."""
    checkpoints, write = PostgresCheckpoints(copy.datastore), rows_into(copy)
    crashes = pages = 0

    def handle(events: Sequence[Placed]) -> None:
        nonlocal pages
        pages += 1
        write(events)
        if pages % 2:
            raise CrashError

    while True:
        try:
            catch_up("copy", log_of(world), handle, checkpoints, page=page)
        except CrashError:
            crashes += 1
            # Not even the same page boundaries: whoever comes next may read in other steps.
            page = max(1, page - 1)
        else:
            return crashes


@pytest.mark.parametrize("page", [3, 50, 100_000])
def test_a_projector_that_crashes_leaves_no_gap_and_no_duplicate(lived, copy, page):
    assert follow_through_crashes(lived, copy, page) >= 1
    assert digests(copy.datastore) == digests(lived.datastore)
    assert PostgresCheckpoints(copy.datastore).position("copy") == log_of(lived).end()


def test_it_follows_while_writes_go_on(world, copy):
    busy = Busy(world, seed=7).begin()

    def live() -> None:
        for _ in range(120):
            busy.step()

    with ThreadPoolExecutor(1) as threads:
        living = threads.submit(live)
        checkpoints, write = PostgresCheckpoints(copy.datastore), rows_into(copy)
        while not living.done():
            catch_up("copy", log_of(world), write, checkpoints, page=5)
        living.result()
    catch_up("copy", log_of(world), write, checkpoints)
    assert digests(copy.datastore) == digests(world.datastore)


class TestCheckpoints:
    def test_move_from_where_they_stand_only(self, copy):
        checkpoints = PostgresCheckpoints(copy.datastore)
        checkpoints.advance("p", 0, 10)
        for stale in (0, 5, 11):
            with pytest.raises(Overtaken):
                checkpoints.advance("p", stale, 20)
        checkpoints.advance("p", 10, 20)
        assert (checkpoints.position("p"), checkpoints.position("another")) == (20, 0)

    def test_of_a_rebuild_are_not_brought_back_by_who_still_follows(self, copy):
        """A rebuild begins by forgetting the position: an old follower that moved on from it would leave a gap."""
        checkpoints = PostgresCheckpoints(copy.datastore)
        checkpoints.advance("p", 0, 10)
        with copy.datastore.reading() as cursor:
            cursor.execute("DELETE FROM checkpoints")
        with pytest.raises(Overtaken):
            checkpoints.advance("p", 10, 20)
        assert checkpoints.position("p") == 0

    def test_one_of_many_leads(self, database_url):
        with (
            leading(database_url, "p") as first,
            leading(database_url, "p") as second,
            leading(database_url, "q") as other,
        ):
            assert (bool(first), bool(second), bool(other)) == (True, False, True)
        # The server notices a while after the connection was closed.
        with leading(database_url, "p", wait_s=10) as again:
            assert again


def test_an_event_that_cannot_be_read_stops_its_projection_there_and_no_command(acme, copy):
    acme.request()
    poisoned = log_of(acme).end()
    acme.tamper("UPDATE stored_events SET topic = 'run.unheard-of@1' WHERE notification_id = %s", poisoned)
    acme.request()
    checkpoints = PostgresCheckpoints(copy.datastore)
    for page in (1, 2, 1000):
        with pytest.raises(UnreadableEvent, match=r"run.unheard-of@1"):
            catch_up("copy", log_of(acme), rows_into(copy), checkpoints, page=page)
        assert checkpoints.position("copy") < poisoned
    acme.request()
    assert acme.usage()[0] == 3


REPLAY = """
import hashlib, sys
from pathlib import Path
from projections.project import changes_of
from tests.application.world import World
from adapters.postgres.checkpoints import PostgresLog

def forbid(event, arguments):
    if watching and event.split(".")[0] in {"socket", "open", "subprocess", "os", "shutil", "ctypes"}:
        raise RuntimeError(f"a replay did {event}")

watching = False
sys.addaudithook(forbid)
with World(sys.stdin.readline().strip(), Path(sys.argv[1])) as world:
    events = PostgresLog(world.store.recorder, world.mapper).read(0, 1_000_000)
    watching = True
    changes = [change for placed in events for change in changes_of(placed.event, placed.at)]
    if len(sys.argv) > 2:
        open(sys.argv[2])
    watching = False
told = [
    (c.position, c.customer_id, type(c.row).__name__, c.row.table.name, dict(getattr(c.row, "values", {})))
    for c in changes
]
print(len(changes), hashlib.sha256(repr(told).encode()).hexdigest())
"""


def replay_elsewhere(world: World, key: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", REPLAY, str(key), *more],
        input=world.dsn,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": ".", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_replay_is_the_same_on_any_machine_and_touches_nothing(lived, key_file):
    """Every change of every table, also those of the customers' own: with sockets, files and processes forbidden."""
    places = [
        {"TZ": "UTC", "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
        {"TZ": "Pacific/Chatham", "PYTHONHASHSEED": "4711", "LC_ALL": "C", "PYTHONUTF8": "0"},
    ]
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda place: replay_elsewhere(lived, key_file, **place), places))
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert int(done[0].stdout.split()[0]) > 500
    assert done[0].stdout == done[1].stdout


def test_the_watch_over_a_replay_sees(acme, tmp_path):
    """The control: a replay that opens a file."""
    done = replay_elsewhere(acme, tmp_path / "key", str(tmp_path / "key"))
    assert done.returncode == 1
    assert "a replay did open" in done.stderr
