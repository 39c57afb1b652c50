"""Golden events: one example of every event, the shape it was written in, and how both are stored."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, date, datetime
from enum import EnumType
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from eventsourcing.persistence import StoredEvent

from application.mapper import EventMapper, Recorded
from application.ports import SealedFor
from application.streams import SUBSCRIPTION
from application.topics import TOPICS
from domain.envelope import Envelope, Origin
from domain.personal import Personal
from domain.subscription import Subscription

GOLDEN = Path(__file__).parent / "golden"
SNAPSHOTS = Path(__file__).parent / "snapshots"

_NOON = datetime(2025, 11, 17, 12, 0, 0, 123456, tzinfo=UTC)
_STREAM = UUID("00000000-0000-4000-8000-000000000001")


class OpenVault:
    """Seals so that everybody can read it and the same text looks the same: goldens are compared byte by byte."""

    def prepare(self, customer_id: str) -> None: ...

    def seal(self, plaintext: bytes, owner: SealedFor) -> bytes:
        return f"{owner.customer_id}/{owner.record_id}/{owner.purpose}:".encode() + plaintext

    def open(self, ciphertext: bytes, owner: SealedFor) -> bytes:
        mark = self.seal(b"", owner)
        if not ciphertext.startswith(mark):
            raise ValueError("sealed for somebody else")
        return ciphertext.removeprefix(mark)


MAPPER = EventMapper(OpenVault())


def example(kind: Any, name: str = "") -> Any:  # noqa: PLR0911 - one case a kind of type
    """A value of the type, the same every time; every optional field is filled."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return example(arguments[0], name)
    if origin in {Union, UnionType}:
        return example(next(a for a in arguments if a is not NoneType), name)
    if origin is tuple:
        return (example(arguments[0], name), example(arguments[0], name))
    if origin is not None and issubclass(origin, frozenset):
        return frozenset(
            {example(arguments[0], name) if get_origin(arguments[0]) is not tuple else _pair(arguments[0])}
        )
    if origin is not None and issubclass(origin, Mapping):
        return {example(arguments[0], "key"): example(arguments[1], name)}
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return kind(**{f.name: example(hints[f.name], f.name) for f in fields(kind)})
    if isinstance(kind, EnumType):
        return list(kind)[-1]
    if kind is Any:
        return {"n": 3, "x": 0.5, "text": 'a "quoted" ü', "none": None, "list": [True, 1, "two"]}
    return {str: f"{name} ü", int: 7, bool: True, bytes: b"\x00\xffsealed", datetime: _NOON, date: _NOON.date()}[kind]


def _pair(kind: Any) -> tuple[Any, ...]:
    return tuple(example(argument, "item") for argument in get_args(kind))


def shape(kind: Any) -> Any:
    """What decides how values of the type are stored: names and types of fields, and which may be missing."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return [*(["personal"] if Personal in arguments[1:] else []), shape(arguments[0])]
    if origin in {Union, UnionType}:
        return {"either": [shape(argument) for argument in arguments]}
    if origin is not None:
        return {origin.__name__: [shape(argument) for argument in arguments if argument is not Ellipsis]}
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        return {f.name + ("" if _needed(f) else "?"): shape(hints[f.name]) for f in fields(kind)}
    if isinstance(kind, EnumType):
        return {"one of": [member.value for member in kind]}
    return "null" if kind is NoneType else kind.__name__


def _needed(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def recorded(topic: str) -> Recorded:
    """The example event of a topic, in an example envelope."""
    by = Origin(actor="admin", command_id="c-1", correlation_id="o-1", request_id="r-1", causation_id="e-1")
    envelope = Envelope(stream_id=_STREAM, version=3, topic=topic, customer_id="acme_corp", at=_NOON, by=by)
    return Recorded(example(TOPICS[topic]), envelope)


def golden(topic: str) -> dict[str, Any]:
    """What is kept of a topic for ever."""
    stored = MAPPER.to_stored_event(recorded(topic))
    return {
        "topic": topic,
        "shape": shape(TOPICS[topic]),
        "originator_id": str(stored.originator_id),
        "originator_version": stored.originator_version,
        "state": json.loads(stored.state),
    }


def stored(kept: Mapping[str, Any]) -> StoredEvent:
    """The stored event that a golden file holds, byte by byte."""
    return StoredEvent(
        originator_id=UUID(kept["originator_id"]),
        originator_version=kept["originator_version"],
        topic=kept["topic"],
        state=json.dumps(kept["state"], separators=(",", ":"), ensure_ascii=False).encode(),
    )


def snapshot() -> dict[str, Any]:
    """What is kept of a snapshot's shape."""
    state = example(Subscription)
    return {"shape": shape(Subscription), "state": json.loads(msgspec.json.encode(state))}


def snapshot_file(folder: Path = SNAPSHOTS) -> Path:
    return folder / f"subscription-{SUBSCRIPTION.shape}.json"


def write_missing(golden_folder: Path = GOLDEN, snapshot_folder: Path = SNAPSHOTS) -> list[Path]:
    """Write the golden files that are not there yet; never touches one that is. Returns what was written."""
    wanted = {golden_folder / f"{topic}.json": golden(topic) for topic in TOPICS}
    wanted[snapshot_file(snapshot_folder)] = snapshot()
    written = []
    for path, content in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(content, file, indent=2, ensure_ascii=False)
                file.write("\n")
        except FileExistsError:
            continue
        written.append(path)
    return written
