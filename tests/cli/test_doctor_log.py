"""The doctor finds events that this code cannot read, before a projection or a command does."""

import json
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from adapters.doctor_log import NEWEST, examine_log
from adapters.finding import Result
from tests.application.conftest import acme, database_url, migrated_template, shared_database, world
from tests.cli.test_commands import convergence
from tests.databases import drop

__all__ = ["acme", "database_url", "migrated_template", "shared_database", "world"]


def found(dsn: str, *, whole: bool = False):
    """What the doctor says of the events, and of who may change them."""
    with psycopg.connect(dsn, row_factory=dict_row, autocommit=True) as connection:
        readable, unchangeable = examine_log(connection, whole=whole)
    return readable, unchangeable


def test_nothing_is_wrong_with_a_log_of_this_version(acme):
    readable, unchangeable = found(acme.dsn)
    assert (readable.result, unchangeable.result) == (Result.OK, Result.OK)
    assert readable.detail.startswith(f"{len(acme.events())} events of ")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("topic = 'customer.unheard-of@3'", "1 of unknown topic customer.unheard-of@3, first at 1"),
        ("topic = 'customer.suspended@1'", "position 1: Event 1 of stream"),
        ("""state = '{"at": 1}'""", "position 1: Event 1 of stream"),
        ("state = '\\xff00'", "position 1: Event 1 of stream"),
    ],
    ids=["topic", "another topic's data", "no envelope", "no text"],
)
def test_an_event_that_cannot_be_read_is_named(acme, change, told):
    acme.tamper(f"UPDATE stored_events SET {change} WHERE notification_id = 1")
    readable, _ = found(acme.dsn)
    assert readable.result is Result.FAIL
    assert told in readable.detail
    assert "ACME" not in readable.detail
    assert "docs/evolution.md" in readable.remedy


def test_deep_in_the_log_it_takes_a_look_at_all_of_it(acme):
    acme.tamper("UPDATE stored_events SET state = '{}' WHERE notification_id = 1")
    acme.tamper(
        "INSERT INTO stored_events (originator_id, originator_version, topic, state)"
        " SELECT gen_random_uuid(), 1, topic, state FROM generate_series(1, %s),"
        " (SELECT topic, state FROM stored_events WHERE notification_id = 2) AS good",
        NEWEST,
    )
    newest, _ = found(acme.dsn)
    assert newest.result is Result.OK
    assert f"the newest {NEWEST} decoded; --whole-log decodes all" in newest.detail
    whole, _ = found(acme.dsn, whole=True)
    assert (whole.result, "position 1: " in whole.detail) == (Result.FAIL, True)


def test_the_command_fails_before_an_upgrade_does(acme, tmp_path):
    acme.tamper("UPDATE stored_events SET topic = 'customer.unheard-of@3' WHERE notification_id = 1")
    done = convergence("doctor", "--whole-log", "--json", DATABASE_URL=acme.dsn, DATA_DIR=str(tmp_path / "var"))
    [finding] = [f for f in json.loads(done.stdout) if f["check"] == "events that can be read"]
    assert (done.returncode, finding["result"]) == (1, "fail")


def test_a_service_that_may_change_events_is_warned_about(postgres_server):
    """A schema that another tool made, without the role."""
    name = f"bare_{uuid4().hex}"
    dsn = urlsplit(postgres_server.dsn)._replace(path=f"/{name}").geturl()
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    try:
        with psycopg.connect(dsn) as connection:
            connection.execute(
                "CREATE TABLE stored_events (originator_id uuid, originator_version bigint, topic text, state bytea,"
                " notification_id bigserial, customer_id text)"
            )
        _, unchangeable = found(dsn)
    finally:
        drop(postgres_server.dsn, name)
    assert unchangeable.result is Result.WARN
    assert "convergence migrate" in unchangeable.remedy


def test_a_database_that_was_never_migrated_is_no_finding(postgres_server):
    with psycopg.connect(postgres_server.dsn, row_factory=dict_row, autocommit=True) as connection:
        assert examine_log(connection) == []
