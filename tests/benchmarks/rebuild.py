"""How fast the log becomes all of PostgreSQL's tables again, beside reading and decoding it alone."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from uuid import uuid4

from adapters.bootstrap import Service, build, origin, utc_now
from adapters.postgres import rebuilds
from adapters.postgres.rebuilds import State
from adapters.process import settle
from adapters.rebuild import PAGE, carry_out, chosen
from adapters.settings import Settings
from application.execution import ClaimRuns, Outcome, ReportOutcomes, claim_runs, report_outcomes
from application.ports import RunReport
from application.runs import RequestRun, request_run
from domain.identity import subscription_stream
from projections.targets import Target
from tests.benchmarks.databases import rested
from tests.benchmarks.ours import peak_kib
from tests.benchmarks.population import populate

_RUNS_TOGETHER = 500
"""So many runs are scheduled, then claimed, then completed: their events lie apart as in a busy hour."""
_RUNS_EACH = 100
"""Runs of one customer, whose subscription has events of its own."""
_COPY = (
    "INSERT INTO stored_events (originator_id, originator_version, topic, state, customer_id)"
    " SELECT c.new_id, e.originator_version, e.topic, convert_to(replace(replace(convert_from(e.state, 'UTF8'),"
    "  'bench_0', c.customer_id), c.old_id::text, c.new_id::text), 'UTF8'), c.customer_id"
    " FROM copied c JOIN stored_events e ON e.originator_id = c.old_id"
    " ORDER BY c.number / %s, e.originator_version, c.number"
)


def rebuild(service: Service, events: int) -> dict[str, float]:
    """Events per second read and decoded alone, and rebuilt, each in a process of its own; and what memory it took."""
    made = _fill(service, events)
    _in_a_process(_rebuilt, service)  # the live rows of copied events are made here
    read, _ = _in_a_process(_read, service)
    rebuilt, grown = _in_a_process(_rebuilt, service)
    return {"read_per_s": made / read, "rebuild_per_s": made / rebuilt, "rebuild_peak_rss_growth_mib": grown}


def _in_a_process(work: Callable[[str, Settings], tuple[float, float]], service: Service) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(work, service.dsn, service.settings).result()


def _read(dsn: str, settings: Settings) -> tuple[float, float]:
    service = build(settings, dsn)
    settle()
    service.log.read(0, 10)
    before, begun, position = peak_kib(), time.perf_counter(), 0
    while placed := service.log.read(position, PAGE):
        position = placed[-1].at.position
    seconds, grown = time.perf_counter() - begun, peak_kib() - before
    service.close()
    return seconds, grown / 1024


def _rebuilt(dsn: str, settings: Settings) -> tuple[float, float]:
    service = build(settings, dsn)
    settle()
    service.log.read(0, 10)
    target = Target.POSTGRES
    asked = rebuilds.ask(
        service.datastore, str(uuid4()), tables=chosen([], target), target=target, asked_by="bench", reason=None
    )
    before, begun = peak_kib(), time.perf_counter()
    done = carry_out(service, asked.rebuild_id)
    seconds, grown = time.perf_counter() - begun, peak_kib() - before
    if done.state is not State.DONE or done.position != service.log.end():
        raise AssertionError(f"the rebuild is {done.state} at {done.position}")
    service.close()
    return seconds, grown / 1024


def _fill(service: Service, events: int) -> int:
    """So many events of runs from their request to their end, and of their customers' subscriptions, copied."""
    populate(service, 1, 0, concurrent=10)
    run_id = str(request_run(_stamped(RequestRun, **_DRYRUN), service.platform, service.registry))
    [order] = claim_runs(_stamped(ClaimRuns, worker_id="bench", run_id=run_id), service.platform)
    done = Outcome(
        run_id=run_id,
        customer_id="bench_0",
        attempt=order.attempt,
        at=utc_now(),
        report=RunReport(succeeded=True, rows=3),
    )
    report_outcomes(_stamped(ReportOutcomes, worker_id="bench", outcomes=(done,)), service.platform)
    runs = events * _RUNS_EACH // (3 * _RUNS_EACH + 5)
    customers = [f"past_{number}" for number in range(runs // _RUNS_EACH)]
    with service.datastore.transaction_cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute(
            "CREATE TEMPORARY TABLE copied (number integer, old_id uuid, new_id uuid, customer_id text) ON COMMIT DROP"
        )
        cursor.execute(
            "INSERT INTO copied SELECT n, %s, gen_random_uuid(), 'past_' || n / %s FROM generate_series(0, %s) n",
            (run_id, _RUNS_EACH, runs - 1),
        )
        cursor.execute(
            "INSERT INTO copied SELECT (n - 1) * %s, %s, i, c"
            " FROM unnest(%s::uuid[], %s::text[]) WITH ORDINALITY u(i, c, n)",
            (_RUNS_EACH, subscription_stream("bench_0"), [*map(subscription_stream, customers)], customers),
        )
        cursor.execute(_COPY, (_RUNS_TOGETHER,))
        [made] = cursor.execute("SELECT count(*) AS n FROM stored_events").fetchall()
    rested(service)
    return int(made["n"])


_DRYRUN = {"customer_id": "bench_0", "provider": "gcp", "domain": "example", "template": "dryrun"}


def _stamped(kind: type[Any], **fields: Any) -> Any:
    return kind(at=utc_now(), by=origin("bench"), **fields)
