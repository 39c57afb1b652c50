"""The sealer behind the log: it misses nothing, whoever writes, whenever it dies, and whatever is away."""

import multiprocessing
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from eventsourcing.persistence import StoredEvent

from adapters.bootstrap import Service
from adapters.chain.check import check
from adapters.chain.findings import Kind
from adapters.chain.heads import HeadsFile, WarehouseHeads
from adapters.chain.sealer import SEAL, Sealer
from adapters.postgres import seals
from adapters.postgres.checkpoints import leading
from adapters.postgres.event_log import EventRecorder
from adapters.postgres.maintenance import maintenance
from adapters.postgres.seals import Sealed, unsealed
from application.chain import STRETCH
from projections.follow import Overtaken
from projections.tables import LOG_HEADS
from tests.application.world import race, until
from tests.contracts.test_event_store import Hurried
from tests.faults.evidence import append, as_owner, checked, found, opened, over, seal, sign

WRITERS, BATCHES = 8, 25
PREFILL = (
    "INSERT INTO stored_events (originator_id, originator_version, topic, state)"
    " SELECT gen_random_uuid(), 1, 'run.unheard-of@7', convert_to(repeat('x', 200), 'UTF8') FROM generate_series(1, {})"
)


@pytest.fixture
def service(database_url, tmp_path) -> Iterator[Service]:
    with opened(database_url, tmp_path, log_heads_interval_seconds=0.1) as made:
        yield made


@contextmanager
def sealing(service: Service) -> Iterator[Sealer]:
    """A sealer that is stopped in order."""
    stop = threading.Event()
    sealer = Sealer(service, stop, gather_s=0.01)
    sealer.start()
    try:
        yield sealer
    finally:
        stop.set()
        sealer.join()


def write(service: Service, sealer: Sealer, recorder: EventRecorder) -> None:
    """Eight at once, each of whose transactions stays open for a moment after its insert."""

    def one(writer: int) -> None:
        for number in range(BATCHES):
            with service.datastore.transaction_cursor() as cursor:
                recorder.append(cursor, three(), ["acme"] * 3)
                sealer.wake.set()
                if (number + writer) % 3 == 0:
                    time.sleep(0.003)

    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(one, range(WRITERS)))


def three():
    stream = uuid4()
    return [StoredEvent(stream, version, "topic", b"{}") for version in (1, 2, 3)]


def seals_of(service: Service) -> list[seals.Seal]:
    with maintenance(service.dsn, name="test") as connection:
        return list(seals.seals_to(connection, 2**62))


def test_behind_eight_writers_it_misses_nothing(service):
    with sealing(service) as sealer:
        write(service, sealer, service.store.recorder)
    result = checked(service)
    assert (result.found, result.unsealed_events, result.unsigned_events) == (0, 0, 0)
    assert result.events == WRITERS * BATCHES * 3
    assert result.seals > 3


def test_without_the_lock_that_orders_the_log_it_would(service):
    """The control: events that become visible behind a seal, which the check finds."""
    with sealing(service) as sealer:
        write(service, sealer, Hurried(service.datastore))
    assert Kind.INSERTED in {kind for kind, _ in found(service)}


def test_a_stretch_is_at_most_a_thousand_events(service):
    as_owner(service, PREFILL.format(2 * STRETCH + 1))
    seal(service)
    assert [s.events for s in seals_of(service)] == [STRETCH, STRETCH, 1]
    assert all(s.first_position == before.last_position + 1 for before, s in pairwise(seals_of(service)))
    assert checked(service).found == 0


def seal_without_fence(service: Service, after: Sealed, leave: int) -> None:
    """What a sealer would do that does not look whether another was first: it leaves the newest events out."""
    with maintenance(service.dsn, name="test") as connection:
        events = [e for e in seals.events_to(connection, 2**62) if e.position > after.position][:-leave]
        made = over(events, after.hash)
        connection.execute(
            "INSERT INTO log_seals (first_position, last_position, events, digests, hash) VALUES (%s, %s, %s, %s, %s)",
            (made.first_position, made.last_position, made.events, made.digests, made.hash),
        )


def test_two_that_both_believe_to_lead_do_not_seal_twice(service):
    append(service)
    done: list[Sealed | None] = []

    def act(_: int) -> None:
        with maintenance(service.dsn, name="test") as connection:
            try:
                done.append(seals.seal_next(connection, Sealed()))
            except Overtaken:
                done.append(None)

    race(4, act)
    assert len([sealed for sealed in done if sealed]) == 1
    assert len(seals_of(service)) == 1
    assert checked(service).found == 0
    append(service)
    end = Sealed(20, seals_of(service)[0].hash, 20)
    seal_without_fence(service, end, 1)
    seal_without_fence(service, end, 2)  # the control
    assert {kind for kind, _ in found(service)} == {Kind.SEAL_CHANGED}


def test_of_two_sealers_one_leads(service):
    with sealing(service) as one, sealing(service) as other:
        for _ in range(5):
            append(service)
            one.wake.set()
            other.wake.set()
            until(lambda: unsealed(service.datastore).events == 0)
    result = checked(service)
    assert (result.found, result.events, result.unsigned_events) == (0, 100, 0)


