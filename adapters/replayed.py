"""Streams and customers as they were, for people: the log folded up to a version or an instant, and nothing written."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from eventsourcing.persistence import Notification
from pydantic import BaseModel, Field

from adapters.event_views import EventView, event_view
from adapters.postgres.event_log import Datastore
from adapters.postgres.reads import history, run_history
from adapters.progress import Tell, untold
from application.mapper import EventMapper, UnreadableEvent, envelope_of
from application.replay import NOW, Change, Difference, Replayed, Until, compare, fold
from application.shown import shown
from domain.identity import customer_stream, subscription_stream
from domain.refusals import Invalid, NotFound
from domain.subscription import Subscription

_UNREADABLE: Final = 20
_TOLD: Final = 1_000
_TICK: Final = timedelta(microseconds=1)


class StreamView(BaseModel):
    """A stream as it was after one of its events."""

    stream_id: str
    kind: str = Field(examples=["subscription"], description="`customer`, `subscription`, `run` or `projection`.")
    customer_id: str
    version: int = Field(description="Events up to there.")
    position: int = Field(description="The last of them, by its place in the log.")
    at: datetime = Field(description="When that one happened.")
    actor: str = Field(description="Who caused it.")
    state: dict[str, Any] = Field(description="What the events come to, without hashes and ciphertexts.")


class UsageAt(BaseModel):
    """What was used at that instant, as far as it counted then: a new day, and a new month, start from zero."""

    day: str
    admitted: int
    month_admitted: int
    running: int
    daily_remaining: int
    monthly_remaining: int


class RunsAt(BaseModel):
    """The customer's runs at that instant: all of them counted, and those that had not ended, newest first."""

    states: dict[str, int] = Field(description="How many were in which state.")
    items: list[StreamView]
    next_cursor: str | None = Field(default=None, description="Send it as `cursor` for more of them.")
    unreadable: list[str] = Field(description="What keeps runs from being folded; they are counted nowhere.")


class CustomerAt(BaseModel):
    """A customer with its subscription and its runs, as they were at an instant."""

    customer_id: str
    at: datetime | None = Field(description="Null for the newest.")
    customer: StreamView
    subscription: StreamView | None
    usage: UsageAt | None
    runs: RunsAt


class ChangeView(BaseModel):
    """A field that differs. `causes` are positions in the log: the newest events that changed it, the oldest first."""

    field: str
    before: Any
    after: Any
    times: int = Field(description="How often it changed in between.")
    causes: list[int]


class DifferenceView(BaseModel):
    """What changed, and the events that did it."""

    since: str
    until: str
    changes: list[ChangeView]
    events: list[EventView]


