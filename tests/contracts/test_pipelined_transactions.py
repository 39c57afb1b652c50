"""Transactions whose statements are sent without waiting: they end as if each had been waited for."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID, uuid4

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from psycopg.pq import TransactionStatus

from adapters.postgres.event_log import Datastore, EventRecorder, NotCommitted, PipelinedCursor
from application.ports import Away
from application.session import Superseded

LARGE = 3_000_000
"""More than the network takes at once: the server answers while the client still sends."""


@pytest.fixture
def datastore(database_url) -> Iterator[Datastore]:
    made = Datastore(database_url, size=1)
    EventRecorder(made).create_table()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_to_tidy_up(caplog) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
    assert not [r.message for r in caplog.get_records("call") if r.name.startswith("psycopg")]


def append(cursor: PipelinedCursor, datastore: Datastore, stream: UUID, size: int = 2) -> None:
    state = b'"' + b"x" * (size - 2) + b'"'
    EventRecorder(datastore).append(cursor, [StoredEvent(stream, 1, "topic", state)])


def transact(datastore: Datastore, work: Callable[[PipelinedCursor], object]) -> None:
    with datastore.pipelined_cursor() as cursor:
        work(cursor)


def stored(datastore: Datastore) -> int:
    with datastore.pipelined_cursor() as cursor:
        return cursor.execute("SELECT count(*) AS n FROM stored_events").fetchall()[0]["n"]


def connection_of(datastore: Datastore) -> int:
    with datastore.pipelined_cursor() as cursor:
        return cursor.connection.info.backend_pid


@pytest.mark.parametrize("size", [2, LARGE])
def test_what_was_not_waited_for_is_committed(datastore, size):
    with datastore.pipelined_cursor() as cursor:
        append(cursor, datastore, uuid4(), size)
    assert stored(datastore) == 1


@pytest.mark.parametrize("size", [2, LARGE])
def test_what_fails_with_the_commit_leaves_nothing(datastore, size):
    stream = uuid4()
    with datastore.pipelined_cursor() as cursor:
        append(cursor, datastore, stream)
    before = connection_of(datastore)

    def work(cursor):
        append(cursor, datastore, uuid4())
        append(cursor, datastore, stream, size)
        append(cursor, datastore, uuid4(), size)

    with pytest.raises(Superseded):
        transact(datastore, work)
    assert stored(datastore) == 1
    assert connection_of(datastore) == before


@pytest.mark.parametrize("size", [2, LARGE])
def test_who_refuses_takes_back_what_was_sent(datastore, size):
    def work(cursor):
        append(cursor, datastore, uuid4(), size)
        raise LookupError

    with pytest.raises(LookupError):
        transact(datastore, work)
    assert stored(datastore) == 0


def test_a_fetch_raises_what_an_earlier_statement_raised(datastore):
    stream = uuid4()
    with datastore.pipelined_cursor() as cursor:
        append(cursor, datastore, stream)

    def work(cursor):
        append(cursor, datastore, stream)
        cursor.execute("SELECT 1 AS one").fetchall()
        pytest.fail("the fetch came back")

    with pytest.raises(Superseded):
        transact(datastore, work)
    assert stored(datastore) == 1


def test_rows_of_two_statements_that_were_sent_together(datastore):
    with datastore.pipelined_cursor() as cursor:
        other = cursor.another()
        cursor.execute("SELECT 1 AS n")
        other.execute("SELECT 2 AS n")
        assert (cursor.fetchall(), other.fetchall()) == ([{"n": 1}], [{"n": 2}])
        assert cursor.execute("SELECT 3 AS n").fetchall() == [{"n": 3}]


def test_a_client_that_stands_still_after_a_fetch_is_given_up(datastore):
    def work(cursor):
        append(cursor, datastore, uuid4())
        cursor.execute("SET LOCAL transaction_timeout = 0")
        cursor.execute("SELECT set_config('idle_in_transaction_session_timeout', '100ms', true)").fetchall()
        time.sleep(0.5)
        cursor.execute("SELECT 1").fetchall()

    with pytest.raises(Away):
        transact(datastore, work)
    assert stored(datastore) == 0


def test_a_failure_that_nobody_cares_for_is_not_taken_for_a_commit(datastore):
    def work(cursor):
        append(cursor, datastore, uuid4())
        with suppress(psycopg.errors.DivisionByZero):
            cursor.execute("SELECT 1 / 0").fetchall()

    with pytest.raises(NotCommitted):
        transact(datastore, work)
    assert stored(datastore) == 0


def test_no_transaction_is_left_to_who_comes_next(datastore):
    def work(cursor):
        cursor.execute("SELECT 1").fetchall()
        raise LookupError

    with pytest.raises(LookupError):
        transact(datastore, work)
    with datastore.connected() as connection:
        assert connection.info.transaction_status is TransactionStatus.IDLE


def test_what_the_network_takes_in_small_pieces_only(datastore):
    """Then a part of a statement is not sent yet when its answer is waited for."""

    def work(cursor):
        with socket.socket(fileno=os.dup(cursor.connection.pgconn.socket)) as sent:
            sent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        append(cursor, datastore, uuid4(), LARGE)
        return cursor.execute("SELECT count(*) AS n FROM stored_events").fetchall()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(transact, datastore, work).result(20)
    assert stored(datastore) == 1
