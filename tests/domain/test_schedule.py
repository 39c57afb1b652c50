"""Slots through changes of clocks, by tables of times and by a walk through the minutes; run dates and jitter."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from domain.refusals import Invalid
from domain.schedule import (
    Schedule,
    jitter,
    latest_slot,
    next_slot,
    next_slots,
    parse,
    run_date,
    slots_between,
)
from tests.domain.cron_texts import find_slot
from tests.domain.cron_walk import EXPRESSIONS, MINUTE, changes, clock, utc, walk

NEW_YORK, BERLIN, DUBLIN, LORD_HOWE = "America/New_York", "Europe/Berlin", "Europe/Dublin", "Australia/Lord_Howe"


def slots(cron: str, zone: str, after: str, until: str) -> list[str]:
    found = slots_between(parse(cron, zone), utc(after), utc(until), 1000)
    return [f"{slot:%d %H:%M}" for slot in found]


# Times are UTC. Each row covers one change of clocks, and what lies before and behind it.
@pytest.mark.parametrize(
    ("cron", "zone", "after", "until", "expected"),
    [
        # New York, 2026-03-08: 02:00 EST is 03:00 EDT, at 07:00Z.
        ("30 2 * * *", NEW_YORK, "2026-03-07 00:00", "2026-03-10 00:00", ["07 07:30", "08 07:00", "09 06:30"]),
        ("0 2 * * *", NEW_YORK, "2026-03-07 00:00", "2026-03-10 00:00", ["07 07:00", "08 07:00", "09 06:00"]),
        ("0 3 * * *", NEW_YORK, "2026-03-08 00:00", "2026-03-09 00:00", ["08 07:00"]),
        ("0,30 2,3 * * *", NEW_YORK, "2026-03-08 00:00", "2026-03-09 00:00", ["08 07:00", "08 07:30"]),
        ("*/15 * * * *", NEW_YORK, "2026-03-08 06:40", "2026-03-08 07:20", ["08 06:45", "08 07:00", "08 07:15"]),
        ("0 */2 * * *", NEW_YORK, "2026-03-08 04:00", "2026-03-08 11:00", ["08 05:00", "08 08:00", "08 10:00"]),
        ("30 * * * *", NEW_YORK, "2026-03-08 05:00", "2026-03-08 08:00", ["08 05:30", "08 06:30", "08 07:30"]),
        ("*/15 2 * * *", NEW_YORK, "2026-03-08 00:00", "2026-03-09 06:20", ["09 06:00", "09 06:15"]),
        ("15 0-23 * * *", NEW_YORK, "2026-03-08 06:00", "2026-03-08 08:00", ["08 06:15", "08 07:00", "08 07:15"]),
        # New York, 2026-11-01: 02:00 EDT is 01:00 EST, at 06:00Z.
        ("30 1 * * *", NEW_YORK, "2026-10-31 00:00", "2026-11-03 00:00", ["31 05:30", "01 05:30", "02 06:30"]),
        ("0 1 * * *", NEW_YORK, "2026-11-01 00:00", "2026-11-02 00:00", ["01 05:00"]),
        ("0 2 * * *", NEW_YORK, "2026-11-01 00:00", "2026-11-02 00:00", ["01 07:00"]),
        ("30 * * * *", NEW_YORK, "2026-11-01 05:00", "2026-11-01 08:00", ["01 05:30", "01 06:30", "01 07:30"]),
        ("0 */2 * * *", NEW_YORK, "2026-11-01 03:00", "2026-11-01 10:00", ["01 04:00", "01 07:00", "01 09:00"]),
        (
            "*/30 1 * * *",
            NEW_YORK,
            "2026-11-01 00:00",
            "2026-11-01 12:00",
            ["01 05:00", "01 05:30", "01 06:00", "01 06:30"],
        ),
        ("50 1 * * *", NEW_YORK, "2026-11-01 06:10", "2026-11-02 12:00", ["02 06:50"]),
        # Berlin, where the hour that comes twice is an even one.
        ("0 */2 * * *", BERLIN, "2026-10-24 23:00", "2026-10-25 04:00", ["25 00:00", "25 01:00", "25 03:00"]),
        # Dublin has its standard time in summer: the offset in winter is the "daylight saving" one.
        ("30 1 * * *", DUBLIN, "2026-03-28 12:00", "2026-03-30 12:00", ["29 01:00", "30 00:30"]),
        ("30 1 * * *", DUBLIN, "2026-10-24 12:00", "2026-10-26 12:00", ["25 00:30", "26 01:30"]),
        # Lord Howe moves by half an hour: 02:00 to 02:30, and 02:00 back to 01:30.
        ("15 2 * * *", LORD_HOWE, "2026-10-03 00:00", "2026-10-05 00:00", ["03 15:30", "04 15:15"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-04 00:00", "2026-04-06 00:00", ["04 14:45", "05 15:15"]),
        (
            "*/15 1 * * *",
            LORD_HOWE,
            "2026-04-04 14:20",
            "2026-04-05 00:00",
            ["04 14:30", "04 14:45", "04 15:00", "04 15:15"],
        ),
        (
            "7-50/20 1,2 * * *",
            LORD_HOWE,
            "2026-04-04 14:40",
            "2026-04-04 16:00",
            ["04 14:47", "04 15:17", "04 15:37", "04 15:57"],
        ),
        # Chatham, 12:45 ahead: 03:45 back to 02:45 at 14:00Z, 02:45 to 03:45 at 14:00Z.
        ("30 2 * * *", "Pacific/Chatham", "2026-04-04 00:00", "2026-04-05 23:00", ["04 12:45", "05 13:45"]),
        ("59 2 * * *", "Pacific/Chatham", "2026-09-26 00:00", "2026-09-27 23:00", ["26 14:00", "27 13:14"]),
        (
            "50 */2 * * *",
            "Pacific/Chatham",
            "2026-04-04 12:30",
            "2026-04-04 16:30",
            ["04 13:05", "04 14:05", "04 16:05"],
        ),
        # Casablanca leaves its summer time for Ramadan.
        ("30 2 * * *", "Africa/Casablanca", "2026-02-14 12:00", "2026-02-16 12:00", ["15 01:30", "16 02:30"]),
        ("30 2 * * *", "Africa/Casablanca", "2026-03-21 12:00", "2026-03-23 12:00", ["22 02:00", "23 01:30"]),
        # Troll moves by two hours.
        ("0,30 1,2 * * *", "Antarctica/Troll", "2026-03-28 12:00", "2026-03-29 12:00", ["29 01:00"]),
        ("30 1,2 * * *", "Antarctica/Troll", "2026-10-24 12:00", "2026-10-25 12:00", ["24 23:30", "25 00:30"]),
        ("0 * * * *", "Antarctica/Troll", "2026-10-25 00:30", "2026-10-25 03:30", ["25 01:00", "25 02:00", "25 03:00"]),
        # Havana skips midnight.
        ("0 0 * * *", "America/Havana", "2026-03-07 00:00", "2026-03-09 12:00", ["07 05:00", "08 05:00", "09 04:00"]),
        # Apia had no 30 December 2011 at all.
        ("0 12 * * *", "Pacific/Apia", "2011-12-28 23:00", "2011-12-31 12:00", ["29 22:00", "30 10:00", "30 22:00"]),
        ("0 */12 * * *", "Pacific/Apia", "2011-12-29 12:00", "2011-12-30 23:00", ["29 22:00", "30 10:00", "30 22:00"]),
        # Kathmandu never changes, and is 5:45 ahead.
        ("0 6 * * *", "Asia/Kathmandu", "2026-05-01 00:00", "2026-05-02 12:00", ["01 00:15", "02 00:15"]),
    ],
)
def test_slots_through_a_change_of_clocks(cron, zone, after, until, expected):
    assert slots(cron, zone, after, until) == expected


REFUSED_ZONES = [
    "",
    "Mars/Olympus",
    "EST5EDT,M3.2.0,M11.1.0",
    "../../etc/passwd",
    "/etc/passwd",
    "America",
    "UTC\n",
    "UTC\0",
    "+02:00",
    "x" * 999,
]


# A file system that does not tell capitals apart would find the last two.
@pytest.mark.parametrize("zone", [*REFUSED_ZONES, "europe/berlin", "uTC"])
def test_refused_zones(zone):
    with pytest.raises(Invalid, match="unknown: use a name of the IANA database") as refusal:
        parse("0 2 * * *", zone)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize("zone", REFUSED_ZONES)
def test_a_zone_that_was_stored_and_is_not_known_here_is_refused_alike(zone):
    with pytest.raises(Invalid, match="unknown: use a name of the IANA database") as refusal:
        next_slot(Schedule("0 2 * * *", zone), datetime(2026, 1, 1, tzinfo=UTC))
    assert len(str(refusal.value)) < 200


def test_the_stored_form_is_trimmed_with_single_blanks():
    schedule = parse("  0   2 * *  MON-fri ", "Europe/Berlin")
    assert schedule == Schedule(cron="0 2 * * MON-fri", timezone="Europe/Berlin")
    assert parse(schedule.cron, schedule.timezone) == schedule


@pytest.mark.parametrize(
    "name", [NEW_YORK, DUBLIN, LORD_HOWE, "Pacific/Chatham", "Africa/Casablanca", "Antarctica/Troll"]
)
def test_every_minute_around_a_change_of_clocks(name):
    zone = ZoneInfo(name)
    found = list(changes(zone, utc("2026-01-01 00:00"), utc("2027-01-01 00:00")))
    assert len(found) == 2
    for change in found:
        after, until = change - timedelta(hours=5), change + timedelta(hours=5)
        shown = clock(zone, after, until)
        for cron in EXPRESSIONS:
            schedule = parse(cron, name)
            expected = walk(cron, shown)
            assert slots_between(schedule, after, until, 10_000) == expected, cron
            # From and until any minute, in particular between the two times round, not just from slot to slot.
            for minute, _ in shown[:: 7 if schedule.cron == "* * * * *" else 13]:
                later = next((slot for slot in expected if slot > minute), None)
                if later:
                    assert next_slot(schedule, minute) == later, (cron, minute)
                earlier = next((slot for slot in reversed(expected) if slot <= minute), None)
                assert latest_slot(schedule, after, minute) == earlier, (cron, minute)


TRICKY = {
    name: list(changes(ZoneInfo(name), utc("2024-01-01 00:00"), utc("2027-01-01 00:00")))
    for name in [
        *(NEW_YORK, BERLIN, DUBLIN, LORD_HOWE, "Pacific/Chatham", "Africa/Casablanca", "Antarctica/Troll"),
        *("America/Havana", "America/St_Johns", "America/Nuuk", "Asia/Beirut", "Australia/Adelaide", "Africa/Cairo"),
    ]
}


@given(
    cron=st.builds(
        "{} {} {} {} {}".format,
        st.sampled_from(["0", "30", "*", "*/7", "5,35", "20-40/10", "59"]),
        st.sampled_from(["0", "1", "2", "*", "*/2", "1-3", "0-6/3", "0-23", "23"]),
        st.sampled_from(["*", "*", "*/2", "28-31", "29", "1"]),
        st.sampled_from(["*", "*", "3-4", "10,11"]),
        st.sampled_from(["*", "*", "0", "1-5", "7"]),
    ),
    change=st.sampled_from([(name, change) for name, found in TRICKY.items() for change in found]),
    ahead=st.integers(-30 * 60, 6 * 60),
)
@settings(max_examples=150, deadline=None)
def test_any_expression_around_a_change_of_clocks(cron, change, ahead):
    name, instant = change
    after = instant + ahead * MINUTE
    shown = clock(ZoneInfo(name), after, after + timedelta(hours=30))
    assume(not after.astimezone(ZoneInfo(name)).fold)
    schedule, expected = parse(cron, name), walk(cron, shown)
    assert slots_between(schedule, after, shown[-1][0], 10_000) == expected
    assert latest_slot(schedule, after, shown[-1][0]) == (expected[-1] if expected else None)


def test_an_instant_within_a_minute_counts_as_after_its_beginning():
    schedule = parse("* * * * *", BERLIN)
    within = utc("2026-05-01 10:00") + timedelta(seconds=59, microseconds=999_999)
    assert next_slot(schedule, within) == utc("2026-05-01 10:01")
    assert next_slot(schedule, utc("2026-05-01 10:00")) == utc("2026-05-01 10:01")
    assert latest_slot(schedule, utc("2026-05-01 09:00"), within) == utc("2026-05-01 10:00")


def test_instants_may_come_in_any_zone_and_leave_in_utc():
    after = datetime(2026, 5, 1, 12, 0, tzinfo=timezone(timedelta(hours=-7)))
    slot = next_slot(parse("0 2 * * *", BERLIN), after)
    assert slot == utc("2026-05-02 00:00")
    assert slot.tzinfo is UTC
    with pytest.raises(ValueError, match="time zone"):
        next_slot(parse("0 2 * * *", BERLIN), datetime(2026, 5, 1))  # noqa: DTZ001


def test_the_second_time_that_a_clock_shows_is_another_instant():
    """Python takes the two for equal, so an answer that is kept for one must not be given for the other."""
    half_hourly = parse("*/30 * * * *", NEW_YORK)
    first = datetime(2026, 11, 1, 1, 10, tzinfo=ZoneInfo(NEW_YORK))
    second = first.replace(fold=1)
    assert first == second
    assert next_slot(half_hourly, first) == utc("2026-11-01 05:30")
    assert next_slot(half_hourly, second) == utc("2026-11-01 06:30")


def test_slots_between_excludes_its_start_includes_its_end_and_keeps_the_oldest():
    hourly = parse("0 * * * *", "UTC")
    after, until = utc("2026-05-01 00:00"), utc("2026-05-01 03:00")
    everything = [utc("2026-05-01 01:00"), utc("2026-05-01 02:00"), utc("2026-05-01 03:00")]
    assert slots_between(hourly, after, until, 10) == everything
    assert slots_between(hourly, after, until, 2) == everything[:2]
    assert slots_between(hourly, after, until, 0) == []
    assert slots_between(hourly, until, after, 10) == []
    assert next_slots(hourly, after, 0) == []


def test_the_latest_slot_lies_after_and_not_beyond():
    hourly = parse("0 * * * *", "UTC")
    assert latest_slot(hourly, utc("2026-05-01 00:00"), utc("2026-05-01 00:59")) is None
    assert latest_slot(hourly, utc("2026-05-01 00:00"), utc("2026-05-01 01:00")) == utc("2026-05-01 01:00")
    assert latest_slot(hourly, utc("2026-05-01 01:00"), utc("2026-05-01 01:00")) is None


def test_the_latest_of_ten_years_of_minutes_costs_one_look():
    schedule = parse("* * * * *", BERLIN)
    started = time.thread_time()
    for _ in range(100):
        assert latest_slot(schedule, utc("2016-01-01 00:00"), utc("2026-01-01 00:00")) == utc("2026-01-01 00:00")
    assert time.thread_time() - started < 1


@pytest.mark.parametrize(
    ("slot", "zone", "offset_days", "expected"),
    [
        ("2026-03-01 07:00", NEW_YORK, 1, date(2026, 2, 28)),
        ("2026-03-01 04:00", NEW_YORK, 1, date(2026, 2, 27)),
        ("2026-03-01 04:00", "UTC", 1, date(2026, 2, 28)),
        ("2026-03-01 12:00", "Pacific/Kiritimati", 0, date(2026, 3, 2)),
        ("2026-03-01 12:00", "UTC", 0, date(2026, 3, 1)),
        ("2026-03-01 12:00", "UTC", -1, date(2026, 3, 2)),
        ("2026-11-01 06:30", NEW_YORK, 1, date(2026, 10, 31)),
        ("2028-03-01 12:00", "UTC", 1, date(2028, 2, 29)),
    ],
)
def test_the_run_date_is_counted_in_the_pipelines_zone(slot, zone, offset_days, expected):
    assert run_date(utc(slot), zone, offset_days) == expected


def test_jitter_is_steady_bounded_and_spread():
    at_most = timedelta(minutes=10)
    delays = [jitter(f"config-{number}", at_most) for number in range(2000)]
    assert delays == [jitter(f"config-{number}", at_most) for number in range(2000)]
    assert all(timedelta(0) <= delay < at_most for delay in delays)
    tenths = [int(delay / at_most * 10) for delay in delays]
    assert all(150 < tenths.count(tenth) < 250 for tenth in range(10))
    assert jitter("config-1", timedelta(0)) == timedelta(0)
    # Pinned: a pipeline's delay may not move when the service is upgraded.
    assert jitter("config-1", timedelta(hours=1)) == timedelta(seconds=966, microseconds=48396)
    with pytest.raises(Invalid):
        jitter("config-1", timedelta(seconds=-1))


def test_threads_share_an_expression_without_mixing_up_their_slots():
    schedule = parse("30 2 * * *", BERLIN)
    starts = [
        [utc("2026-01-01 12:00") + timedelta(days=day + 300 * number) for day in range(1500)] for number in range(6)
    ]
    expected = [[find_slot(schedule, start) for start in some] for some in starts]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns within a search, not only between searches
    try:
        with ThreadPoolExecutor(max_workers=len(starts)) as threads:
            found = list(threads.map(lambda some: [find_slot(schedule, start) for start in some], starts))
    finally:
        sys.setswitchinterval(interval)
    assert found == expected


def test_the_next_slot_is_found_in_well_under_a_millisecond():
    schedules = [parse(cron, NEW_YORK) for cron in ("0 2 * * *", "*/15 * * * *", "0 9 * * 1-5", "0 6 1 * *")]
    after = utc("2026-05-01 10:00")
    started = time.thread_time()
    for number in range(1000):
        next_slot(schedules[number % len(schedules)], after + number * MINUTE)
    assert time.thread_time() - started < 0.5
