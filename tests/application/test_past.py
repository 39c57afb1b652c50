"""What was, from the log alone: at every version and instant as it was then, and nothing happens by looking."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import datetime, timedelta
from uuid import UUID

import pytest

from adapters.event_views import Closed, reader
from adapters.postgres.reads import history
from adapters.replayed import Past
from application.mapper import UnreadableEvent, envelope_of
from application.replay import Until, compare, fold
from domain.identity import customer_stream, subscription_stream
from domain.refusals import Invalid, NotFound
from tests.application.world import World


def past(world: World) -> Past:
    return Past(world.datastore, reader(world.vault))


def at(world: World, when: datetime, **more):
    return past(world).customer("acme", when, when, **{"limit": 100, **more})[0]


class TestStreams:
    def test_every_version_is_what_it_was(self, acme):
        """Noted when it was, and asked for when all is over."""
        stream, noted = subscription_stream("acme"), []
        for number in range(1, 6):
            acme.limits(max_pipelines_per_day=number)
            acme.request()
            acme.report(acme.claim())
            noted.append(past(acme).stream(stream))
            acme.wait(minutes=5)
        for then in noted:
            assert past(acme).stream(stream, Until(version=then.version)) == then
            assert past(acme).stream(stream, Until(at=then.at + timedelta(minutes=1))) == then

    def test_the_newest_is_what_decides(self, acme):
        """The state that commands load, snapshot and all, is the one that is shown."""
        acme.report([acme.claim()[0]] if acme.request() else [])
        state = fold(history.stream(acme.datastore, subscription_stream("acme")), acme.mapper)
        assert state is not None
        loaded = []
        acme.platform.transact(
            type("Look", (), {"at": acme.at, "by": acme.stamp()["by"]})(),
            lambda tx: loaded.append(tx.subscription("acme").state),
        )
        assert loaded == [state.state]

    def test_an_instant_is_a_prefix_of_the_stream(self, acme):
        """What a slow clock stamped later in the stream is not taken before what came first."""
        began = acme.at
        for number, minutes in ((1, 10), (2, 20), (3, 15), (4, 30)):
            acme.at = began + timedelta(minutes=minutes)
            acme.limits(max_pipelines_per_day=number)
        stream = subscription_stream("acme")
        seen = [
            past(acme).stream(stream, Until(at=began + timedelta(minutes=m))).version for m in (9, 10, 15, 19, 20, 30)
        ]
        assert seen == [1, 2, 2, 2, 4, 5]

    def test_there_was_none(self, acme):
        with pytest.raises(NotFound, match="no such customer"):
            at(acme, acme.at - timedelta(seconds=1))
        with pytest.raises(NotFound, match="no such stream"):
            past(acme).stream(UUID(int=7))

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            ("UPDATE stored_events SET topic = 'customer.unheard-of@1' WHERE notification_id = 2", "no such topic"),
            ("UPDATE stored_events SET state = '\\x00' WHERE notification_id = 2", "another shape"),
            ("DELETE FROM stored_events WHERE notification_id = 2", "event 2 of the stream, before it, is missing"),
            ("UPDATE stored_events SET topic = 'customer.reactivated@1' WHERE notification_id = 1", "another shape"),
        ],
    )
    def test_what_cannot_be_read_stops_the_fold_and_what_lies_behind_does_not(self, acme, spoil, why):
        acme.wait(minutes=1)
        acme.suspend()
        acme.tamper(spoil)
        stream = customer_stream("acme")
        with pytest.raises(UnreadableEvent, match=why) as raised:
            past(acme).stream(stream)
        assert raised.value.position in {1, 2, 4}
        if "= 1" not in spoil:
            assert past(acme).stream(stream, Until(version=1)).version == 1

    def test_what_does_not_follow_from_the_events_before(self, acme):
        run_id = acme.request()
        acme.cancel(run_id)
        acme.tamper("DELETE FROM stored_events WHERE originator_id = %s AND originator_version = 1", run_id)
        acme.tamper("UPDATE stored_events SET originator_version = 1 WHERE originator_id = %s", run_id)
        with pytest.raises(UnreadableEvent, match="does not follow"):
            past(acme).stream(UUID(run_id))


class TestCustomers:
    def test_runs_at_every_instant(self, world):
        """Against all events folded one by one, while the clocks of workers go wrong by some minutes."""
        world.onboard(plan="SCALE")
        world.onboard("other", plan="SCALE")
        began = world.at
        for number in range(12):
            world.at = began + timedelta(minutes=7 * number - 5 * (number % 3))
            runs = [world.request(), world.request("other")]
            if number % 2:
                world.report(world.claim(f"w{number}", limit=1), f"w{number}")
            if number % 4 == 2:
                world.cancel(runs[0])
        every = world.store.recorder.select_notifications(start=0, limit=10_000)
        for minutes in range(-1, 90, 6):
            when = began + timedelta(minutes=minutes)
            streams: dict[object, list] = {}
            for event in every:
                if event.topic.startswith("run.") and envelope_of(event).customer_id == "acme":
                    streams.setdefault(event.originator_id, []).append(event)
            folded = [fold(events, world.mapper, Until(at=when)) for events in streams.values()]
            states = Counter(str(run.state.state) for run in folded if run is not None)
            if minutes < 0:
                continue
            seen = at(world, when).runs
            assert seen.states == dict(states), minutes
            active = {str(r.last.stream_id) for r in folded if r and not r.state.state.ended}
            assert {run.stream_id for run in seen.items} == active
            paged, before = [], None
            while True:
                page, before = past(world).customer("acme", when, when, limit=2, before=before)
                paged += page.runs.items
                if before is None:
                    break
            assert paged == seen.items

    def test_usage_as_it_counted_then(self, acme):
        """A new day begins with nothing used, also before anything has happened on it."""
        acme.request()
        today, tomorrow = at(acme, acme.at).usage, at(acme, acme.at + timedelta(days=1)).usage
        assert (today.admitted, today.daily_remaining) == (1, 24)
        assert (tomorrow.admitted, tomorrow.daily_remaining) == (0, 25)
        assert tomorrow.day == str((acme.at + timedelta(days=1)).date())


class TestDifferences:
    def test_what_changed_and_through_what(self, acme):
        then = Until(at=acme.at)
        for number in range(1, 10):
            acme.wait(minutes=1)
            acme.limits(max_pipelines_per_day=number)
        acme.suspend()
        found = past(acme).customer_difference("acme", then, Until())
        changes = {change.field: change for change in found.changes}
        limits = changes["subscription.limits.max_pipelines_per_day"]
        assert (limits.before, limits.after, limits.times, len(limits.causes)) == (25, 9, 9, 5)
        events = {event.position: event for event in found.events}
        assert [events[p].data["overrides"]["max_pipelines_per_day"] for p in limits.causes] == [5, 6, 7, 8, 9]
        assert events[changes["customer.status"].causes[0]].data["reason"] == "unpaid"
        assert "customer.company_name" not in changes

    def test_what_came_and_went_is_no_difference(self, acme):
        then = Until(at=acme.at)
        acme.wait(minutes=1)
        acme.suspend()
        acme.wait(minutes=1)
        acme.reactivate()
        # How often it was suspended stays, since by that one suspension is told from another.
        [counted] = past(acme).customer_difference("acme", then, Until()).changes
        assert (counted.field, counted.before, counted.after) == ("customer.suspensions", 0, 1)

    def test_what_lies_in_a_field_that_came_with_it(self, acme):
        then = Until(at=acme.at)
        acme.wait(minutes=1)
        config_id = acme.pipeline()
        acme.change(config_id, timezone="Europe/Berlin")
        [change] = past(acme).customer_difference("acme", then, Until()).changes
        assert (change.field, change.times, change.after["timezone"]) == (
            f"customer.pipelines.{config_id}",
            2,
            "Europe/Berlin",
        )

    def test_backwards_is_refused(self, acme):
        acme.wait(minutes=1)
        acme.limits(max_pipelines_per_day=1)
        with pytest.raises(Invalid):
            past(acme).stream_difference(subscription_stream("acme"), Until(), Until(version=1))


class Opens(Closed):
    """A vault that counts what it opens, and refuses all else, as `Closed` does."""

    def __init__(self) -> None:
        self.opened = 0

    def open(self, ciphertext, owner, by=None):
        self.opened += 1
        return b"somebody"


def test_nothing_but_persons_is_opened_and_nothing_is_written(acme):
    """The control: a customer's own stream does open some."""
    acme.request()
    acme.report(acme.claim())
    vault = Opens()
    looking = Past(acme.datastore, reader(vault))
    before = acme.scalar("SELECT pg_current_xact_id_if_assigned() IS NULL AND count(*) > 0 FROM stored_events")
    logged = acme.scalar("SELECT max(notification_id) FROM stored_events")
    looking.stream(subscription_stream("acme"))
    compare(
        lambda after: history.stream(acme.datastore, subscription_stream("acme"), after=after),
        reader(vault),
        Until(version=1),
        Until(),
    )
    assert vault.opened == 0
    looking.customer("acme", None, acme.at, limit=10)
    assert vault.opened == 2  # the company's name and the admin's e-mail
    assert (before, acme.scalar("SELECT max(notification_id) FROM stored_events")) == (True, logged)


_DIGEST = """
import json, sys
from uuid import UUID
from adapters.event_views import Closed, reader
from adapters.postgres.event_log import Datastore
from adapters.replayed import Past
datastore = Datastore(sys.argv[1], size=1)
past = Past(datastore, reader(Closed()))
views = [past.stream(UUID(stream)).model_dump(mode="json") for stream in sys.argv[2:]]
datastore.close()
print(json.dumps(views))
"""


def test_a_replay_is_the_same_in_every_zone_locale_and_order_of_hashes(acme):
    acme.pipeline()
    for _ in range(4):
        acme.request()
    acme.claim()
    streams = [str(subscription_stream("acme")), str(customer_stream("acme"))]
    answers = set()
    for seed, zone in (("1", "UTC"), ("2", "Asia/Kathmandu")):
        settings = {"PATH": os.defpath, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C"}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST, acme.dsn, *streams],
            env=settings,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answers.add(done.stdout)
    [answer] = answers
    assert len(json.loads(answer)[0]["state"]["running"]) == 4
