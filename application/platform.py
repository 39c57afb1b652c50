"""The event store as use cases see it: load streams, let them decide, append what they decided, in one transaction."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeVar, overload
from uuid import UUID

import msgspec
from eventsourcing.persistence import StoredEvent
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from application.command import Command
from application.damage import Damage
from application.mapper import EventMapper, Recorded, topic_of
from application.ports import Away
from application.remembered import Memory, Remembered
from application.session import From, Idle, Locked, Session, Snapshot, Store, Superseded
from application.streams import BILLING, CUSTOMER, PROJECTION, RUN, SNAPSHOT_EVERY, SUBSCRIPTION, Kind, Stream
from domain.billing import BillingAccount
from domain.billing_events import BillingEvent
from domain.customer import Customer
from domain.customer_events import CustomerEvent
from domain.envelope import Envelope
from domain.identity import billing_stream, customer_stream, projection_stream, subscription_stream
from domain.pipeline_run import PipelineRun
from domain.projection import EventSkipped, Projection
from domain.run_events import RunEvent
from domain.subscription import Subscription
from domain.subscription_events import SubscriptionEvent

Result = TypeVar("Result")

Wanted = tuple[Kind[Any, Any], UUID, str]
"""A stream's kind, its id, and whose it is."""
Ask = Callable[[Mapping[UUID, From]], Sequence[Snapshot | StoredEvent]]


class Held(NamedTuple):
    """Customers who are locked, `since` when by the database's clock, and what was loaded then.

    `idle` is a worker that has nothing to do, where one was sought.
    """

    since: datetime
    subscriptions: Mapping[str, Stream[Subscription, SubscriptionEvent]]
    runs: Sequence[Stream[PipelineRun, RunEvent]]
    idle: Idle | None = None


def _wanted(subscriptions: Sequence[str], runs: Sequence[tuple[UUID, str]]) -> list[Wanted]:
    return [
        *((SUBSCRIPTION, subscription_stream(customer_id), customer_id) for customer_id in subscriptions),
        *((RUN, run_id, customer_id) for run_id, customer_id in runs),
    ]


def _stream_of(stored: Snapshot | StoredEvent) -> UUID:
    return stored.stream_id if isinstance(stored, Snapshot) else stored.originator_id  # type: ignore[return-value]


