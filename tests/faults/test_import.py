"""Imports of a log: the same bytes and the same tables elsewhere, all of it or nothing, and never of damaged files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from adapters.archive.manifest import MANIFEST, Damaged
from adapters.export import export
from adapters.kms import DataKeyGroup
from adapters.postgres.checkpoints import PostgresCheckpoints
from adapters.process import Unable
from application.projections import SkipEvent, skip_event
from domain.projection import NOTIFICATIONS, POSTGRES, PROJECTIONS, WAREHOUSE
from projections.follow import Problem, ProblemKind
from tests.application.busy import Busy
from tests.application.world import World, until
from tests.faults import archives
from tests.faults.archives import bring, check, copied, files, is_unused, kept, key_of, lived_in, seal
from tests.projections.test_replay import database, digests

SMALL = 20
"""Events to a segment."""


@pytest.fixture
def empty(postgres_server, migrated_template) -> Iterator[str]:
    with database(postgres_server, migrated_template) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A data directory with a wrapping key."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def lived(postgres_server, migrated_template, home) -> Iterator[World]:
    """A world after a while, with runs that are running, sealed and exported; to be read only."""
    with database(postgres_server, migrated_template) as dsn, lived_in(dsn, home) as world:
        busy = Busy(world, seed=12).begin()
        for _ in range(60):
            busy.step()
        world.onboard("omega")
        world.request("omega")
        assert world.claim(run_id=world.request("omega"))
        for group in DataKeyGroup:  # what was sealed before is opened with keys that have retired
            world.vault.renew("omega", group)
        seal(dsn)
        export(dsn, home / "archive", segment_events=SMALL)
        yield world


@pytest.fixture
def archive(lived, home) -> Path:
    return home / "archive"


def test_the_log_and_the_tables_are_the_same_bit_for_bit(lived, archive, empty, home):
    done = bring(empty, archive, home)
    assert kept(empty) == kept(lived.dsn)
    with lived_in(empty, home) as there:
        assert digests(there.datastore) == digests(lived.datastore)
        assert there.events() == lived.events()
        assert done.running == lived.states()["RUNNING"]
    assert done.hash == check(archive).hash


def test_commands_go_on_where_the_log_ended(lived, archive, empty, home):
    bring(empty, archive, home)
    with lived_in(empty, home) as there:
        there.at = lived.at
        end = there.scalar("SELECT max(notification_id) FROM stored_events")
        there.request("omega")
        assert there.scalar("SELECT max(notification_id) FROM stored_events") > end
        assert there.usage("omega")[0] == lived.usage("omega")[0] + 1


def test_runs_without_their_workers_are_taken_over(lived, archive, empty, home):
    running = {row["run_id"] for row in lived.rows("scheduled_pipeline_runs", state="RUNNING")}
    bring(empty, archive, home)
    with lived_in(empty, home) as there:
        assert set(there.take_over()) == running
        assert not there.rows("scheduled_pipeline_runs", state="RUNNING")
        assert not there.rows("pipeline_execution_queue", state="RUNNING")
        newest = there.rows("customer_usage", customer_id="omega")[-1]
        assert newest["concurrent_pipelines_running"] == 0


def test_without_leases_they_would_run_for_ever(archive, empty, home):
    """The control: an import that makes up for nothing."""
    bring(empty, archive, home)
    with lived_in(empty, home) as there:
        there.execute("DELETE FROM run_leases")
        assert there.take_over() == []
        assert there.rows("scheduled_pipeline_runs", state="RUNNING")


def test_nobody_is_welcomed_again_and_bigquery_is_filled_anew(lived, archive, empty, home):
    bring(empty, archive, home)
    with lived_in(empty, home) as there:
        end = check(archive).last_position
        checkpoints = PostgresCheckpoints(there.datastore)
        assert {name: checkpoints.position(name) for name in PROJECTIONS if checkpoints.position(name)} == {
            NOTIFICATIONS: end
        }


def test_signed_heads_come_along_and_no_others_are_lost(lived, empty, home, tmp_path):
    heads, elsewhere = tmp_path / "heads.jsonl", tmp_path / "elsewhere"
    heads.write_bytes(b'{"position":3,"signature":"x"}\n')
    export(lived.dsn, tmp_path / "archive", heads=heads)
    key_of(elsewhere).parent.mkdir(parents=True)
    key_of(elsewhere).write_bytes(key_of(home).read_bytes())
    key_of(elsewhere).chmod(0o600)
    (elsewhere / "log-heads.jsonl").write_bytes(b'{"position":4,"signature":"y"}\n')
    with pytest.raises(Unable, match=r"log-heads.jsonl holds signed heads of another log"):
        bring(empty, tmp_path / "archive", elsewhere)
    assert is_unused(empty)
    (elsewhere / "log-heads.jsonl").unlink()
    bring(empty, tmp_path / "archive", elsewhere)
    assert (elsewhere / "log-heads.jsonl").read_bytes() == heads.read_bytes()


def test_one_customers_log_makes_that_customer_and_nobody_else(lived, empty, home, tmp_path):
    done = export(lived.dsn, tmp_path / "alpha", customer_id="alpha")
    assert bring(empty, tmp_path / "alpha", home).events == done.events < len(lived.events())
    with lived_in(empty, home) as there:
        for table in ("customer_profiles", "customer_usage", "scheduled_pipeline_runs", "pipeline_execution_queue"):
            assert there.rows(table) == lived.rows(table, customer_id="alpha")
        there.at = lived.at
        there.onboard("beta")
        assert there.request("beta")


# --- refused ------------------------------------------------------------------------------------------------------


def edit_a_count(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_bytes())
    manifest["segments"][1]["lines"] += 1
    (directory / MANIFEST).write_text(json.dumps(manifest))


def misstate_a_count(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_bytes())
    manifest["segments"][1]["lines"] += 1
    archives.remanifest(directory, manifest)


def leave_a_segment_out(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_bytes())
    del manifest["segments"][1]
    archives.remanifest(directory, manifest)


def come_from_the_future(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_bytes())
    archives.remanifest(directory, {**manifest, "format": 3, "colour": "blue"})


def reach_out(directory: Path) -> None:
    text = (directory / MANIFEST).read_text().replace("events-000001.jsonl.gz", "../events-000001.jsonl.gz")
    archives.remanifest(directory, json.loads(text))


def on(kind: str, harm: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda directory: harm(files(directory, kind)[min(1, len(files(directory, kind)) - 1)])


def rewritten(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], object]:
    return on("events", lambda path: archives.rewrite(path, change))


SECOND = r"events-000002\.jsonl\.gz is damaged or was changed: "
HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (on("events", archives.flip_a_byte), SECOND + "its SHA-256"),
    "a flipped byte of the keys": (on("data-keys", archives.flip_a_byte), r"data-keys-000001\.jsonl\.gz is damaged"),
    "a flipped byte of the seals": (on("seals", archives.flip_a_byte), r"seals-000001\.jsonl\.gz is damaged"),
    "a missing segment": (on("events", Path.unlink), r"events-000002\.jsonl\.gz is missing"),
    "a truncated file": (on("events", archives.cut_off), SECOND + "its SHA-256"),
    "a truncated file, listed": (
        lambda d: (archives.cut_off(files(d, "events")[1]), archives.relist(d)),
        SECOND + "it is cut off",
    ),
    "a flipped byte, listed": (
        lambda d: (archives.flip_a_byte(files(d, "events")[1]), archives.relist(d)),
        SECOND,
    ),
    "lines reordered": (rewritten(archives.swap_two), SECOND + "the event at position .* is out of its order"),
    "events exchanged": (rewritten(archives.swap_two_at_each_others_place), SECOND + "the hash"),
    "an event left out": (rewritten(archives.leave_one_out), SECOND),
    "an event changed": (rewritten(archives.change_one), SECOND + "the hash"),
    "a line of something else": (rewritten(lambda lines: [*lines, b"{}\n"]), SECOND + "line 21 cannot be read"),
    "a count edited": (edit_a_count, r"manifest\.json is damaged or was changed: its digest"),
    "a wrong count": (misstate_a_count, SECOND + "it has 20 lines, and the manifest says 21"),
    "a segment left out": (leave_a_segment_out, r"events-000003\.jsonl\.gz is damaged or was changed: the hash"),
    "a newer format": (come_from_the_future, r"manifest\.json has format 3: a newer version"),
    "a file outside": (reach_out, r"manifest\.json is damaged"),
    "no manifest": (lambda d: (d / MANIFEST).unlink(), r"manifest\.json is missing"),
    "half a manifest": (lambda d: archives.cut_off(d / MANIFEST), r"manifest\.json is damaged"),
}


@pytest.mark.parametrize("what", HARM)
def test_a_damaged_archive_is_refused_by_name_and_nothing_is_imported(archive, shared_empty, home, tmp_path, what):
    harm, sentence = HARM[what]
    directory = copied(archive, tmp_path / "copy")
    harm(directory)
    with pytest.raises(Unable, match=sentence):
        check(directory)
    with pytest.raises(Unable, match=sentence):
        bring(shared_empty, directory, home)
    assert is_unused(shared_empty)


@pytest.fixture(scope="module")
def shared_empty(postgres_server, migrated_template) -> Iterator[str]:
    with database(postgres_server, migrated_template) as dsn:
        yield dsn


def test_an_undamaged_copy_is_not_refused(archive, empty, home, tmp_path):
    """The control: the harm is what was refused, not the copy, and what it put in is noticed."""
    directory = copied(archive, tmp_path / "copy")
    archives.relist(directory)
    assert check(directory) == check(archive)
    bring(empty, directory, home)
    assert not is_unused(empty)


@pytest.mark.parametrize(
    "used",
    [
        "INSERT INTO data_keys (customer_id, purpose, wrapped) VALUES ('a', 'b', 'c')",
        "INSERT INTO run_leases (run_id, customer_id, worker_id, attempt, expires_at) VALUES ('a', 'b', 'c', 1, now())",
        "INSERT INTO customer_usage (customer_id, usage_date, position) VALUES ('a', now(), 1)",
    ],
)
def test_a_store_that_was_used_is_refused(archive, empty, home, used):
    with psycopg.connect(empty) as connection:
        connection.execute(used)
    before = kept(empty)
    with pytest.raises(Unable, match=r"The store is not empty, .* has rows"):
        bring(empty, archive, home)
    assert kept(empty) == before


def test_a_second_import_is_refused(archive, empty, home):
    bring(empty, archive, home)
    before = kept(empty)
    with pytest.raises(Unable, match="The store is not empty, stored_events has rows"):
        bring(empty, archive, home)
    assert kept(empty) == before


class TestTheWrappingKey:
    def test_has_to_be_there_and_is_not_made(self, archive, shared_empty, tmp_path):
        with pytest.raises(Unable, match=r"copy the one that the log was written with to .*wrapping\.key"):
            bring(shared_empty, archive, tmp_path)
        assert not key_of(tmp_path).exists()
        assert is_unused(shared_empty)

    def test_has_to_be_the_one_that_the_log_was_written_with(self, archive, shared_empty, empty, tmp_path):
        with lived_in(empty, tmp_path) as other:
            other.onboard()
        with pytest.raises(Unable, match="wrapped under another key") as refused:
            bring(shared_empty, archive, tmp_path)
        assert not isinstance(refused.value, Damaged)
        assert is_unused(shared_empty)


def test_the_services_own_login_is_not_enough(archive, empty, home, postgres_server):
    with psycopg.connect(empty) as connection:
        [database_name] = connection.execute("SELECT current_database()").fetchone() or [None]
        login = f"only_{database_name}"
        connection.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'only' IN ROLE convergence_service")
    user, rest = empty.split("@", 1)
    assert user.startswith("postgresql://")
    with pytest.raises(Unable, match="may not set positions"):
        bring(f"postgresql://{login}:only@{rest}", archive, home)
    assert is_unused(empty)
    with psycopg.connect(empty) as connection:
        connection.execute(f"DROP ROLE {login}")


def test_an_event_that_nobody_can_read_is_named(lived, empty, home, tmp_path):
    lived.tamper("UPDATE stored_events SET topic = 'run.unheard-of@1' WHERE notification_id = 30")
    try:
        export(lived.dsn, tmp_path / "archive")
    finally:
        topic = next(e for e in archives_lines(home / "archive") if e.position == 30).topic
        lived.tamper("UPDATE stored_events SET topic = %s WHERE notification_id = 30", topic)
    assert check(tmp_path / "archive").broken_seal is not None
    with pytest.raises(Unable, match=r"from position 30 on\. Event .*run\.unheard-of@1.* no such topic is known"):
        bring(empty, tmp_path / "archive", home)
    assert is_unused(empty)


def archives_lines(directory: Path) -> list:
    with archives.opened(directory) as archive:
        return [line for line, _ in archive.events()]


def test_an_event_that_an_operator_skipped_is_passed_over(database_url, empty, tmp_path):
    """For the tables of the service, that is: what another projection passes over says nothing about them."""
    with lived_in(database_url, tmp_path) as world:
        world.onboard()
        spoilt = world.request()
        position = world.scalar("SELECT max(notification_id) FROM stored_events WHERE topic LIKE 'run.%%'")
        world.tamper("UPDATE stored_events SET topic = 'run.unheard-of@1' WHERE notification_id = %s", position)
        world.request()
        checkpoints = PostgresCheckpoints(world.datastore)
        for number, projection in enumerate((WAREHOUSE, POSTGRES)):
            checkpoints.stand(projection, Problem(kind=ProblemKind.EVENT, text="Unreadable.", position=position))
            skip_event(
                SkipEvent(**world.stamp(), projection=projection, position=position, reason="Nobody knows it."),
                world.platform,
            )
            export(world.dsn, tmp_path / f"archive{number}")
        with pytest.raises(Unable, match=f"from position {position} on"):
            bring(empty, tmp_path / "archive0", tmp_path)
        bring(empty, tmp_path / "archive1", tmp_path)
        with lived_in(empty, tmp_path) as there:
            assert kept(empty) == kept(world.dsn)
            found = {row["run_id"] for row in there.rows("scheduled_pipeline_runs")}
            assert {row["run_id"] for row in world.rows("scheduled_pipeline_runs")} - found == {spoilt}
            assert len(there.rows("projection_skips")) == 2


# --- killed -------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from adapters.archive.reading import opened
from adapters.importing import restore
from adapters.settings import Settings

def tell(stage, done, total):
    if stage == sys.argv[3] and done >= total * float(sys.argv[4]):
        print(stage, flush=True)
        sys.stdin.read()

with opened(Path(sys.argv[1])) as archive:
    restore(sys.stdin.readline().strip(), archive, Settings(data_dir=Path(sys.argv[2])), tell=tell)
print("done", flush=True)
sys.stdin.read()
"""


def killed(dsn: str, directory: Path, home: Path, stage: str, share: float) -> None:
    """An import that is killed when it has come so far with that stage, and whose session has ended."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), str(home), stage, str(share)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "."},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(dsn + "\n")
        child.stdin.flush()
        assert child.stdout.readline().strip() == stage
        child.kill()
    sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'convergence import%%' AND datname = %s"
    with psycopg.connect(dsn, autocommit=True) as connection:
        until(lambda: not connection.execute(sessions, (connection.info.dbname,)).fetchall())


STAGES = [("Checksums", 0.1), ("Chain", 1), ("Rows", 1), ("Log", 1), ("Tables", 0.5), ("Tables", 1)]


def test_a_killed_import_leaves_nothing_and_the_next_one_everything(lived, archive, empty, home):
    for stage, share in STAGES:
        killed(empty, archive, home, stage, share)
        assert is_unused(empty)
    bring(empty, archive, home)
    assert kept(empty) == kept(lived.dsn)


def test_what_a_killed_import_left_would_be_seen(archive, empty, home):
    """The control: killed once it was done."""
    killed(empty, archive, home, "done", 1)
    assert not is_unused(empty)
