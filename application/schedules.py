"""All schedules of one customer at once: paused, resumed."""

from dataclasses import dataclass
from functools import partial

from application.command import Command, Line
from application.pipelines import upcoming
from application.platform import Platform, Transaction
from domain.customer import Customer


@dataclass(frozen=True, slots=True)
class Schedules:
    """Whether a customer's schedules are paused, and how many of its pipelines have no next slot, why ever."""

    paused: bool
    pipelines: int
    resting: int


class PauseSchedules(Command):
    customer_id: str
    reason: Line


def pause_schedules(command: PauseSchedules, platform: Platform) -> Schedules:
    """No slot becomes a run until the schedules are resumed; runs that wait or run go on. Twice is once.

    Raises `Forbidden` for a suspended customer.
    """

    def work(tx: Transaction) -> Schedules:
        customer = tx.held_customer(command.customer_id)
        customer.append(customer.must("No such customer.").pause_schedules(command.reason))
        return _schedules(customer.must("No such customer."))

    return platform.once(command, work, partial(_as_they_are, command.customer_id))


class ResumeSchedules(Command):
    customer_id: str
    reason: Line


def resume_schedules(command: ResumeSchedules, platform: Platform) -> Schedules:
    """Every active pipeline goes on at its next slot; what was missed stays missed.

    Raises `Forbidden` for a suspended customer.
    """

    def work(tx: Transaction) -> Schedules:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        customer.append(state.resume_schedules(command.reason, upcoming(state, command.at)))
        return _schedules(customer.must("No such customer."))

    return platform.once(command, work, partial(_as_they_are, command.customer_id))


def _as_they_are(customer_id: str, tx: Transaction) -> Schedules:
    return _schedules(tx.customer(customer_id).must("No such customer."))


def _schedules(state: Customer) -> Schedules:
    active = 0 if state.schedules_paused else sum(pipeline.is_active for pipeline in state.pipelines.values())
    return Schedules(state.schedules_paused, len(state.pipelines), len(state.pipelines) - active)
