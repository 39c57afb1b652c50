"""The words in which the domain says no. Adapters translate them; the domain knows no HTTP."""

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """A command that was understood and is not allowed. The text is a sentence for the caller."""


class Invalid(Refusal):
    """Well-formed but wrong: a value that no state of the system would accept."""


class NotFound(Refusal):
    """The thing named does not exist for this caller."""


class Conflict(Refusal):
    """The state of the thing does not allow this now."""


class Forbidden(Refusal):
    """This caller, plan or status may not do it."""


class Limit(StrEnum):
    """The limits of a subscription that a run can meet, in the order in which they are checked."""

    DAILY = "daily"
    MONTHLY = "monthly"
    CONCURRENT = "concurrent"


@dataclass(eq=False)
class QuotaExceeded(Refusal):
    """A run that its customer's subscription has no room for.

    `resets_at` is the UTC instant at which the daily count starts again, `resets_on` the UTC date on which the monthly
    one does; a concurrent limit has neither.
    """

    limit: Limit
    used: int
    allowed: int
    resets_at: datetime | None = None
    resets_on: date | None = None

    def __str__(self) -> str:
        match self.limit:
            case Limit.DAILY:
                return f"Daily pipeline quota exceeded. Used {self.used}/{self.allowed} pipelines today."
            case Limit.MONTHLY:
                return f"Monthly pipeline quota exceeded. Used {self.used}/{self.allowed} pipelines this month."
            case Limit.CONCURRENT:
                return f"Concurrent pipeline limit reached. {self.used}/{self.allowed} pipelines currently running."
