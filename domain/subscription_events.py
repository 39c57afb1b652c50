"""What happens to a subscription. These shapes are the storage format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from domain.plans import Limits, Overrides, Plan
from domain.refusals import Limit
from domain.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    customer_id: str
    plan: Plan
    limits: Limits
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChanged:
    plan: Plan
    limits: Limits
    usage: Usage
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsOverridden:
    """`overrides` are the exceptions now in force, `limits` what follows from them and the plan."""

    overrides: Overrides
    limits: Limits
    usage: Usage
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsAdmitted:
    """Units of the day's and the month's quota taken by `run_ids`."""

    run_ids: tuple[str, ...]
    usage: Usage
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionsReturned:
    """Units given back, by runs that never started, to the day they were taken from."""

    run_ids: tuple[str, ...]
    day: date
    admitted_that_day: int
    usage: Usage
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRefused:
    """A run found no room: recorded once per limit and day."""

    limit: Limit
    used: int
    allowed: int
    day: date


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTaken:
    """`run_ids` started: each holds one concurrent place.

    `backfill` are those among them that fill in the past, `pipelines` says of which schedule each scheduled one is.
    """

    run_ids: tuple[str, ...]
    usage: Usage
    limits: Limits
    backfill: tuple[str, ...] = ()
    pipelines: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotReleased:
    """`run_ids` ended, whatever ended them, and gave their places back."""

    run_ids: tuple[str, ...]
    usage: Usage
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReset:
    usage: Usage
    limits: Limits
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reactivated:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    reason: str


SubscriptionEvent = (
    Opened
    | PlanChanged
    | LimitsOverridden
    | RunsAdmitted
    | AdmissionsReturned
    | RunRefused
    | SlotTaken
    | SlotReleased
    | UsageReset
    | Suspended
    | Reactivated
    | Cancelled
)
