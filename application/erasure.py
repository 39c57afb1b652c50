"""A customer is erased: nothing of it waits, runs or is decided any more, and its id stays taken."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import partial
from typing import Final
from uuid import UUID

from application.command import Command, Line
from application.platform import Platform, Transaction
from application.streams import Stream
from domain.customer import Customer, Status
from domain.customer_events import CustomerEvent
from domain.pipeline_run import RunState
from domain.subscription import Subscription
from domain.subscription_events import SubscriptionEvent

RUNS_AT_ONCE: Final = 500
"""Runs that end in one transaction: it stays well below what a transaction may take."""


class Erase(Command):
    customer_id: str
    reason: Line


def erase(
    command: Erase,
    platform: Platform,
    *,
    tell: Callable[[int, int], None] = lambda _, __: None,
    at_once: int = RUNS_AT_ONCE,
) -> bool:
    """Erase the customer for ever; whether this command did it, and no earlier one.

    Its runs end, its subscription is cancelled, and the last event of all, Erased, is stored with a note of what has to
    go besides: its data keys first. A customer with many runs is suspended, and they end `at_once` so many at a time;
    `tell` is told how many have, and of how many. Interrupted, it is finished by being asked for again. Runs that
    cannot be read stay as they are. Raises `NotFound` for a customer that never was, `Away` with the database.
    """
    unreadable: set[str] = set()
    ended = 0
    while True:
        runs = platform.transact(command, partial(_look, command=command, unreadable=unreadable))
        total = ended + len(runs)
        groups = [runs[i : i + at_once] for i in range(0, len(runs), at_once)] or [[]]
        for group in groups[:-1]:
            platform.transact(
                command, partial(_cancel, command=command, runs=group, unreadable=unreadable), of_many=True
            )
            ended += len(group)
            tell(ended, total)
        final = partial(_erase, command=command, runs=groups[-1], unreadable=unreadable)
        erased = platform.transact(command, final, of_many=True)
        if erased is not None:
            return erased


def _look(tx: Transaction, command: Erase, unreadable: set[str]) -> Sequence[str]:
    """The runs that there are to end."""
    return tx.session.unfinished_runs(command.customer_id, unreadable)


def _cancel(tx: Transaction, command: Erase, runs: Sequence[str], unreadable: set[str]) -> None:
    """End some runs before the others; the customer is suspended, so that no more come."""
    customer, subscription, now = _held(tx, command.customer_id, runs)
    if customer.must("No such customer.").status is Status.ERASED:
        return
    _end_runs(tx, command, runs, subscription, now, unreadable)
    customer.append(customer.must("").suspend(command.reason))
    if not subscription.unreadable:
        subscription.append(subscription.must("No such customer.").pause(command.reason))


def _erase(tx: Transaction, command: Erase, runs: Sequence[str], unreadable: set[str]) -> bool | None:
    """End the last runs and erase, unless it was done before; None when there are other runs by now."""
    customer, subscription, now = _held(tx, command.customer_id, runs)
    state = customer.must("No such customer.")
    if state.status is Status.ERASED:
        return False
    if set(_look(tx, command, unreadable)) - set(runs):
        return None
    _end_runs(tx, command, runs, subscription, now, unreadable)
    if not subscription.unreadable:
        subscription.append(subscription.must("No such customer.").cancel(command.reason))
    customer.append(state.erase(command.reason))
    tx.session.note_erasure(command.customer_id, now)
    return True


def _held(
    tx: Transaction, customer_id: str, runs: Sequence[str]
) -> tuple[Stream[Customer, CustomerEvent], Stream[Subscription, SubscriptionEvent], datetime]:
    """The customer with its subscription and these runs, locked; since when.

    Its own stream is loaded last: what it decides is stored last, and after its end there is nothing.
    """
    tx.session.lock_runs(runs)
    now, subscriptions, *_ = tx.hold([customer_id], [(UUID(run_id), customer_id) for run_id in runs])
    return tx.customer(customer_id), subscriptions[customer_id], now


def _end_runs(  # noqa: PLR0917 - what it works on
    tx: Transaction,
    command: Erase,
    runs: Sequence[str],
    subscription: Stream[Subscription, SubscriptionEvent],
    now: datetime,
    unreadable: set[str],
) -> None:
    """End these runs, and give their places and units back."""
    streams = tx.runs([(UUID(run_id), command.customer_id) for run_id in runs])
    held: list[str] = []
    units: dict[date, list[str]] = defaultdict(list)
    for stream_id, run in streams.items():
        run_id = str(stream_id)
        if run.unreadable:
            unreadable.add(run_id)
            continue
        state = run.must("No such run.")
        if state.state is RunState.RUNNING:
            held.append(run_id)
        elif not state.started and state.order.counted_on is not None:
            units[state.order.counted_on].append(run_id)
        run.append(state.end(now, command.reason))
    tx.session.drop_leases(runs)
    if not subscription.unreadable:
        subscription.append(subscription.must("No such customer.").release_slots(dict.fromkeys(held), now))
        for day, run_ids in units.items():
            subscription.append(subscription.must("").return_admissions(run_ids, day, now))
