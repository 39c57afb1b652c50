"""Events to stored bytes and back: an envelope and the event's data as JSON, with personal fields sealed."""

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, cast, get_args, get_type_hints
from uuid import UUID

import msgspec
from eventsourcing.persistence import Mapper, Notification, StoredEvent

from application.ports import KeyDestroyed, Purpose, SealedFor, Vault
from application.topics import TOPICS, UPCASTERS, Data, Event
from domain.envelope import Envelope, Origin
from domain.personal import ERASED, Personal


class UnreadableEvent(Exception):  # noqa: N818 - it names what was found
    """The log holds an event that this code cannot read.

    Its topic is unknown, its data have another shape, a personal field cannot be opened, or it does not follow from the
    events before it. The text says which, and nothing of what is recorded. `position` is 0 where it is not known.
    """

    def __init__(self, stored: StoredEvent, why: str) -> None:
        super().__init__(
            f"Event {stored.originator_version} of stream {stored.originator_id} ({stored.topic}) cannot be read: {why}"
        )
        self.stream_id = stored.originator_id
        self.topic = stored.topic
        self.position = stored.id if isinstance(stored, Notification) else 0


class Recorded(msgspec.Struct, frozen=True):
    """An event in its envelope. Its two `originator` names are what the event store library looks for."""

    event: Event
    envelope: Envelope

    @property
    def originator_id(self) -> UUID:
        return self.envelope.stream_id

    @property
    def originator_version(self) -> int:
        return self.envelope.version


_Data = TypeVar("_Data")


class _Stored(msgspec.Struct, Generic[_Data], omit_defaults=True):
    at: datetime
    customer_id: str
    actor: str
    command_id: str
    correlation_id: str
    data: _Data
    request_id: str | None = None
    causation_id: str | None = None


def _personal_fields(event_type: type[Event]) -> tuple[str, ...]:
    hints = get_type_hints(event_type, include_extras=True)
    return tuple(f.name for f in fields(event_type) if Personal in get_args(hints[f.name])[1:])


_TOPIC_OF: Final[Mapping[type[Event], str]] = {event_type: topic for topic, event_type in TOPICS.items()}
_PERSONAL: Final = {event_type: names for event_type in TOPICS.values() if (names := _personal_fields(event_type))}
_DATA: Final = {topic: msgspec.json.Decoder(event_type) for topic, event_type in TOPICS.items()}
_PLACE: Final = re.compile(r" - at `(\$[^`]*)`$")
_STORED: Final = msgspec.json.Decoder(_Stored[msgspec.Raw])
_JSON: Final = msgspec.json.Encoder()


def _nobody(customer_id: str) -> bool:  # noqa: ARG001 - whoever it is
    return False


