"""What an archive's files hold: `manifest.json`, which lists all others, and the lines of each kind of them."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID

import msgspec

from adapters.process import Unable
from application.chain import START, digest

FORMAT: Final = 2
"""2: data keys say more of themselves. What is in format 1 is read as before."""
MANIFEST: Final = "manifest.json"
"""Appears, and changes, when everything that it lists is there."""
UNFINISHED: Final = "unfinished.json"
"""What an export has written since the manifest, until there is a new one."""
_BLANK: Final = "0" * 64

Name = Annotated[str, msgspec.Meta(pattern=r"^(events|seals|data-keys|heads)-[0-9]{6}\.jsonl\.gz$")]
Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class Damaged(Unable):
    """The directory is not what an export left there; the sentence names the file."""


class EventLine(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """An event as it is stored: `state` is its text, or `state_base64` its bytes where they are no UTF-8."""

    position: Number
    stream_id: UUID
    version: Number
    topic: str
    customer_id: str | None = None
    state: str | None = None
    state_base64: bytes | None = None

    @property
    def stored(self) -> bytes:
        """The bytes that the log holds."""
        return self.state.encode() if self.state is not None else self.state_base64 or b""

    @property
    def digest(self) -> bytes:
        return digest(self.stream_id, self.version, self.topic, self.customer_id, self.stored)


class KeyLine(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """A data key, wrapped: useless without the wrapping key, which no archive holds."""

    customer_id: str
    purpose: str
    wrapped: bytes
    created_at: datetime
    name: bytes | None = None
    version: str | None = None
    retired_at: datetime | None = None
    seals_personal: bool | None = None
    """None in archives from before personal data had keys of their own: those for credentials sealed them then."""


class SealLine(msgspec.Struct, forbid_unknown_fields=True):
    last_position: int
    first_position: int
    events: int
    digests: bytes
    hash: bytes
    sealed_at: datetime


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of gzip-compressed JSON lines."""

    file: Name
    sha256: Hex
    lines: int


class Segment(File, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stretch of the log; `hash` is the one over everything up to its last event."""

    first_position: int
    last_position: int
    hash: Hex


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the directory holds. `customer_id` is None for a whole log."""

    format: int = FORMAT
    created_at: datetime
    """When the first export into the directory began."""
    finished_at: datetime | None = None
    """When the newest one ended."""
    revision: int = 0
    """How many exports have ended."""
    customer_id: str | None = None
    schema: str = ""
    """The newest migration of the program that wrote this."""
    topics: dict[str, int] = {}
    """How many events there are of each."""
    segments: tuple[Segment, ...] = ()
    seals: tuple[File, ...] = ()
    data_keys: File | None = None
    heads: File | None = None
    digest: Hex = _BLANK
    """SHA-256 of the manifest's text with zeros in the place of this."""

    @property
    def events(self) -> int:
        return sum(segment.lines for segment in self.segments)

    @property
    def last_position(self) -> int:
        return self.segments[-1].last_position if self.segments else 0

    @property
    def hash(self) -> bytes:
        """The hash over all events. For one customer's it is over theirs alone, and like no hash of the whole log."""
        return bytes.fromhex(self.segments[-1].hash) if self.segments else START

    @property
    def files(self) -> tuple[File, ...]:
        singles = tuple(file for file in (self.data_keys, self.heads) if file is not None)
        return (*self.segments, *self.seals, *singles)

    def encoded(self) -> bytes:
        """As it is written, with its digest."""
        blank = msgspec.json.encode(msgspec.structs.replace(self, digest=_BLANK))
        text = msgspec.json.format(blank, indent=1) + b"\n"
        return text.replace(_BLANK.encode(), hashlib.sha256(text).hexdigest().encode())


class _Format(msgspec.Struct):
    format: int


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in this file, or None where there is no such file; raises `Damaged`."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if (version := msgspec.json.decode(text, type=_Format).format) > FORMAT:
            raise Damaged(f"{path} has format {version}: a newer version of this program wrote it.")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from None
    if hashlib.sha256(text.replace(manifest.digest.encode(), _BLANK.encode())).hexdigest() != manifest.digest:
        raise damaged(path, "its digest is not the one that it says itself")
    return manifest


def damaged(path: Path, reason: str) -> Damaged:
    return Damaged(f"{path} is damaged or was changed: {reason}.")
