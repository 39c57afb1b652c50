"""The service's own figures: onboarding, triggering, runs through."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from adapters.bootstrap import Service, build, origin, utc_now
from adapters.process import settle
from adapters.settings import Settings
from application.customers import Onboard, onboard
from application.scheduling import TriggerSchedules, trigger_schedules
from tests.benchmarks.databases import rested
from tests.benchmarks.noop_worker import workers
from tests.benchmarks.population import populate


def onboarding(service: Service, customers: int, threads: int) -> float:
    """Customers onboarded per second by one process: keys made, personal data sealed, rows written."""

    def one(number: int) -> None:
        command = Onboard(
            at=utc_now(),
            by=origin("anyone"),
            customer_id=f"on_{number}",
            company_name="Onboarding",
            admin_email="someone@example.com",
        )
        onboard(command, service.platform, service.vault)

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(customers)))
    return customers / (time.perf_counter() - begun)


def trigger(service: Service, customers: int, pipelines: int) -> dict[str, float]:
    """Pipelines per second, all due at the same slot, `pipelines` of each customer, in a process of its own.

    Also how far that process's memory grew at most.
    """
    slot = populate(service, customers, pipelines, concurrent=10)
    rested(service)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        queued, seconds, grown = process.submit(_trigger, service.dsn, service.settings, slot).result()
    if queued != customers * pipelines:
        raise AssertionError(f"{queued} of {customers * pipelines} due pipelines were queued")
    return {"per_s": queued / seconds, "seconds": seconds, "peak_rss_growth_mib": grown}


def _trigger(dsn: str, settings: Settings, slot: datetime) -> tuple[int, float, float]:
    service = build(settings, dsn)
    settle()  # as a scheduler process does
    with service.store.transaction() as session:
        session.now()
    before = peak_kib()
    begun = time.perf_counter()
    done = trigger_schedules(TriggerSchedules(at=slot, by=origin("scheduler")), service.platform, service.registry)
    seconds = time.perf_counter() - begun
    grown = peak_kib() - before
    service.close()
    return done.queued, seconds, grown / 1024


def peak_kib() -> int:
    """The most memory that this process has had. What getrusage says begins at the parent's."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def runs_through(service: Service, *, runs: int, customers: int, processes: int, concurrency: int) -> float:
    """Waiting runs that worker processes claim and complete per second, start-up excluded."""
    slot = populate(service, customers, runs // customers, concurrent=50)
    return worked_off(service, slot, runs=runs, processes=processes, concurrency=concurrency)


def worked_off(service: Service, slot: datetime, *, runs: int, processes: int, concurrency: int) -> float:
    """As `runs_through`, with what is due at the slot: triggered, claimed and completed."""
    trigger_schedules(TriggerSchedules(at=slot, by=origin("scheduler")), service.platform, service.registry)
    rested(service)
    waiting = "SELECT count(*) AS n FROM pipeline_execution_queue WHERE deleted_at IS NULL"
    with workers(service, processes, concurrency), service.datastore.reading() as cursor:
        while cursor.execute(waiting).fetchone()["n"]:
            time.sleep(0.2)
    with service.datastore.reading() as cursor:
        # By the claim's time, which is the database's, and the last report's, which is a worker's on the same machine.
        row = cursor.execute(
            "SELECT count(*) FILTER (WHERE state = 'COMPLETED') AS done,"
            " extract(epoch FROM max(actual_end_time) - min(actual_start_time)) AS seconds"
            " FROM scheduled_pipeline_runs"
        ).fetchone()
    if row["done"] != runs:
        raise AssertionError(f"{row['done']} of {runs} runs completed")
    return runs / float(row["seconds"])
