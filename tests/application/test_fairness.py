"""Whose run is next: nobody waits for others' long lines, nothing starves, and what cannot start hides nothing."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from adapters.postgres.claims import Picker
from adapters.postgres.store import PostgresSession, PostgresStore
from application.platform import Platform
from application.ports import RunOrder
from domain.pipeline_run import Priority
from domain.run_events import Trigger
from tests.application.lines import InOneLine, line_up, picking_with
from tests.application.world import World

HOUR = timedelta(hours=1)
SMALL = [f"small{number}" for number in range(50)]
BY_PRIORITY = "priority, scheduled_time, run_id"


@pytest.fixture
def fair(world) -> World:
    """A world whose picks are the same every time."""
    return picking_with(world, Picker(random.Random(1)))  # noqa: S311 - no secret


def finish_one_claim(world: World, limit: int) -> list[RunOrder]:
    orders = world.claim(limit=limit)
    assert world.report(orders) == []
    return orders


class TestAHogOfTenThousand:
    CLAIMS = 8

    def started_of_the_small(self, world: World) -> int:
        """How many of fifty customers' single runs start within a few claims of ten, behind ten thousand."""
        world.onboard("hog", "SCALE")
        for customer_id in SMALL:
            world.onboard(customer_id, "STARTER")
        line_up(world, "hog", 10_000, waited=HOUR)
        for customer_id in SMALL:
            world.request(customer_id)
        claimed = [order for _ in range(self.CLAIMS) for order in finish_one_claim(world, 10)]
        assert len(claimed) == self.CLAIMS * 10
        return sum(order.customer_id != "hog" for order in claimed)

    def test_delays_fifty_customers_by_no_more_than_a_few_claims(self, fair):
        assert self.started_of_the_small(fair) == len(SMALL)

    def test_would_delay_them_for_long_in_one_line(self, world):
        assert self.started_of_the_small(picking_with(world, InOneLine())) == 0

    def test_that_comes_back_late_hides_nobody_who_does(self, fair):
        """Runs whose instants have passed, over half an hour, and one younger run of another customer."""
        fair.onboard("hog", "SCALE")
        fair.onboard("small")
        for minute in range(30, 0, -1):
            line_up(fair, "hog", 20, ready_in=-timedelta(minutes=minute))
        [theirs] = line_up(fair, "small", 1, ready_in=timedelta(0))
        claimed = [order.run_id for _ in range(3) for order in finish_one_claim(fair, 4)]
        assert theirs in claimed


class TestSustainedLoad:
    BUSY = tuple(f"busy{number}" for number in range(30))

    def claims_until_served(self, world: World, most: int) -> int | None:
        """How many claims one scheduled run waits beside thirty customers who never stop asking."""
        for customer_id in (*self.BUSY, "patient"):
            world.onboard(customer_id, "STARTER")
            world.limits(customer_id, max_concurrent_pipelines=1)
        for customer_id in self.BUSY:
            line_up(world, customer_id, most, waited=HOUR)
        line_up(world, "patient", 1, trigger=Trigger.SCHEDULED)
        for number in range(1, most + 1):
            [order] = finish_one_claim(world, 1)
            if order.customer_id == "patient":
                return number
        return None

    def test_starves_nobody(self, fair):
        assert self.claims_until_served(fair, 150) is not None

    def test_would_if_priorities_counted_among_customers(self, world):
        assert self.claims_until_served(picking_with(world, InOneLine(BY_PRIORITY)), 150) is None

    def test_serves_everybody_about_as_often(self, fair):
        for customer_id in self.BUSY[:10]:
            fair.onboard(customer_id, "STARTER")
            line_up(fair, customer_id, 100)
        served = Counter(finish_one_claim(fair, 1)[0].customer_id for _ in range(200))
        assert len(served) == 10
        assert max(served.values()) <= 4 * min(served.values())


