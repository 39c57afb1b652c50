"""`convergence events`: one command for who did it, when and why; and following what happens."""

import json
import signal
from datetime import timedelta

import psycopg
import pytest

from application.ports import RunReport
from tests.application.world import migrated
from tests.cli.audit import Terminal, customer


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@pytest.fixture
def terminal(database_url, tmp_path) -> Terminal:
    return Terminal(database_url, tmp_path / "var")


@pytest.fixture
def acme(terminal):
    with customer(terminal.settings["DATABASE_URL"], terminal.data_dir) as world:
        yield world


def test_who_suspended_this_customer(terminal, acme):
    acme.suspend()
    told = terminal.run("events", "--customer", "acme", "--type", "customer.suspended")
    assert told.returncode == 0, told.stderr
    assert "customer.suspended@1" in told.stdout
    assert " by admin: unpaid\n" in told.stdout
    [event] = terminal.lines("events", "--customer", "acme", "--type", "customer.suspended")
    assert (event["actor"], event["data"]["reason"]) == ("admin", "unpaid")


def test_why_this_run_was_refused_skipped_or_failed(terminal, acme):
    failed = acme.request()
    acme.report(acme.claim(), report=RunReport(succeeded=False, error="No such table."))
    assert "No such table." in terminal.run("events", "--stream", failed, "--type", "run.failed").stdout
    acme.limits(max_pipelines_per_day=1)
    acme.pipeline(cron="* * * * *")
    acme.wait(minutes=2)
    acme.trigger()
    [refused] = terminal.lines("events", "--customer", "acme", "--type", "subscription.run-refused")
    assert {"limit": "daily", "used": 1, "allowed": 1}.items() <= refused["data"].items()
    [skipped] = terminal.lines("events", "--customer", "acme", "--type", "run.skipped")
    assert skipped["data"]["reason"] == "Daily pipeline quota exceeded. Used 1/1 pipelines today."
    then = terminal.json("replay", "acme", "--at", skipped["at"])
    assert (then["usage"]["admitted"], then["usage"]["daily_remaining"]) == (1, 0)


def test_filters_and_the_newest_first(terminal, acme):
    acme.onboard("other")
    acme.tamper(
        "UPDATE stored_events SET state = convert_to(jsonb_set(convert_from(state, 'UTF8')::jsonb, '{at}',"
        " to_jsonb(%s::text))::text, 'UTF8')",
        (acme.at - timedelta(hours=3)).isoformat(),
    )
    acme.limits(max_pipelines_per_day=2)
    whole = terminal.lines("events", "--customer", "acme", "--actor", "admin", "--until", "1h", "-n", "2")
    assert [(e["type"], e["position"]) for e in whole] == [
        ("subscription.opened@1", 3),
        ("customer.api-key-issued@2", 2),
    ]
    [newest] = terminal.lines("events", "--since", "1h")
    assert newest["position"] == 7
    assert terminal.lines("events", "--correlation", newest["correlation_id"]) == [newest]
    assert terminal.run("events", "--actor", "nobody").stdout == "No events.\n"


def test_a_log_longer_than_one_search(terminal, acme):
    """The only one of its kind lies behind more events than one search reads."""
    acme.tamper(
        "INSERT INTO stored_events (originator_id, originator_version, topic, state)"
        " SELECT gen_random_uuid(), 1, 'run.noise@1', '{}' FROM generate_series(1, 20500)"
    )
    assert [e["type"] for e in terminal.lines("events", "--type", "customer.onboarded")] == ["customer.onboarded@1"]


def test_what_was_done_at_a_command_line_says_by_whom(terminal, acme):
    config_id = acme.pipeline()
    day = str((acme.at - timedelta(days=2)).date())
    terminal.json("backfill", "acme", config_id, "--from", day, "--to", day, "--reason", "Late.")
    [scheduled] = terminal.lines("events", "--type", "run.scheduled", "--actor", "admin/cli")
    assert scheduled["actor"].startswith("admin/cli:")
    assert scheduled["data"]["trigger_by"] == "admin: Late."


def test_persons_are_shown_where_the_keys_are_and_secrets_nowhere(terminal, acme, tmp_path):
    told = terminal.run("events", "--json").stdout
    assert "admin@acmecorp.com" in told
    assert "sealed" not in told
    assert "hash" not in told
    terminal.settings["DATA_DIR"] = str(tmp_path / "elsewhere")
    [onboarded] = terminal.lines("events", "--type", "customer.onboarded")
    assert onboarded["data"]["admin_email"] == "(cannot be opened)"
    # Who looks makes no keys.
    assert not (tmp_path / "elsewhere").exists()


def test_followed_until_ctrl_c_and_nothing_is_missed(terminal, acme):
    with terminal.started("events", "--follow", "--json", "--customer", "acme") as follow:

        def types(count=2):
            return [json.loads(follow.stdout.readline())["type"] for _ in range(count)]

        assert types(3) == ["customer.onboarded@1", "customer.api-key-issued@2", "subscription.opened@1"]
        acme.onboard("other")
        acme.suspend()
        assert types() == ["customer.suspended@1", "subscription.suspended@1"]
        acme.reactivate()
        assert types() == ["customer.reactivated@1", "subscription.reactivated@1"]
        with psycopg.connect(acme.dsn, autocommit=True) as owner:
            # Whatever comes while nobody listens is looked for afterwards.
            owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'convergence listener%'"
            )
        acme.suspend()
        assert types() == ["customer.suspended@1", "subscription.suspended@1"]
        follow.send_signal(signal.SIGINT)
        rest, _ = follow.communicate(timeout=30)
        assert (follow.returncode, rest) == (0, "")


def test_followed_events_are_lines_for_people(terminal, acme):
    with terminal.started("events", "--follow", "--type", "customer.") as follow:
        listed = [follow.stdout.readline() for _ in range(4)]
        acme.suspend()
        line = follow.stdout.readline()
    assert "customer.onboarded@1 acme by admin\n" in listed[0]
    assert listed[1].startswith("    position 1, stream ")
    assert "customer.suspended@1 acme" in line
    assert line.endswith("by admin: unpaid\n")


def test_a_wrong_option_is_said(terminal):
    for options in (
        ("--stream", "x"),
        ("--actor", 'a"b'),
        ("--until", "1h", "--follow"),
    ):
        done = terminal.run("events", *options)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{options[0]}: ")
        assert len(done.stderr.strip().splitlines()) == 1


def test_help_has_an_example(terminal):
    assert "convergence events --customer" in " ".join(
        terminal.run("events", "--help").stdout.split("Example:")[1].split()
    )
