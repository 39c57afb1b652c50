"""A rebuild makes the tables that the log says, while work goes on, whatever stops it on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from adapters.bootstrap import Service, build
from adapters.postgres import rebuilds
from adapters.postgres.beside import REBUILD, Beside
from adapters.postgres.checkpoints import leading
from adapters.postgres.maintenance import maintenance
from adapters.postgres.rebuilds import Rebuild, State
from adapters.postgres.swap import Held, swap
from adapters.rebuild import LEAD, Failed, Rebuilder, carry_out, chosen, passes
from adapters.rebuild_stages import BUILDING, COMPARING, SWAPPING
from adapters.settings import Settings
from application.projections import SkipEvent, skip_event
from domain.refusals import Conflict, Invalid
from projections.project import changes_of
from projections.tables import CENTRAL
from projections.targets import Target
from tests.application.busy import Busy
from tests.application.world import World, until
from tests.http.running import running
from tests.projections.test_replay import Copy, copy, digests, events_of

__all__ = ["copy"]

NOWHERE = "http://127.0.0.1:1"
NAMES = [table.name for table in CENTRAL]


@pytest.fixture
def busy(database_url, tmp_path) -> Iterator[Busy]:
    """A world after a short busy time."""
    with World(database_url, tmp_path / "keys" / "wrapping.key") as world:
        made = Busy(world, seed=31).begin()
        for _ in range(60):
            made.step()
        yield made


@pytest.fixture
def service(database_url, tmp_path, busy) -> Iterator[Service]:
    made = build(Settings(data_dir=tmp_path, bigquery_emulator_host=NOWHERE), database_url)
    yield made
    made.close()


def asked(service: Service, *tables: str, target: Target = Target.POSTGRES) -> Rebuild:
    return rebuilds.ask(
        service.datastore,
        str(uuid4()),
        tables=chosen(tables, target),
        target=target,
        asked_by="tests",
        reason="to see",
    )


def replayed(world: World, copy: Copy) -> dict[str, str]:
    """What the tables ought to be: every change of the log, in another database."""
    copy.write([c for placed in events_of(world) for c in changes_of(placed.event, placed.at)])
    return digests(copy.datastore)


def identities(world: World) -> list[int]:
    return world.scalar(
        "SELECT array_agg(oid ORDER BY relname) FROM pg_class WHERE relname = ANY(%s)"
        " AND relnamespace = 'public'::regnamespace",
        NAMES,
    )


def left_over(world: World) -> int:
    return world.scalar("SELECT count(*) FROM pg_class WHERE relnamespace = 'rebuild'::regnamespace")


def shape(world: World) -> list[str]:
    """Indexes, keys, owners and grants of the live tables."""
    return world.scalar(
        "SELECT array_agg(t ORDER BY t) FROM ("
        " SELECT indexdef AS t FROM pg_indexes WHERE schemaname = 'public' AND tablename = ANY(%s)"
        " UNION ALL SELECT relname || ' ' || relowner::regrole || ' ' || reloptions::text"
        "  || coalesce((SELECT array_agg(a ORDER BY a) FROM aclexplode(relacl) a WHERE grantee <> relowner)::text, '')"
        " FROM pg_class WHERE relname = ANY(%s) AND relnamespace = 'public'::regnamespace) AS shapes",
        NAMES,
        NAMES,
    )


@dataclass
class Writers:
    """Several callers that do one thing after another until told to stop. How long each took is in `seconds`."""

    dsn: str
    key_file: Path
    seconds: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def live(self, seed: int) -> int:
        with World(self.dsn, self.key_file, size=2) as world:
            busy = Busy(world, seed)
            steps = 0
            while not self.stop.is_set():
                begun = time.monotonic()
                busy.step()
                self.seconds.append(time.monotonic() - begun)
                steps += 1
            return steps


@contextmanager
def writing(world: World, tmp_path: Path, writers: int = 3) -> Iterator[Writers]:
    """Within it writers go on; what any of them raises but refusals is raised at the end."""
    made = Writers(world.dsn, tmp_path / "keys" / "wrapping.key")
    with ThreadPoolExecutor(writers) as threads:
        living: list[Future[int]] = [threads.submit(made.live, seed) for seed in range(writers)]
        try:
            until(lambda: len(made.seconds) > 10)
            yield made
        finally:
            made.stop.set()
        assert all(future.result() for future in living)


def test_it_makes_the_tables_that_were_there(busy, service):
    plain = shape(busy.world)
    busy.world.tamper("GRANT SELECT ON customer_usage TO pg_monitor WITH GRANT OPTION")
    busy.world.tamper("GRANT SELECT ON customer_usage TO PUBLIC")
    before, old, looks = digests(busy.world.datastore), identities(busy.world), shape(busy.world)
    assert looks != plain
    done = carry_out(service, asked(service).rebuild_id, page=7)
    assert (done.state, done.differences, done.position) == (State.DONE, {}, service.log.end())
    assert (done.asked_by, done.reason) == ("tests", "to see")
    assert digests(busy.world.datastore) == before
    assert shape(busy.world) == looks
    assert not set(identities(busy.world)) & set(old)
    assert left_over(busy.world) == 0
    for _ in range(20):
        busy.step()


def test_some_tables_alone(busy, service):
    before, old = digests(busy.world.datastore), identities(busy.world)
    done = carry_out(service, asked(service, "customer_usage").rebuild_id)
    assert done.tables == ("customer_usage",)
    assert digests(busy.world.datastore) == before
    assert len(set(identities(busy.world)) - set(old)) == 1


def test_while_others_write(busy, service, copy, tmp_path):
    """None of them is refused or waits for long, and no row of theirs is lost, at three random moments."""
    with writing(busy.world, tmp_path) as writers:
        for _ in range(3):
            done = carry_out(service, asked(service).rebuild_id, page=50)
            assert done.differences == {}
        slowest = max(writers.seconds)
    assert digests(busy.world.datastore) == replayed(busy.world, copy)
    # A moment for the locks, and the rest for the step itself on a machine with other work.
    assert slowest < 2


def test_without_the_last_events_rows_are_lost(busy, service, copy, tmp_path):
    """The control: a swap that does not read on under the lock."""

    def forgetful() -> None:
        return

    with writing(busy.world, tmp_path), maintenance(service.dsn, name="rebuild") as connection:
        beside = Beside(connection, REBUILD, CENTRAL)
        beside.drop()
        beside.create()
        position = 0
        while placed := service.log.read(position, 1000):
            beside.write(placed)
            position = placed[-1].at.position
        until(lambda: service.log.end() > position + 20)
        persistently(lambda: swap(connection, beside, forgetful, also=lambda: None))
    assert digests(busy.world.datastore) != replayed(busy.world, copy)


def persistently(attempt: Callable[[], object]) -> None:
    def tried() -> bool:
        try:
            attempt()
        except Held:
            return False
        return True

    until(tried)


def test_statements_that_were_prepared_go_on(busy, service):
    """Also those that return every column, on a connection that had them before."""
    with psycopg.connect(busy.world.dsn, autocommit=True) as connection:

        def look() -> list[object]:
            return connection.execute("SELECT * FROM customer_usage ORDER BY 1, 2", prepare=True).fetchall()

        def change() -> int:
            query = "UPDATE customer_profiles SET company_name = company_name"
            return connection.execute(query, prepare=True).rowcount

        before = look(), change()
        carry_out(service, asked(service).rebuild_id)
        assert (look(), change()) == before


class TestMends:
    def test_what_somebody_edited(self, busy, service, copy):
        world = busy.world
        world.execute("UPDATE customer_usage SET pipelines_run_today = 99 WHERE customer_id = 'alpha'")
        changed = world.scalar("SELECT count(*) FROM customer_usage WHERE customer_id = 'alpha'")
        world.execute("DELETE FROM customer_profiles WHERE customer_id = 'beta'")
        world.execute(
            "INSERT INTO customer_team_members (member_id, customer_id, position) VALUES ('m', 'alpha', 1),"
            " ('n', 'alpha', 9223372036854775807)"
        )
        done = carry_out(service, asked(service).rebuild_id)
        assert done.differences == {
            "customer_usage": {"changed": changed, "missing": 0, "extra": 0},
            "customer_profiles": {"changed": 0, "missing": 1, "extra": 0},
            "customer_team_members": {"changed": 0, "missing": 0, "extra": 2},
        }
        assert digests(world.datastore) == replayed(world, copy)

    def test_a_position_alone(self, busy, service):
        busy.world.execute("UPDATE customer_profiles SET position = position - 1 WHERE customer_id = 'beta'")
        done = carry_out(service, asked(service).rebuild_id)
        assert done.differences == {"customer_profiles": {"changed": 1, "missing": 0, "extra": 0}}


DYING = """
import os, signal, sys
from pathlib import Path
from uuid import UUID
from adapters.bootstrap import build
from adapters.postgres.checkpoints import leading
from adapters.rebuild import LEAD, carry_out
from adapters.settings import Settings

