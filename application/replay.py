"""What a stream was: its events folded again, up to a version or an instant. Nothing else happens."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

from eventsourcing.persistence import StoredEvent

from application.mapper import EventMapper, Recorded, UnreadableEvent, envelope_of
from application.shown import shown
from application.streams import BILLING, CUSTOMER, PROJECTION, RUN, SUBSCRIPTION, Kind
from domain.envelope import Envelope

KINDS: Final[Mapping[str, Kind[Any, Any]]] = {
    kind.name: kind for kind in (CUSTOMER, SUBSCRIPTION, RUN, BILLING, PROJECTION)
}

CAUSES: Final = 5
"""Events that are told as the causes of one change, at most: the newest."""

Read = Callable[[int], Iterable[StoredEvent]]
"""Reads a stream's events after a version, in order."""


@dataclass(frozen=True, slots=True)
class Until:
    """How far to fold: up to a version, and up to the first event that is later than an instant. Both included."""

    version: int | None = None
    at: datetime | None = None

    def holds(self, version: int, at: datetime | None) -> bool:
        """Whether an event is one of those, as far as its envelope can be read."""
        early = self.at is None or at is None or at <= self.at
        return early and (self.version is None or version <= self.version)


NOW: Final = Until()


@dataclass(frozen=True, slots=True)
class Replayed:
    """A stream of a kind, as it was after the event in that envelope."""

    kind: Kind[Any, Any]
    state: Any
    last: Envelope


@dataclass(frozen=True, slots=True)
class Change:
    """A field, such as `limits.max_pipelines_per_day`, that differs; None where there was or is no such field.

    `times` is how often it changed in between, `causes` the newest of the events that did it.
    """

    path: str
    before: Any
    after: Any
    times: int
    causes: Sequence[Recorded]


@dataclass(frozen=True, slots=True)
class Difference:
    """What a stream was, what it came to be, and how. None where it had no event yet."""

    before: Replayed | None
    after: Replayed | None
    changes: Sequence[Change]


def fold(stored: Iterable[StoredEvent], mapper: EventMapper, until: Until = NOW) -> Replayed | None:
    """The stream of these events, in order from its first one, as it was; None when it had none then.

    Raises `UnreadableEvent` for the first event up to there that cannot be read, or does not follow from those before.
    """
    replayed: Replayed | None = None
    for step, _ in _steps(stored, mapper, until, None):
        replayed = step
    return replayed


def compare(read: Read, mapper: EventMapper, since: Until, until: Until) -> Difference:
    """What differs in a stream between `since` and `until`, and which events after `since` did it.

    Reads the events twice. Raises as `fold` does.
    """
    before = fold(read(0), mapper, since)
    after = fold(read(0), mapper, until)
    differing = _differing(before, after)
    times: Counter[str] = Counter()
    causes: dict[str, deque[Recorded]] = defaultdict(lambda: deque(maxlen=CAUSES))
    known = before
    names = {path.partition(".")[0] for path in differing}
    for step, recorded in _steps(read(before.last.version if before else 0), mapper, until, before):
        changed = _differing(known, step, names)
        for path in differing:
            if any(_touches(c, path) for c in changed):
                times[path] += 1
                causes[path].append(recorded)
        known = step
    changes = [Change(p, old, new, times[p], tuple(causes[p])) for p, (old, new) in sorted(differing.items())]
    return Difference(before, after, changes)


def _touches(changed: str, path: str) -> bool:
    """Whether a change of one field is one of the other: the same, or one that holds it or lies in it."""
    return changed == path or changed.startswith(f"{path}.") or path.startswith(f"{changed}.")


def _steps(
    stored: Iterable[StoredEvent], mapper: EventMapper, until: Until, before: Replayed | None
) -> Iterator[tuple[Replayed, Recorded]]:
    """The stream after each of these events that follow upon `before`, and what happened."""
    kind, state = (before.kind, before.state) if before else (None, None)
    version = before.last.version if before else 0
    for event in stored:
        envelope = envelope_of(event)
        if not until.holds(event.originator_version, envelope.at if envelope else None):
            return
        version += 1
        if event.originator_version != version:
            raise UnreadableEvent(event, f"event {version} of the stream, before it, is missing.")
        recorded = mapper.to_domain_events(event)
        kind = kind or KINDS.get(recorded[0].envelope.topic.partition(".")[0])
        if kind is None:
            raise UnreadableEvent(event, "no such kind of stream can be replayed.")
        for one in recorded:
            try:
                state = kind.evolve(state, one.event)
            except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise UnreadableEvent(event, "it does not follow from the events before it.") from error
        yield Replayed(kind, state, recorded[-1].envelope), recorded[-1]


def _differing(
    before: Replayed | None, after: Replayed | None, names: Iterable[str] | None = None
) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, as they are shown, by their paths."""
    old, new = before.state if before else None, after.state if after else None
    some = old if new is None else new
    if some is None or old is new:
        return {}
    found: dict[str, tuple[Any, Any]] = {}
    for field in fields(some):
        if names is not None and field.name not in names:
            continue
        was, came = getattr(old, field.name, None), getattr(new, field.name, None)
        if was is not came and was != came:
            _into(
                found, field.name, shown({field.name: was}).get(field.name), shown({field.name: came}).get(field.name)
            )
    return found


def _into(found: dict[str, tuple[Any, Any]], path: str, old: Any, new: Any) -> None:  # noqa: ANN401 - as JSON knows it
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            _into(found, f"{path}.{name}", old.get(name), new.get(name))
    elif old != new:
        found[path] = old, new
