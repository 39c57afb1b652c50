"""A server that says nothing: how a connection tells one that works for long from one that is cut off from us.

The kernel notices a peer whose machine is gone. It does not notice one that is stopped, nor a proxy in between that
takes everything and forwards nothing: a statement sent to those would be waited for without an end.
"""

import select
import socket
import time
from collections.abc import Generator
from typing import Any, Final, TypeVar

import psycopg
from psycopg.pq import PipelineStatus
from psycopg.rows import Row
from psycopg.waiting import Ready, Wait

Result = TypeVar("Result")

QUIET_S: Final = 1.5
"""A server that has said nothing for so long is asked whether it is there."""
ANSWER_S: Final = 2.5
_AGAIN_S: Final = 5.0
_AT_ONCE: Final = 16
"""How often in one wait something is sent without asking: a wait that only sends does not ask for ever."""
_SSL_REQUEST: Final = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
"""What a client may begin with, before it says who it is: every server and every pooler answers with a byte."""


class AttentiveConnection(psycopg.Connection[Row]):
    """Waits for a statement as long as its server is there.

    While it waits in silence it asks the server beside the connection; once that gives no answer either, the statement
    raises `OperationalError`, within `QUIET_S + ANSWER_S` seconds of the last word, and the connection is closed.

    The statements of a pipeline go out as they come, without asking first whether the network takes them: what it does
    not take yet is sent while answers are waited for. The driver would wait for an answer to what is not sent.
    """

    def wait(self, gen: Generator[Any, Any, Result], *args: Any, **options: Any) -> Result:  # noqa: ANN401 - the driver's own
        """As the driver's; the statement ends with the server."""
        return super().wait(self._listening(gen), *args, **options)

    def _listening(self, gen: Generator[Any, Any, Result]) -> Generator[Any, Any, Result]:
        piped = self.pgconn.pipeline_status != PipelineStatus.OFF
        at_once = _AT_ONCE if piped else 0
        ask_at = time.monotonic() + QUIET_S
        try:
            state = next(gen)
            while True:
                if at_once and state == Wait.RW:
                    at_once -= 1
                    state = gen.send(Ready.W)
                    continue
                unsent = piped and state == Wait.R and self._has_unsent()
                ready = yield Wait.RW if unsent else state
                now = time.monotonic()
                if ready:
                    ask_at = now + QUIET_S
                elif now >= ask_at:
                    if not self._answers():
                        self.close()
                        raise psycopg.OperationalError("the server says nothing and does not answer")
                    ask_at = time.monotonic() + _AGAIN_S
                if not unsent:
                    state = gen.send(ready)
                elif ready & Ready.R:
                    state = gen.send(Ready.R)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _has_unsent(self) -> bool:
        """Whether the network has not taken all of what was sent, as far as it takes it now."""
        try:
            return self.pgconn.flush() != 0
        except psycopg.OperationalError:
            return False  # whoever reads next is told

    def check(self) -> None:
        """Raise `OperationalError` when the server has ended the connection while nobody used it. Asks nothing."""
        said = select.poll()
        said.register(self.pgconn.socket, select.POLLIN)
        while said.poll(0):
            self.pgconn.consume_input()

    def _answers(self) -> bool:
        host = self.info.hostaddr or self.info.host
        if host.startswith(("/", "@")):
            return True  # on this machine there is no network in between
        try:
            with socket.create_connection((host, self.info.port), timeout=ANSWER_S) as asked:
                asked.sendall(_SSL_REQUEST)
                return bool(asked.recv(1))
        except OSError:
            return False
