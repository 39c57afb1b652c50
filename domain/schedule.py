"""When a pipeline runs: the slots of a cron expression in a time zone, through every change of clocks."""

from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from hashlib import sha256
from math import ceil
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from domain.cron import CronExpression, read_cron
from domain.refusals import Invalid

_TICK = timedelta.resolution


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron expression, read on the wall clock of an IANA time zone. `parse` makes one from what a caller wrote.

    Its slots follow Debian cron's rule. An expression at fixed local times fires once for each time that the clock
    reaches: a time that the clock skips fires in the first minute after the gap, one that it shows twice the first
    time only. An expression with a wildcard or a step in the minute or hour fires whenever the clock really shows a
    minute that it names.
    """

    cron: str
    timezone: str


def parse(cron: str, timezone: str) -> Schedule:
    """Check a schedule and bring it into its stored form: trimmed, one blank between fields.

    Raises `Invalid`, with a sentence that says what to do, for an expression that `read_cron` refuses or a zone that
    the IANA database does not know.
    """
    expression = read_cron(cron)
    if timezone not in _zone_names():
        raise _unknown(timezone)
    return Schedule(cron=expression.text, timezone=timezone)


def next_slot(schedule: Schedule, after: datetime) -> datetime:
    """The first slot strictly after an aware instant, in UTC.

    Answers are kept: at a full hour, many pipelines that have the same schedule ask the same.
    """
    if after.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    # In UTC: two instants at which a clock shows the same time are equal to Python when they carry that clock's zone.
    return _next_slot(schedule, after.astimezone(UTC))


@lru_cache(maxsize=4096)
def _next_slot(schedule: Schedule, after: datetime) -> datetime:
    expression, zone = read_cron(schedule.cron), _zone(schedule.timezone)
    slot = (_next_interval if expression.every_interval else _next_fixed)(expression, zone, after)
    if slot <= after:  # a scheduler that went on from here would never end
        raise RuntimeError(f"{schedule} has no slot after {after.isoformat()}: found {slot.isoformat()}")
    return slot


def next_slots(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    """The first `count` slots strictly after an aware instant, oldest first, in UTC."""
    slots: list[datetime] = []
    for _ in range(count):
        slots.append(next_slot(schedule, slots[-1] if slots else after))
    return slots


def slots_between(schedule: Schedule, after: datetime, until: datetime, limit: int) -> list[datetime]:
    """The slots in (`after`, `until`], oldest first, in UTC: the oldest `limit` of them where there are more."""
    slots: list[datetime] = []
    while len(slots) < limit and (slot := next_slot(schedule, slots[-1] if slots else after)) <= until:
        slots.append(slot)
    return slots


def latest_slot(schedule: Schedule, after: datetime, until: datetime) -> datetime | None:
    """The newest slot in (`after`, `until`], in UTC, or None. Costs the same however many slots lie between them."""
    expression, zone = read_cron(schedule.cron), _zone(schedule.timezone)
    slot = (_latest_interval if expression.every_interval else _latest_fixed)(expression, zone, until)
    return slot if slot > after else None


def run_date(slot: datetime, timezone: str, offset_days: int) -> date:
    """The day whose data a slot's run is about: `offset_days` days before the slot's own day in its zone.

    Answers are kept, as those of `next_slot` are.
    """
    if slot.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return _run_date(slot.astimezone(UTC), timezone, offset_days)


@lru_cache(maxsize=4096)
def _run_date(slot: datetime, timezone: str, offset_days: int) -> date:
    return _wall(slot, _zone(timezone)).date() - timedelta(days=offset_days)


def jitter(config_id: str, at_most: timedelta) -> timedelta:
    """How much later than its slots a pipeline starts: from zero up to, not including, `at_most`.

    It depends on the id alone, so that a pipeline keeps its distance from its neighbours. Raises `Invalid` for a
    negative `at_most`.
    """
    if at_most < timedelta(0):
        raise Invalid("Jitter cannot be negative: use zero or more seconds.")
    share = int.from_bytes(sha256(config_id.encode()).digest()[:8])
    return _TICK * ((at_most // _TICK) * share >> 64)


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


@cache
def _zone(name: str) -> ZoneInfo:
    # Kept for good: there are some 600, and ZoneInfo itself holds on to the last eight only. Listing them takes longer
    # than to decide on hundreds of runs, and what is stored was looked up in the list.
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise _unknown(name) from error


def _unknown(zone: str) -> Invalid:
    return Invalid(f"Time zone {zone[:60]!r} is unknown: use a name of the IANA database such as Europe/Berlin.")


def _wall(instant: datetime, zone: ZoneInfo) -> datetime:
    """What the clock on the wall shows; its `fold` is 1 where it shows that for the second time."""
    if instant.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return instant.astimezone(zone).replace(tzinfo=None)


def _instants(wall: datetime, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The instants at which the clock shows `wall`: the same one twice, as a rule.

    The first is earlier than the second where the clock shows it twice, and later where the clock skips it.
    """
    aware = wall.replace(tzinfo=zone, fold=0)
    return aware.astimezone(UTC), aware.replace(fold=1).astimezone(UTC)