class EventMapper(Mapper[UUID]):
    """Maps events to the library's stored events. Personal fields are sealed under the customer's data key.

    Of a customer that was `erased` they read as a mark, once the key is gone. Of anybody else a missing key is a fault:
    the event cannot be read.
    """

    def __init__(self, vault: Vault, erased: Callable[[str], bool] = _nobody) -> None:
        self._vault = vault
        self._erased = erased

    def to_stored_event(self, domain_event: Recorded) -> StoredEvent:  # type: ignore[override]
        """Encode one event; raises `Away` when its customer's data key cannot be opened."""
        event, envelope = domain_event.event, domain_event.envelope
        names = _PERSONAL.get(type(event))
        if names is not None:
            event = self._sealed(event, envelope, names)
        by = envelope.by
        stored = _Stored(
            at=envelope.at,
            customer_id=envelope.customer_id,
            actor=by.actor,
            command_id=by.command_id,
            correlation_id=by.correlation_id,
            request_id=by.request_id,
            causation_id=by.causation_id,
            data=event,
        )
        return StoredEvent(
            originator_id=envelope.stream_id,
            originator_version=envelope.version,
            topic=envelope.topic,
            state=_JSON.encode(stored),
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Recorded:
        """The event that a stored one is; raises `UnreadableEvent`, also for one that came to be told as several."""
        recorded = self.to_domain_events(stored_event)
        if len(recorded) != 1:
            raise UnreadableEvent(stored_event, f"it is told as {len(recorded)} events now.")
        return recorded[0]

    def to_domain_events(self, stored_event: StoredEvent) -> Sequence[Recorded]:
        """Decode a stored event, carried over to its current shape: usually one, never none.

        Those that it is told as now stand at the same place. Raises `UnreadableEvent`.
        """
        stored, events = _decoded(stored_event)
        recorded = []
        for topic, event in events:
            envelope = _envelope(stored_event, stored, topic)
            names = _PERSONAL.get(type(event))
            if names is not None:
                try:
                    event = self._opened(event, envelope, names)  # noqa: PLW2901 - as everybody but the log sees it
                except KeyDestroyed as error:
                    if not self._erased(envelope.customer_id):
                        raise UnreadableEvent(stored_event, f"a personal field does not open. {error}") from error
                    event = _rewritten(event, envelope, names, lambda _, __: ERASED)  # noqa: PLW2901 - as above
                except ValueError as error:
                    raise UnreadableEvent(stored_event, f"a personal field does not open. {error}") from error
            recorded.append(Recorded(event, envelope))
        return recorded

    def _sealed(self, event: Event, at: Envelope, names: tuple[str, ...]) -> Event:
        def seal(text: str, owner: SealedFor) -> str:
            return base64.b64encode(self._vault.seal(text.encode(), owner)).decode()

        return _rewritten(event, at, names, seal)

    def _opened(self, event: Event, at: Envelope, names: tuple[str, ...]) -> Event:
        def unseal(text: str, owner: SealedFor) -> str:
            sealed = base64.b64decode(text, validate=True)
            return self._vault.open(sealed, owner).decode()

        return _rewritten(event, at, names, unseal)


def _rewritten(event: Event, at: Envelope, names: tuple[str, ...], rewrite: Callable[[str, SealedFor], str]) -> Event:
    changed: dict[str, Any] = {}
    for name in names:
        value = getattr(event, name)
        owner = SealedFor(at.customer_id, f"{at.stream_id}/{at.version}/{name}", Purpose.PERSONAL)
        changed[name] = tuple(rewrite(v, owner) for v in value) if isinstance(value, tuple) else rewrite(value, owner)
    return replace(event, **changed)


def _envelope(stored_event: StoredEvent, stored: _Stored[msgspec.Raw], topic: str) -> Envelope:
    return Envelope(
        stream_id=cast("UUID", stored_event.originator_id),
        version=stored_event.originator_version,
        topic=topic,
        customer_id=stored.customer_id,
        at=stored.at,
        by=Origin(
            actor=stored.actor,
            command_id=stored.command_id,
            correlation_id=stored.correlation_id,
            request_id=stored.request_id,
            causation_id=stored.causation_id,
        ),
        position=stored_event.id if isinstance(stored_event, Notification) else 0,
    )


def envelope_of(stored_event: StoredEvent) -> Envelope | None:
    """The envelope of a stored event, with the topic it is stored under; None where even that cannot be read.

    Costs a fraction of decoding the event, and needs no keys.
    """
    try:
        return _envelope(stored_event, _STORED.decode(stored_event.state), stored_event.topic)
    except ValueError:
        return None


def told_as(stored_event: StoredEvent) -> Sequence[str]:
    """The topics of the events that a stored one is told as now; its own where it cannot be read. Needs no keys."""
    if stored_event.topic not in UPCASTERS:
        return (stored_event.topic,)
    try:
        return [topic for topic, _ in _decoded(stored_event)[1]]
    except UnreadableEvent:
        return (stored_event.topic,)


def check(stored_event: StoredEvent) -> None:
    """Raises `UnreadableEvent` if this code cannot read the event. Sealed fields are not opened."""
    _decoded(stored_event)


def _decoded(stored_event: StoredEvent) -> tuple[_Stored[msgspec.Raw], Sequence[tuple[str, Event]]]:
    topic = stored_event.topic
    try:
        stored = _STORED.decode(stored_event.state)
        if topic in _DATA:
            return stored, ((topic, _DATA[topic].decode(stored.data)),)
        return stored, [(newer, msgspec.convert(data, TOPICS[newer])) for newer, data in _upcast(topic, stored.data)]
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise UnreadableEvent(stored_event, _why(topic, error)) from None


def _why(topic: str, error: Exception) -> str:
    """What is wrong with the data, and where, without the data: a decoder's own words may quote them."""
    if topic not in TOPICS and topic not in UPCASTERS:
        return "no such topic is known."
    found = _PLACE.search(str(error)) if isinstance(error, msgspec.ValidationError) else None
    return "its data have another shape" + (f" at {found[1]}." if found else ".")


def _upcast(topic: str, data: msgspec.Raw) -> Iterator[tuple[str, Data]]:
    waiting: list[tuple[str, Data]] = [(topic, msgspec.json.decode(data))]
    while waiting:
        topic, fields_now = waiting.pop()
        if topic in TOPICS:
            yield topic, fields_now
        else:
            waiting += reversed(UPCASTERS[topic](fields_now))


def topic_of(event: Event) -> str:
    return _TOPIC_OF[type(event)]
