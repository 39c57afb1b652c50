"""From waiting runs to outcomes: one claimant each, no limit exceeded, no place lost, and late workers refused."""

from collections import Counter
from datetime import timedelta

from application import customers
from application.execution import LEASE_SECONDS
from application.ports import Expectation, RunReport, StepReport
from domain.subscription_events import SlotReleased, SlotTaken
from projections.tables import PIPELINE_EXECUTION_QUEUE
from tests.application.busy import Tables
from tests.application.world import World, race

FAILED = RunReport(succeeded=False, error="Table not found.")
CAN_PASS = RunReport(succeeded=False, error="BigQuery answered 503.", can_pass=True)


def never_above(world: World, limit: int) -> bool:
    return all(e.usage.running <= limit for e in world.events() if isinstance(e, SlotTaken | SlotReleased))


class TestClaiming:
    def test_leaves_a_running_run_a_place_taken_and_a_lease(self, acme):
        run_id = acme.request(parameters={"days": 3})
        [order] = acme.claim("w1")
        assert (order.run_id, order.attempt, order.parameters) == (run_id, 1, {"days": 3})
        run, queued = acme.run(run_id), acme.row("pipeline_execution_queue")
        assert (run["state"], run["worker_id"], run["attempt"]) == ("RUNNING", "w1", 1)
        assert queued["lease_expires_at"] - run["actual_start_time"] == timedelta(seconds=LEASE_SECONDS)
        assert acme.usage() == (1, 1, 1)
        assert acme.scalar("SELECT worker_id FROM run_leases WHERE run_id = %s", run_id) == "w1"

    def test_one_named_run(self, acme):
        acme.request()
        wanted = acme.request()
        assert [o.run_id for o in acme.claim(run_id=wanted)] == [wanted]
        assert acme.claim(run_id=wanted) == []

    def test_passes_over_rows_that_are_nobodys_run(self, acme):
        """Rows find, runs decide: what was put into the queue by hand costs a look and no more."""
        ours = acme.request()
        acme.onboard("other")
        theirs = acme.request("other")
        forged = "11111111-1111-4111-8111-111111111111"
        columns = [c.name for c in PIPELINE_EXECUTION_QUEUE.columns]
        listed = ", ".join({"run_id": "%s", "priority": "1"}.get(name, name) for name in columns)
        copied = (
            f"INSERT INTO pipeline_execution_queue ({', '.join(columns)}, position)"
            f" SELECT {listed}, position FROM pipeline_execution_queue WHERE run_id = %s"
        )
        acme.execute(copied, forged, ours)
        acme.execute("UPDATE pipeline_execution_queue SET customer_id = 'acme' WHERE run_id = %s", theirs)
        for _ in range(3):
            claimed = {order.run_id for order in acme.claim(limit=1)}
            assert claimed <= {ours}
        assert acme.run(ours)["state"] == "RUNNING"
        assert {acme.run(theirs)["state"], *acme.states(customer_id="other")} == {"PENDING"}

    def test_in_the_order_of_priority_and_age(self, acme):
        acme.limits(max_concurrent_pipelines=50)
        acme.pipeline(cron="0 * * * *")
        acme.wait(hours=1)
        acme.trigger()
        manual = acme.request()
        acme.wait(seconds=1)
        later = acme.request()
        assert [o.trigger_type for o in acme.claim()] == ["manual", "manual", "scheduled"]
        assert [acme.run(r)["state"] for r in (manual, later)] == ["RUNNING", "RUNNING"]

    def test_as_many_as_there_are_places(self, acme):
        for _ in range(8):
            acme.request()
        orders = acme.claim()
        assert len(orders) == 5
        assert acme.claim() == []
        acme.report(orders[:2])
        assert len(acme.claim()) == 2

    def test_does_not_ask_what_time_the_callers_think_it_is(self, acme):
        """A run that a fast clock asked for is not held back until the other clocks come that far."""
        acme.wait(minutes=10)
        acme.request()
        acme.wait(minutes=-20)
        assert len(acme.claim()) == 1

    def test_a_customer_without_places_holds_nobody_up(self, acme):
        for _ in range(20):
            acme.request()
        acme.limits(max_concurrent_pipelines=0)
        acme.onboard("other")
        theirs = acme.request("other")
        assert [o.run_id for o in acme.claim(limit=1)] == [theirs]

    def test_a_long_queue_of_one_customer_leaves_the_others_theirs(self, acme):
        acme.limits(max_pipelines_per_day=1000)
        for _ in range(40):
            acme.request()
        acme.onboard("other")
        theirs = acme.request("other")
        claimed = [o.run_id for _ in range(3) for o in acme.claim(limit=10)]
        assert theirs in claimed

    def test_workers_that_one_customer_could_keep_busy_are_shared(self, acme):
        """Ten places, and sixty runs that are older: whoever has nothing running goes first all the same."""
        acme.onboard("big", "SCALE")
        for _ in range(60):
            acme.request("big")
        held = acme.claim(limit=4)
        acme.wait(hours=1)
        theirs = acme.request()
        acme.report(held[:1])
        assert [o.run_id for o in acme.claim(limit=1)] == [theirs]

    def test_customers_get_shares_of_what_their_plans_allow(self, world):
        for customer_id, plan in (("small", "STARTER"), ("large", "SCALE")):
            world.onboard(customer_id, plan)
            for _ in range(6):
                world.request(customer_id)
        orders = [o for _ in range(8) for o in world.claim(limit=1)]
        assert Counter(o.customer_id for o in orders) == {"large": 6, "small": 2}

    def test_nobody_is_left_out_of_a_round(self, world):
        customers_of_all_names = [f"{letter}{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCD0123456789"]
        for number, customer_id in enumerate(customers_of_all_names):
            world.onboard(f"{customer_id}{number}")
            world.request(f"{customer_id}{number}")
        claimed = [o.customer_id for _ in range(80) for o in world.claim(limit=1)]
        assert len(claimed) == len(set(claimed)) == len(customers_of_all_names)

    def test_customers_whose_runs_must_wait_hide_nobodys_that_is_ready(self, world):
        for number in range(70):
            world.onboard(f"waiting{number}")
            world.request(f"waiting{number}")
        while orders := world.claim():
            world.report(orders, report=CAN_PASS, retry_after=timedelta(hours=1))
        world.onboard("ready")
        theirs = world.request("ready")
        assert [o.run_id for o in world.claim(limit=1)] == [theirs]

    def test_the_check_of_a_new_customer_takes_no_place(self, acme):
        acme.limits(max_concurrent_pipelines=1)
        customers.provision(customers.Provision(**acme.stamp(), customer_id="acme"), acme.platform, Tables())
        acme.request()
        orders = acme.claim()
        assert sorted(o.trigger_type for o in orders) == ["manual", "onboarding"]
        assert acme.usage() == (1, 1, 1)
        acme.report(orders)
        assert acme.usage() == (1, 1, 0)
        assert acme.row("customer_usage")["pipelines_succeeded_today"] == 1

    def test_nor_is_it_in_the_way_of_one(self, acme):
        acme.limits(max_concurrent_pipelines=1)
        customers.provision(customers.Provision(**acme.stamp(), customer_id="acme"), acme.platform, Tables())
        assert len(acme.claim()) == 1
        acme.request()
        assert len(acme.claim()) == 1

    def test_runs_of_a_suspended_customer_are_skipped_and_give_their_units_back(self, acme):
        for _ in range(12):
            acme.request()
        acme.onboard("other")
        acme.suspend()
        theirs = acme.request("other")
        assert [o.run_id for o in acme.claim(limit=2)] == [theirs]
        assert acme.claim() == []
        assert acme.states(customer_id="acme") == {"SKIPPED": 12}
        assert {r["error_message"] for r in acme.rows("scheduled_pipeline_runs", customer_id="acme")} == {
            "The customer's account is suspended."
        }
        assert acme.usage() == (0, 0, 0)
        assert acme.scalar("SELECT count(*) FROM run_leases") == 1


