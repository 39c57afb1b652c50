"""Real processes that do something on one database at the same moment."""

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Self

from tests.application.world import World

PATIENCE_S = 120
"""How long a process waits for the others."""

Act = Callable[..., Any]
"""Takes the process's own world, its number, the barrier at which all wait, and whatever arguments the race has.

The barrier is broken as soon as one of them fails: whatever goes on for long must look.
"""


class Racers:
    """So many processes, each of which makes itself a `World` on the same database for every race."""

    def __init__(self, count: int, dsn: str, key_file: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        # Imported once, by the process that all the others are copies of.
        context.set_forkserver_preload(["tests.faults.racers"])
        self.count = count
        self.dsn = dsn
        self.key_file = key_file
        self._barrier = context.Barrier(count, timeout=PATIENCE_S)
        self._pool = ProcessPoolExecutor(count, context, initializer=_enter, initargs=(self._barrier,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def race(self, act: Act, at: datetime, *arguments: Any) -> list[Any]:
        """What each process got, once all of them have done `act`; whatever one of them raised fails the test.

        Every process waits at the start until all are there, so that none does the work of two.
        """
        place = (self.dsn, self.key_file, at)
        started = [self._pool.submit(_run, act, place, number, arguments) for number in range(self.count)]
        answers = [future.result() for future in started]
        failures = [failure for _, failure in answers if failure]
        self._barrier.reset()
        # Whoever waited for one that failed has nothing of interest to say.
        assert not failures, min(failures, key=lambda failure: "BrokenBarrierError" in failure)
        return [answer for answer, _ in answers]


class _Start:
    barrier: Barrier


def _enter(barrier: Barrier) -> None:
    _Start.barrier = barrier
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A test run that is killed leaves nobody behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(act: Act, place: tuple[str, Path, datetime], number: int, arguments: tuple[Any, ...]) -> tuple[Any, str]:
    """The answer, or why there is none: as text, since not every exception survives the way to another process."""
    barrier = _Start.barrier
    dsn, key_file, at = place
    try:
        with World(dsn, key_file, size=2) as world:
            world.at = at
            world.scalar("SELECT 1")
            barrier.wait()
            return act(world, number, barrier, *arguments), ""
    except Exception:  # noqa: BLE001 - told to the test
        barrier.abort()
        return None, traceback.format_exc()
