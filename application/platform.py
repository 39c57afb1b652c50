"""The event store as use cases see it: load streams, let them decide, append what they decided, in one transaction."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, overload
from uuid import UUID

import msgspec
from eventsourcing.persistence import StoredEvent
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from application.command import Command
from application.damage import Damage
from application.mapper import EventMapper, Recorded, UnreadableEvent, topic_of
from application.ports import Away
from application.session import Session, Snapshot, Store, Superseded
from domain import billing, customer, pipeline_run, projection, subscription
from domain.billing import BillingAccount
from domain.billing_events import BillingEvent
from domain.customer import Customer
from domain.customer_events import CustomerEvent
from domain.envelope import Envelope, Origin
from domain.identity import billing_stream, customer_stream, projection_stream, subscription_stream
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
Result = TypeVar("Result")

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

    def restored(self, state: bytes) -> State:
        """The state as a snapshot of this shape keeps it."""
        if self.decoder is None:
            raise TypeError(f"There are no snapshots of {self.name} streams.")
        return self.decoder.decode(state)


CUSTOMER: Final[Kind[Customer, CustomerEvent]] = Kind("customer", customer.evolve)
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

    __slots__ = ("began", "customer_id", "kind", "latest", "pending", "state", "stream_id", "unreadable", "version")

    def __init__(self, kind: Kind[State, Event], stream_id: UUID, customer_id: str) -> None:
        self.kind = kind
        self.stream_id = stream_id
        self.customer_id = customer_id
        self.state: State | None = None
        self.version = 0
        self.pending: list[Event] = []
        self.began: Origin | None = None
        self.latest: Origin | None = None
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

    def append(self, events: Iterable[Event]) -> None:
        """Add decided events, to be stored when the transaction ends; the state moves on at once."""
        self._must_be_readable()
        for event in events:
            self.state = self.kind.evolve(self.state, event)
            self.pending.append(event)

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


Wanted = tuple[Kind[Any, Any], UUID, str]
"""A stream's kind, its id, and whose it is."""
Ask = Callable[[Mapping[UUID, int]], Sequence[Snapshot | StoredEvent]]


class Held(NamedTuple):
    """Customers who are locked, `since` when by the database's clock, and what was loaded then."""

    since: datetime
    subscriptions: Mapping[str, Stream[Subscription, SubscriptionEvent]]
    runs: Sequence[Stream[PipelineRun, RunEvent]]


def _wanted(subscriptions: Sequence[str], runs: Sequence[tuple[UUID, str]]) -> list[Wanted]:
    return [
        *((SUBSCRIPTION, subscription_stream(customer_id), customer_id) for customer_id in subscriptions),
        *((RUN, run_id, customer_id) for run_id, customer_id in runs),
    ]


