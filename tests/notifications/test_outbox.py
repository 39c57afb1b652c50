"""The outbox has exactly one row for each occasion, whatever happens to who follows the log."""

from contextlib import contextmanager
from datetime import timedelta
from importlib.resources import files

import pytest

from adapters.notifications.deliveries import purge
from adapters.notifications.expiring import add_expiring_keys
from adapters.notifications.outbox import Outbox
from adapters.postgres.checkpoints import PostgresCheckpoints, PostgresLog
from application.ports import Away
from domain.customer_events import ApiKeyRevoked, Erased
from domain.envelope import Envelope, Origin
from domain.identity import customer_stream
from domain.notification import KEPT_FOR, STALE_AFTER, Kind
from domain.projection import NOTIFICATIONS
from projections.follow import Overtaken, Placed, catch_up
from projections.notifications import occasions
from tests.notifications.past import endpoint, failing_run, follow, kinds, states


def at(world, **more):
    given = {"stream_id": customer_stream("acme"), "version": 9, "topic": "t", "customer_id": "acme", "at": world.at}
    return Envelope(**{**given, **more}, by=Origin(actor="admin", command_id="c", correlation_id="c"))


def busy(world) -> None:
    """A customer about whom there is something of most kinds to tell."""
    failing_run(world)
    world.limits(max_pipelines_per_day=5)
    for _ in range(4):
        world.request()
    world.suspend()
    world.reactivate()


EXPECTED = ["customer.reactivated", "customer.suspended", "quota.100", "quota.80", "run.failed", "welcome"]


def test_each_occasion_is_told_once(world):
    busy(world)
    follow(world)
    assert sorted(kinds(world)) == EXPECTED
    assert {state for _, state, _ in states(world)} == {"PENDING"}
    assert len(states(world)) == len(EXPECTED)


def test_reading_the_whole_log_again_tells_nothing_again(world):
    busy(world)
    follow(world)
    world.execute("UPDATE notification_deliveries SET state = 'DELIVERED'")
    world.execute("DELETE FROM checkpoints WHERE projection = %s", NOTIFICATIONS)
    assert follow(world, page=3) > 10
    assert sorted(kinds(world)) == EXPECTED
    assert {state for _, state, _ in states(world)} == {"DELIVERED"}


def test_without_the_dedupe_key_a_replay_tells_all_of_it_again(world):
    """The control."""
    busy(world)
    follow(world)
    world.execute("DELETE FROM checkpoints WHERE projection = %s", NOTIFICATIONS)
    world.execute("DELETE FROM notification_deliveries")
    world.execute("UPDATE notifications SET dedupe_key = gen_random_uuid()::text, notification_id = gen_random_uuid()")
    follow(world)
    assert sorted(kinds(world)) == sorted(EXPECTED * 2)


class Killed:
    """A datastore whose transactions are cut off by the server once everything is stored, before they commit."""

    def __init__(self, world):
        self._world = world
        self.reading = world.datastore.reading

    @contextmanager
    def transaction_cursor(self):
        with self._world.datastore.transaction_cursor() as cursor:
            yield cursor
            assert cursor.execute("SELECT count(*) AS n FROM notifications").fetchone()["n"] == len(EXPECTED)
            self._world.tamper("SELECT pg_terminate_backend(%s)", cursor.connection.info.backend_pid)


def test_a_crash_in_between_leaves_neither_rows_nor_checkpoint(world):
    busy(world)
    outbox = Outbox(Killed(world), lambda: world.at)
    log = PostgresLog(world.store.recorder, world.mapper)
    with pytest.raises(Away):
        catch_up(NOTIFICATIONS, log, outbox.handle, outbox)
    assert (kinds(world), outbox.position(NOTIFICATIONS)) == ([], 0)
    outbox = Outbox(world.datastore, lambda: world.at)
    catch_up(NOTIFICATIONS, log, outbox.handle, outbox)
    assert sorted(kinds(world)) == EXPECTED
    assert outbox.position(NOTIFICATIONS) == log.end()


def test_who_was_overtaken_stores_nothing(world):
    busy(world)
    log = PostgresLog(world.store.recorder, world.mapper)
    slow = Outbox(world.datastore, lambda: world.at)
    slow.handle(log.read(0, 2_000))
    PostgresCheckpoints(world.datastore).advance(NOTIFICATIONS, 0, 3)
    with pytest.raises(Overtaken):
        slow.advance(NOTIFICATIONS, 0, log.end())
    assert kinds(world) == []


