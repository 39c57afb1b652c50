"""The cron rule in every zone from 2024 to 2035, and against a hundred thousand texts."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest

from domain.schedule import latest_slot, next_slot, parse, slots_between
from tests.domain.cron_texts import answer, try_texts
from tests.domain.cron_walk import EXPRESSIONS, MINUTE, changes, clock, utc, walk

pytestmark = pytest.mark.soak

FIRST, LAST = 2024, 2035


def alike(start: datetime, end: datetime) -> dict[tuple[tuple[datetime, timedelta | None], ...], list[str]]:
    """All zones, those together whose clocks show the same throughout."""
    groups: dict[tuple[tuple[datetime, timedelta | None], ...], list[str]] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        moments = [start, *changes(zone, start, end)]
        groups.setdefault(tuple((moment, moment.astimezone(zone).utcoffset()) for moment in moments), []).append(name)
    return groups


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("year", range(FIRST, LAST + 1))
def test_every_minute_around_every_change_of_clocks(year):
    walked = 0
    # Some hours into the years before and after: New Year's Eve begins early in Kiritimati and ends late in Niue.
    groups = alike(utc(f"{year - 1}-12-31 00:00"), utc(f"{year + 1}-01-02 00:00"))
    for moments, names in groups.items():
        zone, schedules = ZoneInfo(names[0]), [parse(cron, names[0]) for cron in EXPRESSIONS]
        for change, _ in moments:
            after, until = change - timedelta(hours=8), change + timedelta(hours=8)
            shown = clock(zone, after, until)
            for schedule in schedules:
                expected = walk(schedule.cron, shown)
                found = slots_between(schedule, after, until, 10_000)
                assert found == expected, (names[0], schedule, change)
                for number, (minute, _) in enumerate(shown):
                    if number % 37 == 0:
                        newest = next((slot for slot in reversed(expected) if slot <= minute), None)
                        assert latest_slot(schedule, after, minute) == newest, (names[0], schedule, minute)
                walked += len(shown)
            # The other zones of the group have other files, which may tell the same story in other words.
            for name in names[1:]:
                for cron in ("30 1 * * *", "30 2 * * *", "30 * * * *"):
                    assert slots_between(parse(cron, name), after, until, 100) == walk(cron, shown), (
                        name,
                        cron,
                        change,
                    )
    assert sum(map(len, groups.values())) == len(available_timezones())
    assert walked > 1_000_000


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cron", ["30 0 * * *", "30 2 * * *", "59 23 * * *"])
def test_a_daily_time_has_one_slot_a_day_for_twelve_years(cron):
    start, end = utc(f"{FIRST}-01-01 12:00"), utc(f"{LAST}-12-31 12:00")
    minute, hour = (int(word) for word in cron.split()[:2])
    for names in alike(start, end).values():
        schedule = parse(cron, names[0])
        slot = next_slot(schedule, start)
        (_, wall), *_ = clock(ZoneInfo(names[0]), slot, slot)
        while slot <= end:
            (_, before), (_, now) = clock(ZoneInfo(names[0]), slot - MINUTE, slot)
            wanted = wall.replace(hour=hour, minute=minute)
            assert before < wanted <= now, (names, slot)
            slot, wall = next_slot(schedule, slot), wall + timedelta(days=1)


@pytest.mark.timeout(1800)
def test_a_hundred_thousand_texts_are_refused_or_answered_within_five_milliseconds():
    assert 20_000 < try_texts(answer, 100_000, seed=20240229) < 80_000