class TestInsideOneCustomer:
    def ended_in_order(self, world: World, claims: int) -> list[str]:
        world.limits(max_concurrent_pipelines=1)
        return [order.trigger_type for _ in range(claims) for order in finish_one_claim(world, 1)]

    def lines_of_every_kind(self, world: World) -> None:
        """The less urgent, the older."""
        line_up(world, "acme", 2, trigger=Trigger.BACKFILL, waited=5 * HOUR)
        line_up(world, "acme", 2, trigger=Trigger.SCHEDULED, waited=4 * HOUR, priority=Priority.CATCH_UP)
        line_up(world, "acme", 2, trigger=Trigger.SCHEDULED, waited=3 * HOUR)
        line_up(world, "acme", 2, trigger=Trigger.RETRY, waited=2 * HOUR)
        line_up(world, "acme", 2, waited=HOUR)

    def test_priorities_are_the_order(self, acme):
        picking_with(acme, Picker(age_every=1000))
        self.lines_of_every_kind(acme)
        kinds = ["manual"] * 2 + ["retry"] * 2 + ["scheduled"] * 4 + ["backfill"] * 2
        assert self.ended_in_order(acme, 10) == kinds

    def test_every_fourth_pick_is_the_oldest(self, acme):
        self.lines_of_every_kind(acme)
        assert self.ended_in_order(acme, 4) == ["manual", "manual", "retry", "backfill"]

    @pytest.mark.parametrize(("age_every", "starts"), [(4, True), (1000, False)])
    def test_nothing_starves_behind_a_stream_but_for_that(self, acme, age_every, starts):
        picking_with(acme, Picker(age_every=age_every))
        line_up(acme, "acme", 1, trigger=Trigger.BACKFILL, waited=HOUR)
        line_up(acme, "acme", 20)
        assert ("backfill" in self.ended_in_order(acme, 12)) is starts

    def test_a_pipeline_gets_one_run_of_a_pick(self, acme):
        ids = line_up(acme, "acme", 6, trigger=Trigger.SCHEDULED, pipelines=["daily", "hourly"])
        assert [order.run_id for order in acme.claim()] == ids[:2]
        assert acme.claim() == []

    def test_the_others_of_it_take_nobodys_turn(self, acme):
        acme.limits(max_concurrent_pipelines=50)
        line_up(acme, "acme", 100, trigger=Trigger.SCHEDULED, pipelines=["hourly"], waited=HOUR)
        acme.onboard("other")
        line_up(acme, "other", 3)
        assert Counter(order.customer_id for order in acme.claim(limit=4)) == {"acme": 1, "other": 3}

    def test_those_that_wait_for_their_pipeline_hide_nothing(self, acme):
        """However many: six hundred are more than any claim looks at."""
        line_up(acme, "acme", 600, trigger=Trigger.SCHEDULED, pipelines=["clogged"], waited=HOUR)
        [first] = acme.claim()
        [other] = line_up(acme, "acme", 1, trigger=Trigger.SCHEDULED)
        assert [order.run_id for order in acme.claim(limit=1)] == [other]
        acme.report([first])
        assert len(acme.claim(limit=1)) == 1

    def test_nor_under_the_load_of_others(self, acme):
        line_up(acme, "acme", 600, trigger=Trigger.SCHEDULED, pipelines=["clogged"], waited=HOUR)
        acme.claim()
        line_up(acme, "acme", 1, trigger=Trigger.SCHEDULED, pipelines=["other"])
        acme.onboard("busy")
        line_up(acme, "busy", 100)
        assert "acme" in {order.customer_id for _ in range(8) for order in finish_one_claim(acme, 3)}

    def test_but_they_would_in_one_line(self, acme):
        line_up(acme, "acme", 600, trigger=Trigger.SCHEDULED, pipelines=["clogged"], waited=HOUR)
        acme.claim()
        line_up(acme, "acme", 1, trigger=Trigger.SCHEDULED)
        assert picking_with(acme, InOneLine(BY_PRIORITY)).claim(limit=1) == []


class Counted(Picker):
    """How often a claim looked."""

    looks = 0

    def lock_next(self, cursor, limit):
        self.looks += 1
        return super().lock_next(cursor, limit)


class CountedStore(PostgresStore):
    """How many transactions there were."""

    transactions = 0

    @contextmanager
    def transaction(self) -> Iterator[PostgresSession]:
        self.transactions += 1
        with super().transaction() as session:
            yield session


