"""A process's sign of life: a row that says where it runs, what it is for, and how much it does."""

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final, Protocol, Self
from uuid import uuid4

import psycopg

from adapters.bootstrap import Service
from adapters.postgres import processes
from adapters.postgres.processes import Process, Work
from application.ports import Away
from application.session import Superseded

logger = logging.getLogger(__name__)

RENEW_S: Final = 15.0
_MINUTE_S: Final = 60.0
_UNABLE: Final = (Away, Superseded, psycopg.Error)


class Working(Protocol):
    """A worker, as far as its figures go."""

    @property
    def holding(self) -> int:
        """Runs in hand now."""

    @property
    def finished(self) -> int:
        """Runs brought to an outcome since the start."""


class Presence:
    """Shows the process among those that live, from `__enter__` until `__exit__`, through one thread.

    The row is renewed every `renew_s` seconds. The database may be away meanwhile: that is logged once, and once more
    when the row is there again.
    """

    def __init__(
        self, service: Service, roles: Sequence[str], *, renew_s: float = RENEW_S, minute_s: float = _MINUTE_S
    ) -> None:
        settings = service.settings
        self.process = Process(
            instance_id=uuid4(),
            roles=tuple(roles),
            worker_id=settings.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=version("convergence"),
        )
        self._datastore = service.datastore
        self._concurrency = settings.worker_concurrency
        self._renew_s = renew_s
        self._minute_s = minute_s
        self._worker: Working | None = None
        self._finished: deque[tuple[float, int]] = deque()
        self._unseen = False
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Returns when the row is removed, or the database could not be asked to."""
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def watch(self, worker: Working) -> None:
        """Show this worker's figures from now on."""
        self._worker = worker
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            # Cleared before looking, so that a worker which comes while we look is shown at once.
            self._wake.clear()
            self._renew()
            self._wake.wait(self._renew_s)
        try:
            processes.remove(self._datastore, self.process.instance_id)
        except _UNABLE as error:
            logger.info("this process stays listed until it counts as dead: %s", _sentence(error))

    def _renew(self) -> None:
        try:
            processes.renew(self._datastore, self.process, self._work())
        except _UNABLE as error:
            if not self._unseen:
                logger.warning("this process cannot say that it lives: %s", _sentence(error))
            self._unseen = True
        else:
            if self._unseen:
                logger.info("this process is listed among those that live again")
            self._unseen = False

    def _work(self) -> Work | None:
        worker = self._worker
        if worker is None:
            return None
        now, finished = time.monotonic(), worker.finished
        self._finished.append((now, finished))
        # The newest figure that is a minute old stays: the difference to it is what the last minute did.
        while len(self._finished) > 1 and self._finished[1][0] <= now - self._minute_s:
            self._finished.popleft()
        return Work(
            concurrency=self._concurrency,
            holding=worker.holding,
            finished=finished,
            finished_last_minute=finished - self._finished[0][1],
        )


def _sentence(error: BaseException) -> str:
    """What is wrong, without the statement and its values."""
    return str(error) if isinstance(error, Away) else type(error).__name__
