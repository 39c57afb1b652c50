"""Who was erased is found nowhere any more, and comes back with no backup."""

import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from adapters.bootstrap import Service, build, origin
from adapters.doctor_erasures import examine_erasures
from adapters.embedded.binaries import installation
from adapters.eraser import Eraser
from adapters.erasure import AGAIN, apply_ledger, begin, finish, finish_all
from adapters.erasure_ledger import Entry, LedgerFile
from adapters.export import export
from adapters.finding import Result
from adapters.postgres import erasures, grants
from adapters.postgres.grants import Readers
from adapters.projector import run_projector
from adapters.readable_export import export_readable
from adapters.running import Place
from adapters.settings import Settings
from application import customers, team
from application.erasure import Erase, erase
from application.mapper import UnreadableEvent
from application.ports import Away, KeyDestroyed
from domain.customer_events import Erased, WebhookEndpointAdded
from tests.application.world import migrated, until
from tests.canaries import found_below, found_in
from tests.faults.archives import bring
from tests.http.running import NOWHERE
from tests.projections.test_replay import database

CANARIES = {
    "company": "Kanarienvogel und Söhne",
    "e-mail": "kanari.chefin@vogelbauer.example",
    "member": "Wellensittich Wanda",
    "member's e-mail": "wanda@vogelbauer.example",
    "endpoint": "https://hooks.vogelbauer.example/T0/geheim",
}


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@contextmanager
def service_on(dsn: str, data_dir: Path, **settings) -> Iterator[Service]:
    chosen = {"data_dir": data_dir, "bigquery_emulator_host": NOWHERE, "worker_id": "tests", **settings}
    service = build(Settings(**chosen), dsn)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def emulated(bigquery_emulator) -> dict[str, str]:
    """Settings of a BigQuery that answers, with a project of one's own."""
    name = uuid4().hex[:8]
    return {
        "bigquery_emulator_host": bigquery_emulator,
        "customers_dataset_id": f"erasure_{name}",
        "gcp_project_id": f"erasure-{name}",
    }


def stamp(service: Service) -> dict:
    return {"at": service.now(), "by": origin("admin")}


def onboard(service: Service, customer_id: str, company: str, email: str) -> None:
    command = customers.Onboard(
        **stamp(service), customer_id=customer_id, company_name=company, admin_email=email, subscription_plan="SCALE"
    )
    customers.onboard(command, service.platform, service.vault)


def move_in(service: Service) -> None:
    """Two customers; one of them has all the canaries."""
    onboard(service, "other", "Other Ltd.", "admin@other.example")
    onboard(service, "bird", CANARIES["company"], CANARIES["e-mail"])
    member = team.AddTeamMember(
        **stamp(service), customer_id="bird", email=CANARIES["member's e-mail"], name=CANARIES["member"]
    )
    team.add_team_member(member, service.platform)
    endpoint = WebhookEndpointAdded(
        endpoint_id="e", url=CANARIES["endpoint"], sealed_secret=b"sealed", kinds=("quota",)
    )
    service.platform.transact(member, lambda tx: tx.customer("bird").append([endpoint]))


def erase_bird(service: Service) -> None:
    erase(Erase(**stamp(service), customer_id="bird", reason="asked to"), service.platform)


def log(service: Service) -> bytes:
    """All that can be read of the log."""
    found = service.store.recorder.select_notifications(start=0, limit=100_000)
    events = [r for n in found for r in service.mapper.to_domain_events(n)]
    return repr([(r.envelope, r.event) for r in events]).encode()


def tables(dsn: str) -> bytes:
    """Every row of every table."""
    names = "SELECT tablename FROM pg_tables WHERE schemaname IN ('public', 'rebuild') ORDER BY 1"
    with psycopg.connect(dsn) as connection:
        found = [
            connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(name))).fetchall()
            for (name,) in connection.execute(names).fetchall()
        ]
    return repr(found).encode()


def stored(dsn: str, up_to: int) -> list:
    with psycopg.connect(dsn) as connection:
        query = "SELECT * FROM stored_events WHERE notification_id <= %s ORDER BY notification_id"
        return connection.execute(query, (up_to,)).fetchall()


def warehouse(service: Service) -> bytes:
    """Every row of every table in BigQuery that this service could have written."""
    client, found = service.bigquery, []
    there = {dataset.dataset_id for dataset in client.list_datasets()}
    for dataset in there & {service.settings.customers_dataset_id, "bird", "other"}:
        tables = [table.table_id for table in client.list_tables(dataset)]
        every = "SELECT '{0}', TO_JSON_STRING(t) FROM `{1}.{0}` AS t"
        sql = " UNION ALL ".join(every.format(table, f"{client.project}.{dataset}") for table in tables)
        found.append((dataset, tables, service.warehouse.query(sql).rows if tables else ()))
    return repr(found).encode()


def canaries(content: bytes) -> set[str]:
    return {name for name, text in CANARIES.items() if found_in(content, [text])}


