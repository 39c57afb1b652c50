"""A run that is asked for while a worker has nothing to do is that worker's at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Barrier
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from adapters.postgres import offers
from adapters.postgres.channels import HANDED, QUEUE
from adapters.postgres.offers import OFFER_LOCK, Handed
from application.ports import RunReport
from domain.refusals import Forbidden, QuotaExceeded
from domain.run_events import RunClaimed, RunRequeued, RunScheduled
from tests.application.test_leases import expire
from tests.application.world import World, until

SIGN = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"


@dataclass
class Idler:
    """A worker that offers itself, as the database sees it."""

    world: World
    name: str
    offer_id: UUID
    line: psycopg.Connection

    def offer(self, free: int = 10, seconds: float = 60) -> None:
        offers.offer(self.world.datastore, self.offer_id, self.name, free, seconds)

    def take_up(self, **more) -> list[Handed]:
        return list(offers.take_up(self.world.datastore, self.offer_id, self.name, 60, **more))

    def withdraw(self) -> None:
        offers.withdraw(self.world.datastore, self.offer_id)

    @property
    def free(self) -> int:
        return self.world.scalar("SELECT free FROM idle_workers WHERE offer_id = %s", self.offer_id)


@contextmanager
def idler(world: World, name: str = "w1", *, listens: bool = True, **offered) -> Iterator[Idler]:
    with psycopg.connect(world.dsn, autocommit=True) as line:
        made = Idler(world, name, uuid4(), line)
        if listens:
            assert line.execute(SIGN, (OFFER_LOCK, str(made.offer_id))).fetchone() == (True,)
        made.offer(**offered)
        yield made


@pytest.fixture
def idle(acme) -> Iterator[Idler]:
    with idler(acme) as made:
        yield made


class TestHandedOver:
    def test_at_once_it_is_claimed_as_any_other(self, acme, idle):
        run_id = acme.request(parameters={"days": 3})
        run = acme.run(run_id)
        assert (run["state"], run["worker_id"], run["attempt"]) == ("RUNNING", "w1", 1)
        assert acme.usage() == (1, 1, 1)
        held = acme.leased(run_id)
        assert (held["worker_id"], held["begun"], held["handed_to"]) == ("w1", False, idle.offer_id)
        assert 8 < held["seconds"] < 10
        assert [type(e) for e in acme.events()[-2:]] == [RunScheduled, RunClaimed]
        assert acme.claim("w2") == []

    def test_what_its_worker_takes_up_is_the_whole_order(self, acme, idle):
        acme.execute(
            "INSERT INTO customer_provider_configs (config_id, customer_id, provider, domain, source_project_id,"
            " source_dataset, notification_emails, created_at, position)"
            " VALUES ('old', 'acme', 'GCP', 'EXAMPLE', 'p0', 'd0', '[]', '2020-01-01Z', 1),"
            " ('new', 'acme', 'GCP', 'EXAMPLE', 'p1', 'd1', '[\"a@example.com\"]', '2021-01-01Z', 1)"
        )
        run_id = acme.request(parameters={"days": 3})
        [handed] = idle.take_up()
        assert not handed.stop_asked
        assert not handed.begun
        idle.withdraw()
        acme.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 s', begun = false")
        acme.take_over()
        [claimed] = acme.claim("w1")
        for name in ("run_id", "customer_id", "provider", "domain", "template", "trigger_type", "run_date"):
            assert getattr(handed.order, name) == getattr(claimed, name)
        assert handed.order.parameters == claimed.parameters == {"days": 3}
        assert handed.order.configuration == claimed.configuration
        assert handed.order.configuration["source_dataset"] == "d1"
        assert (handed.order.run_id, handed.order.attempt, handed.order.worker_id) == (run_id, 1, "w1")
        assert handed.order.last_attempt is claimed.last_attempt is False

    def test_it_is_taken_up_once_and_held_as_long_as_any_other(self, acme, idle):
        run_id = acme.request()
        [handed] = idle.take_up()
        assert 8 < handed.left < 10
        assert idle.take_up() == []
        held = acme.leased(run_id)
        assert held["begun"]
        assert 55 < held["seconds"] <= 60
        assert acme.report([handed.order]) == []
        assert acme.run(run_id)["state"] == "COMPLETED"
        assert acme.usage() == (1, 1, 0)

    def test_another_process_of_the_same_name_does_not_take_it_up(self, acme, idle):
        acme.request()
        with idler(acme, "w1", free=0) as other:
            assert other.take_up() == []
        assert len(idle.take_up()) == 1

    def test_a_run_that_is_tried_again_is_handed_over_too(self, acme, idle):
        acme.request()
        acme.report([idle.take_up()[0].order], report=RunReport(succeeded=False, error="Bad SQL."))
        run_id = acme.retry(acme.rows("scheduled_pipeline_runs")[0]["run_id"])
        assert [each.order.run_id for each in idle.take_up()] == [run_id]

    def test_the_worker_is_told_and_nobody_else_is_woken(self, acme, idle):
        for channel in (HANDED, QUEUE):
            idle.line.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        acme.request()
        told = [(n.channel, n.payload) for n in idle.line.notifies(timeout=2, stop_after=1)]
        assert told == [(HANDED, str(idle.offer_id))]
        assert list(idle.line.notifies(timeout=0)) == []
        idle.withdraw()
        acme.request()
        assert [n.channel for n in idle.line.notifies(timeout=2, stop_after=1)] == [QUEUE]

    def test_the_same_request_again_is_the_same_run(self, acme, idle):
        run_id = acme.request()
        assert acme.request(run_id=run_id) == run_id
        assert idle.free == 9
        assert acme.kinds().count("RunClaimed") == 1

    def test_what_was_cancelled_before_it_was_taken_up_is_to_stop(self, acme, idle):
        acme.cancel(acme.request())
        [handed] = idle.take_up()
        assert handed.stop_asked


class TestWaits:
    """For a worker that claims it, since none could be handed it."""

    def waits(self, world: World) -> bool:
        run = world.run(world.request())
        leases = world.scalar("SELECT count(*) FROM run_leases WHERE run_id = %s", run["run_id"])
        assert (run["state"], leases) in {("PENDING", 0), ("RUNNING", 1)}
        return leases == 0

    def test_who_does_not_listen_gets_nothing(self, acme):
        with idler(acme, listens=False) as deaf:
            assert self.waits(acme)
            assert deaf.free == 10

    def test_who_died_gets_nothing_from_then_on(self, acme):
        with idler(acme) as dying:
            assert not self.waits(acme)
            dying.line.close()
            until(lambda: not acme.scalar("SELECT count(*) FROM pg_locks WHERE classid = %s", OFFER_LOCK))
            assert self.waits(acme)

    def test_who_withdrew_gets_nothing(self, acme, idle):
        idle.withdraw()
        assert self.waits(acme)

    def test_an_offer_does_not_last_for_ever(self, acme):
        with idler(acme, seconds=0):
            assert self.waits(acme)

    def test_no_more_than_are_offered_are_handed_over(self, acme):
        with idler(acme, free=2) as small:
            assert [self.waits(acme) for _ in range(3)] == [False, False, True]
            assert len(small.take_up()) == 2
            small.offer(free=1)
            assert not self.waits(acme)

    def test_a_run_that_does_not_fit_into_the_limits_is_refused_and_handed_to_nobody(self, acme, idle):
        acme.limits(max_concurrent_pipelines=1)
        acme.request()
        with pytest.raises(QuotaExceeded):
            acme.request()
        acme.limits(max_concurrent_pipelines=5, max_pipelines_per_day=1)
        with pytest.raises(QuotaExceeded):
            acme.request()
        acme.suspend()
        with pytest.raises(Forbidden):
            acme.request()
        assert idle.free == 9
        assert acme.usage() == (1, 1, 1)


class TestSeveral:
    def test_who_has_most_places_free_is_handed_the_run(self, acme):
        with idler(acme, "busy", free=2), idler(acme, "free", free=5), idler(acme, "busier", free=1):
            assert acme.run(acme.request())["worker_id"] == "free"

    def test_who_ask_at_once_find_different_workers_and_none_waits_for_another(self, acme):
        for number in range(4):
            acme.onboard(f"customer{number}")
        start = Barrier(4)
        with ExitStack() as stack:
            for number in range(3):
                stack.enter_context(idler(acme, f"w{number}", free=1))

            def ask(number: int) -> str:
                start.wait()
                return acme.request(f"customer{number}")

            with ThreadPoolExecutor(4) as threads:
                runs = [acme.run(run_id) for run_id in threads.map(ask, range(4))]
        assert {run["state"] for run in runs} <= {"RUNNING", "PENDING"}
        given = [run["worker_id"] for run in runs if run["state"] == "RUNNING"]
        assert len(given) == len(set(given))
        assert given, "somebody was handed something"

    def test_a_transaction_that_found_a_worker_keeps_it_from_others(self, acme):
        acme.onboard("other")
        with (
            idler(acme, "w1", free=10),
            acme.store.transaction() as first,
            acme.store.transaction() as second,
        ):
            assert first.lock_and_load(["acme"], {}, seeking=True).idle.worker_id == "w1"
            assert second.lock_and_load(["other"], {}, seeking=True).idle is None


class TestLost:
    def test_what_nobody_takes_up_goes_back_and_costs_no_attempt(self, acme, idle):
        run_id = acme.request()
        expire(acme)
        assert idle.take_up() == [], "it may be another's by now"
        assert acme.take_over() == [run_id]
        [back] = [e for e in acme.events() if isinstance(e, RunRequeued)]
        assert (back.spent, back.begun, back.reason) == (False, False, "Worker w1 never began attempt 1.")
        idle.withdraw()
        [order] = acme.claim("w2")
        assert (order.attempt, order.last_attempt) == (2, False)
        acme.report([order], "w2")
        assert acme.usage() == (1, 1, 0)

    def test_it_goes_back_after_ten_seconds(self, acme, idle):
        acme.request()
        acme.execute("UPDATE run_leases SET expires_at = expires_at - make_interval(secs => 8)")
        assert acme.take_over() == []
        assert idle.take_up() == [], "what is as good as over is not begun"
        acme.execute("UPDATE run_leases SET expires_at = expires_at - make_interval(secs => 2)")
        assert len(acme.take_over()) == 1

    def test_a_unit_comes_back_when_it_was_cancelled_before_anybody_began(self, acme, idle):
        acme.cancel(acme.request())
        expire(acme)
        acme.take_over()
        assert acme.states() == {"CANCELLED": 1}
        assert acme.usage() == (0, 0, 0)

    def test_what_was_taken_up_without_hearing_of_it_is_found_again(self, acme, idle):
        run_id, other = acme.request(), acme.request()
        idle.take_up()
        [again] = idle.take_up(begun=True, besides=[other])
        assert (again.order.run_id, again.begun) == (run_id, True)


def test_offers_that_were_left_behind_are_removed_in_the_end(acme):
    with idler(acme, "gone"), idler(acme, "there") as there:
        acme.execute("UPDATE idle_workers SET expires_at = expires_at - make_interval(hours => 2)")
        there.offer()
        assert acme.scalar("SELECT array_agg(worker_id) FROM idle_workers") == ["there"]


def test_a_clock_that_is_ahead_decides_nothing(acme, idle):
    """Leases and places go by the database's clock, whatever the API's shows."""
    acme.at += timedelta(days=40)
    run_id = acme.request()
    assert acme.leased(run_id)["seconds"] < 10
    assert acme.run(run_id)["actual_start_time"] < acme.at - timedelta(days=39)
