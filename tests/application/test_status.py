"""The status: why runs wait, which processes live, what is wrong, and that none of it costs more as history grows."""

import threading
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from adapters.postgres import processes
from adapters.postgres.processes import Process, Work
from adapters.postgres.reads import queue, runs
from adapters.problems import span
from adapters.status import api_worker_id, look
from application.backfill import Backfill, backfill
from application.ports import RunReport
from tests.application.world import World, until


def waits_for(world: World) -> dict[str, str]:
    return {customer.customer_id: str(customer.waits_for) for customer in look(world.datastore).customers}


def born(world: World, name: str, *roles: str, seen_seconds_ago: float = 0, work: Work | None = None) -> Process:
    """A process that said that it lives, that long ago."""
    process = Process(
        instance_id=uuid4(), roles=roles or ("worker",), worker_id=name, host="box", pid=7, version="0.1.0"
    )
    processes.renew(world.datastore, process, work)
    world.execute(
        "UPDATE processes SET seen_at = seen_at - make_interval(secs => %s) WHERE instance_id = %s",
        seen_seconds_ago,
        process.instance_id,
    )
    return process


def older(world: World, seconds: float) -> None:
    """All runs that wait were queued that long ago."""
    world.execute("UPDATE scheduled_pipeline_runs SET created_at = now() - make_interval(secs => %s)", seconds)
    world.execute(
        "UPDATE pipeline_execution_queue SET not_before = now() - make_interval(secs => %s)"
        " WHERE not_before IS NOT NULL",
        seconds,
    )


# what waits, and why


def test_nothing(world):
    status = look(world.datastore)
    assert (status.due, status.pending, status.running, status.next_slot) == (0, 0, 0, None)
    assert (status.oldest_pending_age_seconds, status.customers, status.leases, status.problems) == (None, [], [], [])
    assert status.alive == {"api": 0, "scheduler": 0, "worker": 0, "projector": 0}


def test_a_ready_run_waits_for_a_worker(acme):
    acme.request()
    older(acme, 30)
    status = look(acme.datastore)
    [customer] = status.customers
    assert (status.pending, status.pending_ready, status.pending_later) == (1, 1, 0)
    assert (customer.pending, customer.running, customer.places, customer.waits_for) == (1, 0, 5, "worker")
    assert customer.oldest_wait_seconds == pytest.approx(30, abs=5)
    assert status.oldest_pending_age_seconds == customer.oldest_wait_seconds


def test_a_customer_at_its_limit(acme):
    acme.request()
    acme.request()
    acme.limits(max_concurrent_pipelines=1)
    assert waits_for(acme) == {"acme": "worker"}
    acme.claim(limit=1)
    [customer] = look(acme.datastore).customers
    assert customer.waits_for == "limit"
    assert customer.why == "At its limit: 1 of 1 places are taken."


def test_a_suspended_customer(acme):
    acme.request()
    acme.suspend()
    assert waits_for(acme) == {"acme": "suspended"}


def test_a_retry_waits_for_its_time(acme):
    acme.request()
    failed = RunReport(succeeded=False, error="503", can_pass=True)
    acme.report(acme.claim(), report=failed, retry_after=timedelta(hours=1))
    status = look(acme.datastore)
    assert (status.pending, status.pending_ready, status.pending_later) == (1, 0, 1)
    assert status.customers[0].waits_for == "later"
    assert status.customers[0].why.startswith("Until 20")
    assert status.oldest_pending_age_seconds is None


def test_a_run_behind_an_earlier_one_of_its_pipeline(acme):
    acme.at = datetime(2035, 11, 20, 1, 0, tzinfo=UTC)
    acme.pipeline(cron="0 * * * *")
    for _ in range(2):
        acme.wait(hours=1)
        acme.trigger()
    assert waits_for(acme) == {"acme": "worker"}
    acme.claim()
    assert waits_for(acme) == {"acme": "pipeline"}
    acme.request()
    assert waits_for(acme) == {"acme": "worker"}


def test_backfill_beyond_its_half(acme):
    acme.at = datetime(2035, 11, 20, 12, 0, tzinfo=UTC)
    config = acme.pipeline()
    days = {"first": date(2035, 11, 1), "last": date(2035, 11, 9)}
    backfill(Backfill(**acme.stamp(), customer_id="acme", config_id=config, **days), acme.platform, acme.catalogue)
    assert waits_for(acme) == {"acme": "worker"}
    assert len(acme.claim()) == 2
    assert waits_for(acme) == {"acme": "backfill"}


def test_the_customers_with_the_most_come_first_and_all_are_counted(world):
    for number in range(22):
        world.onboard(f"c{number:02}")
        world.request(f"c{number:02}")
    world.request("c21")
    status = look(world.datastore)
    assert (len(status.customers), status.waiting_customers, status.pending) == (20, 22, 23)
    assert [customer.customer_id for customer in status.customers[:3]] == ["c21", "c00", "c01"]


