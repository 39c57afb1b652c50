"""Streams as a transaction sees them: how each kind folds, and what was decided in one so far."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar
from uuid import UUID

import msgspec
from eventsourcing.persistence import StoredEvent

from application.mapper import EventMapper, UnreadableEvent
from application.remembered import Memory
from application.session import Snapshot
from domain import billing, customer, pipeline_run, projection, subscription
from domain.billing import BillingAccount
from domain.billing_events import BillingEvent
from domain.customer import Customer
from domain.customer_events import CustomerEvent
from domain.envelope import Origin
from domain.pipeline_run import PipelineRun
from domain.projection import EventSkipped, Projection
from domain.refusals import NotFound
from domain.run_events import RunEvent
from domain.subscription import Subscription
from domain.subscription_events import SubscriptionEvent


class Owned(Protocol):
    """The state of a stream: it knows whose it is."""

    @property
    def customer_id(self) -> str: ...


State = TypeVar("State", bound=Owned)
Event = TypeVar("Event")
SNAPSHOT_EVERY: Final = 1
"""Events between two snapshots of a subscription. One small row is rewritten with every append, which costs less than
decoding and folding even a dozen events at every claim and every outcome (measured: 600 runs/s against 450)."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[State, Event]):
    """A kind of stream: how its events fold, and how its state is kept as a snapshot, if at all."""

    name: str
    evolve: Callable[[State | None, Event], State]
    decoder: "msgspec.json.Decoder[State] | None" = None
    shape: int = 0
    """Goes up when the state's fields or its fold change: older snapshots are then passed over. 0 has none."""
    remembered: bool = False
    """Whether a process remembers the states of such streams: those that many commands load and few change much."""

    def restored(self, state: bytes) -> State:
        """The state as a snapshot of this shape keeps it."""
        if self.decoder is None:
            raise TypeError(f"There are no snapshots of {self.name} streams.")
        return self.decoder.decode(state)


CUSTOMER: Final[Kind[Customer, CustomerEvent]] = Kind("customer", customer.evolve, remembered=True)
SUBSCRIPTION: Final[Kind[Subscription, SubscriptionEvent]] = Kind(
    "subscription", subscription.evolve, msgspec.json.Decoder(Subscription), shape=3
)
RUN: Final[Kind[PipelineRun, RunEvent]] = Kind("run", pipeline_run.evolve)
PROJECTION: Final[Kind[Projection, EventSkipped]] = Kind("projection", projection.evolve)
BILLING: Final[Kind[BillingAccount, BillingEvent]] = Kind("billing", billing.evolve)

_UNFIT: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What folding an event raises that does not fit the state before it."""
_BY_ITSELF: Final = frozenset({"worker", "service"})


class Stream(Generic[State, Event]):
    """One stream inside a transaction: its state, and the events decided so far.

    One that is `unreadable` has no state, and says so when it is asked for it.
    """

    __slots__ = (
        "began",
        "customer_id",
        "kind",
        "last",
        "latest",
        "pending",
        "state",
        "stream_id",
        "unreadable",
        "version",
    )

    def __init__(self, kind: Kind[State, Event], stream_id: UUID, customer_id: str) -> None:
        self.kind = kind
        self.stream_id = stream_id
        self.customer_id = customer_id
        self.state: State | None = None
        self.version = 0
        self.pending: list[Event] = []
        self.began: Origin | None = None
        self.latest: Origin | None = None
        self.last: StoredEvent | None = None
        self.unreadable: UnreadableEvent | None = None

    @property
    def exists(self) -> bool:
        self._must_be_readable()
        return self.state is not None

    def must(self, missing: str) -> State:
        """The state; raises `NotFound(missing)` for a stream without events, or of another customer than was said."""
        self._must_be_readable()
        if self.state is None or self.state.customer_id != self.customer_id:
            raise NotFound(missing)
        return self.state

    def recall(self, memory: Memory) -> None:
        """Be in a state that is remembered; what the log holds after it is to be read next."""
        self.state = memory.state
        self.last, self.began, self.latest = memory.last, memory.began, memory.latest
        self.version = memory.last.originator_version

    @property
    def memory(self) -> Memory | None:
        """What is worth remembering of the stream once everything that was decided is stored."""
        if not self.kind.remembered or self.state is None:
            return None
        if self.last is None or self.began is None or self.latest is None:
            return None
        return Memory(self.state, self.last, self.began, self.latest)

    def read(self, stored: Snapshot | StoredEvent, mapper: EventMapper) -> None:
        """Take in what is stored next: a snapshot, or an event."""
        if isinstance(stored, Snapshot):
            self.state = self.kind.restored(stored.state)
            self.version = stored.version
        elif self.unreadable is None:
            try:
                for recorded in mapper.to_domain_events(stored):
                    event: Any = recorded.event
                    self.state = self.kind.evolve(self.state, event)
                    self.latest = recorded.envelope.by
            except UnreadableEvent as error:
                self.state, self.unreadable = None, error
            except _UNFIT:
                self.state = None
                self.unreadable = UnreadableEvent(stored, "it does not follow from the events before it.")
            self.began = self.began or self.latest
            self.version = stored.originator_version
            self.last = stored

    def append(self, events: Iterable[Event]) -> None:
        """Add decided events, to be stored when the transaction ends; the state moves on at once."""
        self._must_be_readable()
        for event in events:
            self.state = self.kind.evolve(self.state, event)
            self.pending.append(event)

    def stored(self, last: StoredEvent, by: Origin) -> None:
        """What was decided is in the log now, up to this event, caused `by`."""
        self.version, self.last = last.originator_version, last
        self.began, self.latest, self.pending = self.began or by, by, []

    def _must_be_readable(self) -> None:
        if self.unreadable is not None:
            raise self.unreadable

    def origin(self, by: Origin) -> Origin:
        """`by`, as the stream's events are to name it.

        What the service does by itself to a run belongs to what asked for the run, what it does to a billing account to
        what Stripe told of it: one command does it to many.
        """
        begun_elsewhere = self.kind is RUN or self.kind is BILLING
        if not begun_elsewhere or self.began is None or self.latest is None or by.kind not in _BY_ITSELF:
            return by
        return by.carrying_on(self.began, self.latest)