directory, dsn, rebuild_id, stage, times, emulator, central = sys.argv[1:]
left = int(times)

def tell(told, done, total):
    global left
    left -= told == stage
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

settings = Settings(data_dir=Path(directory), bigquery_emulator_host=emulator, customers_dataset_id=central)
service = build(settings, dsn)
with leading(dsn, LEAD) as lead:
    assert lead
    carry_out(service, UUID(rebuild_id), tell=tell, page=20)
"""


def killed(
    service: Service,
    tmp_path: Path,
    rebuild: Rebuild,
    stage: str,
    times: int,
    *,
    emulator: str = NOWHERE,
    central: str = "customers_metadata",
) -> Rebuild:
    """The rebuild as a process left it that was killed at a stage, when it told of it for the so-manieth time."""
    arguments = (str(tmp_path), service.dsn, str(rebuild.rebuild_id), stage, str(times), emulator, central)
    ended = subprocess.run(
        [sys.executable, "-c", DYING, *arguments],
        env={"PATH": os.defpath, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return rebuilds.newest(service.datastore)[0]


def test_it_goes_on_after_a_kill_in_each_stage(busy, service, copy, tmp_path):
    rebuild = asked(service)
    old = identities(busy.world)
    reached = 0
    for stage, times, state in (
        (BUILDING, 3, State.BUILDING),
        (BUILDING, 2, State.BUILDING),
        (COMPARING, 2, State.COMPARING),
        (SWAPPING, 1, State.SWAPPING),
    ):
        busy.step()
        left = killed(service, tmp_path, rebuild, stage, times)
        assert (left.state, left.ended_at) == (state, None)
        assert left.position >= reached
        reached = left.position
    assert reached > 40
    assert identities(busy.world) == old
    told: list[int] = []
    busy.step()
    carry_out(service, rebuild.rebuild_id, tell=lambda stage, done, _: told.append(done) if stage == BUILDING else None)
    assert all(position > reached for position in told)
    assert digests(busy.world.datastore) == replayed(busy.world, copy)
    assert left_over(busy.world) == 0


def test_a_kill_behind_the_swap_leaves_it_done(busy, service, copy, tmp_path):
    rebuild = asked(service)
    assert killed(service, tmp_path, rebuild, SWAPPING, 2).state is State.DONE
    assert digests(busy.world.datastore) == replayed(busy.world, copy)


def test_another_version_begins_anew(busy, service, copy, tmp_path):
    """What an older version's code made of the log is not gone on with."""
    rebuild = asked(service)
    assert killed(service, tmp_path, rebuild, COMPARING, 1).position > 40
    busy.world.execute("UPDATE rebuilds SET version = '0.0.0'")
    busy.world.execute("UPDATE rebuild.customer_usage SET pipelines_run_today = 4711")
    carry_out(service, rebuild.rebuild_id)
    assert digests(busy.world.datastore) == replayed(busy.world, copy)


