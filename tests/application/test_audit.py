"""The log, searched: nothing that is wanted is missed, nothing else is told, and no search reads more than it may."""

import json
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest
from psycopg.sql import SQL, Literal

from adapters.event_views import SEALED, Closed, reader, to_customers, views
from adapters.postgres.reads import events, history
from adapters.postgres.reads.events import Wanted, search
from application.mapper import envelope_of
from application.shown import shown
from application.topics import TOPICS
from domain.envelope import Origin
from domain.identity import customer_stream, subscription_stream
from tests.application.world import World
from tests.history.shapes import recorded


def log(world: World):
    """The whole log as it is stored, oldest first."""
    return world.store.recorder.select_notifications(start=0, limit=100_000)


def all_pages(world: World, wanted: Wanted, **how):
    """Every event that a search comes to tell, page by page, and how many pages it took."""
    found, after, pages = [], None, 0
    while True:
        page = search(world.datastore, wanted, after=after, **how)
        found += [event.id for event in page.events]
        after, pages = page.next, pages + 1
        if after is None:
            return found, pages


@pytest.fixture
def busy(world: World) -> World:
    """Two customers, some hours of work, and an operator now and then."""
    for customer_id in ("acme", "other"):
        world.onboard(customer_id, plan="SCALE")
    for hour in range(5):
        for customer_id in ("acme", "other"):
            world.request(customer_id)
            world.report(world.claim(f"w{hour}"), f"w{hour}")
        if hour == 2:
            world.limits("acme", max_pipelines_per_day=30)
        world.wait(hours=1)
    return world


def walks(world: World, query: str, parameters) -> bool:
    """Whether the query, planned without knowing its parameters, reads events that it leaves out."""
    numbered = query
    for number in range(1, len(parameters) + 1):
        numbered = numbered.replace("%s", f"${number}", 1)
    values = SQL(", ").join(map(Literal, (*parameters, 50)))
    with world.datastore.transaction_cursor() as cursor:
        cursor.execute(f"PREPARE asked AS {numbered} LIMIT ${len(parameters) + 1}")
        plan = cursor.execute(SQL("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked({})").format(values)).fetchone()
        cursor.execute("DEALLOCATE asked")
    return "Rows Removed by Filter" in json.dumps(plan)


