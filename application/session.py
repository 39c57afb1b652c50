"""One database transaction as use cases see it: what they find, lock, load and append in it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

import msgspec
from eventsourcing.persistence import StoredEvent

from application.mapper import Recorded
from domain.projection import Stop


class Superseded(Exception):  # noqa: N818 - it says what happened
    """Another transaction was first (a version is taken, or two waited for each other): load and decide again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    stream_id: UUID
    version: int
    shape: int
    state: bytes


class From(NamedTuple):
    """Where a stream is read from: its snapshot of this shape if it has one, or else what follows version `after`."""

    shape: int = 0
    after: int = 0


class DuePipeline(msgspec.Struct, frozen=True):
    """A pipeline whose next slot has come, as its row says. It stays so for as long as its customer is held."""

    config_id: str
    customer_id: str
    provider: str
    domain: str
    template: str
    cron: str
    timezone: str
    next_run_time: datetime
    date_offset_days: int
    catch_up: str
    overlap: str
    jitter_seconds: int
    parameters: Mapping[str, Any]
    active_runs: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One part `of` so many equal ones that all customers are divided into."""

    number: int
    of: int


ONE_LANE: Final = Lane(0, 1)


@dataclass(frozen=True, slots=True)
class Lease:
    """A run that a worker holds for a while, by the database's clock; `begun` once the worker executes it."""

    run_id: str
    customer_id: str
    worker_id: str
    attempt: int
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """A worker that has nothing to do, and the offer by which it said so."""

    offer_id: UUID
    worker_id: str


class Locked(NamedTuple):
    """What was `found` once customers were held, `since` when by the database's clock; and a worker, if one is idle."""

    since: datetime
    found: Sequence[Snapshot | StoredEvent]
    idle: Idle | None = None


@dataclass(frozen=True, slots=True)
class DueAccount:
    """A billing account that something is to be done about, as its row says."""

    stripe_customer_id: str
    live: bool


class Session(Protocol):
    """One database transaction: what use cases find, lock, load and append in it."""

    def now(self) -> datetime:
        """The database's clock, for leases: workers' own clocks may be wrong."""

    def take_up(self, command_id: str, command: str) -> bool:
        """Note that a command is carried out in this transaction; False when another one has done so.

        Waits for a transaction that has taken it up and not ended. To be called before anything else is locked.
        """

    def was_taken_up(self, command_id: str, command: str) -> bool:
        """Whether a transaction that was committed has carried the command out."""

    def lock_customers(self, customer_ids: Sequence[str]) -> datetime:
        """Hold the rows of these customers, in the order of their ids, until the transaction ends.

        Returns what the database's clock showed once all were held.
        """

    def lock_and_load(
        self, customer_ids: Sequence[str], wanted: Mapping[UUID, From], *, seeking: bool = False
    ) -> Locked:
        """`lock_customers`, and then `load`, in one question to the database.

        When `seeking`, also for a worker that is idle: nobody else finds that one until the transaction ends.
        """

    def load(self, wanted: Mapping[UUID, From]) -> Sequence[Snapshot | StoredEvent]:
        """These streams, one after the other, each in order: its snapshot, and the events after that."""

    def append(
        self,
        recorded: Sequence[Recorded],
        stored: Sequence[StoredEvent],
        snapshots: Sequence[Snapshot],
        *,
        new_runs: bool = False,
    ) -> None:
        """Append events, with the rows that follow from them. Nothing is asked after that.

        When a version is taken, the transaction ends with `Superseded`. Of runs that begin here no row is expected
        either when they are `new_runs`, and one that is there all the same has the same end.
        """

    def lock_runs(self, run_ids: Sequence[str]) -> None:
        """Hold the queue rows and leases of these runs, from whatever is read next on.

        Locks are taken in one order everywhere: queue, leases, customers by id, idle workers, log. A lease comes into
        being under its queue row's lock only, or with it, so that whoever holds the row sees the lease.
        """

    def due_customers(
        self, now: datetime, limit: int, lane: Lane, besides: Collection[str] = frozenset()
    ) -> Mapping[str, int]:
        """The customers of the `limit` pipelines, `besides` these, that are the longest due, and how many each has.

        Only customers of this lane.
        """

    def due_pipelines(
        self, customer_ids: Sequence[str], now: datetime, limit: int, besides: Collection[str] = frozenset()
    ) -> Sequence[DuePipeline]:
        """Due pipelines, `besides` these, of customers that are locked already, the longest due first."""

    def overlapped_runs(self, customer_ids: Sequence[str], now: datetime) -> Mapping[str, Sequence[str]]:
        """The scheduled runs that wait or run for due pipelines whose overlap is cancel_running, by config_id."""

    def claimable_runs(self, limit: int, run_id: str | None) -> Sequence[tuple[str, str]]:
        """Lock waiting runs whose customers seem to have a place free, in fair order: (run_id, customer_id)."""

    def configurations(
        self, wanted: Iterable[tuple[str, str, str]]
    ) -> Mapping[tuple[str, str, str], Mapping[str, Any]]:
        """The newest provider configuration of each (customer_id, provider, domain) that has one."""

    def take_leases(self, leases: Sequence[Lease], seconds: float) -> None:
        """Leases run for `seconds` by the database's clock."""

    def hand_over(self, lease: Lease, to: Idle, seconds: float) -> None:
        """Lease a run to a worker that was found idle; it is told when the transaction commits."""

    def drop_leases(self, run_ids: Sequence[str]) -> None: ...

    def ask_to_stop(self, run_ids: Sequence[str]) -> None:
        """Mark the runs' leases: their workers stop them at the next heartbeat."""

    def expired_leases(self, limit: int, besides: Collection[str] = frozenset()) -> Sequence[Lease]:
        """Lock leases that ran out, `besides` those of these runs, with their queue rows.

        Those that another transaction holds are left to it.
        """

    def lock_stop(self, projection: str) -> Stop | None:
        """Hold the projection's checkpoint, before all other locks; the event that it stands stopped at."""

    def unfinished_runs(self, customer_id: str, besides: Collection[str] = frozenset()) -> Sequence[str]:
        """All runs of this customer, `besides` these, that wait or run, as their rows say; by their ids."""

    def note_erasure(self, customer_id: str, at: datetime) -> None:
        """Note, with the event that erases the customer, that what is kept beside the log has to go."""

    def lock_billing(self, stripe_customer_id: str) -> None:
        """Hold this customer of Stripe's, known or not, before all other locks and before its account is loaded."""

    def due_billing(self, now: datetime, limit: int, besides: Collection[str] = frozenset()) -> Sequence[DueAccount]:
        """Hold accounts, `besides` these, that something is to be done about: access ends, or a customer came or went.

        The longest due first. Those that another transaction holds are left to it.
        """

    def onboarded_with(self, stripe_customer_id: str) -> Sequence[str]:
        """The customers that name this customer of Stripe's; whether rightly, they have to be asked."""

    def running_runs(self, customer_id: str) -> Sequence[str]:
        """The runs of this customer that are RUNNING and hold a concurrent place."""


class Store(Protocol):
    """Where the log is kept."""

    def transaction(self) -> AbstractContextManager[Session]:
        """Commits at the end, rolls back on an exception. Raises `Away` when the database is away."""
