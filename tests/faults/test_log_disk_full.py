"""The database's disk is full: callers are told so, nothing is torn, and all goes on as soon as there is room."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from adapters.doctor import _room
from adapters.embedded.child import free_port
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.finding import Result
from adapters.postgres.event_log import translated
from adapters.postgres.schema import migrate
from application.ports import Away, Full
from tests.application.world import World, until
from tests.faults.acknowledging import lost
from tests.faults.small_disk import SmallDisk, small_disk
from tests.faults.whole import torn
from tests.http.running import ADMIN, Customer, Quick, Running, running

SENTENCE = "The database's disk is full"


@pytest.fixture
def disk(tmp_path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as made:
        yield made


@pytest.fixture
def server(disk) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(disk.directory / "postgres", free_port(), durable=False) as made:
        with psycopg.connect(made.dsn, row_factory=psycopg.rows.dict_row) as connection:
            migrate(connection)
        yield made
        disk.empty()


@pytest.fixture
def api(server, tmp_path) -> Iterator[Running]:
    with running(server.dsn, tmp_path / "data", engine=Quick()) as made:
        yield made


def generous(api: Running) -> Customer:
    """A customer with room for any number of runs."""
    acme = api.onboard("SCALE")
    more = {f"max_pipelines_per_{of}": 100_000 for of in ("day", "month")} | {"max_concurrent_pipelines": 10_000}
    api.client(ADMIN).patch(f"/api/v1/admin/customers/{acme.id}/limits", json={**more, "reason": "test"})
    return acme


def ask_until_refused(acme: Customer) -> tuple[set[tuple[str, str]], str]:
    """The runs that were acknowledged until one was not, and the name under which that was asked for."""
    acknowledged: set[tuple[str, str]] = set()
    for _ in range(2_000):
        name = uuid4().hex
        answer = acme.run(headers={"Idempotency-Key": name}, json={"parameters": {"days": 1}, "trigger_by": "x" * 190})
        if answer.status_code != 202:
            assert answer.status_code == 503, answer.text
            assert SENTENCE in answer.json()["detail"]
            assert int(answer.headers["Retry-After"]) >= 1
            return acknowledged, name
        acknowledged.add(("scheduled_pipeline_runs", answer.json()["run_id"]))
    raise AssertionError("the disk was never full")


def room(dsn: str) -> Result:
    with psycopg.connect(dsn, row_factory=psycopg.rows.dict_row) as connection:
        return _room(connection).result


def test_a_full_disk_is_said_and_passes(api, server, disk, tmp_path):
    acme = generous(api)
    assert room(server.dsn) is Result.OK
    disk.fill()
    acknowledged, name = ask_until_refused(acme)
    # What was stored can be read, and those who look after the service are told.
    assert acme.get(acme.url).status_code == 200
    ready = api.client().get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["status"] == "degraded"
    assert SENTENCE in ready.text
    assert SENTENCE in api.client(ADMIN).get("/api/v1/scheduler/status").text
    assert room(server.dsn) is Result.FAIL
    disk.empty()
    again = acme.run(headers={"Idempotency-Key": name}, json={"parameters": {"days": 1}, "trigger_by": "x" * 190})
    assert again.status_code == 202, again.text
    acknowledged.add(("scheduled_pipeline_runs", again.json()["run_id"]))
    assert SENTENCE not in api.client().get("/readyz").text
    assert acme.get(f"{acme.url}/usage").json()["pipelines_run_today"] == len(acknowledged)
    with World(server.dsn, tmp_path / "data" / "keys" / "wrapping.key") as world:
        assert lost(world, acknowledged) == set()
        assert torn(world) == []


def use_up_the_write_ahead_log(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(200):
            connection.execute("SELECT pg_logical_emit_message(true, 'fill', repeat(md5(random()::text), 32768))")


def test_no_room_for_the_write_ahead_log(api, server, disk, tmp_path):
    """PostgreSQL itself dies of this, and cannot start again before there is room; then everything is there."""
    acme = generous(api)
    disk.fill()
    acknowledged, _ = ask_until_refused(acme)
    pid = server.pid
    with pytest.raises(psycopg.OperationalError):
        use_up_the_write_ahead_log(server.dsn)
    until(lambda: acme.get(acme.url).status_code == 503, seconds=20)
    assert api.client().get("/livez").status_code == 200
    disk.empty()
    until(lambda: acme.get(acme.url).status_code == 200, seconds=120)
    assert server.pid != pid
    assert acme.run().status_code == 202
    with World(server.dsn, tmp_path / "data" / "keys" / "wrapping.key") as world:
        assert lost(world, acknowledged) == set()
        assert torn(world) == []


def test_a_full_disk_is_not_called_away():
    """The control: any other trouble of the server's is not said to be its disk."""
    with pytest.raises(Full, match=SENTENCE), translated():
        raise psycopg.errors.DiskFull
    with pytest.raises(Away) as raised, translated():
        raise psycopg.errors.OutOfMemory
    assert not isinstance(raised.value, Full)
