"""A process whose clock is wrong."""

import random
from datetime import datetime, timedelta


class Process:
    """Its clock is off by up to an hour, drifts, and now and then jumps, also backwards."""

    def __init__(self, name: str, began: datetime, chance: random.Random) -> None:
        self.name = name
        self._began, self._chance = began, chance
        self._off, self._drift = timedelta(0), 0.0
        self._set()

    def _set(self) -> None:
        self._off = timedelta(seconds=self._chance.choice((0, 0, 1, 90, -90, 600, -600, 3600, -3600)))
        self._drift = self._chance.choice((0.0, 0.0, 1e-4, -1e-4))

    def clock(self, now: datetime) -> datetime:
        """What it shows when it really is `now`."""
        if self._chance.random() < 0.03:
            self._set()
        return now + self._off + (now - self._began) * self._drift