class Transaction:
    """Streams loaded and appended to together.

    What cannot be read is told to `damage`. Loading it raises `UnreadableEvent`, unless `of_many` says that the command
    passes such streams over for the sake of all others.
    """

    def __init__(
        self, session: Session, mapper: EventMapper, command: Command, damage: Damage, *, of_many: bool = False
    ) -> None:
        self.session = session
        self._mapper = mapper
        self._command = command
        self._damage = damage
        self._of_many = of_many
        self._streams: dict[UUID, Stream[Any, Any]] = {}

    def customer(self, customer_id: str) -> Stream[Customer, CustomerEvent]:
        return self.customers([customer_id])[customer_id]

    def customers(self, customer_ids: Sequence[str]) -> dict[str, Stream[Customer, CustomerEvent]]:
        wanted = [(CUSTOMER, customer_stream(c), c) for c in customer_ids]
        return dict(zip(customer_ids, self._load(wanted), strict=True))

    def subscription(self, customer_id: str) -> Stream[Subscription, SubscriptionEvent]:
        return self.subscriptions([customer_id])[customer_id]

    def subscriptions(self, customer_ids: Sequence[str]) -> dict[str, Stream[Subscription, SubscriptionEvent]]:
        return self.load(customer_ids, [])[0]

    def run(self, run_id: UUID, customer_id: str) -> Stream[PipelineRun, RunEvent]:
        return self.runs([(run_id, customer_id)])[run_id]

    def projection(self, name: str) -> Stream[Projection, EventSkipped]:
        stream: Stream[Projection, EventSkipped] = self._load([(PROJECTION, projection_stream(name), "")])[0]
        return stream

    def billing_accounts(self, stripe_ids: Sequence[str], *, live: bool) -> list[Stream[BillingAccount, BillingEvent]]:
        """The accounts of these customers of Stripe's, in their order."""
        return self._load([(BILLING, billing_stream(stripe_id, live=live), "") for stripe_id in stripe_ids])

    def runs(self, runs: Sequence[tuple[UUID, str]]) -> dict[UUID, Stream[PipelineRun, RunEvent]]:
        return {stream.stream_id: stream for stream in self.load([], runs)[1]}

    def load(
        self, subscriptions: Sequence[str], runs: Sequence[tuple[UUID, str]]
    ) -> tuple[dict[str, Stream[Subscription, SubscriptionEvent]], list[Stream[PipelineRun, RunEvent]]]:
        """The subscriptions of these customers, and these runs, each with whose it is, in their order: all at once."""
        streams = self._load(_wanted(subscriptions, runs))
        return dict(zip(subscriptions, streams, strict=False)), streams[len(subscriptions) :]

    def hold(self, customer_ids: Sequence[str], runs: Sequence[tuple[UUID, str]]) -> Held:
        """`lock` these customers, and then `load` their subscriptions and these runs: all at once."""
        since: list[datetime] = []

        def ask(shapes: Mapping[UUID, int]) -> Sequence[Snapshot | StoredEvent]:
            at, found = self.session.lock_and_load(sorted(set(customer_ids)), shapes)
            since.append(at)
            return found

        streams = self._load(_wanted(customer_ids, runs), ask)
        subscriptions = dict(zip(customer_ids, streams, strict=False))
        return Held(since[0], subscriptions, streams[len(customer_ids) :])

    @property
    def repeated(self) -> bool:
        """Whether the command was carried out before, and is sent again."""
        command = self._command
        return command.once and self.session.was_taken_up(command.by.command_id, type(command).__name__)

    def lock(self, customer_ids: Iterable[str]) -> datetime:
        """Hold these customers against other deciders, before their streams are loaded; since when, by the database."""
        return self.session.lock_customers(sorted(set(customer_ids)))

    def _load(self, wanted: Sequence[Wanted], ask: Ask | None = None) -> list[Stream[Any, Any]]:
        missing = {i: Stream(kind, i, c) for kind, i, c in wanted if i not in self._streams}
        if missing or ask:
            for found in (ask or self.session.load)({i: stream.kind.shape for i, stream in missing.items()}):
                stream = missing[found.stream_id if isinstance(found, Snapshot) else found.originator_id]  # type: ignore[index]
                stream.read(found, self._mapper)
            for stream in missing.values():
                if stream.unreadable is not None:
                    self._damage.tell(stream.unreadable)
                    if not self._of_many:
                        raise stream.unreadable
            self._streams.update(missing)
        return [self._streams[i] for _, i, _ in wanted]

    def flush(self) -> None:
        """Append everything decided so far, stream by stream in the order of their loading."""
        recorded: list[Recorded] = []
        snapshots: list[Snapshot] = []
        for stream in self._streams.values():
            before = stream.version
            by = stream.origin(self._command.by) if stream.pending else self._command.by
            for event in stream.pending:
                stream.version += 1
                envelope = Envelope(
                    stream_id=stream.stream_id,
                    version=stream.version,
                    topic=topic_of(event),
                    customer_id=stream.customer_id,
                    at=self._command.at,
                    by=by,
                )
                recorded.append(Recorded(event, envelope))
            stream.pending = []
            if stream.kind.decoder is not None and stream.version // SNAPSHOT_EVERY > before // SNAPSHOT_EVERY:
                state = msgspec.json.encode(stream.state)
                snapshots.append(Snapshot(stream.stream_id, stream.version, stream.kind.shape, state))
        if recorded:
            stored = [self._mapper.to_stored_event(r) for r in recorded]
            self.session.append(recorded, stored, snapshots)


class Platform:
    """Runs use cases against the log."""

    def __init__(self, store: Store, mapper: EventMapper) -> None:
        self._store = store
        self._mapper = mapper
        self._damage = Damage()

    def transact(self, command: Command, work: Callable[[Transaction], Result], *, of_many: bool = False) -> Result:
        """Do `work` and store what it decided, all or nothing.

        When another process took a version first, everything is loaded and decided again, a few times. Refusals pass
        through and store nothing. Raises `Away` when the database is away, and `UnreadableEvent` when a stream cannot
        be loaded: work on streams `of_many` customers is given it all the same, and is to pass it over.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(Superseded),
            stop=stop_after_attempt(10),
            wait=wait_random_exponential(multiplier=0.005, max=0.5),
        )
        try:
            result: Result = retrying(self._once, command, work, of_many=of_many)
        except RetryError:
            raise Away("Too many others are changing the same thing. Try again.") from None
        return result

    @overload
    def once(self, command: Command, work: Callable[[Transaction], None]) -> None: ...

    @overload
    def once(
        self, command: Command, work: Callable[[Transaction], Result], again: Callable[[Transaction], Result]
    ) -> Result: ...

    def once(
        self,
        command: Command,
        work: Callable[[Transaction], Any],
        again: Callable[[Transaction], Any] = lambda _: None,
    ) -> Any:
        """As `transact`, and a command that its sender named is carried out once, whatever became of the answer.

        That it was is stored with what it did. Sent again, it decides nothing: `again` says what there is to answer.
        Commands whose every effect has an identity of its own (a run, a slot) do not need this.
        """

        def first(tx: Transaction) -> Any:  # noqa: ANN401 - what `work` or `again` answer
            if tx.session.take_up(command.by.command_id, type(command).__name__):
                return work(tx)
            return again(tx)

        return self.transact(command, first if command.once else work)

    def history(self, stream_id: UUID) -> list[Recorded]:
        """Every event of one stream in its envelope, oldest first; empty for a stream that never was."""
        with self._store.transaction() as session:
            stored = session.load({stream_id: 0})
        return [r for e in stored if isinstance(e, StoredEvent) for r in self._mapper.to_domain_events(e)]

    def _once(self, command: Command, work: Callable[[Transaction], Result], *, of_many: bool = False) -> Result:
        with self._store.transaction() as session:
            transaction = Transaction(session, self._mapper, command, self._damage, of_many=of_many)
            result = work(transaction)
            transaction.flush()
        return result