def work_off(world: World, runs: int, workers: int) -> Counter[str]:
    """Claim and finish with so many workers until all is done; how often each run was claimed."""
    claimed: Counter[str] = Counter()

    def work(number: int) -> None:
        name = f"w{number}"
        while world.scalar("SELECT count(*) FROM pipeline_execution_queue WHERE deleted_at IS NULL"):
            orders = world.claim(name, limit=4)
            claimed.update(o.run_id for o in orders)
            assert world.report(orders, name) == []

    race(workers, work)
    return claimed


def test_sixteen_workers_get_each_run_once_and_no_limit_is_exceeded(database_url, tmp_path):
    with World(database_url, tmp_path / "key", size=16) as world:
        for customer_id in ("one", "two", "three"):
            world.onboard(customer_id, max_customers := "SCALE")
            world.limits(customer_id, max_concurrent_pipelines=3)
            for _ in range(60):
                world.request(customer_id)
        assert max_customers
        claimed = work_off(world, 180, 16)
        assert len(claimed) == 180
        assert set(claimed.values()) == {1}
        assert never_above(world, 3)
        assert world.states() == {"COMPLETED": 180}
        for customer_id in ("one", "two", "three"):
            assert world.usage(customer_id) == (60, 60, 0)


def test_the_race_is_one_that_counting_first_loses(acme):
    """The control: count what runs, then start. All count before the first one starts."""
    for _ in range(8):
        acme.request()
    with acme.store.transaction() as one, acme.store.transaction() as two:
        seen = [len(session.running_runs("acme")) for session in (one, two)]
        for session in (one, two):
            session._cursor.execute(
                "UPDATE pipeline_execution_queue SET state = 'RUNNING' WHERE run_id IN (SELECT run_id FROM"
                " pipeline_execution_queue WHERE state = 'PENDING' LIMIT %s FOR UPDATE SKIP LOCKED)",
                (5 - seen[0],),
            )
    assert acme.scalar("SELECT count(*) FROM pipeline_execution_queue WHERE state = 'RUNNING'") > 5


