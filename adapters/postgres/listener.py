"""Waking up: one connection per process that listens, and comes back by itself."""

import logging
import threading
from collections.abc import Callable, Mapping

import psycopg
from psycopg.sql import SQL, Identifier
from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_never, wait_exponential_jitter

from adapters.postgres.event_log import connection_arguments

logger = logging.getLogger(__name__)

Handler = Callable[[str], None]


class Listener:
    """Calls a handler for every notification on its channel, with the payload.

    After every (re)connection each handler is called once with "": whatever was announced while nobody listened may
    have been missed, so the listener's owner looks for itself.
    """

    def __init__(self, dsn: str, handlers: Mapping[str, Handler]) -> None:
        self._dsn = dsn
        self._handlers = dict(handlers)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, within about a second."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        for attempt in Retrying(
            retry=retry_if_exception_type((psycopg.OperationalError, psycopg.InterfaceError)),
            wait=wait_exponential_jitter(initial=0.1, max=5),
            stop=stop_never,
            sleep=self._pause,
            before_sleep=before_sleep_log(logger, logging.WARNING),
        ):
            with attempt:
                self._listen()

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _listen(self) -> None:
        if self._stop.is_set():
            return
        arguments = connection_arguments(self._dsn, name="listener")
        with psycopg.connect(**arguments, autocommit=True) as connection:
            for channel in self._handlers:
                connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
            for handler in self._handlers.values():
                handler("")
            while not self._stop.is_set():
                for notification in connection.notifies(timeout=0.5, stop_after=1):
                    self._handlers[notification.channel](notification.payload)