def test_it_gives_up_its_lead_when_that_is_wanted(service):
    with sealing(service) as sealer:
        append(service)
        sealer.wake.set()
        until(lambda: unsealed(service.datastore).events == 0)
        with leading(service.dsn, SEAL, wait_s=10) as lead:
            assert lead
            append(service)
            sealer.wake.set()
            time.sleep(0.2)  # long enough for one that still led
            assert unsealed(service.datastore).events == 20
    assert checked(service).unsealed_events in {0, 20}


def seal_until_killed(dsn: str, directory: Path, began) -> None:
    """A process of its own."""
    with opened(dsn, directory, log_heads_interval_seconds=0.001) as service:
        sealer = Sealer(service, threading.Event(), gather_s=0)
        sealer.start()
        began.set()
        sealer.join()


def test_killed_at_any_moment_it_goes_on_where_it_was(service):
    as_owner(service, PREFILL.format(30_000))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.test_sealer"])
    chance = random.Random(7)  # noqa: S311 - no secret
    reached = []
    for _ in range(10):
        began = context.Event()
        process = context.Process(
            target=seal_until_killed, args=(service.dsn, service.settings.data_dir, began), daemon=True
        )
        process.start()
        assert began.wait(60)
        before = unsealed(service.datastore).position
        until(lambda before=before: unsealed(service.datastore).position > before or before == 30_000)
        time.sleep(chance.random() * 0.03)
        process.kill()
        process.join()
        reached.append(unsealed(service.datastore).position)
    assert len(set(reached)) > 3, "it was never killed in the midst of it"
    with sealing(service):
        until(lambda: unsealed(service.datastore).events == 0)
    result = checked(service)
    assert (result.found, result.unsealed_events, result.unsigned_events) == (0, 0, 0)
    assert result.events == 30_000


def heads(service: Service) -> list[int]:
    return [head.position for head in HeadsFile(service.settings.heads_file).tail(1_000)]


def test_a_bigquery_that_is_away_holds_up_no_head(service):
    with sealing(service) as sealer:
        for number in range(1, 4):
            append(service)
            sealer.wake.set()
            until(lambda number=number: len(heads(service)) == number, seconds=4)
    assert heads(service) == [20, 40, 60]
    result = check(service)
    assert list(result.counts) == [Kind.UNCHECKED]
    assert "BigQuery is away" in result.findings[0].sentence


@pytest.fixture
def place(bigquery_emulator) -> dict[str, str]:
    return {"bigquery_emulator_host": bigquery_emulator, "customers_dataset_id": f"chain_{uuid4().hex[:12]}"}


def there(service: Service) -> list[int]:
    warehouse = WarehouseHeads(service.warehouse, service.settings.project, service.settings.customers_dataset_id)
    return [head.position for head in warehouse.read()]


def test_bigquery_gets_what_it_missed_and_another_machine_what_is_there(service, place, tmp_path):
    for _ in range(2):
        append(service)
        sign(service, seal(service))
    with opened(service.dsn, tmp_path, **place) as found_again:
        append(found_again)
        with sealing(found_again):
            until(lambda: there(found_again) == [20, 40, 60])
        assert heads(found_again) == [20, 40, 60]
        result = check(found_again)
        assert (result.found, result.heads_in_file, result.heads_in_bigquery) == (0, 3, 3)
    with opened(service.dsn, tmp_path / "elsewhere", **place) as other:
        # The key file is the old machine's: in production both have the same key ring.
        (tmp_path / "elsewhere" / "keys" / "wrapping.key").write_bytes(
            (tmp_path / "keys" / "wrapping.key").read_bytes()
        )
    with opened(service.dsn, tmp_path / "elsewhere", **place) as other:
        with sealing(other):
            until(lambda: sorted(heads(other)) == [20, 40, 60])
        assert check(other).found == 0


def test_a_head_that_is_missing_in_one_place_is_found(service, place, tmp_path):
    with opened(service.dsn, tmp_path, **place) as sound:
        for _ in range(3):
            append(sound)
            sign(sound, seal(sound))
        result = check(sound)
        assert (result.found, result.notes) == (0, ("Not in BigQuery yet: the newest 3 of the signed heads.",))
        with sealing(sound):
            until(lambda: there(sound) == [20, 40, 60])
        table = f"`{sound.settings.project}.{sound.settings.customers_dataset_id}.{LOG_HEADS.name}`"
        file = sound.settings.heads_file
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(lines[1] + lines[2])
        assert kinds(check(sound)) == {(Kind.HEAD_MISSING, 20)}
        file.write_bytes(b"".join(lines))
        sound.warehouse.query(f"DELETE FROM {table} WHERE position = 40")
        assert kinds(check(sound)) == {(Kind.HEAD_MISSING, 40)}
        sound.warehouse.query(f"UPDATE {table} SET key_id = NULL WHERE position = 60")
        assert kinds(check(sound)) == {
            (Kind.HEAD_MISSING, 40),
            (Kind.HEAD_FORGED, 60),
            (Kind.HEAD_MISSING, 60),
        }


def kinds(result) -> set[tuple[Kind, int]]:
    return {(finding.kind, finding.position) for finding in result.findings}


def test_a_log_that_is_not_what_was_signed_is_told_when_sealing_begins(service, caplog):
    append(service)
    sign(service, seal(service))
    as_owner(service, "DELETE FROM log_seals", "DELETE FROM stored_events WHERE notification_id > 15")
    with sealing(service):
        until(lambda: "is not what was signed at position 20" in caplog.text)
    assert found(service) == {(Kind.TRUNCATED, 15)}
