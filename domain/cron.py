"""Cron expressions on a wall clock: what a text may say, and which minutes it names."""

import re
from calendar import monthrange
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

from croniter import croniter

from domain.refusals import Invalid

LONGEST = 100
"""Characters of an expression."""

ALIASES: Mapping[str, str] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}

# Matches can lie eight years apart and no more: 29 February around 2100, which is no leap year.
_YEARS_BETWEEN_MATCHES = 8
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTHS = {month: monthrange(2024, month)[1] for month in range(1, 13)}
_DIGITS = re.compile(r"[0-9]{1,2}")


@dataclass(frozen=True, slots=True)
class _Field:
    """One of the five places: its lowest and highest number, and the names that stand for numbers."""

    name: str
    low: int
    high: int
    names: Mapping[str, int] = field(default_factory=dict)


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("day of week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)


@dataclass(frozen=True, slots=True)
class CronExpression:
    """The minutes of a wall clock that an expression names. Walls are naive: the zone is the schedule's business.

    `text` is the stored form. `every_interval` says that the minute or hour has a wildcard or a step: such an
    expression means "so often", any other means "at these times". Instances are shared by threads and never change.
    """

    text: str
    every_interval: bool
    _calendar: croniter = field(repr=False, compare=False)

    def after(self, wall: datetime) -> datetime:
        """The first named minute strictly after `wall`."""
        start = wall.replace(second=0, microsecond=0)
        # croniter keeps its position in itself, so each search gets a copy of its own.
        return copy(self._calendar).get_next(datetime, start_time=start)

    def at_or_before(self, wall: datetime) -> datetime:
        """The last named minute that is not after `wall`."""
        end = wall.replace(second=0, microsecond=0) + timedelta(minutes=1)
        return copy(self._calendar).get_prev(datetime, start_time=end)


@lru_cache(maxsize=4096)
def read_cron(text: str) -> CronExpression:
    """Read five fields (minute, hour, day of month, month, day of week) or a calendar alias.

    A field is `*`, `*/n`, a number, a name, a range `a-b` or `a-b/n`, or a list of these. Where both day fields say
    something other than `*`, a day that either of them names is a match (POSIX crontab). Raises `Invalid` for anything
    else, with a sentence that says what to write instead; never by measuring how long it takes.
    """
    words = _words(text)
    stored = " ".join(words)
    if len(words) == 1 and words[0].startswith("@"):
        words = ALIASES.get(words[0].lower(), "").split()
        if not words:
            raise Invalid(f"{stored} is not a calendar alias: use {', '.join(ALIASES)}, or five fields.")
    if len(words) != len(_FIELDS):
        seconds = " without seconds" if len(words) > len(_FIELDS) else ""
        raise Invalid(
            "A schedule has five fields separated by blanks (minute, hour, day of month, month, day of week), "
            f"not {len(words)}: write it{seconds} like 0 2 * * *."
        )
    minute, hour, day, month, weekday = (_values(place, word) for place, word in zip(_FIELDS, words, strict=True))
    any_day, any_weekday = (_is_any(word) for word in (words[2], words[4]))
    if not any(number <= _LONGEST_MONTHS[in_month] for number in day for in_month in month):
        if any_weekday:
            raise Invalid(
                f"Day of month {words[2]} never comes in month {words[3]}: choose days that the chosen months have."
            )
        any_day = True  # the day of week alone decides
    # croniter reads some fields in a way of its own (5-5 as every value, 0-7 likewise) and is given plain lists only.
    plain = (
        _listed(minute, of=60),
        _listed(hour, of=24),
        "*" if any_day else _listed(day),
        _listed(month, of=12),
        "*" if any_weekday else _listed({number % 7 for number in weekday}),
    )
    return CronExpression(
        text=stored,
        every_interval=any(sign in word for word in words[:2] for sign in "*/"),
        _calendar=croniter(" ".join(plain), 0.0, max_years_between_matches=_YEARS_BETWEEN_MATCHES),
    )


def _words(text: str) -> list[str]:
    trimmed = text.strip(" ")
    if len(trimmed) > LONGEST:
        raise Invalid(f"A schedule has at most {LONGEST} characters, not {len(trimmed)}: shorten it.")
    if not (trimmed.isascii() and trimmed.isprintable()):
        raise Invalid("A schedule is one line of plain ASCII text: remove line breaks, tabs and special characters.")
    return trimmed.split()


def _is_any(word: str) -> bool:
    return "*" in word.split(",")


def _listed(numbers: set[int], of: int | None = None) -> str:
    return "*" if len(numbers) == of else ",".join(map(str, sorted(numbers)))


def _values(place: _Field, word: str) -> set[int]:
    """The numbers that one field names."""
    numbers: set[int] = set()
    for item in word.split(","):
        body, slash, step = item.partition("/")
        left, dash, right = body.partition("-")
        if body == "*":
            first, last = place.low, place.high
        else:
            first = _number(place, left, item)
            last = _number(place, right, item) if dash else first
            if slash and not dash:
                raise Invalid(f"{item} in the {place.name} has a step but no range: write {left}-{place.high}/{step}.")
        if first > last:
            raise Invalid(
                f"{item} in the {place.name} runs backwards: write {first}-{place.high},{place.low}-{last} instead."
            )
        numbers.update(range(first, last + 1, _step(place, step, item) if slash else 1))
    return numbers


def _number(place: _Field, text: str, item: str) -> int:
    number = int(text) if _DIGITS.fullmatch(text) else place.names.get(text.lower(), -1)
    if not place.low <= number <= place.high:
        names = f" or a name ({', '.join(place.names)})" if place.names else ""
        raise Invalid(
            f"{item or 'An empty item'} is not a {place.name}: use *, */n, a number from {place.low} to {place.high}"
            f"{names}, a range like {place.low}-{place.high}, or a list of these."
        )
    return number


def _step(place: _Field, text: str, item: str) -> int:
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= place.high:
        raise Invalid(f"{item} in the {place.name} has a wrong step: use a whole number from 1 to {place.high}.")
    return int(text)
