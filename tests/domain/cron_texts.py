"""Texts of every kind that somebody could send as a schedule, and how long an answer to each may take."""

import random
import time
from collections.abc import Callable
from datetime import datetime
from inspect import unwrap
from zoneinfo import available_timezones

from domain.cron import read_cron
from domain.refusals import Invalid
from domain.schedule import _next_slot, latest_slot, parse
from tests.domain.cron_walk import MINUTE, utc

BUDGET_S = 0.005
"""Processor time of the thread that answers: other work on the machine does not count."""

find_slot = unwrap(_next_slot)
"""The search itself, without the answers that are kept."""

Answer = Callable[[str, str, datetime], datetime | None]
"""The next slot of a text in a zone after an instant, None where it is refused."""


def answer(text: str, zone: str, after: datetime) -> datetime | None:
    """From the text to the slot, with nothing remembered from another time."""
    read_cron.cache_clear()
    try:
        return find_slot(parse(text, zone), after)
    except Invalid:
        return None


def in_time(answering: Answer, text: str, zone: str, after: datetime) -> datetime | None:
    """The answer; fails when it takes too long every time, or does not move on."""

    def timed() -> tuple[float, datetime | None]:
        started = time.thread_time()
        slot = answering(text, zone, after)
        return time.thread_time() - started, slot

    spent, slot = timed()
    for _ in range(5):  # what is slow once only was the machine's doing, or the garbage collector's
        if spent < BUDGET_S:
            break
        spent = min(spent, timed()[0])
    assert spent < BUDGET_S, (text, zone, after, spent)
    assert slot is None or slot > after, (text, zone, after)
    return slot


def try_texts(answering: Answer, count: int, seed: int) -> int:
    """Ask for the slots of so many texts, each in some zone; returns how many were accepted."""
    chance = random.Random(seed)  # noqa: S311 - the same texts every time
    zones = sorted(available_timezones())
    for zone in zones:
        parse("0 0 * * *", zone)  # zones are read from disk once, before the clock runs
    accepted = 0
    for _ in range(count):
        text, zone = a_text(chance), chance.choice(zones)
        after = utc("2024-01-01 00:00") + chance.randrange(12 * 366 * 24 * 60) * MINUTE
        slot = in_time(answering, text, zone, after)
        if slot is not None:
            accepted += 1
            schedule = parse(text, zone)
            assert latest_slot(schedule, after, slot) == slot, (text, zone, after)
            assert latest_slot(schedule, after, slot - MINUTE) is None, (text, zone, after)
    return accepted


_SIGNS = "0123456789*/,-#LWHR?@ \tabc"


def a_text(chance: random.Random) -> str:
    """Five fields of about the right kind, often with a slip of the pen; or anything at all."""
    kind = chance.random()
    if kind < 0.15:
        return "".join(chance.choice(_SIGNS) for _ in range(chance.randrange(110)))
    text = " ".join(_word(chance, low, high) for low, high in ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7)))
    if kind < 0.5:
        at = chance.randrange(len(text))
        return text[:at] + chance.choice(_SIGNS) + text[at + chance.randrange(2) :]
    return text


def _word(chance: random.Random, low: int, high: int) -> str:
    return ",".join(_item(chance, low, high) for _ in range(chance.choice((1, 1, 1, 2, 4))))


def _item(chance: random.Random, low: int, high: int) -> str:
    first, last = chance.randint(low, high), chance.randint(low, high + (chance.random() < 0.02))
    if chance.random() < 0.95:
        first, last = min(first, last), max(first, last)
    shapes = ("*", "*", str(first), str(first), f"{first}-{last}", f"*/{last or 1}", f"{first}-{last}/{first or 1}")
    return chance.choice((*shapes, "R")) if chance.random() < 0.05 else chance.choice(shapes)
