"""The service with one promise broken in each of several ways. Whoever looks on must notice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid5

from adapters.postgres import offers
from adapters.postgres.event_log import Datastore
from application import execution, runs, scheduling
from application.command import Command
from application.platform import Platform, Transaction
from application.ports import Catalogue, RunOrder
from application.session import Lease
from domain.pipeline_run import Priority
from domain.refusals import QuotaExceeded
from domain.run_events import RunScheduled, Trigger
from domain.subscription_events import SlotReleased
from tests.simulation.life import UseCases


def _calmly(platform: Platform, command: Command, work: Callable[[Transaction], Any]) -> Any:
    """The mutant's own part is spared the faults, so that nothing but its mistake can be noticed."""
    return Platform.transact(platform, command, work)


def unfenced_report(command: execution.ReportOutcomes, platform: Platform) -> list[str]:
    """Believes of every run that it is held by whoever speaks."""
    refused: list[str] = []
    for outcome in command.outcomes:
        run = _calmly(platform, command, lambda tx, o=outcome: tx.run(UUID(o.run_id), o.customer_id).must(""))
        told = replace(outcome, attempt=run.attempt)
        believed = command.model_copy(update={"worker_id": run.worker_id or "nobody", "outcomes": (told,)})
        refused += execution.report_outcomes(believed, platform)
    return refused


def doubly_releasing_report(command: execution.ReportOutcomes, platform: Platform) -> list[str]:
    """Gives the place of every run that it hears of back once more."""
    refused = execution.report_outcomes(command, platform)

    def once_more(tx: Transaction) -> None:
        tx.lock(outcome.customer_id for outcome in command.outcomes)
        for outcome in command.outcomes:
            stream = tx.subscription(outcome.customer_id)
            state = stream.must("")
            usage = replace(state.usage, running=max(0, state.usage.running - 1))
            stream.append([SlotReleased(run_ids=(outcome.run_id,), usage=usage, limits=state.limits)])

    _calmly(platform, command, once_more)
    return refused


def hasty_take_over(command: execution.TakeOver, platform: Platform) -> list[str]:
    """Goes by a clock of its own, which is 45 seconds ahead of the database's."""

    def ahead(tx: Transaction) -> None:
        cursor = tx.session._real._cursor  # type: ignore[attr-defined]
        cursor.execute("UPDATE run_leases SET expires_at = expires_at - interval '45 seconds'")

    _calmly(platform, command, ahead)
    return execution.take_over(command, platform)


def placeless_claim(command: execution.ClaimRuns, platform: Platform) -> list[RunOrder]:
    """Never asks whether there is a place, and takes none."""

    def work(tx: Transaction) -> list[RunOrder]:
        found = tx.session.claimable_runs(command.limit, None)
        now = tx.session.now()
        orders = []
        for run_id, customer_id in found:
            run = tx.run(UUID(run_id), customer_id)
            run.append(run.must("").claim(command.worker_id, now, timedelta(seconds=command.lease_seconds)))
            state = run.must("")
            tx.session.take_leases([Lease(run_id, customer_id, command.worker_id, state.attempt)], 60)
            orders.append(execution._order(run_id, state, command.worker_id, {}))
        return orders

    return platform.transact(command, work)


def generous_request(command: runs.RequestRun, platform: Platform, catalogue: Catalogue) -> UUID:
    """Lets everybody in."""
    try:
        return runs.request_run(command, platform, catalogue)
    except QuotaExceeded:
        order = RunScheduled(
            customer_id=command.customer_id,
            provider="GCP",
            domain="EXAMPLE",
            template="dryrun",
            pipeline_id="gcp-example-dryrun",
            trigger_type=Trigger.MANUAL,
            trigger_by="manual",
            run_date=command.at.date(),
            scheduled_for=command.at,
            priority=Priority.MANUAL,
            counted_on=command.at.date(),
        )
        _calmly(platform, command, lambda tx: tx.run(UUID(command.run_id), command.customer_id).append([order]))
        return UUID(command.run_id)


def tardy_take_up(datastore: Datastore, offer_id: UUID, *rest: Any) -> Sequence[offers.Handed]:
    """Begins what it was handed however long ago that was."""
    with datastore.reading() as cursor:
        cursor.execute(
            "UPDATE run_leases SET expires_at = clock_timestamp() + interval '1 hour' WHERE handed_to = %s"
            " AND NOT begun",
            (offer_id,),
        )
    return offers.take_up(datastore, offer_id, *rest)


class _Forgetful:
    """A transaction that finds a new run where the slot's own has ended."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    def new_runs(self, wanted: Sequence[tuple[UUID, str]]) -> list[Any]:
        return [
            self._tx.run(uuid5(i, "again"), run.customer_id) if run.state is not None and run.state.state.ended else run
            for i, run in self._tx.runs(wanted).items()
        ]


@dataclass(frozen=True)
class _ForgetfulPlatform:
    platform: Platform

    def transact(self, command: Any, work: Callable[[Any], Any], **more: Any) -> Any:
        return self.platform.transact(command, lambda tx: work(_Forgetful(tx)), **more)


def forgetful_trigger(
    command: scheduling.TriggerSchedules, platform: Platform, catalogue: Catalogue
) -> scheduling.Triggered:
    """Names runs by when they are made and not by their slots: a slot that comes again is another run."""
    return scheduling.trigger_schedules(command, _ForgetfulPlatform(platform), catalogue)  # type: ignore[arg-type]


def lossy_trigger(
    command: scheduling.TriggerSchedules, platform: Platform, catalogue: Catalogue
) -> scheduling.Triggered:
    """Comes ten minutes late, and by its own clock: what lies in between is passed over."""
    late = command.model_copy(update={"at": command.at - timedelta(minutes=10)})
    return scheduling.trigger_schedules(late, platform, catalogue)


MUTANTS: Final = {
    "a late worker is believed": UseCases(report=unfenced_report),
    "a place is given back twice": UseCases(report=doubly_releasing_report),
    "leases run out too early": UseCases(take_over=hasty_take_over),
    "places are not counted": UseCases(claim=placeless_claim),
    "everybody is let in": UseCases(request=generous_request),
    "a slot may be two runs": UseCases(trigger=forgetful_trigger),
    "slots are overlooked": UseCases(trigger=lossy_trigger),
    "what was handed over is begun too late": UseCases(take_up=tardy_take_up),
}
