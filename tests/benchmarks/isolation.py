"""Requests that read a customer's rows, with and without row-level security, in turns."""

import time
from concurrent.futures import ThreadPoolExecutor

from psycopg.sql import SQL

from adapters.bootstrap import Service
from adapters.postgres.event_log import Reads
from adapters.postgres.reads import profiles
from adapters.postgres.reads.listing import Where, newest_first
from adapters.postgres.tenant import TenantReads
from projections.tables import SCHEDULED_PIPELINE_RUNS
from tests.benchmarks.databases import rested

_CUSTOMERS = 1000
_RUNS = 100_000
_FILL = (
    "INSERT INTO scheduled_pipeline_runs (run_id, customer_id, state, created_at, position)"
    " SELECT gen_random_uuid()::text, 'c' || n %% {}, 'COMPLETED', now() - n * interval '1 second', n"
    " FROM generate_series(1, {}) AS g(n)"
)


def reads(service: Service, times: int) -> dict[str, float]:
    """Pages of 20 of 100,000 runs and profiles read per second, by one thread and by four; the best of three."""
    with service.datastore.reading() as cursor:
        cursor.execute(SQL(_FILL.replace("%%", "%")).format(_CUSTOMERS, _RUNS))
    rested(service)
    figures: dict[str, float] = {}
    for threads in (1, 4):
        for _ in range(3):
            for name, bound in (("bare", False), ("bound", True)):
                key = f"{name}_reads_per_s.{threads}_threads"
                figures[key] = max(figures.get(key, 0.0), _per_second(service, times, threads, bound=bound))
    return figures


def _per_second(service: Service, times: int, threads: int, *, bound: bool) -> float:
    def one(number: int) -> None:
        customer_id = f"c{number % _CUSTOMERS}"
        where = [Where("customer_id", "=", customer_id)]
        rows: Reads = TenantReads(service.datastore, customer_id) if bound else service.datastore
        newest_first(rows, SCHEDULED_PIPELINE_RUNS, where, after=None, limit=20)
        profiles.profile(rows, customer_id)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(200)))
        begun = time.perf_counter()
        list(pool.map(one, range(times)))
        return 2 * times / (time.perf_counter() - begun)
