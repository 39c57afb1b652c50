"""Cron texts: what they name, what is refused with which advice, and that no text ever hangs."""

import string
import time
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from croniter import CroniterBadDateError, croniter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain.refusals import Invalid
from domain.schedule import latest_slot, next_slots, parse
from tests.domain.cron_texts import BUDGET_S, answer, find_slot, in_time, try_texts
from tests.domain.cron_walk import EXPRESSIONS, MINUTE, changes, utc


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("@hourly", "2026-01-01 00:00", ["2026-01-01 01:00", "2026-01-01 02:00"]),
        ("@daily", "2026-01-01 00:00", ["2026-01-02 00:00", "2026-01-03 00:00"]),
        ("@midnight", "2026-01-01 00:00", ["2026-01-02 00:00", "2026-01-03 00:00"]),
        ("@weekly", "2026-01-01 00:00", ["2026-01-04 00:00", "2026-01-11 00:00"]),
        ("@Monthly", "2026-01-01 00:00", ["2026-02-01 00:00", "2026-03-01 00:00"]),
        ("@yearly", "2026-01-01 00:00", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        ("@annually", "2026-01-01 00:00", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        ("0 9 * JAN-mar mon-Fri", "2026-03-30 10:00", ["2026-03-31 09:00", "2027-01-01 09:00"]),
        ("0 0 * * 7", "2026-01-01 00:00", ["2026-01-04 00:00", "2026-01-11 00:00"]),
        ("0 0 * * 5-7", "2026-01-01 00:00", ["2026-01-02 00:00", "2026-01-03 00:00", "2026-01-04 00:00"]),
        ("5-5 7-7 * * 7-7", "2026-01-01 00:00", ["2026-01-04 07:05", "2026-01-11 07:05"]),
        ("0 0 13 * 5", "2026-02-07 00:00", ["2026-02-13 00:00", "2026-02-20 00:00"]),
        ("0 0 1 * */2", "2026-02-28 12:00", ["2026-03-01 00:00", "2026-03-03 00:00"]),
        ("0 0 30 2 1", "2026-02-01 00:00", ["2026-02-02 00:00", "2026-02-09 00:00"]),
        ("0 0 29 2 *", "2026-01-01 00:00", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ("0 0 29 2 *", "2096-02-29 00:00", ["2104-02-29 00:00", "2108-02-29 00:00"]),
        ("0 0 31 2-4 *", "2026-01-01 00:00", ["2026-03-31 00:00", "2027-03-31 00:00"]),
        ("00 05 01 01 *", "2026-01-01 06:00", ["2027-01-01 05:00"]),
        ("*,5 0 1 1 *", "2026-01-01 00:00", ["2026-01-01 00:01", "2026-01-01 00:02"]),
    ],
)
def test_what_an_expression_names(cron, after, expected):
    assert next_slots(parse(cron, "UTC"), utc(after), len(expected)) == [utc(slot) for slot in expected]


@pytest.mark.parametrize(
    ("cron", "advice"),
    [
        ("", "five fields"),
        ("   ", "five fields"),
        ("0 2 * *", "not 4"),
        ("0 0 2 * * *", "without seconds"),
        ("0 0 2 * * * 2026", "without seconds"),
        ("@reboot", "@hourly, @daily"),
        ("@every 5m", "five fields"),
        ("@", "@hourly"),
        ("H 2 * * *", "a number from 0 to 59"),
        ("R 2 * * *", "a number from 0 to 59"),
        ("H(0-5) 2 * * *", "a number from 0 to 59"),
        ("0 R/2 * * *", "a number from 0 to 23"),
        ("0 22-2 * * *", "write 22-23,0-2"),
        ("0 2 * * fri-mon", "write 5-7,0-1"),
        ("0 2 * nov-feb *", "write 11-12,1-2"),
        ("*/60 * * * *", "from 1 to 59"),
        ("0 */24 * * *", "from 1 to 23"),
        ("0 2 */32 * *", "from 1 to 31"),
        ("0 2 * */13 *", "from 1 to 12"),
        ("0 2 * * */8", "from 1 to 7"),
        ("*/0 * * * *", "from 1 to 59"),
        ("*/ * * * *", "from 1 to 59"),
        ("*/2/3 * * * *", "from 1 to 59"),
        ("*/-5 * * * *", "from 1 to 59"),
        ("5/15 * * * *", "write 5-59/15"),
        ("60 * * * *", "from 0 to 59"),
        ("0 24 * * *", "from 0 to 23"),
        ("0 0 0 * *", "from 1 to 31"),
        ("0 0 * 13 *", "from 1 to 12"),
        ("0 0 * 0 *", "from 1 to 12"),
        ("0 0 * * 8", "from 0 to 7"),
        ("0 0 * mon *", "a name (jan, feb"),
        ("0 0 * * jan", "a name (sun, mon"),
        ("0 0 L * *", "from 1 to 31"),
        ("0 0 15W * *", "from 1 to 31"),
        ("0 0 * * 5#2", "from 0 to 7"),
        ("0 0 ? * 1", "use *"),
        ("0,,30 * * * *", "An empty item"),
        ("-5 * * * *", "-5 is not a minute"),
        ("5- * * * *", "is not a minute"),
        ("1-2-3 * * * *", "is not a minute"),
        ("*-5 * * * *", "is not a minute"),
        ("+5 * * * *", "is not a minute"),
        ("005 * * * *", "is not a minute"),
        ("1.5 * * * *", "is not a minute"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("0 2 * * *\n", "one line"),
        ("0\t2 * * *", "tabs"),
        ("0 2 * * *\x00", "one line"),
        ("0\xa02 * * *", "plain ASCII"),
        ("\u0660 2 * * *", "plain ASCII"),
        ("0 2 * * \u2217", "plain ASCII"),
        (f"{','.join(['0'] * 50)} 2 * * *", "at most 100 characters"),
    ],
)
def test_refused_expressions(cron, advice):
    with pytest.raises(Invalid) as refusal:
        parse(cron, "UTC")
    sentence = str(refusal.value)
    assert advice in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_hundred_characters_are_allowed_and_no_more():
    minutes = ",".join(str(minute) for minute in range(10, 40))
    longest = f"{minutes},05 0 * * *"
    assert len(longest) == 100
    assert parse(longest, "UTC").cron == longest
    with pytest.raises(Invalid, match="not 101"):
        parse(f"{minutes},5,5 0 * * *", "UTC")


WORDS = st.sampled_from(
    ["*", "*/5", "*/61", "0", "7", "29", "30", "31", "59", "2", "feb", "SUN", "fri-sun", "1-5", "22-2", "L", "5#3",
     "15W", "?", "H", "R", "R(1-5)", "h/3", "l5", "@daily", "@reboot", "1,2,3", "0-59/1", "1-31", "0-6", "", "-", "/",
     ",", "*,*", "9" * 30]
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(WORDS, min_size=4, max_size=7).map(" ".join),
    st.lists(st.text("0123456789*/,-", min_size=1, max_size=8), min_size=5, max_size=5).map(" ".join),
    st.text(string.printable, max_size=110),
    st.text(max_size=40),
)


# Two centuries back, when clocks showed local mean time with its odd seconds, and two ahead.
INSTANTS = st.datetimes(datetime(1826, 1, 1), datetime(2226, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(text=TEXTS, zone=st.sampled_from(sorted(available_timezones())), after=INSTANTS)
@settings(max_examples=600, deadline=None)
@example(text="46 */3 * * *", zone="Pacific/Chatham", after=utc("2026-09-26 13:00"))
@example(text="0 0 29 2 *", zone="UTC", after=utc("2096-02-29 00:00"))
@example(text="30 * * * *", zone="Pacific/Apia", after=utc("2011-12-30 09:30"))
@example(text="* * * * *", zone="Africa/Monrovia", after=utc("1972-01-07 00:44"))
def test_any_text_is_refused_or_has_slots_that_move_on(text, zone, after):
    in_time(answer, text, zone, after)
    try:
        schedule = parse(text, zone)
    except Invalid:
        return
    assert parse(schedule.cron, zone) == schedule
    assert len(schedule.cron) <= 100
    found = next_slots(schedule, after, 3)
    assert after < found[0] < found[1] < found[2]
    assert found[1] - found[0] < timedelta(days=8 * 366)
    assert latest_slot(schedule, after, found[2]) == found[2]
    for earlier, later in pairwise(found):
        assert latest_slot(schedule, after, later - MINUTE / 60) == earlier


def test_any_of_thousands_of_texts_is_refused_or_answered_in_time():
    assert 800 < try_texts(answer, 4_000, seed=1) < 3_200


HARD = (*EXPRESSIONS, "59 23 31 12 *", "0 0 29 2 *", "0 0 29 2 1", "@yearly", "59 23 31 1-12/11 7")


def test_no_zone_holds_an_answer_up():
    """Every zone, before, at and after a change of its clocks where it has one."""
    zones = sorted(available_timezones())
    for number, name in enumerate(zones):
        parse("0 0 * * *", name)
        found = list(islice(changes(ZoneInfo(name), utc("2026-02-10 00:00"), utc("2026-04-10 00:00")), 2))
        for change in found or [utc("2026-03-01 00:00")]:
            for ahead in (-90, -1, 0, 61):
                text = HARD[(number + ahead) % len(HARD)]
                assert in_time(answer, text, name, change + ahead * MINUTE) is not None


def steps_through_history(text: str, zone: str, after: datetime) -> datetime | None:
    """Finds the next slot by going on from one that was a day ago."""
    slot = after - timedelta(days=1)
    while slot <= after:
        slot = find_slot(parse(text, zone), slot)
    return slot


def waits_for_a_day_that_never_comes(text: str, _: str, after: datetime) -> datetime | None:
    try:
        return croniter(text, after, max_years_between_matches=400).get_next(datetime)
    except CroniterBadDateError:
        return None


@pytest.mark.parametrize(
    ("answering", "text"),
    [
        (steps_through_history, "* * * * *"),
        (waits_for_a_day_that_never_comes, "0 0 31 2,4,6,9,11 *"),
        (lambda _, __, after: after, "0 0 * * *"),
    ],
    ids=["one that steps", "one that searches for ever", "one that stands still"],
)
def test_an_answer_that_takes_its_time_is_noticed(answering, text):
    """The control."""
    after = utc("2026-05-01 10:00")
    in_time(answer, text, "Europe/Berlin", after)
    with pytest.raises(AssertionError):
        in_time(answering, text, "Europe/Berlin", after)


def test_time_that_others_take_is_not_counted():
    """A sleep stands for a machine that is busy with something else."""

    def interrupted(text: str, zone: str, after: datetime) -> datetime | None:
        time.sleep(4 * BUDGET_S)
        return answer(text, zone, after)

    assert in_time(interrupted, "0 2 * * *", "UTC", utc("2026-05-01 10:00")) == utc("2026-05-02 02:00")
