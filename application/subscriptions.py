"""What an operator may do to a subscription; each takes a reason that lands in the event."""

from collections.abc import Callable, Iterable

from pydantic import Field

from application.command import Command, Line
from application.platform import Platform, Transaction
from domain.plans import Overrides, Plan
from domain.subscription import Subscription
from domain.subscription_events import SubscriptionEvent

Decision = Callable[[Subscription, Transaction], Iterable[SubscriptionEvent]]


def _decide(command: Command, customer_id: str, platform: Platform, decision: Decision) -> None:
    def work(tx: Transaction) -> None:
        subscription = tx.hold([customer_id], []).subscriptions[customer_id]
        subscription.append(decision(subscription.must("No such customer."), tx))

    platform.once(command, work)


class ChangePlan(Command):
    customer_id: str
    plan: Plan
    reason: Line


def change_plan(command: ChangePlan, platform: Platform) -> None:
    """Another plan from now on; what is over its limits stays, nothing new is accepted beyond them."""
    _decide(
        command,
        command.customer_id,
        platform,
        lambda subscription, _: subscription.change_plan(command.plan, command.reason, command.at),
    )


class OverrideLimits(Command):
    """Limits given replace the operator's earlier exceptions one by one; null takes an exception back."""

    customer_id: str
    reason: Line
    max_team_members: int | None = Field(default=None, ge=0, le=1_000_000)
    max_providers: int | None = Field(default=None, ge=0, le=1_000_000)
    max_pipelines_per_day: int | None = Field(default=None, ge=0, le=1_000_000)
    max_pipelines_per_month: int | None = Field(default=None, ge=0, le=1_000_000)
    max_concurrent_pipelines: int | None = Field(default=None, ge=0, le=1_000_000)


def override_limits(command: OverrideLimits, platform: Platform) -> None:
    """Exceptions from the plan's limits for one customer. Limits that the command does not name stay."""

    def decide(subscription: Subscription, _: Transaction) -> Iterable[SubscriptionEvent]:
        named = command.model_fields_set & set(Overrides.__dataclass_fields__)
        values = {name: getattr(subscription.overrides, name) for name in Overrides.__dataclass_fields__}
        values.update({name: getattr(command, name) for name in named})
        return subscription.override_limits(Overrides(**values), command.reason, command.at)

    _decide(command, command.customer_id, platform, decide)


class ResetUsage(Command):
    customer_id: str
    reason: Line
    daily: bool = True
    monthly: bool = False


def reset_usage(command: ResetUsage, platform: Platform) -> None:
    """Count today's runs, this month's, or both, from zero again."""
    _decide(
        command,
        command.customer_id,
        platform,
        lambda subscription, _: subscription.reset_usage(
            command.at, command.reason, daily=command.daily, monthly=command.monthly
        ),
    )


class RecountUsage(Command):
    customer_id: str
    reason: Line


def recount_usage(command: RecountUsage, platform: Platform) -> None:
    """Give back concurrent places that no running run holds."""

    def decide(subscription: Subscription, tx: Transaction) -> Iterable[SubscriptionEvent]:
        running = tx.session.running_runs(command.customer_id)
        return subscription.recount(running, command.at, command.reason)

    _decide(command, command.customer_id, platform, decide)
