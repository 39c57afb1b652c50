"""The service's own figures: onboarding, triggering, runs through."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapters.bootstrap import Service, build, origin, utc_now
from adapters.postgres.schema import migrate
from adapters.settings import Settings
from application.customers import Onboard, onboard
from application.scheduling import TriggerSchedules, trigger_schedules
from tests.benchmarks.population import populate


def service_on(dsn: str, directory: Path) -> Service:
    """A migrated service whose BigQuery is away."""
    settings = Settings(data_dir=directory, bigquery_emulator_host="127.0.0.1:1")
    service = build(settings, dsn)
    with service.datastore.reading() as cursor:
        migrate(cursor.connection)
    return service


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


def runs_through(
    service: Service, directory: Path, *, runs: int, customers: int, workers: int, concurrency: int
) -> dict[str, float]:
    """Due pipelines triggered per second, then their runs through `workers` processes per second, start-up excluded."""
    slot = populate(service, customers, runs // customers, concurrent=50)
    begun = time.perf_counter()
    done = trigger_schedules(TriggerSchedules(at=slot, by=origin("scheduler")), service.platform, service.registry)
    triggered = done.queued / (time.perf_counter() - begun)
    with service.datastore.reading() as cursor:
        # The runs were scheduled for tomorrow, so that no worker's clock matters here: they are ready now.
        cursor.execute("UPDATE pipeline_execution_queue SET not_before = clock_timestamp()")
        cursor.execute("VACUUM ANALYZE")
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.benchmarks.noop_worker",
                service.dsn,
                str(directory),
                f"w{n}",
                str(concurrency),
            ]
        )
        for n in range(workers)
    ]
    try:
        with service.datastore.reading() as cursor:
            waiting = "SELECT count(*) AS n FROM pipeline_execution_queue WHERE deleted_at IS NULL"
            while cursor.execute(waiting).fetchone()["n"]:
                time.sleep(0.2)
            row = cursor.execute(
                "SELECT count(*) FILTER (WHERE state = 'COMPLETED') AS done, count(*) AS runs,"
                " extract(epoch FROM max(actual_end_time) - min(actual_start_time)) AS seconds"
                " FROM scheduled_pipeline_runs"
            ).fetchone()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(40)
    if row["done"] != runs:
        raise AssertionError(f"{row['done']} of {runs} runs completed")
    return {"trigger_per_s": triggered, "through_per_s": runs / float(row["seconds"])}
