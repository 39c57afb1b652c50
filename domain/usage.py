"""What a customer used: on one UTC day, in its month, and right now."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was used on one UTC day and in its month, and how much runs now. Totals, never increments."""

    day: date
    admitted: int = 0
    succeeded: int = 0
    failed: int = 0
    month_admitted: int = 0
    running: int = 0

    def at(self, now: datetime) -> "Usage":
        """The same usage seen at `now`: a new day, and a new month, start from zero. Time never runs backwards."""
        today = now.astimezone(UTC).date()
        if today <= self.day:
            return self
        same_month = (today.year, today.month) == (self.day.year, self.day.month)
        return Usage(day=today, month_admitted=self.month_admitted if same_month else 0, running=self.running)


def first_of_next_month(day: date) -> date:
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
