"""The events under one seal, compared with what it lists; and what differs, until it is known why."""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from adapters.chain.findings import Finding, Kind
from adapters.postgres.seals import Seal, Stored
from application.chain import SHORT, entries

_MOST_LOOSE: Final = 1_000


class Suspect(NamedTuple):
    """A position where something else stands than a seal says, if anything."""

    position: int
    wanted: bytes | None
    """The beginning of the digest of the event that the seal saw there; None when it saw none."""
    event: Stored | None
    """What stands there; None when nothing does."""


class Stretch:
    """One seal's list, ticked off event by event."""

    def __init__(self, seal: Seal, before: int) -> None:
        self.seal = seal
        self.suspects: list[Suspect] = []
        self.loose: list[Suspect] = []
        """Events between the seal before and the first that this one lists: the first so many of them."""
        self.loose_events = 0
        self.loose_end = 0
        self.wanted = _listed(seal)
        positions = list(self.wanted)
        self.credible = (
            len(positions) == seal.events
            and positions == sorted(positions)
            and positions[:1] == [seal.first_position]
            and positions[-1:] == [seal.last_position]
            and seal.first_position > before
        )
        """Whether the seal agrees with itself, and begins behind the one before."""
        self._first = max(seal.first_position, before + 1)

    def tick(self, event: Stored, short: bytes) -> bool:
        """Take in the next event; whether it stands before all that the seal lists."""
        wanted = self.wanted.pop(event.position, None)
        if wanted is None and event.position < self._first:
            self.loose_events += 1
            self.loose_end = event.position
            if len(self.loose) < _MOST_LOOSE:
                self.loose.append(Suspect(event.position, None, event))
            return True
        if wanted != short:
            self.suspects.append(Suspect(event.position, wanted, event))
        return False

    def close(self) -> None:
        """All events were ticked off: what is left of the list is missing."""
        self.suspects += [Suspect(position, wanted, None) for position, wanted in self.wanted.items()]
        self.wanted = {}


def _listed(seal: Seal) -> dict[int, bytes]:
    try:
        return dict(entries(seal.digests))
    except ValueError:
        return {}


def explain(suspects: list[Suspect], places: Mapping[bytes, int], end: int) -> Iterator[Finding]:
    """What happened at each of these positions; `places` says where events stand that a seal saw elsewhere.

    Positions after `end`, that of the last event, are not spoken of: the log was cut off there.
    """
    came_from = {places[s.wanted]: s.position for s in suspects if s.wanted is not None and s.wanted in places}
    for suspect in suspects:
        source = came_from.pop(suspect.position, None)
        if source is not None and suspect.event is not None:
            yield _moved(suspect.event, source)
        elif suspect.event is not None and suspect.wanted is None:
            yield _of(Kind.INSERTED, suspect.event, "was not there when the log was sealed")
        elif suspect.event is not None and suspect.wanted not in places:
            yield _of(Kind.ALTERED, suspect.event, "is not what was sealed")
        replaced = suspect.event is None or source is not None
        if replaced and suspect.wanted is not None and suspect.wanted not in places and suspect.position <= end:
            yield Finding(
                kind=Kind.DELETED,
                position=suspect.position,
                sentence=f"The event that was sealed at position {suspect.position} is gone.",
            )
    for place, source in came_from.items():
        sentence = f"The event that was sealed at position {source} stands at position {place} now."
        yield Finding(kind=Kind.MOVED, position=place, sentence=sentence)


def short_of(digest: bytes) -> bytes:
    """What a seal keeps of a digest."""
    return digest[:SHORT]


def _moved(event: Stored, source: int) -> Finding:
    return _of(Kind.MOVED, event, f"stood at position {source} when it was sealed")


def _of(kind: Kind, event: Stored, what: str) -> Finding:
    name = f"{event.topic}, version {event.version} of stream {event.stream_id}"
    return Finding(
        kind=kind,
        position=event.position,
        sentence=f"The event at position {event.position} ({name}) {what}.",
        stream_id=str(event.stream_id),
        version=event.version,
        topic=event.topic,
    )
