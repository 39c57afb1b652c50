"""What a worker holds and for how long: heartbeats, workers that die, and the late ones that are refused."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from adapters.postgres import leases
from application.session import Superseded
from domain.run_events import RunRequeued
from tests.application.world import Answer, World, race, until


def expire(world: World) -> None:
    """Let all leases run out."""
    world.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 millisecond'")


def read(world: World) -> int:
    """How many leases were read so far, in whatever way, as this world's only connection reports it."""
    world.execute("SELECT pg_stat_force_next_flush()")
    return world.scalar(
        "SELECT (coalesce(idx_tup_fetch, 0) + seq_tup_read)::integer FROM pg_stat_user_tables"
        " WHERE relname = 'run_leases'"
    )


class TestTakingOver:
    def test_leaves_leases_alone_that_run(self, acme):
        acme.request()
        acme.claim()
        acme.wait(days=365)
        assert acme.take_over() == []

    def test_brings_the_run_back_and_refuses_the_worker_that_wakes_up(self, acme):
        run_id = acme.request()
        late = acme.claim("w1")
        expire(acme)
        assert acme.take_over() == [run_id]
        assert acme.usage() == (1, 1, 0)
        assert acme.run(run_id)["state"] == "PENDING"
        assert acme.report(late, "w1") == [run_id]
        [order] = acme.claim("w2")
        assert order.attempt == 2
        assert acme.report(late, "w1") == [run_id]
        assert acme.run(run_id)["state"] == "RUNNING"
        assert acme.report([order], "w2") == []
        assert acme.row("customer_usage")["pipelines_succeeded_today"] == 1

    def test_fails_a_run_whose_workers_die_every_time(self, acme):
        run_id = acme.request()
        for _ in range(3):
            assert len(acme.claim()) == 1
            expire(acme)
            acme.take_over()
        run = acme.run(run_id)
        assert (run["state"], run["error_message"]) == ("FAILED", "Worker w1 stopped answering during attempt 3.")
        assert acme.row("customer_usage")["pipelines_failed_today"] == 1
        assert acme.usage() == (1, 1, 0)

    def test_costs_no_attempt_when_the_worker_never_began(self, acme):
        run_id = acme.request()
        for attempt in range(1, 8):
            [order] = acme.claim(begin=False)
            assert (order.attempt, order.last_attempt) == (attempt, False)
            expire(acme)
            assert acme.take_over() == [run_id]
            assert acme.usage() == (1, 1, 0)
        requeued = [event for event in acme.events() if isinstance(event, RunRequeued)]
        assert {event.spent for event in requeued} == {False}
        assert requeued[-1].reason == "Worker w1 never began attempt 7."

    def test_costs_one_when_it_did(self, acme):
        """The control: of seven such workers the third is the last."""
        run_id = acme.request()
        deaths = 0
        while acme.claim(begin=True):
            expire(acme)
            acme.take_over()
            deaths += 1
        assert (deaths, acme.run(run_id)["state"]) == (3, "FAILED")

    def test_a_new_claim_has_not_begun_because_the_last_one_had(self, acme):
        acme.request()
        acme.claim(begin=True)
        expire(acme)
        acme.take_over()
        acme.claim(begin=False)
        expire(acme)
        acme.take_over()
        assert [event.spent for event in acme.events() if isinstance(event, RunRequeued)] == [True, False]

    def test_finds_what_ran_out_by_an_index_among_many_that_did_not(self, acme, tmp_path):
        acme.execute(
            "INSERT INTO run_leases (run_id, customer_id, worker_id, attempt, expires_at)"
            " SELECT n, 'acme', 'w', 1, clock_timestamp() + interval '1 h' FROM generate_series(1, 5000) n"
        )
        acme.request()
        acme.claim()
        acme.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 s' WHERE worker_id = 'w1'")
        acme.execute("ANALYZE run_leases")
        with World(acme.dsn, tmp_path / "key", size=1) as alone:
            before = read(alone)
            assert len(alone.take_over()) == 1
            assert 0 < read(alone) - before < 100
            # The control: a clock that is asked anew for every row keeps the index from being used.
            alone.scalar("SELECT count(*) FROM run_leases WHERE expires_at < clock_timestamp()")
            assert read(alone) - before > 5000

    def test_a_cancelled_one_ends_there(self, acme):
        run_id = acme.request()
        acme.claim()
        acme.cancel(run_id)
        expire(acme)
        acme.take_over()
        assert acme.run(run_id)["state"] == "CANCELLED"

    def test_a_cancelled_one_that_never_began_gives_its_unit_back(self, acme):
        run_id = acme.request()
        for _ in range(2):
            acme.claim(begin=False)
            expire(acme)
            acme.take_over()
        acme.claim(begin=False)
        acme.cancel(run_id)
        expire(acme)
        acme.take_over()
        assert acme.run(run_id)["state"] == "CANCELLED"
        assert acme.usage() == (0, 0, 0)
        assert acme.take_over() == []

    @pytest.mark.parametrize("begin", [(True, False), (False, True)])
    def test_but_not_one_that_began_in_any_attempt(self, acme, begin):
        """The control."""
        run_id = acme.request()
        acme.claim(begin=begin[0])
        expire(acme)
        acme.take_over()
        acme.claim(begin=begin[1])
        acme.cancel(run_id)
        expire(acme)
        acme.take_over()
        assert acme.run(run_id)["state"] == "CANCELLED"
        assert acme.usage() == (1, 1, 0)

    def test_by_many_at_once_frees_each_place_once(self, acme):
        for _ in range(5):
            acme.request()
        acme.claim()
        expire(acme)
        answers = race(8, lambda _: acme.take_over())
        assert sorted(run_id for answer in answers for run_id in answer) == sorted(
            r["run_id"] for r in acme.rows("scheduled_pipeline_runs")
        )
        assert acme.usage() == (5, 5, 0)

    def test_never_takes_a_lease_that_is_being_renewed(self, acme):
        acme.request()
        acme.claim("w1")
        expire(acme)
        assert len(acme.beat("w1")) == 1
        assert acme.take_over() == []


