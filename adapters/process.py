"""One process of several parts: threads that work until they are told to stop, and the signals that tell them."""

import errno
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Final

logger = logging.getLogger(__name__)

GRACE_S: Final = 28.0
"""How long the parts have to stop: a worker's 25 seconds to finish runs or hand them back, and a little more."""

_ONE_S: Final = 0.3
"""Signals that come together are one: `timeout` and other parents pass a Ctrl-C on to those who have it already."""

_LOOK_S: Final = 0.2
_NAP_S: Final = 0.5
_COLLECT_AFTER: Final = 20_000


class Unable(Exception):  # noqa: N818 - it says what the process is
    """The process cannot do its work. The text is one sentence for the person who started it, free of secrets."""


class Late(Unable):
    """Something did not stop in time. Its threads would keep the interpreter from ending."""


class Shutdown:
    """Why the process is to end: a first SIGINT or SIGTERM asks for it, a later one ends it at once."""

    def __init__(self) -> None:
        # The queue is what a signal handler may touch: it interrupts its own thread anywhere, also inside a lock.
        self._reasons: SimpleQueue[str] = SimpleQueue()
        self._asked_at: float | None = None
        self.failure: str | None = None

    def listen(self) -> None:
        """From now on the signals are ours. Call it in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at < _ONE_S:
            return
        else:
            # The guardians of our child processes see our end and stop them in order.
            os._exit(128 + number)
        self._reasons.put(signal.Signals(number).name)

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked_at is not None

    @property
    def is_due(self) -> bool:
        """Whether the process is to end, for whatever reason."""
        return self.asked or self.failure is not None

    def fail(self, sentence: str) -> None:
        """End the process because it cannot go on; the first sentence counts."""
        self.failure = self.failure or sentence
        self._reasons.put(sentence)

    def wait(self) -> str:
        """Returns the reason as soon as there is one: a signal's name, or a sentence."""
        while True:
            # In short waits: a signal that comes just before a wait begins does not interrupt it.
            try:
                return self._reasons.get(timeout=_LOOK_S)
            except Empty:
                continue


class Part:
    """Something that works in a thread of its own until its stop is set."""

    def __init__(self, name: str, work: Callable[[threading.Event], None]) -> None:
        self.name = name
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._shutdown: Shutdown | None = None

    def start(self, shutdown: Shutdown) -> None:
        self._shutdown = shutdown
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work(self._stop)
        except BaseException as error:
            logger.exception("The %s failed", self.name)
            self._fail(f"The {self.name} failed: {type(error).__name__}; the log says where.")
        else:
            if not self._stop.is_set():
                self._fail(f"The {self.name} ended by itself.")

    def _fail(self, sentence: str) -> None:
        if self._shutdown is not None:
            self._shutdown.fail(sentence)

    def stop(self) -> None:
        """Ask it to stop, without waiting."""
        self._stop.set()

    def join(self, seconds: float) -> bool:
        """Whether it has stopped, within that time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()


def stop_in_order(groups: Sequence[Sequence[Part]], grace_s: float = GRACE_S) -> list[str]:
    """Stop group after group, the parts of one together; returns the names of those that did not stop in time."""
    deadline = time.monotonic() + grace_s
    late: list[str] = []
    for group in groups:
        for part in group:
            part.stop()
        late += [part.name for part in group if not part.join(max(deadline - time.monotonic(), 0.1))]
    return late


def rest(wake: threading.Event, ended: Callable[[], bool], seconds: float) -> None:
    """Wait until `wake` is set, the process has `ended`, or the time is over."""
    until = time.monotonic() + seconds
    while not ended() and (left := until - time.monotonic()) > 0 and not wake.wait(min(left, _NAP_S)):
        pass


def settle() -> None:
    """Have the garbage collector pass over what start-up made, and look less often.

    Events come and go by thousands and hold no cycles: looking through everything for each few hundred of them took a
    fifth of the time that a run costs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])


def bind(host: str, port: int) -> socket.socket:
    """The socket of an API, taken before anything is started; raises `Unable`, naming the setting to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Unable(f"HOST: {host} is not an address of this machine ({error.strerror}).") from None
    try:
        # Bound and listening in one step, so that of two starting at the same time one fails here.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Unable(f"Port {port} is in use by another program: set PORT to a free one.") from None
        if error.errno == errno.EACCES:
            raise Unable(f"Port {port} may not be used by this user: set PORT to one above 1023.") from None
        raise Unable(f"HOST: {host} is not an address of this machine ({error.strerror}).") from None
    return listener
