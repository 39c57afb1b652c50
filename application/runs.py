"""Runs asked for by hand: requested, cancelled, tried again."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from pydantic import Field

from application.command import Command, Request, Word, as_uuid, new_id
from application.mapper import Recorded
from application.pipelines import checked_parameters, known_template
from application.platform import Platform, Transaction
from application.ports import Catalogue
from application.session import Idle, Lease
from application.streams import Stream
from domain.pipeline_run import PipelineRun, Priority, RunState
from domain.refusals import Conflict, NotFound, Refusal
from domain.run_events import RunEvent, RunScheduled, Trigger
from domain.subscription import Start, Subscription
from domain.subscription_events import SubscriptionEvent

HANDED_SECONDS: Final = 10.0
"""How long a worker has to take up what it was handed: it listens. Then the run goes back to the queue."""

Day = date  # a field of the same name would hide it


class NewRun(Request):
    """`date` is the day of data the run is for; today's UTC date when it is not given."""

    date: Day | None = None
    trigger_by: Word = "manual"
    parameters: dict[str, Any] = Field(default_factory=dict)


class RequestRun(NewRun, Command):
    customer_id: str
    provider: str
    domain: str
    template: str
    run_id: str = Field(default_factory=new_id)


def request_run(command: RequestRun, platform: Platform, catalogue: Catalogue) -> UUID:
    """Queue a run now; returns its id. Asking again with the same run_id finds the same run.

    Raises `QuotaExceeded` (recorded once per limit and day), `Forbidden` for a suspended customer, `NotFound` for an
    unknown template, `Invalid` for parameters that it does not take.
    """
    template = known_template(catalogue, command.provider, command.domain, command.template)
    order = RunScheduled(
        customer_id=command.customer_id,
        provider=command.provider.upper(),
        domain=command.domain.upper(),
        template=command.template.lower(),
        pipeline_id=template.id,
        trigger_type=Trigger.MANUAL,
        trigger_by=command.trigger_by,
        run_date=command.date or command.at.astimezone(UTC).date(),
        scheduled_for=command.at,
        priority=Priority.MANUAL,
        parameters=checked_parameters(template, command.parameters),
    )
    return _admit(command, UUID(command.run_id), order, platform)


def _admit(command: Command, run_id: UUID, order: RunScheduled, platform: Platform) -> UUID:
    def work(tx: Transaction) -> Refusal | None:
        held = tx.hold([order.customer_id], [(run_id, order.customer_id)], seeking=True)
        subscription, [run] = held.subscriptions[order.customer_id], held.runs
        if run.exists:
            run.must("No such run.")
            return None
        state = subscription.must("No such customer.")
        admission = state.admit([str(run_id)], command.at, starting=True)
        subscription.append(admission.events)
        if admission.refusal is None:
            run.append([replace(order, counted_on=admission.day)])
            if held.idle is not None:
                _hand_over(tx, subscription, run, held.idle, held.since)
        return admission.refusal

    # The refusal is an event too: the transaction that records it must not be rolled back.
    refusal = platform.transact(command, work)
    if refusal is not None:
        raise refusal
    return run_id


def _hand_over(
    tx: Transaction,
    subscription: Stream[Subscription, SubscriptionEvent],
    run: Stream[PipelineRun, RunEvent],
    to: Idle,
    now: datetime,
) -> None:
    """Let an idle worker have a run at once that it would otherwise claim; if it may start, by the same rules."""
    run_id, state = str(run.stream_id), run.must("No such run.")
    start = start_of(run_id, state)
    if not subscription.must("No such customer.").startable([start]):
        return
    run.append(state.claim(to.worker_id, now, timedelta(seconds=HANDED_SECONDS)))
    subscription.append(subscription.must("No such customer.").take_slots([start], now))
    lease = Lease(run_id, run.customer_id, to.worker_id, run.must("No such run.").attempt)
    tx.session.hand_over(lease, to, HANDED_SECONDS)


def start_of(run_id: str, run: PipelineRun) -> Start:
    """What the subscription must know: runs asked for by hand, retries and back-fill hold up no scheduled one."""
    trigger = run.order.trigger_type
    pipeline = run.order.config_id if trigger is Trigger.SCHEDULED else None
    return Start(run_id, pipeline=pipeline, backfill=trigger is Trigger.BACKFILL)


def run_history(run_id: str, platform: Platform) -> list[Recorded]:
    """Everything that happened to a run, oldest first; empty for a run that there is not."""
    stream_id = as_uuid(run_id)
    return [] if stream_id is None else platform.history(stream_id)


class CancelRun(Command):
    customer_id: str
    run_id: str
    reason: str = "Cancelled on request."


def cancel_run(command: CancelRun, platform: Platform) -> None:
    """A waiting run ends at once and gives its unit of quota back; a running one at its worker's next heartbeat."""

    def work(tx: Transaction) -> None:
        tx.session.lock_runs([command.run_id])
        tx.lock([command.customer_id])
        run = tx.run(_known(command.run_id), command.customer_id)
        state = run.must("No such run.")
        run.append(state.cancel(command.at, command.reason))
        ended = run.must("No such run.")
        if ended.state is RunState.CANCELLED:
            give_back(tx, command.at, command.run_id, ended)
        else:
            tx.session.ask_to_stop([command.run_id])

    platform.once(command, work)


def _known(run_id: str) -> UUID:
    stream_id = as_uuid(run_id)
    if stream_id is None:
        raise NotFound("No such run.")
    return stream_id


def give_back(tx: Transaction, now: datetime, run_id: str, run: PipelineRun) -> None:
    """Return the unit of quota of a run that never started; the customer must be locked."""
    if not run.started and run.order.counted_on is not None:
        subscription = tx.subscription(run.customer_id)
        state = subscription.must("No such customer.")
        subscription.append(state.return_admissions([run_id], run.order.counted_on, now))


class RetryRun(Command):
    customer_id: str
    run_id: str
    new_run_id: str = Field(default_factory=new_id)


def retry_run(command: RetryRun, platform: Platform, catalogue: Catalogue) -> UUID:
    """A new run with the same date and parameters as one that failed, was cancelled or skipped; returns its id.

    Raises what `request_run` does, and `Conflict` for a run in another state.
    """

    def look(tx: Transaction) -> PipelineRun:
        return tx.run(_known(command.run_id), command.customer_id).must("No such run.")

    old = platform.transact(command, look)
    if old.state not in {RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED}:
        raise Conflict(f"The run is {old.state}. Only a failed, cancelled or skipped run can be tried again.")
    known_template(catalogue, old.order.provider, old.order.domain, old.order.template)
    order = RunScheduled(
        customer_id=old.customer_id,
        provider=old.order.provider,
        domain=old.order.domain,
        template=old.order.template,
        pipeline_id=old.order.pipeline_id,
        trigger_type=Trigger.RETRY,
        trigger_by=command.by.kind,
        run_date=old.order.run_date,
        scheduled_for=command.at,
        priority=Priority.RETRY,
        config_id=old.order.config_id,
        retry_of=command.run_id,
        parameters=old.order.parameters,
    )
    return _admit(command, UUID(command.new_run_id), order, platform)