class TestHeartbeats:
    def test_say_what_is_held_and_what_must_stop(self, acme):
        first, second = acme.request(), acme.request()
        acme.claim("w1")
        acme.cancel(first)
        held = {lease.run_id: lease for lease in acme.beat("w1")}
        assert {run_id: lease.stop_asked for run_id, lease in held.items()} == {first: True, second: False}
        assert acme.beat("w2") == []

    def test_keep_nothing_alive_that_is_not_named(self, acme):
        """Two processes of one worker id, one of which died: its run must be taken over."""
        mine, dead = acme.request(), acme.request()
        acme.claim("w1")
        expire(acme)
        assert [held.run_id for held in leases.renew(acme.datastore, "w1", [(mine, 1)], 60)] == [mine]
        assert leases.renew(acme.datastore, "w1", [(mine, 2)], 60) == []
        assert acme.take_over() == [dead]

    def test_a_new_claim_is_not_asked_to_stop(self, acme):
        run_id = acme.request()
        acme.claim("w1")
        acme.execute("UPDATE run_leases SET stop_asked = true")
        expire(acme)
        acme.take_over()
        acme.claim("w1")
        assert [(lease.run_id, lease.stop_asked) for lease in acme.beat("w1")] == [(run_id, False)]

    def test_meet_outcomes_without_a_deadlock(self, acme):
        """Both touch all leases of one worker; whoever comes second waits with nothing in hand."""
        assert len(beat_amid_a_report(acme, lambda: acme.beat("w1"))) == 2

    def test_would_meet_in_one_if_they_locked_in_the_order_of_the_table(self, acme):
        unordered = "UPDATE run_leases SET expires_at = clock_timestamp() WHERE worker_id = 'w1'"
        with pytest.raises(Superseded, match="DeadlockDetected"):
            beat_amid_a_report(acme, lambda: acme.execute(unordered))


def beat_amid_a_report(world: World, beat: Callable[[], Answer]) -> Answer:
    """What a heartbeat says that comes while the outcomes of two runs are being recorded."""
    low, high = str(UUID(int=1)), str(UUID(int=2**128 - 1))
    for run_id in (high, low):
        world.request(run_id=run_id)
        world.wait(seconds=1)
    # Not begun: that would lay the leases down in the order that this is about.
    assert [o.run_id for o in world.claim("w1", begin=False)] == [high, low]
    with ThreadPoolExecutor(1) as threads:
        with world.store.transaction() as session:
            session.lock_runs([low])
            session.now()  # asked for is not held: what is fetched next waits for it
            beating = threads.submit(beat)
            until(world.waiting_sessions)
            session.lock_runs([high])
        return beating.result()
