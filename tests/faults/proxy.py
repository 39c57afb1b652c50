"""A network between the service and its PostgreSQL that can be cut, go silent, and lose the answer to a COMMIT."""

import re
import socket
import threading
from contextlib import suppress
from enum import Flag, auto
from typing import Self
from urllib.parse import urlsplit

COMMIT = re.compile(rb"Q\x00\x00\x00\x0bCOMMIT\x00|P\x00\x00\x00\x0e\x00COMMIT\x00\x00\x00")
"""As a query of its own, and as a statement among others that are sent together."""
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
APPENDS = re.compile(rb'"t":"[a-z.-]+@\d')
"""What an event's topic looks like on its way into the log."""


class Way(Flag):
    """A direction, or both."""

    UP = auto()
    DOWN = auto()
    BOTH = UP | DOWN


class Link:
    """One client's connection through the proxy."""

    def __init__(self, proxy: "Proxy", client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = server
        self.sent = b""
        self.dooms = False
        self.threads = [
            threading.Thread(target=self._pump, args=(Way.UP, client, server), daemon=True),
            threading.Thread(target=self._pump, args=(Way.DOWN, server, client), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _pump(self, way: Way, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if way is Way.UP and not self._lets_up(data):
                    break
                if self.proxy.silent & way:
                    continue  # taken, acknowledged by the kernel, and never forwarded
                if way is Way.DOWN and self.dooms and COMMITTED in data:
                    self.proxy.answers_lost += 1
                    break
                sink.sendall(data)
        # That one end has hung up is lost too.
        self.proxy.heard.wait()
        self.close()

    def _lets_up(self, data: bytes) -> bool:
        """Whether this goes on to the server; notices a COMMIT of events that is to be lost."""
        self.sent += data
        if COMMIT.search(self.sent) is None:
            return True
        appended, self.sent = APPENDS.search(self.sent) is not None, b""
        if not appended:
            return True
        if self.proxy.take("lost"):
            self.dooms = True
        if self.proxy.take("silenced"):
            self.proxy.fall_silent(self.proxy.silence)
            return True
        return not self.proxy.take("cut before")


class Proxy:
    """Forwards to the PostgreSQL of a DSN; `dsn` leads through it. Everything can be told while it works.

    Silent directions take what is sent and forward nothing, on old and new connections: both ends believe in a network
    that is merely slow. What was sent meanwhile is lost also after it speaks again.
    """

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        self._target = (parts.hostname, parts.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        port = self._listening.getsockname()[1]
        self.dsn = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{port}")).geturl()
        self.silent = self.silence = Way(0)
        self.heard = threading.Event()
        self.heard.set()
        self.answers_lost = 0
        self._asked: dict[str, int] = {}
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        self.cut()

    def lose_answers(self, count: int = 1) -> None:
        """The next so many COMMITs of events are carried out; their connections end before the answer comes back."""
        self._ask("lost", count)

    def cut_before_commits(self, count: int = 1) -> None:
        """The next so many COMMITs of events never reach the server: their connections end before."""
        self._ask("cut before", count)

    def fall_silent(self, way: Way = Way.BOTH) -> None:
        """Swallow what goes this way, from now on."""
        self.silent = way
        self.heard.clear()

    def fall_silent_at_commit(self, way: Way = Way.BOTH) -> None:
        """Swallow what goes this way from the next COMMIT of events on, that one included."""
        self.silence = way
        self._ask("silenced", 1)

    def speak(self) -> None:
        """Forward again."""
        self.silent = Way(0)
        self.heard.set()

    def cut(self) -> None:
        """End every connection there is."""
        self.heard.set()
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.close()
            for thread in link.threads:
                thread.join()

    def _ask(self, what: str, count: int) -> None:
        with self._lock:
            self._asked[what] = count

    def take(self, what: str) -> bool:
        """Whether this is one of those that were asked for."""
        with self._lock:
            left = self._asked.get(what, 0)
            self._asked[what] = max(0, left - 1)
        return left > 0

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                try:
                    server = socket.create_connection(self._target)
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._links.append(Link(self, client, server))
