"""A network that breaks when it is told to: connections cut inside a transaction, answers lost after a commit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from adapters.postgres.store import PostgresSession, PostgresStore
from application.command import Command
from application.mapper import EventMapper
from application.platform import Platform, Transaction
from application.ports import Away
from tests.simulation.virtual_clock import VirtualClock

Result = TypeVar("Result")

_LOCKLESS = frozenset({"now", "due_customers", "overlapped_runs"})
"""What a transaction may have done so far without holding anything that others would wait for."""


class _Session:
    """A session that counts what is asked of it, and loses its connection before the call that was chosen."""

    def __init__(self, real: PostgresSession, store: "FaultyStore") -> None:
        self._real = real
        self._store = store
        self._lockless = True

    def __getattr__(self, name: str) -> Callable[..., Any]:
        asked = getattr(self._real, name)

        def ask(*given: Any, **named: Any) -> Any:
            self._store.before_call(self._real)
            self._lockless &= name in _LOCKLESS
            answer = asked(*given, **named)
            if self._lockless:
                self._store.pause()
            return answer

        return ask


class FaultyStore:
    """The real store. `cut_before` is after how many calls the next transaction loses its connection, None for never.

    `meanwhile` is done once, by somebody else, while the next transaction stands between its first `looks` and its
    locks.
    """

    def __init__(self, real: PostgresStore, clock: VirtualClock) -> None:
        self._real = real
        self._clock = clock
        self.cut_before: int | None = None
        self.meanwhile: Callable[[], object] | None = None
        self.looks = 1

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._real.transaction() as session:
            yield _Session(session, self)
            if self.cut_before is not None:
                self._cut(session)

    def before_call(self, session: PostgresSession) -> None:
        if self.cut_before is not None:
            self.cut_before -= 1
            if self.cut_before < 0:
                self._cut(session)

    def _cut(self, session: PostgresSession) -> None:
        self.cut_before = None
        self._clock.cut(session._cursor.connection.info.backend_pid)

    def pause(self) -> None:
        """Let somebody else act now, if that was asked for."""
        self.looks -= 1
        if self.looks <= 0 and self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            act()


class FaultyPlatform(Platform):
    """The real platform. While `silent`, the next transaction commits and its answer is lost: it is in `unheard`."""

    def __init__(self, store: FaultyStore, mapper: EventMapper) -> None:
        super().__init__(store, mapper)
        self.silent = False
        self.unheard: list[Any] = []

    def transact(self, command: Command, work: Callable[[Transaction], Result], *, of_many: bool = False) -> Result:
        result = super().transact(command, work, of_many=of_many)
        if self.silent:
            self.silent = False
            self.unheard.append(result)
            raise Away("The connection was lost before the answer came.")
        return result