class TestFails:
    def failed(self, busy: Busy, service: Service, **options: float) -> Rebuild:
        """A rebuild that fails: live tables as they were, and nothing of it left."""
        before, old = digests(busy.world.datastore), identities(busy.world)
        rebuild = asked(service)
        with pytest.raises(Failed) as failed:
            carry_out(service, rebuild.rebuild_id, **options)
        assert (digests(busy.world.datastore), identities(busy.world)) == (before, old)
        assert left_over(busy.world) == 0
        [found] = rebuilds.newest(service.datastore)
        assert (found.state, found.error) == (State.FAILED, str(failed.value))
        busy.step()
        return found

    def test_when_something_hangs_on_a_live_table(self, busy, service):
        busy.world.tamper("CREATE VIEW used AS SELECT * FROM customer_usage")
        try:
            assert "customer_usage" in self.failed(busy, service).error
        finally:
            busy.world.tamper("DROP VIEW used")
        assert carry_out(service, asked(service).rebuild_id).state is State.DONE

    def test_when_the_tables_are_never_free(self, busy, service, tmp_path):
        """Others do not wait for longer than it tries to have them."""
        with psycopg.connect(busy.world.dsn) as reader:
            reader.execute("SELECT FROM customer_usage LIMIT 1")
            with writing(busy.world, tmp_path, writers=1) as writers:
                rebuild = asked(service)
                writers.seconds.clear()
                with pytest.raises(Failed, match="hold the tables"):
                    carry_out(service, rebuild.rebuild_id, patience_s=6)
                assert max(writers.seconds) < 3
            assert rebuilds.newest(service.datastore)[0].state is State.FAILED
            assert left_over(busy.world) == 0

    @pytest.mark.parametrize(
        ("error", "passing"),
        [
            (psycopg.errors.DiskFull, False),
            (psycopg.errors.OutOfMemory, False),
            (psycopg.errors.UndefinedTable, False),
            (psycopg.errors.TooManyConnections, True),
            (psycopg.errors.AdminShutdown, True),
            (psycopg.errors.ConnectionFailure, True),
        ],
    )
    def test_for_good_when_the_disk_is_full_and_not_when_the_server_restarts(self, error, passing):
        """What was built so far is what fills the disk; over a restart it is kept."""
        assert passes(error()) is passing

    def test_at_an_event_that_cannot_be_read(self, busy, service):
        poisoned = service.log.end()
        busy.world.tamper("UPDATE stored_events SET topic = 'run.unheard-of@1' WHERE notification_id = %s", poisoned)
        assert "run.unheard-of@1" in self.failed(busy, service).error
        assert busy.world.row("checkpoints", projection="postgres")["problem_position"] == poisoned


