"""What the event log promises: the library's published cases, and a reader behind four writers that misses nothing."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder
from eventsourcing.tests import persistence as published

from adapters.postgres.event_log import Datastore, EventRecorder
from application.session import Superseded
from tests.application.world import migrated

WRITERS, BATCHES = 4, 60


@pytest.fixture
def datastore(database_url) -> Iterator[Datastore]:
    made = Datastore(database_url, size=16)
    yield made
    made.close()


@pytest.fixture
def recorder(datastore) -> EventRecorder:
    made = EventRecorder(datastore)
    made.create_table()
    return made


class OnOurRecorder:
    """Gives the published cases a recorder on an empty database, whose table the library itself lays out."""

    @pytest.fixture(autouse=True)
    def _on(self, recorder):
        self.recorder = recorder

    def create_recorder(self) -> EventRecorder:
        return self.recorder


class Silent(EventRecorder):
    """The cases for stores without a log across streams want no positions back."""

    def insert_events(self, stored_events, **more) -> None:
        super().insert_events(stored_events, **more)


class TestStreams(OnOurRecorder, published.AggregateRecorderTestCase):
    def create_recorder(self) -> EventRecorder:
        return Silent(self.recorder.datastore)


class TestLog(OnOurRecorder, published.ApplicationRecorderTestCase):
    pass


class TestNotificationsDoNotInterleave(OnOurRecorder, published.NonInterleavingNotificationIDsBaseCase):
    pass


def batch(count: int = 3) -> list[StoredEvent]:
    stream = uuid4()
    return [StoredEvent(stream, version, "topic", b"{}") for version in range(1, count + 1)]


def test_database_functions_are_refused(datastore):
    datastore.enable_db_functions = True
    with pytest.raises(ValueError, match="must not use database functions"):
        EventRecorder(datastore)


def test_a_version_is_taken_once(recorder, datastore):
    events = batch(1)
    recorder.insert_events(events)
    with pytest.raises(Superseded), datastore.transaction_cursor() as cursor:
        recorder.append(cursor, events)


def test_positions_follow_the_order_given_without_a_gap(recorder, datastore):
    events = [event for _ in range(200) for event in reversed(batch(3))]
    with datastore.transaction_cursor() as cursor:
        recorder.append(cursor, events[:300])
        last = cursor.execute("SELECT currval('stored_events_notification_id_seq') AS position").fetchone()["position"]
    assert recorder.insert_events(events[300:]) == list(range(last + 1, last + 301))
    found = recorder.select_notifications(start=1, limit=1000)
    assert [n.id for n in found] == list(range(last - 299, last + 301))
    assert [n.originator_version for n in found] == [3, 2, 1] * 200


class Hurried(EventRecorder):
    """The control: appends without the lock that orders the log."""

    def _lock_table(self, _cursor) -> None:
        pass


def follow(datastore: Datastore, recorder: PostgresApplicationRecorder) -> tuple[set[int], set[int]]:
    """Which positions a tailing reader saw while so many wrote, and which there are.

    Each transaction stays open for a moment after its insert, as those do that write rows after their events.
    """
    done = threading.Event()
    seen: set[int] = set()

    def write(writer: int) -> None:
        for number in range(BATCHES):
            with datastore.transaction_cursor() as cursor:
                recorder.append(cursor, batch())
                if (number + writer) % 3 == 0:
                    time.sleep(0.002)

    def read() -> None:
        position, last = 0, False
        while not last:
            last = done.is_set()
            while found := recorder.select_notifications(start=position, limit=10, inclusive_of_start=False):
                seen.update(n.id for n in found)
                position = found[-1].id

    with ThreadPoolExecutor(WRITERS + 1) as threads:
        reader = threads.submit(read)
        try:
            list(threads.map(write, range(WRITERS)))
        finally:
            done.set()
        reader.result()
    every = {n.id for n in recorder.select_notifications(start=0, limit=100_000)}
    assert len(every) == WRITERS * BATCHES * 3
    return seen, every


def test_a_reader_behind_four_writers_misses_nothing(recorder, datastore):
    seen, every = follow(datastore, recorder)
    assert seen == every


def test_without_the_lock_it_does(datastore):
    hurried = Hurried(datastore)
    hurried.create_table()
    seen, every = follow(datastore, hurried)
    assert seen < every


def test_the_tables_we_migrate_are_the_ones_the_library_makes(recorder, datastore, postgres_server):
    """Column by column, so that the library's own statements fit ours."""
    query = (
        "SELECT column_name, data_type, column_default FROM information_schema.columns"
        " WHERE table_name = 'stored_events' ORDER BY ordinal_position"
    )
    with datastore.reading() as cursor:
        theirs = cursor.execute(query).fetchall()
    name = migrated(postgres_server.dsn)
    ours = Datastore(postgres_server.dsn.replace("/convergence?", f"/{name}?"))
    with ours.reading() as cursor:
        assert cursor.execute(query).fetchall() == theirs
    ours.close()
