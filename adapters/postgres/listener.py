"""Waking up: one connection per process that listens, and comes back by itself."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import psycopg
from psycopg.rows import TupleRow
from psycopg.sql import SQL, Identifier
from tenacity import (
    RetryError,
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    sleep_using_event,
    stop_when_event_set,
    wait_exponential_jitter,
)

from adapters.postgres.event_log import connection_arguments
from adapters.postgres.silence import AttentiveConnection

logger = logging.getLogger(__name__)

Handler = Callable[[str], None]
_ASK_S: Final = 5.0
_WAIT_S: Final = 0.5
_SIGN_S: Final = 0.5
_LOST: Final = (psycopg.OperationalError, psycopg.InterfaceError)


class Listener:
    """Calls a handler for every notification on its channel, with the payload.

    After every (re)connection each handler is called once with "": whatever was announced while nobody listened may
    have been missed, so the listener's owner looks for itself.

    Every `ask_s` seconds the server is asked for a word, and then `heard` is told the instant of the question
    (monotonic): handlers have been called for all that was announced before it.

    The advisory lock that `sign` names is held by the connection: whoever finds it taken knows that somebody listens.
    """

    def __init__(
        self,
        dsn: str,
        handlers: Mapping[str, Handler],
        *,
        heard: Callable[[float], None] = lambda _: None,
        ask_s: float = _ASK_S,
        sign: tuple[int, str] | None = None,
    ) -> None:
        self._dsn = dsn
        self._handlers = dict(handlers)
        self._heard = heard
        self._ask_s = ask_s
        self._sign = sign
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
        connecting = Retrying(
            retry=retry_if_exception_type(_LOST),
            wait=wait_exponential_jitter(multiplier=0.1, max=5),
            stop=stop_when_event_set(self._stop),
            sleep=sleep_using_event(self._stop),
            before_sleep=before_sleep_log(logger, logging.WARNING),
        )
        while not self._stop.is_set():
            try:
                # Each loss begins with the shortest wait again.
                with connecting(self._connect) as connection:
                    self._listen(connection)
            except RetryError:
                return
            except _LOST as lost:
                logger.warning("the listener was cut off and connects again: %s", lost)

    def _connect(self) -> psycopg.Connection:
        arguments = connection_arguments(self._dsn, name="listener")
        connection = AttentiveConnection[TupleRow].connect(**arguments, autocommit=True)
        try:
            for channel in self._handlers:
                connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
        except BaseException:
            connection.close()
            raise
        return connection

    def _listen(self, connection: psycopg.Connection) -> None:
        signed = False
        for handler in self._handlers.values():
            handler("")
        ask_at = time.monotonic()
        while not self._stop.is_set():
            asked = time.monotonic()
            if asked >= ask_at:
                # Silence is what a listener hears also from a server that is cut off.
                connection.execute("SELECT 1")
                # A connection that was cut off may hold it for a while longer.
                signed = signed or self._takes_sign(connection)
                # What came before the answer is handed over before it counts as heard.
                self._hand_over(connection, 0)
                self._heard(asked)
                ask_at = asked + (self._ask_s if signed else min(_SIGN_S, self._ask_s))
            self._hand_over(connection, min(_WAIT_S, self._ask_s), stop_after=1)

    def _takes_sign(self, connection: psycopg.Connection) -> bool:
        if self._sign is None:
            return True
        [row] = connection.execute("SELECT pg_try_advisory_lock(%s, hashtext(%s))", self._sign)
        return bool(row[0])

    def _hand_over(self, connection: psycopg.Connection, seconds: float, stop_after: int | None = None) -> None:
        for notification in connection.notifies(timeout=seconds, stop_after=stop_after):
            self._handlers[notification.channel](notification.payload)