class Transaction:
    """Streams loaded and appended to together.

    What cannot be read is told to `damage`. Loading it raises `UnreadableEvent`, unless `of_many` says that the command
    passes such streams over for the sake of all others.
    """

    def __init__(
        self,
        session: Session,
        mapper: EventMapper,
        command: Command,
        damage: Damage,
        remembered: Remembered,
        *,
        of_many: bool = False,
    ) -> None:
        self.session = session
        self._mapper = mapper
        self._remembered = remembered
        self._command = command
        self._damage = damage
        self._of_many = of_many
        self._streams: dict[UUID, Stream[Any, Any]] = {}
        self._new_runs = False

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

    def new_runs(self, runs: Sequence[tuple[UUID, str]]) -> list[Stream[PipelineRun, RunEvent]]:
        """Runs that nobody has made, without a look: where somebody has, the transaction ends with `Superseded`."""
        streams = [Stream(RUN, run_id, customer_id) for run_id, customer_id in runs]
        self._streams.update((stream.stream_id, stream) for stream in streams)
        self._new_runs = True
        return streams

    def load(
        self, subscriptions: Sequence[str], runs: Sequence[tuple[UUID, str]]
    ) -> tuple[dict[str, Stream[Subscription, SubscriptionEvent]], list[Stream[PipelineRun, RunEvent]]]:
        """The subscriptions of these customers, and these runs, each with whose it is, in their order: all at once."""
        streams = self._load(_wanted(subscriptions, runs))
        return dict(zip(subscriptions, streams, strict=False)), streams[len(subscriptions) :]

    def hold(self, customer_ids: Sequence[str], runs: Sequence[tuple[UUID, str]], *, seeking: bool = False) -> Held:
        """`lock` these customers, and then `load` their subscriptions and these runs: all at once.

        When `seeking`, also for a worker that could be handed a run.
        """
        locked, streams = self._hold(customer_ids, _wanted(customer_ids, runs), seeking=seeking)
        subscriptions = dict(zip(customer_ids, streams, strict=False))
        return Held(locked.since, subscriptions, streams[len(customer_ids) :], locked.idle)

    def held_customer(self, customer_id: str) -> Stream[Customer, CustomerEvent]:
        """`lock` the customer and load it, at once."""
        wanted = (CUSTOMER, customer_stream(customer_id), customer_id)
        stream: Stream[Customer, CustomerEvent] = self._hold([customer_id], [wanted])[1][0]
        return stream

    def held_account(
        self, customer_id: str
    ) -> tuple[Stream[Customer, CustomerEvent], Stream[Subscription, SubscriptionEvent]]:
        """`lock` the customer, and load it and its subscription, at once."""
        wanted = (CUSTOMER, customer_stream(customer_id), customer_id)
        _, [customer, subscription] = self._hold([customer_id], [wanted, *_wanted([customer_id], [])])
        return customer, subscription

    def _hold(
        self, customer_ids: Sequence[str], wanted: Sequence[Wanted], *, seeking: bool = False
    ) -> tuple[Locked, list[Stream[Any, Any]]]:
        answers: list[Locked] = []

        def ask(wanted: Mapping[UUID, From]) -> Sequence[Snapshot | StoredEvent]:
            answers.append(self.session.lock_and_load(sorted(set(customer_ids)), wanted, seeking=seeking))
            return answers[-1].found

        streams = self._load(wanted, ask)
        return answers[0], streams

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
            likely = [i for i, stream in missing.items() if stream.kind.remembered]
            known = {i: memory for i in likely if (memory := self._remembered.find(i)) is not None}
            self._read(missing, ask or self.session.load, known)
            for stream in missing.values():
                if stream.unreadable is not None:
                    self._damage.tell(stream.unreadable)
                    if not self._of_many:
                        raise stream.unreadable
            self._streams.update(missing)
        return [self._streams[i] for _, i, _ in wanted]

    def _read(self, streams: Mapping[UUID, Stream[Any, Any]], ask: Ask, known: Mapping[UUID, Memory]) -> None:
        """Read what the log holds of these streams; of `known` ones only what came after, if it bears them out."""
        after = {i: memory.last.originator_version - 1 for i, memory in known.items()}
        found = ask({i: From(stream.kind.shape, after.get(i, 0)) for i, stream in streams.items()})
        unproven = dict(known)
        for stream_id, group in groupby(found, _stream_of):
            stream, told = streams[stream_id], list(group)
            if stream_id in unproven:
                if told.pop(0) != unproven[stream_id].last:
                    continue
                stream.recall(unproven.pop(stream_id))
            for stored in told:
                stream.read(stored, self._mapper)
        if unproven:
            self._read({i: streams[i] for i in unproven}, self.session.load, {})

    def remember(self, since: int) -> None:
        """Remember what is worth it, after everything that was decided is stored; loaded `since` when, see `keep`."""
        for stream in self._streams.values():
            if (memory := stream.memory) is not None:
                self._remembered.keep(stream.stream_id, memory, since=since)

    def flush(self) -> None:
        """Append everything decided so far, stream by stream in the order of their loading."""
        recorded: list[Recorded] = []
        stored: list[StoredEvent] = []
        snapshots: list[Snapshot] = []
        for stream in self._streams.values():
            if not stream.pending:
                continue
            before = stream.version
            by = stream.origin(self._command.by)
            for version, event in enumerate(stream.pending, before + 1):
                envelope = Envelope(
                    stream_id=stream.stream_id,
                    version=version,
                    topic=topic_of(event),
                    customer_id=stream.customer_id,
                    at=self._command.at,
                    by=by,
                )
                recorded.append(Recorded(event, envelope))
                stored.append(self._mapper.to_stored_event(recorded[-1]))
            stream.stored(stored[-1], by)
            if stream.kind.decoder is not None and stream.version // SNAPSHOT_EVERY > before // SNAPSHOT_EVERY:
                state = msgspec.json.encode(stream.state)
                snapshots.append(Snapshot(stream.stream_id, stream.version, stream.kind.shape, state))
        if recorded:
            self.session.append(recorded, stored, snapshots, new_runs=self._new_runs)


_RETRYING: Final = Retrying(
    retry=retry_if_exception_type(Superseded),
    stop=stop_after_attempt(9),
    wait=wait_random_exponential(multiplier=0.005, max=0.5),
)


class Platform:
    """Runs use cases against the log."""

    def __init__(self, store: Store, mapper: EventMapper, remembered: Remembered | None = None) -> None:
        self._store = store
        self._mapper = mapper
        self._remembered = remembered or Remembered()
        self._damage = Damage()

    def transact(self, command: Command, work: Callable[[Transaction], Result], *, of_many: bool = False) -> Result:
        """Do `work` and store what it decided, all or nothing.

        When another process took a version first, everything is loaded and decided again, a few times. Refusals pass
        through and store nothing. Raises `Away` when the database is away, and `UnreadableEvent` when a stream cannot
        be loaded: work on streams `of_many` customers is given it all the same, and is to pass it over.
        """
        # Most are not superseded, and need none of what trying again does.
        with suppress(Superseded):
            return self._once(command, work, of_many=of_many)
        try:
            result: Result = _RETRYING(self._once, command, work, of_many=of_many)
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
            stored = session.load({stream_id: From()})
        return [r for e in stored if isinstance(e, StoredEvent) for r in self._mapper.to_domain_events(e)]

    def _once(self, command: Command, work: Callable[[Transaction], Result], *, of_many: bool = False) -> Result:
        since = self._remembered.forgotten
        with self._store.transaction() as session:
            transaction = Transaction(session, self._mapper, command, self._damage, self._remembered, of_many=of_many)
            result = work(transaction)
            transaction.flush()
        transaction.remember(since)
        return result

    def forget(self, customer_id: str) -> None:
        """Remember nothing of the customer, whose data keys were renewed or destroyed; "" is everybody."""
        self._remembered.forget(customer_stream(customer_id) if customer_id else None)
