"""The cron rule a second time, as slowly and plainly as it can be said: walk the minutes, look at the clock."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)

# Fixed times and intervals, at and around the hours in which clocks change, on whole, half and odd minutes.
EXPRESSIONS = (
    "0 0 * * *",
    "30 0 * * *",
    "30 1 * * *",
    "0 2 * * *",
    "30 2 * * *",
    "0 3 * * *",
    "45 2,3 * * *",
    "15,45 0-3 * * *",
    "30 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23 * * *",
    "17 2 * * 0",
    "0 12 1,15 * *",
    "30 2 13 * 0",
    "59 23 * * 6,7",
    "* * * * *",
    "*/15 * * * *",
    "30 * * * *",
    "0 */2 * * *",
    "46 */3 * * *",
    "* 2 * * *",
    "*/7 1,2 * * *",
    "7-50/20 1,2,3 * * *",
    "0-59/1 2 * * *",
    "10 0-6/3 * * 0",
)


class Fields:
    """What an expression of numbers names, read in the simplest way that could be right."""

    def __init__(self, text: str) -> None:
        minute, hour, day, month, weekday = text.split()
        self.minutes = numbers(minute, range(60))
        self.hours = numbers(hour, range(24))
        self.days = numbers(day, range(1, 32))
        self.months = numbers(month, range(1, 13))
        self.weekdays = {number % 7 for number in numbers(weekday, range(8))}
        self.either_day = day != "*" and weekday != "*"
        self.interval = "*" in minute + hour or "/" in minute + hour

    def name(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months:
            return False
        day, weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return day or weekday if self.either_day else day and weekday


def numbers(text: str, every: range) -> set[int]:
    found: set[int] = set()
    for item in text.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        chosen = every if span == "*" else range(int(first), int(last or first) + 1)
        found.update(chosen[:: int(step or 1)])
    return found


def clock(zone: ZoneInfo, after: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
    """Each minute from `after` to `until`, both included, and what the clock shows then."""
    count = (until - after) // MINUTE
    minutes = (after + step * MINUTE for step in range(count + 1))
    return [(minute, minute.astimezone(zone).replace(tzinfo=None, fold=0)) for minute in minutes]


def walk(text: str, shown: Sequence[tuple[datetime, datetime]]) -> list[datetime]:
    """The slots in a stretch without its first minute. It may not begin while the clock shows an hour a second time."""
    fields = Fields(text)
    if fields.interval:
        return [minute for minute, wall in shown[1:] if fields.name(wall)]
    slots = []
    furthest = shown[0][1]
    for minute, wall in shown[1:]:
        reached = [furthest + step * MINUTE for step in range(1, (wall - furthest) // MINUTE + 1)]
        if any(fields.name(each) for each in reached):
            slots.append(minute)
        furthest = max(furthest, wall)
    return slots


def changes(zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[datetime]:
    """Each first minute under a new UTC offset. Two changes within six hours are not told apart."""
    step = timedelta(hours=6)
    looks = [start + step * number for number in range((end - start) // step + 1)]
    for before, after in pairwise(looks):
        offset = before.astimezone(zone).utcoffset()
        if after.astimezone(zone).utcoffset() != offset:
            minute = before
            while minute.astimezone(zone).utcoffset() == offset:
                minute += MINUTE
            yield minute


def utc(text: str) -> datetime:
    """An instant written `2026-03-08 07:00`, in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