@dataclass(frozen=True, slots=True)
class Past:
    """Looks at what was. `mapper` opens personal fields, as far as they are to be shown; `tell` hears of long work."""

    datastore: Datastore
    mapper: EventMapper
    tell: Tell = untold

    def stream(self, stream_id: UUID, until: Until = NOW) -> StreamView:
        """Raises `NotFound` for a stream that had no events then, `UnreadableEvent` for one that cannot be folded."""
        return _view(self._there(self._folded(stream_id, until), "stream"))

    def customer(
        self, customer_id: str, at: datetime | None, now: datetime, *, limit: int, before: int | None = None
    ) -> tuple[CustomerAt, int | None]:
        """The customer at an instant, its newest if there is none, with a page of its active runs.

        `before` and the position returned say where pages of runs begin and go on. Raises as `stream` does.
        """
        until = Until(at=at)
        customer = self._there(self._folded(customer_stream(customer_id), until), "customer")
        subscription = self._folded(subscription_stream(customer_id), until)
        runs, following = self._runs(customer.last.customer_id, at, limit=limit, before=before)
        found = CustomerAt(
            customer_id=customer.last.customer_id,
            at=at,
            customer=_view(customer),
            subscription=_view(subscription) if subscription else None,
            usage=_usage(subscription.state, at or now) if subscription else None,
            runs=runs,
        )
        return found, following

    def stream_difference(self, stream_id: UUID, since: Until, until: Until) -> DifferenceView:
        """What changed in a stream, and through which events. Raises as `stream` does, and `Invalid`."""
        found = self._compared(stream_id, since, until)
        self._there(found.after, "stream")
        return _difference(since, until, [("", found)])

    def customer_difference(self, customer_id: str, since: Until, until: Until) -> DifferenceView:
        """What changed in a customer and its subscription. Raises as `stream_difference` does."""
        customer = self._compared(customer_stream(customer_id), since, until)
        self._there(customer.after, "customer")
        subscription = self._compared(subscription_stream(customer_id), since, until)
        return _difference(since, until, [("customer.", customer), ("subscription.", subscription)])

    def _folded(self, stream_id: UUID, until: Until) -> Replayed | None:
        return fold(self._read(stream_id), self.mapper, until)

    def _read(self, stream_id: UUID, after: int = 0) -> Iterator[Notification]:
        total = history.length(self.datastore, stream_id)
        for number, event in enumerate(history.stream(self.datastore, stream_id, after=after), after + 1):
            yield event
            if number % _TOLD == 0:
                self.tell("Folding events", number, total)

    def _compared(self, stream_id: UUID, since: Until, until: Until) -> Difference:
        found = compare(partial(self._read, stream_id), self.mapper, since, until)
        if found.before and found.after and found.before.last.version > found.after.last.version:
            raise Invalid("The first of the two must not lie behind the second.")
        return found

    @staticmethod
    def _there(replayed: Replayed | None, what: str) -> Replayed:
        if replayed is None:
            raise NotFound(f"There was no such {what}.")
        return replayed

    def _runs(
        self, customer_id: str, at: datetime | None, *, limit: int, before: int | None
    ) -> tuple[RunsAt, int | None]:
        # Clocks differ: before `sure` everything had happened by then, and from `behind` on nothing had.
        sure, behind = history.span(self.datastore, at, at + _TICK if at else None)
        sure = sure - 1 if at else behind - 1
        counts = Counter(run_history.counts(self.datastore, customer_id, sure))
        known = run_history.active(self.datastore, customer_id, sure, _not_ended(counts))
        active = {run_id: position for position, run_id in known}
        for event in _prefixes(run_history.between(self.datastore, customer_id, sure, behind), Until(at=at)):
            name, run_id = event.topic.partition("@")[0], UUID(str(event.originator_id))
            counts[name] += 1
            if name == run_history.BEGUN:
                active[run_id] = event.id
            elif name in run_history.ENDED:
                active.pop(run_id, None)
        states = Counter({name.partition(".")[2].upper(): counts[name] for name in run_history.ENDED if counts[name]})
        unreadable: list[str] = []
        shown_runs: list[tuple[int, Replayed]] = []
        for events in run_history.streams(self.datastore, list(active), behind):
            try:
                run = fold(events, self.mapper, Until(at=at))
            except UnreadableEvent as error:
                unreadable.append(str(error))
                continue
            if run is not None:
                states[run.state.state] += 1
                shown_runs.append((active[run.last.stream_id], run))
        page = sorted((r for r in shown_runs if before is None or r[0] < before), key=lambda r: -r[0])
        found = RunsAt(
            states=dict(sorted(states.items())),
            items=[_view(run) for _, run in page[:limit]],
            unreadable=unreadable[:_UNREADABLE],
        )
        return found, page[limit - 1][0] if len(page) > limit else None


def _not_ended(counts: Counter[str]) -> int:
    return counts[run_history.BEGUN] - sum(counts[name] for name in run_history.ENDED)


def _prefixes(events: Iterable[Notification], until: Until) -> Iterable[Notification]:
    """Of each stream, the events before the first one that is later."""
    over: set[object] = set()
    for event in events:
        envelope = envelope_of(event)
        if envelope is None or not until.holds(event.originator_version, envelope.at):
            over.add(event.originator_id)
        if event.originator_id not in over:
            yield event


def _view(replayed: Replayed) -> StreamView:
    last = replayed.last
    return StreamView(
        stream_id=str(last.stream_id),
        kind=replayed.kind.name,
        customer_id=last.customer_id,
        version=last.version,
        position=last.position,
        at=last.at,
        actor=last.by.actor,
        state=shown(replayed.state),
    )


def _usage(subscription: Subscription, at: datetime) -> UsageAt:
    usage, limits = subscription.usage.at(at), subscription.limits
    return UsageAt(
        day=usage.day.isoformat(),
        admitted=usage.admitted,
        month_admitted=usage.month_admitted,
        running=usage.running,
        daily_remaining=max(0, limits.max_pipelines_per_day - usage.admitted),
        monthly_remaining=max(0, limits.max_pipelines_per_month - usage.month_admitted),
    )


def _difference(since: Until, until: Until, parts: Sequence[tuple[str, Difference]]) -> DifferenceView:
    changes: list[ChangeView] = []
    events: dict[int, EventView] = {}
    for prefix, part in parts:
        for change in part.changes:
            changes.append(_change(prefix, change))
            events |= {c.envelope.position: event_view(c, for_operators=True) for c in change.causes}
    return DifferenceView(
        since=_said(since), until=_said(until), changes=changes, events=[events[p] for p in sorted(events)]
    )


def _change(prefix: str, change: Change) -> ChangeView:
    return ChangeView(
        field=prefix + change.path,
        before=change.before,
        after=change.after,
        times=change.times,
        causes=[cause.envelope.position for cause in change.causes],
    )


def _said(until: Until) -> str:
    if until.version is not None:
        return f"version {until.version}"
    return until.at.isoformat() if until.at else "now"
