"""The embedded BigQuery: it starts without a network, keeps its tables, comes back, and is wiped when damaged."""

import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from adapters.embedded import EmbeddedError
from adapters.embedded.bigquery import EmbeddedBigQuery
from adapters.embedded.child import alive, free_port

SERVE = """
import sys
from pathlib import Path
from adapters.embedded.bigquery import EmbeddedBigQuery
server = EmbeddedBigQuery(Path(sys.argv[1]), int(sys.argv[2]))
server.start()
print(server.pid, "duckdb" in sys.modules, flush=True)
sys.stdin.read()
"""

OFFLINE = "exec unshare --user --map-root-user --net sh -c 'ip link set lo up && exec \"$@\"' sh"
"""Runs a command in a network of its own, in which there is nothing but loopback: not even a name server."""


def client(url: str) -> bigquery.Client:
    return bigquery.Client(project="laptop", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})


def rows(url: str, sql: str) -> list[tuple]:
    with client(url) as warehouse:
        return [tuple(row) for row in warehouse.query_and_wait(sql)]


def remember(url: str, dataset: str, value: int) -> None:
    with client(url) as warehouse:
        warehouse.create_dataset(dataset, exists_ok=True)
        table = bigquery.Table(f"laptop.{dataset}.remembered", schema=[bigquery.SchemaField("value", "INT64")])
        warehouse.create_table(table, exists_ok=True)
        warehouse.query_and_wait(f"INSERT INTO `laptop.{dataset}.remembered` (value) VALUES ({value})")


def remembered(url: str, dataset: str = "kept") -> list[tuple]:
    return rows(url, f"SELECT value FROM `laptop.{dataset}.remembered` ORDER BY value")


def until(condition, seconds=30):
    """Wait until the condition holds; its last value."""
    patient = retry(retry=retry_if_result(lambda held: not held), wait=wait_fixed(0.05), stop=stop_after_delay(seconds))
    return patient(condition)()


def test_a_query_through_googles_own_client(bigquery_emulator):
    dataset = f"test_{uuid4().hex}"
    remember(bigquery_emulator, dataset, 1)
    assert remembered(bigquery_emulator, dataset) == [(1,)]
    assert rows(bigquery_emulator, "SELECT ST_ASTEXT(ST_GEOGPOINT(1, 2))") == [("POINT (1 2)",)]


@pytest.mark.skipif(
    subprocess.run(["sh", "-c", f"{OFFLINE} true"], check=False, capture_output=True).returncode != 0,
    reason="no network namespaces here",
)
def test_the_first_start_needs_no_network(tmp_path):
    command = f'{OFFLINE} "$0" -c "$1" "$2" 9050'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, SERVE, tmp_path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    assert done.stdout.split()[1:] == [b"False"], "it answered, and our own process stayed free of DuckDB"


def test_tables_survive_a_stop_and_nothing_is_called_empty_twice(tmp_path):
    emptied = []
    emulator = EmbeddedBigQuery(tmp_path, free_port(), on_empty=lambda: emptied.append(1))
    remember(emulator.start(), "kept", 1)
    emulator.stop()
    with emulator as again:
        assert remembered(again.url) == [(1,)]
        again.restart()
        assert remembered(again.url) == [(1,)]
    assert emptied == [1]


def test_a_killed_emulator_comes_back_with_its_tables(tmp_path):
    with EmbeddedBigQuery(tmp_path, free_port()) as emulator:
        remember(emulator.url, "kept", 1)
        killed = psutil.Process(emulator.pid)
        killed.kill()
        until(lambda: emulator.pid not in {None, killed.pid} and emulator.healthy())
        assert remembered(emulator.url) == [(1,)]


def test_a_stuck_emulator_is_not_healthy_and_can_be_restarted(tmp_path):
    with EmbeddedBigQuery(tmp_path, free_port()) as emulator:
        remember(emulator.url, "kept", 1)
        os.kill(emulator.pid, signal.SIGSTOP)
        assert not emulator.healthy()
        emulator.restart()
        assert emulator.healthy()
        assert remembered(emulator.url) == [(1,)]


def test_one_that_only_knows_errors_is_restarted(tmp_path):
    """A write that could not be finished leaves it so, and it says all the while that it is well."""
    with EmbeddedBigQuery(tmp_path / "bigquery", free_port(), ask_seconds=0.5) as server:
        remember(server.url, "kept", 1)
        broken = server.pid
        psutil.Process(broken).rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))
        query = f"{server.url}/bigquery/v2/projects/laptop/queries"
        many = "CREATE TABLE kept.many AS SELECT x FROM UNNEST(GENERATE_ARRAY(1, 100000)) AS x"
        httpx.post(query, json={"query": many, "useLegacySql": False}, timeout=30)
        assert httpx.post(query, json={"query": "SELECT 1", "useLegacySql": False}, timeout=30).status_code == 500
        assert until(lambda: server.pid not in {broken, None} and server.healthy())
        assert remembered(server.url) == [(1,)]


