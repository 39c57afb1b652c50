"""`convergence replay`: what was at any version or instant, and what changed it since."""

from datetime import timedelta

import pytest

from adapters.cli.replay import leaves
from domain.identity import customer_stream, subscription_stream
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
    """Onboarded three days ago, its limits changed a day and two days later."""
    with customer(terminal.settings["DATABASE_URL"], terminal.data_dir) as world:
        world.tamper(
            "UPDATE stored_events SET state = convert_to(jsonb_set(convert_from(state, 'UTF8')::jsonb, '{at}',"
            " to_jsonb(%s::text))::text, 'UTF8')",
            (world.at - timedelta(days=3)).isoformat(),
        )
        world.wait(days=-2)
        world.limits(max_pipelines_per_day=3)
        world.wait(days=1)
        world.limits(max_pipelines_per_day=30)
        world.wait(days=1)
        yield world


def test_what_the_limits_looked_like_then(terminal, acme):
    def per_day(when):
        seen = terminal.json("replay", "acme", "--at", when)
        return seen["subscription"]["state"]["limits"]["max_pipelines_per_day"]

    then = (acme.at - timedelta(days=1, minutes=1)).isoformat()
    assert (per_day(then), per_day("2h")) == (3, 30)
    for_people = terminal.run("replay", "acme", "--at", then).stdout
    assert '"max_pipelines_per_day": 3,' in for_people
    assert "Subscription" in for_people


def test_a_stream_at_a_version(terminal, acme):
    run_id = acme.request()
    acme.cancel(run_id)
    assert terminal.json("replay", run_id.upper(), "--version", "1")["state"]["state"] == "PENDING"
    shown = terminal.run("replay", run_id).stdout
    assert "Run " + run_id in shown
    assert '"state": "CANCELLED"' in shown


def test_runs_that_had_not_ended(terminal, acme):
    for _ in range(3):
        acme.request()
    acme.claim(limit=1)
    seen = terminal.json("replay", "acme", "-n", "2")["runs"]
    assert (seen["states"], len(seen["items"])) == ({"PENDING": 2, "RUNNING": 1}, 2)
    assert "2 pending, 1 running" in terminal.run("replay", "acme").stdout


def test_what_changed_and_who_did_it(terminal, acme):
    acme.suspend()
    found = terminal.json("replay", "acme", "--diff", "60h", "now")
    changes = {change["field"]: change for change in found["changes"]}
    limits = changes["subscription.limits.max_pipelines_per_day"]
    assert (limits["before"], limits["after"], limits["times"]) == (25, 30, 2)
    [suspended] = [e for e in found["events"] if e["position"] in changes["customer.status"]["causes"]]
    assert (suspended["actor"], suspended["data"]["reason"]) == ("admin", "unpaid")
    told = terminal.run("replay", "acme", "--diff", "60h", "now").stdout
    assert "subscription.limits.max_pipelines_per_day 25 -> 30  by admin at position 5, the last of 2 times\n" in told
    assert "by admin: unpaid\n" in told


def test_each_changed_field_is_a_line_however_deep_it_lies():
    before = {"kept": 1, "limits": {"day": 25, "month": 750}, "running": ["a", "b"]}
    after = {"kept": 1, "limits": {"day": 5, "month": 750}, "running": ["b", "c"], "key": {"last4": "wyby"}}
    assert list(leaves("x", before, after)) == [
        ("x.limits.day", "25 -> 5"),
        ("x.running", "- a, + c"),
        ("x.key.last4", "(none) -> wyby"),
    ]
    assert list(leaves("x", ["a", "b"], ["b", "a"])) == [("x", '["a", "b"] -> ["b", "a"]')]


def test_what_changed_between_versions(terminal, acme):
    stream = str(subscription_stream("acme"))
    found = terminal.json("replay", stream, "--diff", "1", "2")["changes"]
    changes = {change["field"]: (change["before"], change["after"]) for change in found}
    assert changes["limits.max_pipelines_per_day"] == (25, 3)
    assert changes["overrides.max_pipelines_per_day"] == (None, 3)
    assert terminal.run("replay", stream, "--diff", "2", "2").stdout.startswith("Nothing differs between version 2")


def test_what_cannot_be_shown_is_said(terminal, acme):
    for options, status, said in (
        (("nobody",), 1, "There was no such customer."),
        (("acme", "--version", "1"), 2, "--version: "),
        (("acme", "--diff", "1", "2"), 2, "--diff: "),
        (("acme", "--diff", "now", "60h"), 2, "The first of the two must not lie behind the second."),
        (("acme", "--at", "1h", "--diff", "2h", "1h"), 2, "--version, --at, --diff: "),
    ):
        done = terminal.run("replay", *options)
        assert done.returncode == status, done.stderr
        assert done.stderr.startswith(said)
        assert len(done.stderr.strip().splitlines()) == 1


def test_an_event_that_cannot_be_read_stops_it_and_is_named(terminal, acme):
    stream = str(customer_stream("acme"))
    acme.tamper("UPDATE stored_events SET topic = 'customer.unheard-of@9' WHERE notification_id = 2")
    done = terminal.run("replay", "acme")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Position 2: Event 2 of stream ")
    assert terminal.json("replay", stream, "--version", "1")["version"] == 1


def test_a_replay_needs_no_keys_and_makes_none(terminal, acme, tmp_path):
    terminal.settings["DATA_DIR"] = str(tmp_path / "elsewhere")
    seen = terminal.json("replay", "acme")
    assert seen["customer"]["state"]["admin_email"] == "(cannot be opened)"
    assert seen["subscription"]["state"]["limits"]["max_pipelines_per_day"] == 30
    assert not (tmp_path / "elsewhere").exists()
