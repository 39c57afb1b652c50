"""A process shows that it lives as long as it does, also across a database that goes away and comes back."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from adapters.bootstrap import Service, build
from adapters.postgres import processes
from adapters.presence import Presence
from adapters.settings import Settings
from tests.application.world import migrated, until
from tests.databases import cut_off


@pytest.fixture
def service(postgres_server, tmp_path) -> Iterator[Service]:
    """A service on a database that the test may spoil."""
    dsn = urlsplit(postgres_server.dsn)._replace(path=f"/{migrated(postgres_server.dsn)}").geturl()
    settings = Settings(data_dir=tmp_path, bigquery_emulator_host="http://127.0.0.1:1", worker_id="w1")
    made = build(settings, dsn)
    yield made
    made.close()


@dataclass
class Hands:
    """A worker's figures, as the test says."""

    holding: int = 0
    finished: int = 0


def rows(service: Service) -> list[processes.Seen]:
    return list(processes.seen(service.datastore))


@contextmanager
def away(server_dsn: str, dsn: str) -> Iterator[None]:
    """Nobody can connect to that database, and who was connected is cut off."""
    name = urlsplit(dsn).path[1:]
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        cut_off(connection, name)
        yield
        connection.execute(allow.format(sql.Identifier(name), sql.SQL("true")))


def test_a_process_is_listed_while_it_lives(service):
    with Presence(service, ["api", "scheduler"]) as presence:
        until(lambda: rows(service))
        [row] = rows(service)
        assert row.instance_id == str(presence.process.instance_id)
        assert (row.roles, row.worker_id, row.alive) == (("api", "scheduler"), "w1", True)
        assert (row.concurrency, row.holding, row.finished) == (None, None, None)
    assert rows(service) == []


def test_its_row_is_renewed(service):
    with Presence(service, ["api"], renew_s=0.02):
        until(lambda: rows(service))
        first = rows(service)[0]
        until(lambda: rows(service)[0].seen_at > first.seen_at)
        assert rows(service)[0].started_at == first.started_at


def test_two_processes_have_a_row_each(service):
    with Presence(service, ["worker"]), Presence(service, ["worker"]):
        until(lambda: len(rows(service)) == 2)


def test_a_workers_figures_are_shown_at_once_and_for_the_last_minute(service):
    hands = Hands(holding=2, finished=10)
    with Presence(service, ["worker"], renew_s=0.05, minute_s=1) as presence:
        until(lambda: rows(service))
        presence.watch(hands)
        until(lambda: rows(service)[0].finished == 10)
        assert (rows(service)[0].holding, rows(service)[0].concurrency) == (2, 8)
        hands.finished = 17
        until(lambda: rows(service)[0].finished_last_minute == 7)
        until(lambda: rows(service)[0].finished_last_minute == 0)
        assert rows(service)[0].finished == 17


def lives() -> bool:
    """Whether the thread of a presence does."""
    return any(thread.name == "presence" for thread in threading.enumerate())


class Fragile(Presence):
    """What a process without the care for a database that is away would do."""

    def _renew(self) -> None:
        processes.renew(self._datastore, self.process, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", [Presence, Fragile])
def test_a_database_that_goes_away_neither_kills_nor_floods(service, postgres_server, caplog, kind):
    caplog.set_level(logging.INFO, "adapters.presence")
    renewals = []

    class Counted(kind):
        def _renew(self) -> None:
            renewals.append(1)
            super()._renew()

    with Counted(service, ["worker"], renew_s=0.02):
        until(lambda: rows(service))
        with away(postgres_server.dsn, service.dsn):
            if kind is Fragile:
                until(lambda: not lives())
                return
            tried = len(renewals)
            until(lambda: len(renewals) > tried + 2, seconds=60)
        until(lambda: any("again" in record.message for record in caplog.records), seconds=60)
        assert lives()
    told = [record for record in caplog.records if record.levelno == logging.WARNING and record.name.startswith("adap")]
    assert len(told) == 1, told
    assert service.dsn not in caplog.text
    assert rows(service) == []


def test_a_process_that_ends_while_the_database_is_away_ends(service, postgres_server):
    with Presence(service, ["worker"]) as presence:
        until(lambda: rows(service))
        with away(postgres_server.dsn, service.dsn):
            presence.__exit__()
            assert not lives()