class TestSearch:
    def test_finds_exactly_what_is_wanted(self, busy):
        """Against the log itself, for every filter and in both orders, in pages of any size."""
        run = next(UUID(str(e.originator_id)) for e in log(busy) if e.topic.startswith("run."))
        correlation = next(envelope_of(e).by.correlation_id for e in log(busy) if e.topic.startswith("run.completed"))
        since, until = busy.at - timedelta(hours=4), busy.at - timedelta(hours=2)
        cases = [
            (Wanted(), lambda e, at: True),
            (Wanted(customer_id="acme"), lambda e, at: at.customer_id == "acme"),
            (Wanted(stream_id=run), lambda e, at: e.originator_id == run),
            (
                Wanted(stream_id=subscription_stream("acme"), type="subscription.slot"),
                lambda e, at: at.customer_id == "acme" and e.topic.startswith("subscription.slot"),
            ),
            (Wanted(type="run.c"), lambda e, at: e.topic.startswith("run.c")),
            (Wanted(actor="worker:w3"), lambda e, at: at.by.actor == "worker:w3"),
            (Wanted(actor="worker"), lambda e, at: at.by.actor.startswith("worker:")),
            (Wanted(correlation_id=correlation), lambda e, at: at.by.correlation_id == correlation),
            (Wanted(since=since, until=until), lambda e, at: since <= at.at < until),
            (
                Wanted(customer_id="other", type="run.", actor="worker", since=since),
                lambda e, at: (
                    at.customer_id == "other"
                    and e.topic.startswith("run.")
                    and at.by.actor.startswith("worker:")
                    and at.at >= since
                ),
            ),
        ]
        for wanted, holds in cases:
            expected = [e.id for e in log(busy) if holds(e, envelope_of(e))]
            assert expected, wanted
            for how in ({"limit": 200}, {"limit": 2}, {"limit": 3, "scanned": 7}):
                assert all_pages(busy, wanted, oldest_first=True, **how)[0] == expected, (wanted, how)
                assert all_pages(busy, wanted, **how)[0] == expected[::-1], (wanted, how)

    def test_a_span_is_exact_however_many_lie_just_outside_of_it(self, acme):
        began = acme.at
        for minute in range(40):
            acme.at = began + timedelta(minutes=minute)
            acme.limits(max_pipelines_per_day=minute + 1)
        for first in (1, 2, 4, 18, 31, 33, 34):
            wanted = Wanted(since=began + timedelta(minutes=first), until=began + timedelta(minutes=first + 5))
            expected = [e.id for e in log(acme) if wanted.since <= envelope_of(e).at < wanted.until]
            assert len(expected) == 5
            for limit in range(1, 8):
                assert all_pages(acme, wanted, limit=limit, oldest_first=True)[0] == expected
                assert all_pages(acme, wanted, limit=limit)[0] == expected[::-1]

    def test_actors_are_found_by_whole_parts(self, acme):
        actors = ("admin", "admin/next", "admin/cli:root", "administrator", "customer:acme/k1", "customer:acme2/k1")
        for number, actor in enumerate(actors):
            command = {"at": acme.at, "by": Origin(actor=actor, command_id=str(uuid4()), correlation_id="c")}
            acme.stamp = lambda command=command: command  # the next command is this one's
            acme.limits(max_pipelines_per_day=number + 1)
        names = {
            actor: {envelope_of(e).by.actor for e in search(acme.datastore, Wanted(actor=actor), limit=50).events}
            for actor in ("admin", "admin/cli", "customer:acme", "customer", "adm")
        }
        assert names == {
            "admin": {"admin", "admin/next", "admin/cli:root"},
            "admin/cli": {"admin/cli:root"},
            "customer:acme": {"customer:acme/k1"},
            "customer": {"customer:acme/k1", "customer:acme2/k1"},
            "adm": set(),
        }

    def test_an_answer_reads_no_more_than_it_may(self, busy):
        """The only event of its kind lies at the beginning: it takes several answers, each with its stretch."""
        total = len(log(busy))
        found, pages = all_pages(busy, Wanted(type="customer.onboarded"), limit=200, scanned=10)
        assert (len(found), pages) == (2, -(-total // 10) + (total % 10 == 0))
        first = search(busy.datastore, Wanted(type="customer.onboarded"), limit=200, scanned=10)
        assert (first.events, first.searched_to) == ([], total - 9)
        assert search(busy.datastore, Wanted(type="customer.onboarded"), limit=200).searched_to == 1

    def test_of_a_customer_only_its_own_events_are_read(self, busy):
        """Ten of them reach as far as they do, however many others lie between."""
        own = [e.id for e in log(busy) if envelope_of(e).customer_id == "acme"]
        wanted = Wanted(customer_id="acme", type="nothing")
        assert search(busy.datastore, wanted, limit=5, scanned=10).searched_to == own[-10]

    def test_no_other_customers_events_are_walked(self, acme):
        """The control: asked for by the customer and the position alone, they are, as most events are another's."""
        acme.onboard("big")
        acme.tamper(
            "INSERT INTO stored_events (originator_id, originator_version, topic, state, customer_id)"
            " SELECT gen_random_uuid(), 1, 'run.noise@1', '{}', 'big' FROM generate_series(1, 20000)"
        )
        acme.tamper("ANALYZE stored_events")
        axis = events._axis(acme.datastore, Wanted(customer_id="acme"), 1, 20_100)
        ours = events._query(events.COLUMNS, axis, SQL("true"), oldest_first=False).as_string()
        plain = events.COLUMNS + " WHERE customer_id = %s AND notification_id >= %s AND notification_id < %s"
        assert not walks(acme, ours, axis.parameters)
        assert walks(acme, plain + " ORDER BY notification_id DESC", ("acme", 1, 20_100))

    @pytest.mark.parametrize("oldest_first", [True, False])
    def test_a_stream_of_another_customer_is_as_one_that_never_was(self, acme, oldest_first):
        """However long it is: nor is it told how far the search came in it."""
        acme.onboard("beta")
        for _ in range(10):
            acme.request()

        def answer(stream_id: UUID, customer_id: str):
            wanted = Wanted(customer_id=customer_id, stream_id=stream_id, type="subscription")
            return search(acme.datastore, wanted, limit=5, scanned=5, oldest_first=oldest_first)

        theirs = subscription_stream("acme")
        assert answer(theirs, "beta") == answer(uuid4(), "beta")
        assert answer(theirs, "acme").next is not None

    def test_holes_between_positions_are_no_matter(self, busy):
        """Positions that a rollback used up are never given again."""
        busy.tamper("UPDATE stored_events SET notification_id = notification_id * 1000")
        busy.tamper("SELECT setval(pg_get_serial_sequence('stored_events', 'notification_id'), 10000000)")
        since = busy.at - timedelta(hours=3)
        expected = [e.id for e in log(busy) if envelope_of(e).at >= since]
        assert all_pages(busy, Wanted(since=since), limit=3, scanned=5, oldest_first=True)[0] == expected

    def test_events_that_are_told_otherwise_now_are_found_by_what_they_are(self, acme):
        acme.suspend()
        acme.tamper("UPDATE stored_events SET topic = 'subscription.paused@1' WHERE topic LIKE 'subscription.suspen%%'")
        [found] = search(acme.datastore, Wanted(type="subscription.suspended"), limit=5).events
        assert found.topic == "subscription.paused@1"
        assert search(acme.datastore, Wanted(type="subscription.paused"), limit=5).events == []


class TestSpan:
    @pytest.mark.parametrize("clocks", [history.CLOCKS, timedelta(0)])
    def test_clocks_that_differ_hide_nothing(self, acme, clocks):
        """The control: a search that trusts the clocks passes over what a slow one stamped."""
        now = acme.at
        for minute in range(0, 120, 4):
            acme.at = now + timedelta(minutes=minute) - timedelta(minutes=14 * (minute % 8 == 0))
            acme.limits(max_pipelines_per_day=1 + minute)
        missed = 0
        for minute in range(0, 120, 7):
            since, until = now + timedelta(minutes=minute), now + timedelta(minutes=minute + 11)
            low, high = history.span(acme.datastore, since, until, clocks=clocks)
            wanted = [e.id for e in log(acme) if since <= envelope_of(e).at < until]
            missed += sum(not low <= position < high for position in wanted)
        assert (missed == 0) == (clocks == history.CLOCKS)

    def test_an_empty_log(self, world):
        assert history.span(world.datastore, world.at, world.at) == (1, 1)
        assert search(world.datastore, Wanted(since=world.at), limit=5).events == []

    def test_versions_by_position(self, busy):
        stream = subscription_stream("acme")
        own = [e for e in log(busy) if e.originator_id == stream]
        for position in range(log(busy)[-1].id + 2):
            expected = sum(e.id <= position for e in own)
            assert history.version(busy.datastore, stream, position) == expected


class TestWhatIsShown:
    @pytest.mark.parametrize("topic", sorted(TOPICS))
    def test_no_event_shows_what_is_secret(self, topic):
        """Nothing that is bytes, under whatever name, and no hash."""
        event = recorded(topic).event
        text = json.dumps(shown(event))
        assert "sealed" not in text.replace("sealed ü", "")
        assert "AP9zZWFsZWQ" not in text  # what the example's bytes are in base64
        assert not {"key_hash", "sealed_key", "sealed"} & set(shown(event))

    def test_a_field_that_is_bytes_is_shown_by_no_name(self):
        assert shown({"fine": 1, "other_ciphertext": b"x", "deep": [{"x": b"y", "z": 2}], "key_hash": "h"}) == {
            "fine": 1,
            "deep": [{"z": 2}],
        }

    def test_without_keys_persons_stay_closed_and_the_rest_is_told(self, acme):
        [view] = views(log(acme)[0], reader(Closed()), for_operators=True)
        assert (view.data["admin_email"], view.data["customer_id"], view.unreadable) == (SEALED, "acme", None)
        [opened] = views(log(acme)[0], reader(acme.vault), for_operators=True)
        assert opened.data["admin_email"] == "admin@acmecorp.com"

    @pytest.mark.parametrize(
        ("column", "spoilt", "known"),
        [("topic", "'customer.unheard-of@7'", True), ("state", "'\\xff00'", False), ("state", "'[]'", False)],
    )
    def test_an_event_that_cannot_be_read_is_listed_and_says_so(self, acme, column, spoilt, known):
        acme.limits(max_pipelines_per_day=3)
        acme.tamper(f"UPDATE stored_events SET {column} = {spoilt} WHERE notification_id = 3")
        wanted = Wanted(since=acme.at - timedelta(days=1))
        found = [
            view
            for stored in search(acme.datastore, wanted, limit=50).events
            for view in views(stored, acme.mapper, for_operators=True)
        ]
        [unreadable] = [view for view in found if view.unreadable]
        assert len(found) == len(log(acme))
        assert (unreadable.position, unreadable.data, unreadable.at is not None) == (3, {}, known)
        assert search(acme.datastore, Wanted(actor="admin"), limit=50).events[0].id == len(log(acme))

    def test_customers_are_told_of_operators_that_they_were_operators(self, acme):
        assert {to_customers(a) for a in ("admin", "admin/next", "admin/cli:root")} == {"admin"}
        assert to_customers("customer:acme/k") == "customer:acme/k"
        assert to_customers("worker:w1") == "worker:w1"


class TestCorrelation:
    def test_what_workers_do_belongs_to_what_asked_for_the_run(self, acme):
        """From the trigger's command to the outcome; each command names the one that led to it."""
        acme.pipeline(cron="0 13 * * *")
        acme.wait(hours=2)
        acme.trigger()
        acme.report(acme.claim())
        scheduled, claimed, completed = (
            next(envelope_of(e) for e in log(acme) if e.topic.startswith(topic))
            for topic in ("run.scheduled", "run.claimed", "run.completed")
        )
        assert scheduled.by.actor == "scheduler"
        assert {e.by.correlation_id for e in (scheduled, claimed, completed)} == {scheduled.by.command_id}
        assert (claimed.by.causation_id, completed.by.causation_id) == (scheduled.by.command_id, claimed.by.command_id)
        taken = next(envelope_of(e) for e in log(acme) if e.topic.startswith("subscription.slot-taken"))
        assert (taken.by.command_id, taken.by.correlation_id) == (claimed.by.command_id, claimed.by.command_id)

    def test_so_does_a_take_over(self, acme):
        run_id = acme.request()
        acme.claim()
        acme.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 second'")
        assert acme.take_over() == [run_id]
        *_, claimed, requeued = [envelope_of(e).by for e in log(acme) if str(e.originator_id) == run_id]
        assert (requeued.actor, requeued.causation_id) == ("service", claimed.command_id)
        assert requeued.correlation_id == claimed.correlation_id

    def test_what_somebody_else_asks_for_is_its_own(self, acme):
        """The control: a cancellation belongs to whoever cancels, not to who asked for the run."""
        run_id = acme.request()
        acme.cancel(run_id)
        asked, cancelled = [envelope_of(e).by for e in log(acme) if str(e.originator_id) == run_id]
        assert cancelled.correlation_id == cancelled.command_id != asked.correlation_id
        assert cancelled.causation_id is None


def test_only_the_first_events_of_streams_are_read_for_provisioning(acme):
    first = history.first(acme.datastore, customer_stream("acme"))
    assert (first.topic, first.originator_version) == ("customer.onboarded@1", 1)
    assert history.first(acme.datastore, uuid4()) is None
    assert events.SCANNED == 20_000
    assert isinstance(envelope_of(first).at, datetime)
