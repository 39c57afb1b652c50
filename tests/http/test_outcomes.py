"""Waiting for a run: woken by what the database announces, not by looking again and again."""

import asyncio

import pytest

from adapters.http.outcomes import Outcomes, wait_until


async def woken_by(payload: str, seconds: float) -> bool:
    """Whether a wait for run `b` ends in time, when this is announced right after its first look."""
    outcomes, looks = Outcomes(), []
    outcomes.attach(asyncio.get_running_loop())

    def ended():
        looks.append(None)
        if len(looks) == 1:
            outcomes.announce(payload)
        return len(looks) > 1

    with outcomes.watching("b") as event:
        return await wait_until(ended, event, seconds)


@pytest.mark.parametrize("payload", ["b", "a,b,c", ""])
def test_an_announcement_wakes(payload):
    async def scenario():
        async with asyncio.timeout(1.5):  # looking again by itself would take two seconds
            assert await woken_by(payload, 30)

    asyncio.run(scenario())


def test_another_runs_end_does_not_wake():
    async def scenario():
        looks = []
        outcomes = Outcomes()
        outcomes.attach(asyncio.get_running_loop())

        def ended():
            looks.append(None)
            outcomes.announce("a,bb")
            return False

        with outcomes.watching("b") as event:
            assert not await wait_until(ended, event, 0.3)
        assert len(looks) == 2

    asyncio.run(scenario())


def test_a_lost_announcement_costs_two_seconds_and_no_more():
    async def scenario():
        async with asyncio.timeout(10):
            assert await woken_by("nobody", 30)

    asyncio.run(scenario())