class TestReporting:
    def test_success(self, acme):
        run_id = acme.request()
        acme.report(acme.claim(), report=RunReport(succeeded=True, rows=42))
        run = acme.run(run_id)
        assert (run["state"], run["rows_processed"], run["error_message"]) == ("COMPLETED", 42, None)
        usage = acme.row("customer_usage")
        assert (usage["pipelines_succeeded_today"], usage["concurrent_pipelines_running"]) == (1, 0)
        assert acme.scalar("SELECT count(*) FROM run_leases") == 0

    def test_failure_keeps_the_unit(self, acme):
        run_id = acme.request()
        acme.report(acme.claim(), report=FAILED)
        assert (acme.run(run_id)["state"], acme.run(run_id)["error_message"]) == ("FAILED", "Table not found.")
        assert acme.row("customer_usage")["pipelines_failed_today"] == 1
        assert acme.usage() == (1, 1, 0)

    def test_steps_on_the_way_and_at_the_end_are_recorded_once(self, acme):
        acme.request()
        orders = acme.claim()
        step = StepReport(
            index=0,
            name="check",
            type="data_quality",
            status="COMPLETED",
            started_at=acme.at,
            ended_at=acme.at,
            expectations=(Expectation("not null", passed=False, severity="warn", observed="3 nulls"),),
        )
        assert acme.report(orders, steps=(step,)) == []
        assert acme.row("scheduled_pipeline_runs")["state"] == "RUNNING"
        acme.report(orders, steps=(step,), report=RunReport(succeeded=True))
        assert acme.kinds().count("StepFinished") == 1

    def test_an_error_that_can_pass_waits_for_its_time(self, acme):
        acme.request()
        acme.report(acme.claim(), report=CAN_PASS, retry_after=timedelta(hours=1))
        queued = acme.row("pipeline_execution_queue")
        assert queued["state"] == "PENDING"
        assert queued["not_before"] - acme.scalar("SELECT clock_timestamp()") > timedelta(minutes=59)
        assert acme.claim() == []

    def test_a_row_that_somebody_edited_cannot_stop_the_queue(self, acme):
        acme.request()
        acme.report(acme.claim(), report=CAN_PASS, retry_after=timedelta(hours=1))
        acme.execute("UPDATE pipeline_execution_queue SET not_before = NULL, priority = 1")
        other = acme.request()
        assert [o.run_id for o in acme.claim(limit=1)] == [other]

    def test_an_error_that_can_pass_gives_its_place_back_and_is_tried_three_times(self, acme):
        run_id = acme.request()
        for attempt in (1, 2, 3):
            [order] = acme.claim()
            assert order.attempt == attempt
            acme.report([order], report=CAN_PASS, retry_after=timedelta(0))
            assert acme.usage() == (1, 1, 0)
        assert acme.run(run_id)["state"] == "FAILED"
        assert acme.claim() == []

    def test_waiting_is_by_the_databases_clock(self, acme):
        """The worker's own clock is a day ahead here."""
        acme.request()
        acme.report(acme.claim(), report=CAN_PASS, retry_after=timedelta(seconds=0))
        assert len(acme.claim()) == 1

    def test_handed_back_runs_are_ready_at_once_for_another_worker(self, acme):
        run_id = acme.request()
        acme.report(acme.claim("w1"), "w1", handed_back="The worker shut down.")
        assert acme.run(run_id)["state"] == "PENDING"
        assert acme.usage() == (1, 1, 0)
        [order] = acme.claim("w2")
        assert order.attempt == 2

    def test_twice_is_refused_the_second_time_and_frees_one_place(self, acme):
        acme.request()
        acme.request()
        first, _second = acme.claim()
        assert acme.report([first]) == []
        assert acme.report([first]) == [first.run_id]
        assert acme.usage() == (2, 2, 1)

    def test_one_refused_outcome_does_not_hold_the_others_up(self, acme):
        for _ in range(3):
            acme.request()
        orders = acme.claim()
        acme.report(orders[1:2])
        assert acme.report(orders) == [orders[1].run_id]
        assert acme.states() == {"COMPLETED": 3}
        assert acme.row("customer_usage")["pipelines_succeeded_today"] == 3

    def test_nobody_else_can_report_a_run(self, acme):
        acme.request()
        orders = acme.claim("w1")
        assert acme.report(orders, "w2") == [orders[0].run_id]
        assert acme.run(orders[0].run_id)["state"] == "RUNNING"