@contextmanager
def projecting(service: Service) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=run_projector, args=(service, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_nothing_of_it_is_found_anywhere(database_url, emulated, tmp_path):
    with service_on(database_url, tmp_path, **emulated) as service, projecting(service):
        move_in(service)
        service.warehouse.ensure_customer("bird")
        body = json.dumps({"customer_id": "bird", "company_name": CANARIES["company"]}).encode()
        with service.datastore.reading() as cursor:
            cursor.execute(
                "INSERT INTO idempotent_requests (caller, key, fingerprint, body) VALUES ('admin', 'k', 'f', %s)",
                (body,),
            )
        until(lambda: service.checkpoints.position("bigquery") >= service.log.end(), 60)
        until(lambda: len(found_below(tmp_path / "outbox", CANARIES)) > 0)
        before = service.log.end(), stored(database_url, service.log.end())

        assert canaries(log(service)) == set(CANARIES)
        assert canaries(tables(database_url)) == set(CANARIES)
        assert canaries(warehouse(service)) == set(CANARIES)

        erase_bird(service)
        assert canaries(log(service)) == set(CANARIES)  # the event alone destroys no key
        begin(service, "bird")
        assert canaries(log(service)) == set()
        assert canaries(tables(database_url)) == set()
        until(lambda: erasures.find(service.datastore, "bird").completed_at, 60)

        assert canaries(warehouse(service)) == set()
        assert "bird" not in {dataset.dataset_id for dataset in service.bigquery.list_datasets()}
        assert found_below(tmp_path, CANARIES) == {}
        assert stored(database_url, before[0]) == before[1]
        assert isinstance(service.log.read(0, 10_000)[-1].event, Erased)
        assert list(LedgerFile(tmp_path / "erasures.jsonl").read()) == ["bird"]
        with psycopg.connect(database_url, row_factory=psycopg.rows.dict_row) as connection:
            place = Place(settings=service.settings, dsn=database_url, serve=None)
            found = examine_erasures(connection, place)
        assert (found.result, found.detail) == (Result.OK, "1 in the deletion ledger, nobody is back")


def test_what_a_crash_left_is_finished_by_whoever_comes_next(database_url, tmp_path):
    """BigQuery is away, and keys are destroyed all the same."""
    with service_on(database_url, tmp_path) as service:
        move_in(service)
        erase_bird(service)
    with service_on(database_url, tmp_path) as service:
        assert canaries(log(service)) == set(CANARIES)
        stop = threading.Event()
        eraser = Eraser(service, stop, look_s=0.1)
        eraser.start()
        try:
            until(lambda: "data_keys" in erasures.find(service.datastore, "bird").done)
        finally:
            stop.set()
            eraser.join()
        assert canaries(log(service)) == set()
        found = erasures.find(service.datastore, "bird")
        assert {"ledger", "data_keys", "mail"} <= found.done.keys()
        assert not {"dataset", "readers", "warehouse_ledger"} & found.done.keys()
        assert "warehouse_ledger: BigQuery is away" in found.problem
        assert found.completed_at is None


def test_a_step_that_fails_holds_up_no_other(database_url, emulated, tmp_path):
    (tmp_path / "erasures.jsonl").mkdir()
    with service_on(database_url, tmp_path, **emulated) as service:
        move_in(service)
        grants.applied(service.datastore, Readers("bird", 1, ("user:wanda@vogelbauer.example",), ()))
        erase_bird(service)
        begin(service, "bird")
        # What BigQuery was told is known until it was told otherwise.
        assert [known.customer_id for known in grants.due(service.datastore)] == ["bird"]
        found = finish(service, erasures.find(service.datastore, "bird"))
        assert {"data_keys", "readers"} <= found.done.keys()
        assert grants.due(service.datastore) == []
        assert "ledger" not in found.done
        assert f"ledger: The deletion ledger {tmp_path / 'erasures.jsonl'} cannot be used" in found.problem
        with pytest.raises(Away):
            apply_ledger(service, "admin")


def test_no_key_is_made_after_the_last_moment(database_url, tmp_path):
    """A request that came before may ask for one while the customer is erased, again and again."""
    with service_on(database_url, tmp_path) as service:
        move_in(service)
        stop, made = threading.Event(), 0

        def prepare() -> None:
            nonlocal made
            while not stop.is_set():
                try:
                    service.vault.prepare("BIRD")
                    made += 1
                except KeyDestroyed:
                    stop.wait(0.001)

        with ThreadPoolExecutor(4) as pool:
            preparing = [pool.submit(prepare) for _ in range(4)]
            until(lambda: made > 4)
            erase_bird(service)
            begin(service, "bird")
            stop.set()
            for one in preparing:
                one.result(10)
        with pytest.raises(KeyDestroyed):
            service.vault.prepare("bird")
        left = "SELECT DISTINCT customer_id FROM data_keys"
        with service.datastore.reading() as cursor:
            assert [row["customer_id"] for row in cursor.execute(left).fetchall()] == ["other"]
            # The control: of whom no erasure is noted keys are made.
            cursor.execute("DELETE FROM erasures")
            service.vault.prepare("bird")
            assert len(cursor.execute(left).fetchall()) == 2


def program(name: str, dsn: str, *options: str) -> None:
    url = urlsplit(dsn)
    environment = {
        "PGHOST": url.hostname or "",
        "PGPORT": str(url.port),
        "PGUSER": unquote(url.username or ""),
        "PGPASSWORD": unquote(url.password or ""),
    }
    command = [str(installation() / "bin" / name), *options, f"--dbname={url.path.lstrip('/')}"]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def doctor(service: Service) -> tuple[Result, str]:
    with psycopg.connect(service.dsn, row_factory=psycopg.rows.dict_row) as connection:
        found = examine_erasures(connection, Place(settings=service.settings, dsn=service.dsn, serve=None))
    return found.result, found.detail


def test_a_backup_brings_nobody_back(database_url, emulated, postgres_server, migrated_template, tmp_path):
    with service_on(database_url, tmp_path, **emulated) as service:
        move_in(service)
        program("pg_dump", database_url, "--format=custom", f"--file={tmp_path / 'dump'}")
        export(database_url, tmp_path / "archive")
        erase_bird(service)
        finish_all(service)
        assert canaries(log(service) + tables(database_url)) == set()
        onboarded_later = Entry("other", service.log.read(0, 1)[0].at.at.replace(year=2001))
        LedgerFile(tmp_path / "erasures.jsonl").add(onboarded_later)

    with database(postgres_server, "template1") as restored:
        options = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
        program("pg_restore", restored, *options, str(tmp_path / "dump"))
        back(restored, tmp_path, emulated)
    with database(postgres_server, migrated_template) as imported:
        bring(imported, tmp_path / "archive", tmp_path)
        back(imported, tmp_path, emulated)


def back(dsn: str, data_dir: Path, emulated: dict[str, str]) -> None:
    """Whoever was erased is here again, which is noticed, and goes again; whoever was not stays."""
    with service_on(dsn, data_dir, **emulated) as service:
        assert canaries(log(service)) == canaries(tables(dsn)) == set(CANARIES)
        result, detail = doctor(service)
        assert (result, detail.partition(" ")[0]) == (Result.FAIL, "bird")
        assert apply_ledger(service, "admin") == ["bird"]
        assert canaries(log(service) + tables(dsn)) == set()
        assert doctor(service)[0] is Result.OK
        assert apply_ledger(service, "admin") == []
        last = service.log.read(0, 10_000)[-1].event
        assert last == Erased(reason=AGAIN)
        assert b"Other Ltd." in log(service)


def test_an_archive_from_afterwards_can_be_read_elsewhere(database_url, postgres_server, migrated_template, tmp_path):
    """It has no keys of the customer: who takes every missing key for a fault cannot import it."""
    with service_on(database_url, tmp_path) as service:
        move_in(service)
        erase_bird(service)
        begin(service, "bird")
        export(database_url, tmp_path / "archive")
        there = log(service)
    with database(postgres_server, migrated_template) as empty:
        bring(empty, tmp_path / "archive", tmp_path)
        with service_on(empty, tmp_path) as service:
            assert log(service) == there
            assert [e.customer_id for e in erasures.unfinished(service.datastore)] == ["bird"]
            service.vault.destroy("other")
            with pytest.raises(UnreadableEvent):
                log(service)


def test_the_ledger_survives_a_torn_line(tmp_path):
    file = LedgerFile(tmp_path / "ledger.jsonl")
    one, two = (Entry(name, psycopg.types.datetime.datetime.fromisoformat("2025-11-17T12:00:00Z")) for name in "ab")
    file.add(one)
    file.path.write_bytes(file.path.read_bytes() + b'{"customer_id": "torn')
    file.add(two)
    file.add(one)
    assert list(file.read()) == ["a", "b"]
    assert len(file.path.read_bytes().splitlines()) == 3
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_person_is_given_what_is_known_of_them(database_url, tmp_path):
    with service_on(database_url, tmp_path / "var") as service:
        move_in(service)
        done = export_readable(service, "bird", tmp_path / "bird")
        with service.datastore.reading() as cursor:
            [key] = cursor.execute("SELECT * FROM customer_api_keys WHERE customer_id = 'bird'").fetchall()
    files = sorted((tmp_path / "bird").iterdir())
    assert {path.name for path in files} == set(done.lines)
    assert {"customer_profiles.jsonl", "customer_team_members.jsonl", "events.jsonl"} <= set(done.lines)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    content = b"".join(path.read_bytes() for path in files)
    assert canaries(content) == set(CANARIES)
    assert key["api_key_hash"].encode() not in content
    assert not found_in(content, [key["encrypted_api_key"].hex(), "Other Ltd."])
    assert [json.loads(line) for line in content.splitlines()]
