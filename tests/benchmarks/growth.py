"""What one more costs when there is much already: picks and claims, runs after many events, long subscriptions."""

import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

from adapters.bootstrap import Service, origin, utc_now
from adapters.postgres.claims import Picker
from application.command import Command
from application.execution import ClaimRuns, Outcome, ReportOutcomes, claim_runs, report_outcomes
from application.platform import Transaction
from application.ports import RunOrder, RunReport
from application.scheduling import TriggerSchedules, trigger_schedules
from domain.subscription import Start
from tests.benchmarks.databases import rested
from tests.benchmarks.population import populate

_CLAIM = 10


def _milliseconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) * 1000


def picking(service: Service, times: int) -> dict[str, float]:
    """Milliseconds of one pick of ten runs alone, and of the claim of ten, with what waits in this service's queue."""
    picker = Picker()

    def pick() -> None:
        with service.datastore.transaction_cursor() as cursor:
            if len(picker.lock_next(cursor, _CLAIM)) != _CLAIM:
                raise AssertionError("Too few runs were picked.")

    def claim() -> None:
        if len(_claimed(service)) != _CLAIM:
            raise AssertionError("Too few runs were claimed.")

    for _ in range(10):
        pick()
    picks = [_milliseconds(pick) for _ in range(times)]
    return {
        "pick_ms": statistics.median(picks),
        "claim_of_10_ms": statistics.median(_milliseconds(claim) for _ in range(times)),
    }


def _claimed(service: Service, limit: int = _CLAIM) -> list[RunOrder]:
    command = ClaimRuns(at=utc_now(), by=origin("worker:bench"), worker_id="bench", limit=limit)
    return claim_runs(command, service.platform)


def per_run(service: Service, runs: int, prefix: str) -> float:
    """Milliseconds per run, triggered, claimed and reported in this process: `runs` of a hundred new customers."""
    slot = populate(service, 100, runs // 100, concurrent=50, prefix=prefix)
    rested(service)
    done = 0
    begun = time.perf_counter()
    trigger_schedules(TriggerSchedules(at=slot, by=origin("scheduler")), service.platform, service.registry)
    while orders := _claimed(service, 50):
        outcomes = tuple(
            Outcome(
                run_id=order.run_id,
                customer_id=order.customer_id,
                attempt=order.attempt,
                at=utc_now(),
                report=RunReport(succeeded=True),
            )
            for order in orders
        )
        command = ReportOutcomes(at=utc_now(), by=origin("worker:bench"), worker_id="bench", outcomes=outcomes)
        if report_outcomes(command, service.platform):
            raise AssertionError("Outcomes were refused.")
        done += len(orders)
    seconds = time.perf_counter() - begun
    if done != runs:
        raise AssertionError(f"{done} of {runs} runs were done")
    return seconds * 1000 / runs


def subscription_load(service: Service, events: int) -> float:
    """Milliseconds to load a subscription that so many events made what it is, from its snapshot."""
    populate(service, 1, 0, concurrent=50, prefix="year")
    at = utc_now()
    for batch in range(0, events, 1500):

        def a_day(tx: Transaction, number: int = batch) -> None:
            stream = tx.subscription("year_0")
            now = at + timedelta(days=number // 1500)
            for _ in range(500):
                run_id = str(uuid4())
                stream.append(stream.must("").admit([run_id], now, starting=False).events)
                stream.append(stream.must("").take_slots([Start(run_id)], now))
                stream.append(stream.must("").release_slots({run_id: True}, now))

        service.platform.transact(Command(at=at, by=origin("bench")), a_day)

    def load() -> int:
        return service.platform.transact(
            Command(at=at, by=origin("bench")), lambda tx: tx.subscription("year_0").version
        )

    if load() < events:
        raise AssertionError("The subscription has too few events.")
    return statistics.median(_milliseconds(load) for _ in range(50))
