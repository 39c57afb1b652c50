"""The service on a virtual database, with its faults, and the book of what it must have done."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from adapters.postgres import leases, offers
from adapters.postgres.checkpoints import PostgresLog
from adapters.postgres.claims import Picker
from adapters.postgres.store import PostgresStore
from application import execution, runs, scheduling
from application.ports import Away
from domain.envelope import Origin
from domain.refusals import Refusal
from tests.application.world import World
from tests.simulation.book import Book
from tests.simulation.faults import FaultyPlatform, FaultyStore
from tests.simulation.timetable import Timetable
from tests.simulation.virtual_clock import VirtualClock


@dataclass(frozen=True)
class UseCases:
    """What is tried out. Another function in one of these places is a mutant, which the book must notice."""

    request: Callable[..., Any] = runs.request_run
    claim: Callable[..., Any] = execution.claim_runs
    renew: Callable[..., Any] = leases.renew
    report: Callable[..., Any] = execution.report_outcomes
    take_over: Callable[..., Any] = execution.take_over
    trigger: Callable[..., Any] = scheduling.trigger_schedules
    take_up: Callable[..., Any] = offers.take_up


@dataclass(frozen=True)
class Answer:
    """What came of a deed: whether anything was stored, whether the caller was told, and what it would have been."""

    happened: bool
    heard: bool
    value: Any = None
    refusal: Refusal | None = None


class Life:
    """The service on a virtual database, and the book of what it must have done."""

    def __init__(self, dsn: str, key_file: Path, clock: VirtualClock, seed: int, use: UseCases | None = None) -> None:
        self.clock = clock
        self.chance = random.Random(seed)  # noqa: S311 - the same every time is what is wanted
        self.use = use or UseCases()
        self.world = World(dsn, key_file, size=2)
        picker = Picker(random.Random(seed))  # noqa: S311
        self.store = FaultyStore(PostgresStore(self.world.datastore, picker), clock)
        self.platform = FaultyPlatform(self.store, self.world.mapper)
        self.log = PostgresLog(self.world.store.recorder, self.world.mapper)
        self.book = Book()
        self.timetable = Timetable()
        self._lines: dict[str, psycopg.Connection] = {}

    def close(self) -> None:
        for offer_id in list(self._lines):
            self.hang_up(offer_id)
        self.world.close()

    def call(self, offer_id: str) -> None:
        """A worker listens under this name from now on."""
        self._lines[offer_id] = line = psycopg.connect(self.world.dsn, autocommit=True)
        line.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (offers.OFFER_LOCK, offer_id))

    def hang_up(self, offer_id: str) -> None:
        """It listens no more, and the database knows."""
        line = self._lines.pop(offer_id)
        backend = line.info.backend_pid
        line.close()
        self.clock.cut(backend)

    @property
    def now(self) -> datetime:
        return self.clock.now

    def new_id(self) -> str:
        return str(UUID(int=self.chance.getrandbits(128), version=4))

    def stamp(self, actor: str, at: datetime) -> dict[str, Any]:
        command = self.new_id()
        return {"at": at, "by": Origin(actor=actor, command_id=command, correlation_id=command)}

    def attempt(self, act: Callable[[], Any]) -> Answer:
        """Do something that may be refused, cut off, or left without an answer."""
        try:
            return Answer(happened=True, heard=True, value=act())
        except Refusal as refusal:
            return Answer(happened=True, heard=True, refusal=refusal)
        except Away:
            if not self.platform.unheard:
                # Whole again before anything else goes on, so that nothing depends on how quick that is.
                with suppress(Away), self.world.datastore.reading() as cursor:
                    cursor.execute("SELECT 1")
                return Answer(happened=False, heard=False)
            value = self.platform.unheard.pop()
            unheard = value if isinstance(value, Refusal) else None
            return Answer(happened=True, heard=False, value=value, refusal=unheard)
        finally:
            self.calm()

    def calm(self) -> None:
        """No more faults than have happened."""
        self.platform.silent, self.store.cut_before, self.store.meanwhile = False, None, None