def test_a_running_run_and_its_lease(acme):
    run_id = acme.request()
    acme.claim("w1")
    [lease] = look(acme.datastore).leases
    assert (lease.run_id, lease.worker_id, lease.attempt, lease.expired) == (run_id, "w1", 1, False)
    assert lease.seconds_left == pytest.approx(60, abs=5)
    assert lease.pipeline_template == "dryrun"


# processes


def test_processes_live_and_die(world):
    work = Work(concurrency=8, holding=3, finished=100, finished_last_minute=40)
    born(world, "w1", "worker", work=work)
    born(world, "w2", "worker", work=work, seen_seconds_ago=61)
    born(world, "laptop", "api", "scheduler", "worker", "projector", work=work)
    status = look(world.datastore)
    assert status.alive == {"api": 1, "scheduler": 1, "worker": 2, "projector": 1}
    assert status.dead == 1
    assert [(w.worker_id, w.alive) for w in status.workers] == [("w1", True), ("laptop", True), ("w2", False)]
    assert (status.throughput_per_minute, status.places_free) == (80, 16)


def test_runs_belong_to_the_living_worker_of_that_name(acme):
    work = Work(concurrency=8, holding=1, finished=0, finished_last_minute=0)
    born(acme, "w1", seen_seconds_ago=70, work=work)
    born(acme, "w1", work=work)
    acme.request()
    acme.claim("w1")
    status = look(acme.datastore)
    assert [(w.alive, w.runs) for w in status.workers] == [(True, 1), (False, 0)]
    assert status.problems == []


def test_a_run_that_the_api_executes(acme):
    born(acme, "box-1", "api")
    acme.request()
    acme.claim(api_worker_id("box-1"))
    [worker] = look(acme.datastore).workers
    assert (worker.worker_id, worker.alive, worker.runs, worker.concurrency) == ("api-box-1", True, 1, None)


# what is wrong


def sentences(world: World, **options: Any) -> list[str]:
    return [f"{found.problem} {found.remedy}" for found in look(world.datastore, **options).problems]


def test_a_dead_worker_that_holds_runs(acme):
    w2 = born(acme, "w2")
    acme.request()
    acme.claim("w2")
    assert sentences(acme) == []
    acme.execute("UPDATE processes SET seen_at = seen_at - interval '61 seconds'")
    [sentence] = sentences(acme)
    assert sentence.startswith("Worker w2, last seen 1 min")
    assert "holds 1 run. No worker lives" in sentence
    born(acme, "w3")
    assert "another worker takes them over" in sentences(acme)[0]
    processes.remove(acme.datastore, w2.instance_id)
    assert sentences(acme) == []


def test_a_lease_that_nobody_takes_over(acme):
    """Of a worker that never said that it lives, too."""
    acme.request()
    acme.claim("stranger")
    assert sentences(acme) == []
    acme.execute("UPDATE run_leases SET expires_at = now() - interval '21 seconds'")
    assert sentences(acme) == [
        "Worker stranger is dead and holds 1 run. No worker lives to take them over. Start one: convergence worker."
    ]
    born(acme, "w3")
    assert "Nothing, for a minute: another worker takes them over." in sentences(acme)[0]
    acme.execute("UPDATE processes SET started_at = now() - interval '2 minutes'")
    assert "Look at the other workers' logs: none takes them over." in sentences(acme)[0]


def test_a_run_that_no_worker_starts(acme):
    acme.request()
    older(acme, 100)
    assert sentences(acme)[0].endswith("No worker lives. Start one: convergence worker.")
    assert sentences(acme, wait_s=200) == []
    born(acme, "w1", work=Work(concurrency=1, holding=0, finished=0, finished_last_minute=0))
    assert "Workers have room" in sentences(acme)[0]
    acme.request()
    acme.claim("w1", limit=1)
    older(acme, 100)
    assert "raise WORKER_CONCURRENCY" in sentences(acme)[0]


@pytest.mark.parametrize("held_up", ["limit", "later", "pipeline"])
def test_a_run_that_could_not_start_is_no_workers_fault(acme, held_up):
    born(acme, "w1")
    if held_up == "limit":
        acme.limits(max_concurrent_pipelines=1)
        acme.request()
        acme.claim("w1")
        acme.limits(max_concurrent_pipelines=2)
        acme.request()
        acme.limits(max_concurrent_pipelines=1)
    elif held_up == "later":
        acme.request()
        failed = RunReport(succeeded=False, error="503", can_pass=True)
        acme.report(acme.claim("w1"), "w1", report=failed, retry_after=timedelta(hours=1))
    else:
        acme.at = datetime(2035, 11, 20, 1, 0, tzinfo=UTC)
        acme.pipeline(cron="0 * * * *")
        for _ in range(2):
            acme.wait(hours=1)
            acme.trigger()
        acme.claim("w1")
        # One that waits since a moment, beside one that waits for long and must.
        older(acme, 500)
        acme.request()
    if held_up != "pipeline":
        acme.execute("UPDATE scheduled_pipeline_runs SET created_at = now() - interval '500 seconds'")
    assert waits_for(acme)["acme"] == ("worker" if held_up == "pipeline" else held_up)
    assert sentences(acme) == []