def test_it_passes_over_what_is_skipped(busy, service):
    """By the log, also when the table that lists it was emptied."""
    stuck = service.log.end()
    busy.world.tamper("UPDATE stored_events SET topic = 'run.unheard-of@1' WHERE notification_id = %s", stuck)
    with pytest.raises(Failed):
        carry_out(service, asked(service).rebuild_id)
    skip_event(SkipEvent(**busy.world.stamp(), projection="postgres", position=stuck, reason="lost"), service.platform)
    busy.world.execute("DELETE FROM projection_skips")
    assert carry_out(service, asked(service).rebuild_id).state is State.DONE
    assert busy.world.row("projection_skips")["skipped_position"] == stuck


class TestOneAtATime:
    def test_asking_twice(self, busy, service):
        first = asked(service)
        with pytest.raises(Conflict, match="one at a time"):
            asked(service)
        carry_out(service, first.rebuild_id)
        assert asked(service).state is State.REQUESTED

    def test_of_many_who_ask_together(self, busy, service):
        def ask(_: int) -> bool:
            try:
                return bool(asked(service))
            except Conflict:
                return False

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(ask, range(8))) == 1

    def test_tables_that_are_not_there(self):
        with pytest.raises(Invalid, match="x_meta_step_logs is a table of BigQuery alone"):
            chosen(["x_meta_step_logs"], Target.POSTGRES)
        assert chosen(["x_meta_step_logs"], Target.BIGQUERY) == ("x_meta_step_logs",)


def test_a_projector_takes_it_up(busy, service, tmp_path):
    """What was asked for, and what a process left that was killed; not what another one is doing."""
    stop = threading.Event()
    rebuilder = Rebuilder(service, stop)
    rebuilder.start()
    try:
        with leading(service.dsn, LEAD) as lead:
            assert lead
            rebuild = asked(service)
            assert rebuilds.newest(service.datastore)[0].state is State.REQUESTED
        until(lambda: rebuilds.newest(service.datastore)[0].state is State.DONE, seconds=30)
        assert rebuilds.newest(service.datastore)[0].rebuild_id == rebuild.rebuild_id
    finally:
        stop.set()
        rebuilder.join()


def test_a_projector_that_stops_leaves_it_to_the_next(busy, service):
    with psycopg.connect(busy.world.dsn) as reader:
        reader.execute("SELECT FROM customer_usage LIMIT 1")
        stop = threading.Event()
        rebuilder = Rebuilder(service, stop)
        asked(service)
        rebuilder.start()
        until(lambda: rebuilds.newest(service.datastore)[0].state is State.SWAPPING, seconds=30)
        stop.set()
        rebuilder.join(timeout=5)
        assert not rebuilder.is_alive()
    left = rebuilds.unfinished(service.datastore)
    assert left is not None
    assert carry_out(service, left.rebuild_id).state is State.DONE