def test_what_happened_long_ago_is_not_told_and_what_was_told_is_kept_for_longer(world):
    busy(world)
    world.at += STALE_AFTER
    follow(world)
    assert kinds(world) == []
    assert KEPT_FOR > STALE_AFTER
    world.at -= STALE_AFTER
    world.execute("DELETE FROM checkpoints")
    follow(world)
    world.execute("UPDATE notifications SET created_at = created_at - %s", KEPT_FOR + timedelta(days=2))
    assert purge(world.datastore, world.at) == 0  # all of it waits to be delivered
    world.execute("UPDATE notification_deliveries SET state = 'DELIVERED'")
    assert purge(world.datastore, world.at) == len(EXPECTED)


def test_endpoints_get_the_kinds_that_they_asked_for(world):
    failed, _ = endpoint(world, "https://hooks.acmecorp.com/a", Kind.RUN_FAILED)
    every, _ = endpoint(world, "https://hooks.acmecorp.com/b")
    world.onboard("beta")
    endpoint(world, "https://hooks.beta.com/b", customer_id="beta")
    busy(world)
    follow(world)
    assert [kind for kind, *_ in states(world, failed)] == ["run.failed"]
    assert [kind for kind, *_ in states(world, every)] == sorted(set(EXPECTED) - {"welcome"})


def test_nothing_is_told_about_whom_is_gone(world):
    busy(world)
    follow(world)
    outbox = Outbox(world.datastore, lambda: world.at)
    outbox.handle([Placed(Erased(reason="asked for"), at(world))])
    outbox.advance(NOTIFICATIONS, outbox.position(NOTIFICATIONS), 1_000)
    assert kinds(world) == []


def test_a_quota_is_told_once_a_day_and_a_month(world):
    world.limits(max_pipelines_per_day=10, max_pipelines_per_month=1000)
    for _ in range(9):
        world.request()
    follow(world)
    assert kinds(world).count("quota.80") == 1
    world.wait(days=1)
    for _ in range(8):
        world.request()
    follow(world)
    assert kinds(world).count("quota.80") == 2
    about = world.scalar("SELECT about FROM notifications WHERE kind = 'quota.80' ORDER BY created_at DESC LIMIT 1")
    assert about == {"limit": "daily", "period": world.at.date().isoformat(), "used": 8, "allowed": 10}


def test_a_limit_that_was_raised_is_told_of_again_when_it_is_met(world):
    world.limits(max_pipelines_per_day=1, max_pipelines_per_month=1000)
    world.request()
    follow(world)
    assert kinds(world) == ["welcome", "quota.100"]  # all of a limit of one, and not four fifths as well
    world.limits(max_pipelines_per_day=3)
    for _ in range(2):
        world.request()
    follow(world)
    about = world.scalar("SELECT about FROM notifications ORDER BY created_at DESC LIMIT 1")
    assert kinds(world).count("quota.100") == 2
    assert (about["used"], about["allowed"]) == (3, 3)


def test_a_key_that_was_revoked_for_a_reason_is_told_and_one_that_was_asked_for_is_not(world):
    def found(reason):
        return [o.kind for o in occasions(ApiKeyRevoked(api_key_id="k", reason=reason), at(world))]

    assert found("Reported as leaked.") == [Kind.KEY_REVOKED]
    assert found(None) == []


def test_keys_that_end_are_told_early_and_late(world):
    now = world.at
    follow(world)
    for days, expected in ((75, 0), (76, 1), (80, 1), (87, 2), (89, 2), (91, 2)):
        add_expiring_keys(world.datastore, now + timedelta(days=days))
        assert kinds(world).count("key.expiring") == expected, days


def test_nobody_is_told_about_a_key_that_another_one_replaces(world):
    world.execute("UPDATE customer_api_keys SET expires_at = %s", world.at + timedelta(days=10))
    world.execute(
        "INSERT INTO customer_api_keys (api_key_id, customer_id, api_key_hash, is_active, created_at, expires_at, name,"
        " position) SELECT 'new', customer_id, 'x', true, created_at, %s, name, position FROM customer_api_keys",
        world.at + timedelta(days=90),
    )
    assert add_expiring_keys(world.datastore, world.at) == 0


def test_whom_the_version_before_welcomed_is_not_welcomed_again(world):
    upgrade = files("adapters.postgres").joinpath("migrations/0018_notifications.sql").read_text()
    end = world.scalar("SELECT max(notification_id) FROM stored_events")
    world.execute("INSERT INTO checkpoints (projection, position) VALUES ('welcome', %s)", end)
    world.tamper(upgrade[upgrade.index("INSERT INTO checkpoints") :])
    world.onboard("beta")
    follow(world)
    assert world.scalar("SELECT customer_id FROM notifications") == "beta"
    log = PostgresLog(world.store.recorder, world.mapper)
    assert log.read(PostgresCheckpoints(world.datastore).position("welcome"), 10) == []
