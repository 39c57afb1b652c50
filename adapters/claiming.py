"""What a worker does all day: take up what it is handed, look for what waits, and offer itself while nothing does."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from adapters.bootstrap import Service
from adapters.postgres import claims, waiting
from adapters.process import rest
from adapters.runs_in_hand import Worker
from application.ports import Away, RunOrder
from application.session import Superseded

logger = logging.getLogger(__name__)

_SHORTEST_SLEEP_S: Final = 0.02
_GATHER_S: Final = 0.005
_AWAY_SLEEP_S: Final = 2.0
_LOOKED_S: Final = 0.05
"""What a claim may have looked at earlier than the question that follows it says."""
_OFFERED_S: Final = 60.0


class Calls:
    """Why a worker is to wake up."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self._look = self._take_up = False

    def look(self) -> None:
        """Something may wait, or a place came free."""
        self._look = True
        self.wake.set()

    def take_up(self) -> None:
        """Something was handed to this worker."""
        self._take_up = True
        self.wake.set()

    @property
    def waiting(self) -> bool:
        """Whether there is a call that was not answered."""
        return self._look or self._take_up

    def looking(self) -> None:
        """What was called for until now is about to be looked for."""
        self._look = False

    def answer(self) -> tuple[bool, bool]:
        """Whether to look, and whether to take up, and forget both: what comes from here on wakes again."""
        self.wake.clear()
        look, self._look = self._look, False
        take_up, self._take_up = self._take_up, False
        return look, take_up


class Claiming:
    """Keeps the threads of `pool` busy with runs."""

    def __init__(self, service: Service, worker: Worker, pool: ThreadPoolExecutor, calls: Calls) -> None:
        self._service = service
        self._worker = worker
        self._pool = pool
        self._calls = calls
        self._most = service.settings.worker_concurrency
        self._poll_s = service.settings.poll_interval_seconds
        self._look_at = 0.0
        self._nothing_waits = False
        self._offered_until = 0.0
        self._offered = 0

    def until(self, ended: Callable[[], bool]) -> None:
        """Claim and submit runs until the process has `ended`; then be handed nothing more."""
        try:
            while not ended():
                look, take_up = self._calls.answer()
                due = time.monotonic() >= self._look_at
                # A notification may be lost with its connection: polling finds what was handed over, too.
                if take_up or self._worker.unheard or (due and self._offered_until):
                    self._take_up()
                if look or due:
                    self._look()
                if not self._calls.waiting and time.monotonic() < self._look_at:
                    self._offer()
                    pause = self._look_at - time.monotonic()
                    rest(self._calls.wake, ended, min(pause, _AWAY_SLEEP_S) if self._worker.unheard else pause)
        finally:
            self._withdraw()
            self._take_up()

    @property
    def _free(self) -> int:
        return self._most - self._worker.holding

    def _submit(self, orders: Iterable[RunOrder]) -> None:
        for order in orders:
            self._pool.submit(self._worker.execute, order)

    def _take_up(self) -> None:
        free = self._free
        if free <= 0:
            return
        try:
            orders = self._worker.take_up(free)
        except Away as away:
            logger.warning("the worker cannot take up what it may have been handed: %s", away)
            return
        self._offered -= len(orders)
        self._submit(orders)

    def _look(self) -> None:
        """Claim what waits. When nothing does, `_look_at` is when to look again without being called."""
        if 0 < self._free < self._most:
            # Short runs end together: many of them are claimed with one transaction a moment later.
            self._calls.wake.wait(_GATHER_S)
        self._calls.looking()
        looked_at = time.monotonic()
        self._nothing_waits = False
        orders: list[RunOrder] = []
        pause = self._poll_s
        try:
            if self._free > 0:
                orders = self._claim()
                if not orders:
                    pause = self._until_ready(looked_at)
                    self._nothing_waits = True
        except Away as away:
            logger.warning("the worker waits: %s", away)
            pause = min(pause, _AWAY_SLEEP_S)
        self._submit(orders)
        self._look_at = 0.0 if orders else time.monotonic() + pause

    def _claim(self) -> list[RunOrder]:
        if self._offered_until:
            with self._service.datastore.reading() as cursor:
                if not claims.any_waits(cursor):
                    return []
            # While it claims it hears of nothing that it is handed, and has no places for that.
            self._withdraw()
            self._take_up()
        # One that could not be withdrawn keeps its places.
        free = self._free - max(0, self._offered)
        return self._worker.claim(max(1, free)) if self._free > 0 else []

    def _until_ready(self, looked_at: float) -> float:
        """Nobody is told when the time of a run that has to wait has come: the worker wakes up for it."""
        since_s = time.monotonic() - looked_at + _LOOKED_S
        seconds = waiting.seconds_until_ready(self._service.datastore, since_s=since_s)
        return self._poll_s if seconds is None else min(max(seconds, _SHORTEST_SLEEP_S), self._poll_s)

    def _offer(self) -> None:
        """While nothing waits, runs may be handed over as they are asked for."""
        free, now = self._free, time.monotonic()
        if not self._nothing_waits or free <= 0 or (2 * self._offered > free and now < self._offered_until):
            return
        seconds = _OFFERED_S + 2 * self._poll_s
        # Known before it is made: it may stand although the answer is lost.
        self._offered, self._offered_until = free, now + seconds / 2
        try:
            self._worker.offer(free, seconds)
        except (Away, Superseded) as error:
            logger.info("the worker cannot offer itself: %s", error)
            self._offered_until = now + _AWAY_SLEEP_S

    def _withdraw(self) -> None:
        """From here on nothing is handed over; if the database cannot be asked, what was offered stands."""
        if self._offered_until:
            try:
                self._worker.withdraw()
            except (Away, Superseded) as error:
                logger.info("the worker's offer stands for now: %s", error)
            else:
                self._offered, self._offered_until = 0, 0.0