def _change(wall: datetime, zone: ZoneInfo) -> datetime:
    """The instant of the change of clocks that made `wall` be skipped or shown twice."""
    start, end = sorted(instant.timestamp() for instant in _instants(wall, zone))
    seconds = range(int(start // 1), ceil(end) + 1)
    old = datetime.fromtimestamp(seconds[0], zone).utcoffset()
    changed = bisect_left(seconds, True, key=lambda second: datetime.fromtimestamp(second, zone).utcoffset() != old)
    return datetime.fromtimestamp(seconds[changed], UTC)


def _first_reached(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant of a whole minute at which the clock shows `wall` or more."""
    first, second = _instants(wall, zone)
    if first <= second:
        return first
    change = _change(wall, zone)
    return change + timedelta(seconds=-_wall(change, zone).second % 60)


def _furthest(instant: datetime, zone: ZoneInfo) -> datetime:
    """The furthest the clock has got by `instant`: further than it shows while it shows an hour for the second time."""
    wall = _wall(instant, zone)
    return _wall(_change(wall, zone) - _TICK, zone) if wall.fold else wall


def _next_fixed(expression: CronExpression, zone: ZoneInfo, after: datetime) -> datetime:
    return _first_reached(expression.after(_furthest(after, zone)), zone)


def _latest_fixed(expression: CronExpression, zone: ZoneInfo, until: datetime) -> datetime:
    return _first_reached(expression.at_or_before(_furthest(until, zone)), zone)


def _next_interval(expression: CronExpression, zone: ZoneInfo, after: datetime) -> datetime:
    def shown(wall: datetime) -> datetime:
        first, second = _instants(wall, zone)
        while first > second:
            gap_end = _wall(_change(wall, zone), zone)
            wall = expression.after(gap_end - _TICK)
            first, second = _instants(wall, zone)
        return first if first > after else second

    wall = _wall(after, zone)
    slot = shown(expression.after(wall))
    first, second = _instants(wall, zone)
    if first < second and not wall.fold:
        # The clock is about to go back behind where it stands: what it shows again comes before what lies ahead.
        change = _change(wall, zone)
        if slot >= change:
            return shown(expression.after(_wall(change, zone) - _TICK))
    return slot


def _latest_interval(expression: CronExpression, zone: ZoneInfo, until: datetime) -> datetime:
    def shown(wall: datetime) -> datetime:
        first, second = _instants(wall, zone)
        while first > second:
            gap_start = _wall(_change(wall, zone) - _TICK, zone)
            wall = expression.at_or_before(gap_start)
            first, second = _instants(wall, zone)
        return second if second <= until else first

    wall = _wall(until, zone)
    slot = shown(expression.at_or_before(wall))
    if wall.fold:
        # The clock went back not long ago: what it showed before that lies ahead of where it stands.
        change = _change(wall, zone)
        if slot < change:
            return shown(expression.at_or_before(_wall(change - _TICK, zone)))
    return slot