class TestTheApi:
    def test_takes_it_up_and_a_projector_does_it(self, busy, service, tmp_path):
        busy.world.execute("UPDATE customer_usage SET pipelines_run_today = 99 WHERE customer_id = 'alpha'")
        url, stop = "/api/v1/admin/projections/rebuild", threading.Event()
        with running(service.dsn, tmp_path) as api:
            admin = api.admin()
            body = {"tables": ["customer_usage"], "reason": "Edited by hand."}
            first = admin.post(url, json=body, headers={"Idempotency-Key": "one"})
            assert first.status_code == 202, first.text
            assert first.headers["Location"] == "/api/v1/admin/projections"
            assert first.json()["state"] == "REQUESTED"
            assert admin.post(url, json=body, headers={"Idempotency-Key": "one"}).content == first.content
            second = admin.post(url, json=body)
            assert (second.status_code, second.json()["detail"]) == (
                409,
                "A rebuild is not finished yet: there is one at a time.",
            )
            for wrong in ({}, {**body, "tables": ["users"]}, {**body, "target": "files"}, {**body, "reason": "a\nb"}):
                assert admin.post(url, json=wrong).status_code == 422
            rebuilder = Rebuilder(api.service, stop)
            rebuilder.start()
            try:
                until(lambda: rebuilds.unfinished(service.datastore) is None, seconds=60)
            finally:
                stop.set()
                rebuilder.join()
        [done] = rebuilds.newest(service.datastore)
        assert (str(done.rebuild_id), done.state) == (first.json()["rebuild_id"], State.DONE)
        assert (done.asked_by.partition("/")[0], done.reason) == ("admin", "Edited by hand.")
        assert done.differences["customer_usage"]["changed"] > 0


class TestTheCommand:
    def started(self, service: Service, tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("convergence")), "rebuild", *arguments],
            env={
                "PATH": os.defpath,
                "DATABASE_URL": service.dsn,
                "DATA_DIR": str(tmp_path),
                "BIGQUERY_EMULATOR_HOST": NOWHERE,
                "COLUMNS": "100",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, process: "subprocess.Popen[str]") -> tuple[int, str, str]:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def test_mends_and_says_so(self, busy, service, copy, tmp_path):
        busy.world.execute("DELETE FROM customer_profiles WHERE customer_id = 'beta'")
        status, out, err = self.ended(self.started(service, tmp_path, "--reason", "Deleted by hand."))
        assert status == 0, err
        assert "customer_profiles: 1 missing; mended." in out
        assert f"up to position {service.log.end()}" in out
        assert BUILDING in err
        assert digests(busy.world.datastore) == replayed(busy.world, copy)

    def test_interrupted_goes_on(self, busy, service, tmp_path):
        with psycopg.connect(service.dsn) as reader:
            reader.execute("SELECT FROM customer_usage LIMIT 1")
            process = self.started(service, tmp_path, "customer_usage", "--json")
            until(lambda: (r := rebuilds.unfinished(service.datastore)) and r.state is State.SWAPPING, seconds=60)
            status, _, err = self.ended(self.started(service, tmp_path, "customer_usage"))
            assert (status, "Another process is rebuilding, at position" in err) == (1, True), err
            process.send_signal(signal.SIGINT)
            status, out, err = self.ended(process)
            assert status != 0
            assert "The same command goes on from here" in err, err
        status, _, err = self.ended(self.started(service, tmp_path, "customer_profiles"))
        assert (status, "convergence rebuild customer_usage --target postgres" in err) == (1, True), err
        status, out, err = self.ended(self.started(service, tmp_path, "customer_usage", "--json"))
        assert status == 0, err
        assert f'"position": {service.log.end()}' in out

    def test_says_what_is_wrong(self, busy, service, tmp_path):
        status, _, err = self.ended(self.started(service, tmp_path, "users"))
        assert (status, "users is not a table of PostgreSQL" in err) == (2, True), err
        busy.world.tamper("CREATE VIEW used AS SELECT * FROM customer_usage")
        try:
            status, _, err = self.ended(self.started(service, tmp_path))
        finally:
            busy.world.tamper("DROP VIEW used")
        assert status == 1
        assert err.strip().splitlines()[-1].startswith("PostgreSQL: cannot drop table public.customer_usage")
        assert "Traceback" not in err