@pytest.mark.parametrize("contents", [b"", b"garbage" * 10_000])
def test_a_damaged_file_is_wiped_and_said(tmp_path, contents, caplog):
    emptied = []
    emulator = EmbeddedBigQuery(tmp_path, free_port(), on_empty=lambda: emptied.append(1))
    remember(emulator.start(), "kept", 1)
    emulator.stop()
    (tmp_path / "data" / "bqemulator.duckdb").write_bytes(contents)
    with emulator as again:
        remember(again.url, "kept", 2)
        assert remembered(again.url) == [(2,)]
    assert emptied == [1, 1]
    assert "the event log fills it again" in caplog.text


def test_files_stay_while_the_checkpoint_cannot_be_put_back(tmp_path):
    def away() -> None:
        raise OSError("the database is away")

    with EmbeddedBigQuery(tmp_path, free_port()):
        pass
    database = tmp_path / "data" / "bqemulator.duckdb"
    database.write_bytes(b"garbage" * 10_000)
    with pytest.raises(OSError, match="the database is away"):
        EmbeddedBigQuery(tmp_path, free_port(), on_empty=away).start()
    assert database.read_bytes() == b"garbage" * 10_000


def test_a_port_in_use_is_named_with_its_setting(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"Port {port} .*BIGQUERY_EMULATOR_PORT"):
            EmbeddedBigQuery(tmp_path, port).start()


def start_elsewhere(directory: Path, port: int) -> tuple[subprocess.Popen[str], psutil.Process]:
    command = [sys.executable, "-c", SERVE, str(directory), str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, psutil.Process(int(process.stdout.readline().split()[0]))


def test_the_emulator_ends_when_its_process_is_killed(tmp_path):
    port = free_port()
    process, server = start_elsewhere(tmp_path, port)
    with process:
        with pytest.raises(EmbeddedError, match=rf"already in use by another .* \(pid {process.pid}\)"):
            EmbeddedBigQuery(tmp_path, free_port()).start()
        process.kill()
        server.wait(20)


def test_a_leftover_emulator_is_ended_and_its_tables_taken_over(tmp_path):
    port = free_port()
    process, server = start_elsewhere(tmp_path, port)
    with process:
        remember(f"http://127.0.0.1:{port}", "kept", 1)
        guardian = server.parent()
        guardian.suspend()  # so that it does not notice, and the emulator stays
        process.kill()
        process.wait()
        guardian.kill()
    with EmbeddedBigQuery(tmp_path, port) as again:
        assert not alive(server)
        assert remembered(again.url) == [(1,)]


def test_its_memory_stays_within_bounds(tmp_path):
    """Idle, and after work that DuckDB would have answered with as much memory as the machine has."""
    with EmbeddedBigQuery(tmp_path, free_port()) as emulator:
        assert emulator.resident_bytes < 260 * 2**20
        sql = "SELECT COUNT(DISTINCT TO_HEX(SHA256(CAST(n AS STRING)))) FROM UNNEST(GENERATE_ARRAY(1, 2000000)) AS n"
        assert rows(emulator.url, sql) == [(2_000_000,)]
        assert emulator.resident_bytes < 450 * 2**20


def test_what_is_uploaded_stays_in_its_own_directory(tmp_path):
    """One fixed place for all users of a machine would be the first one's alone."""
    with EmbeddedBigQuery(tmp_path, free_port()) as emulator, client(emulator.url) as warehouse:
        remember(emulator.url, "kept", 1)
        config = bigquery.LoadJobConfig(source_format=bigquery.SourceFormat.NEWLINE_DELIMITED_JSON)
        warehouse.load_table_from_file(
            io.BytesIO(b'{"value": 2}\n'), "laptop.kept.remembered", job_config=config
        ).result(timeout=30, retry=None)
        assert remembered(emulator.url) == [(1,), (2,)]
        assert (tmp_path / "home" / "bqemu_uploads").is_dir()


def test_finished_jobs_are_forgotten_at_the_next_start(tmp_path):
    with EmbeddedBigQuery(tmp_path, free_port()) as emulator:
        remember(emulator.url, "kept", 1)
        with client(emulator.url) as warehouse:
            assert list(warehouse.list_jobs())
        emulator.restart()
        with client(emulator.url) as warehouse:
            assert not list(warehouse.list_jobs())