def test_slots_that_nobody_triggers(acme):
    config = acme.pipeline()
    past = "UPDATE customer_pipeline_configs SET next_run_time = now() - make_interval(secs => %s) WHERE config_id = %s"
    acme.execute(past, 60, config)
    status = look(acme.datastore)
    assert (status.due, status.problems) == (1, [])
    acme.execute(past, 200, config)
    [sentence] = sentences(acme)
    assert sentence.startswith("1 pipeline has been due for 3 min 20 s")
    assert "convergence scheduler" in sentence
    born(acme, "s", "scheduler")
    assert "schedulers' logs" in sentences(acme)[0]


# rows of processes


def test_a_row_is_forgotten_a_day_after_its_process_died(world):
    born(world, "old", seen_seconds_ago=86_401)
    born(world, "dead", seen_seconds_ago=86_300)
    renewed = born(world, "new")
    names = {seen.worker_id for seen in processes.seen(world.datastore)}
    assert names == {"dead", "new"}
    world.execute("UPDATE processes SET seen_at = seen_at - interval '2 days'")
    processes.renew(world.datastore, renewed, None)
    assert {seen.worker_id: seen.alive for seen in processes.seen(world.datastore)} == {"new": True}


def test_many_processes_renew_and_forget_together(world):
    for number in range(30):
        born(world, f"old-{number}")
    world.execute("UPDATE processes SET seen_at = seen_at - interval '2 days'")
    together = threading.Barrier(8)
    failed: list[BaseException] = []

    def renew(number: int) -> None:
        together.wait()
        try:
            for _ in range(10):
                born(world, f"new-{number}")
        except BaseException as error:  # noqa: BLE001 - asserted below
            failed.append(error)

    threads = [threading.Thread(target=renew, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    processes.renew(world.datastore, born(world, "last"), None)
    until(lambda: not any(seen.worker_id.startswith("old") for seen in processes.seen(world.datastore)))


# what it costs


_FINISHED = (
    "INSERT INTO pipeline_execution_queue"
    " (run_id, customer_id, config_id, priority, scheduled_time, state, deleted_at, position)"
    " SELECT 'done-' || i, 'acme', 'c', 30, now(), 'COMPLETED', now(), i FROM generate_series(1, 20000) AS i"
)
_WHOLE_QUEUE = "SELECT count(*) FROM pipeline_execution_queue WHERE state = 'PENDING' AND deleted_at IS NULL"


def pages(world: World, statement: str, parameters: Any = None) -> int:
    """How many pages of the tables PostgreSQL looks at."""
    with world.datastore.reading() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        plan = cursor.fetchone()["QUERY PLAN"][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


@pytest.mark.parametrize("statement", ["now", "waiting", "whole queue"])
def test_the_cost_does_not_grow_with_history(acme, statement):
    """The last statement is one that looks at every run that ever was, and shows that this test would notice."""
    for _ in range(20):
        acme.request()
    text, parameters = {
        "now": (queue._NOW, None),
        "waiting": (queue._WAITING, {**queue._KINDS, "limit": 20}),
        "whole queue": (_WHOLE_QUEUE, None),
    }[statement]
    acme.execute("VACUUM ANALYZE pipeline_execution_queue")
    before = pages(acme, text, parameters)
    acme.execute(_FINISHED)
    acme.execute("VACUUM ANALYZE pipeline_execution_queue")
    grown = pages(acme, text, parameters) > before + 30
    assert grown == (statement == "whole queue")


# runs, newest first


def test_lists_runs_newest_first_and_as_asked(world):
    for name in ("acme", "beta"):
        world.onboard(name)
    first = world.request("acme")
    world.wait(minutes=1)
    second = world.request("beta")
    world.claim("w1", run_id=first)
    config = world.pipeline("beta", cron="0 * * * *")
    world.wait(hours=2)
    world.trigger()

    def listed(**wanted: Any) -> list[str]:
        return [row["run_id"] for row in runs.newest(world.datastore, runs.Wanted(**wanted), limit=10)]

    [scheduled] = listed(config_id=config)
    assert listed() == [scheduled, second, first]
    assert listed(customer_id="beta") == [scheduled, second]
    assert listed(template="dryrun") == [second, first]
    assert (listed(state="RUNNING"), listed(state="PENDING")) == ([first], [scheduled, second])
    assert listed(state="FAILED") == []
    begun = world.run(second)["created_at"]
    assert (listed(since=begun), listed(until=begun)) == ([scheduled, second], [first])
    assert len(runs.newest(world.datastore, runs.Wanted(), limit=1)) == 1
    assert [r for r in listed() if runs.Wanted(state="PENDING").holds(world.run(r))] == [scheduled, second]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (18_180, "5 h 3 min"), (187_200, "2 d 4 h")],
)
def test_spans_of_time(seconds, said):
    assert span(seconds) == said