class TestFew:
    """All that waits is no more than is asked for: it is claimed as it is."""

    def test_what_cannot_start_hides_nothing(self, acme):
        acme.limits(max_concurrent_pipelines=1)
        line_up(acme, "acme", 3)
        assert len(acme.claim(limit=10)) == 1
        acme.onboard("other")
        line_up(acme, "other", 1)
        assert [order.customer_id for order in acme.claim(limit=10)] == ["other"]

    def test_what_more_comes_is_found(self, acme):
        assert acme.claim(limit=10) == []
        ids = line_up(acme, "acme", 1)
        assert [order.run_id for order in acme.claim(limit=10)] == ids
        acme.limits(max_concurrent_pipelines=100)
        line_up(acme, "acme", 30)
        assert [len(acme.claim(limit=10)) for _ in range(4)] == [10, 10, 10, 0]

    @pytest.mark.parametrize(("age_every", "starts"), [(4, True), (1000, False)])
    def test_nothing_starves_behind_a_stream(self, acme, age_every, starts):
        picking_with(acme, Picker(age_every=age_every))
        acme.limits(max_concurrent_pipelines=1)
        line_up(acme, "acme", 1, trigger=Trigger.BACKFILL, waited=HOUR)
        kinds = []
        for _ in range(16):
            line_up(acme, "acme", 1)
            kinds += [order.trigger_type for order in finish_one_claim(acme, 50)]
        assert ("backfill" in kinds) is starts


class TestBackfill:
    def test_holds_half_of_the_places_and_claims_do_not_ask_again_and_again(self, acme):
        counted = Counted()
        picking_with(acme, counted)
        line_up(acme, "acme", 50, trigger=Trigger.BACKFILL)
        assert len(acme.claim()) == 2
        counted.looks = 0
        assert acme.claim() == []
        assert counted.looks == 1

    def test_would_have_them_do_so_in_one_line(self, acme):
        class Line(Counted, InOneLine):
            pass

        line_up(acme, "acme", 600, trigger=Trigger.BACKFILL)
        assert len(acme.claim()) == 2
        counted = Line()
        assert picking_with(acme, counted).claim() == []
        assert counted.looks > 1

    def test_hides_neither_its_customers_runs_nor_anybody_elses(self, acme):
        acme.onboard("other")
        line_up(acme, "acme", 600, trigger=Trigger.BACKFILL, waited=HOUR)
        acme.claim()
        mine = line_up(acme, "acme", 1, trigger=Trigger.SCHEDULED)
        theirs = line_up(acme, "other", 1, trigger=Trigger.BACKFILL)
        assert {order.run_id for order in acme.claim(limit=2)} == {*mine, *theirs}

    def test_has_its_half_again_when_a_run_has_ended(self, acme):
        line_up(acme, "acme", 50, trigger=Trigger.BACKFILL)
        orders = acme.claim()
        acme.report(orders[:1])
        assert len(acme.claim()) == 1


class TestWhoCannotStart:
    def test_hides_nobody_at_the_limit(self, world):
        """Forty customers whose places are taken, and one who has room."""
        for number in range(40):
            world.onboard(f"full{number}")
            line_up(world, f"full{number}", 3)
        world.execute("UPDATE customer_subscriptions SET max_concurrent_pipelines = 0")
        world.onboard("other")
        theirs = world.request("other")
        assert [order.run_id for order in world.claim(limit=1)] == [theirs]

    def test_hides_nobody_above_it(self, acme):
        line_up(acme, "acme", 20)
        assert len(acme.claim()) == 5
        acme.limits(max_concurrent_pipelines=2)
        acme.onboard("other")
        theirs = acme.request("other")
        assert [order.run_id for order in acme.claim()] == [theirs]

    def test_is_asked_for_by_name_once(self, acme):
        line_up(acme, "acme", 5)
        assert len(acme.claim()) == 5
        [waiting] = line_up(acme, "acme", 1)
        acme.store = CountedStore(acme.datastore)
        acme.platform = Platform(acme.store, acme.mapper)
        assert acme.claim(run_id=waiting) == []
        assert acme.store.transactions == 1

    def test_waits_for_its_instant_and_then_is_as_good_as_any(self, acme):
        line_up(acme, "acme", 300, ready_in=HOUR)
        assert acme.claim() == []
        late = line_up(acme, "acme", 1, ready_in=-timedelta(seconds=1))
        ready = line_up(acme, "acme", 1)
        assert {order.run_id for order in acme.claim()} == {*late, *ready}

    def test_is_skipped_of_every_kind_while_suspended(self, acme):
        line_up(acme, "acme", 8, trigger=Trigger.SCHEDULED, pipelines=["one"])
        assert len(acme.claim()) == 1
        line_up(acme, "acme", 8, trigger=Trigger.BACKFILL)
        line_up(acme, "acme", 8)
        acme.suspend()
        for _ in range(8):
            assert acme.claim() == []
        assert acme.states() == {"RUNNING": 1, "SKIPPED": 23}
