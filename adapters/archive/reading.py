"""Reading an archive: every file against its checksum, every event against the chain, however large it is."""

import fcntl
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from adapters.archive.manifest import (
    MANIFEST,
    UNFINISHED,
    Damaged,
    EventLine,
    File,
    KeyLine,
    Manifest,
    SealLine,
    damaged,
    read_manifest,
)
from adapters.process import Unable
from adapters.progress import Tell, untold
from application.chain import START, link

_BLOCK: Final = 1 << 20
_TELL_EVERY: Final = 2_000

Line = TypeVar("Line")


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read: how much, the hash over it, and whether the log's own seals agree with it."""

    events: int
    last_position: int
    hash: str
    customer_id: str | None
    sealed_to: int
    """The last position that a seal in the archive covers; 0 without seals."""
    broken_seal: int | None
    """Where the first seal ends that does not agree: the log was changed before it was exported."""


class Archive:
    """A finished export. Reading raises `Damaged` at the first thing that is not as it was written."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest

    def check_files(self, tell: Tell = untold) -> None:
        """Compare every file with its SHA-256."""
        check_files(self.directory, self.manifest, tell)

    def check(self, tell: Tell = untold) -> Checked:
        """Compare everything: the checksums, the chain from the first event to the last, and the seals with it."""
        self.check_files(tell)
        seals = self.seals()
        seal = next(seals, None)
        sealed_to, broken = 0, None
        for line, hash_ in self.events(tell, "Chain"):
            if seal is not None and seal.last_position == line.position:
                if seal.hash != hash_ and broken is None:
                    broken = seal.last_position
                sealed_to, seal = seal.last_position, next(seals, None)
        if seal is not None and broken is None:
            broken = seal.last_position
        for rows in (self.data_keys(), self.heads()):
            for _ in rows:
                continue
        m = self.manifest
        return Checked(m.events, m.last_position, m.hash.hex(), m.customer_id, sealed_to, broken)

    def events(self, tell: Tell = untold, stage: str = "Events") -> Iterator[tuple[EventLine, bytes]]:
        """All events in order, each with the hash over the log up to it."""
        hash_, position, done = START, 0, 0
        for segment in self.manifest.segments:
            first = None
            for line in self._lines(segment, EventLine):
                if line.position <= position:
                    raise self._damaged(segment, f"the event at position {line.position} is out of its order")
                first, position = first or line.position, line.position
                hash_ = link(hash_, position, line.digest)
                done += 1
                if done % _TELL_EVERY == 0:
                    tell(stage, done, self.manifest.events)
                yield line, hash_
            if (first, position) != (segment.first_position, segment.last_position):
                raise self._damaged(segment, "its positions are not those that the manifest says")
            if hash_.hex() != segment.hash:
                raise self._damaged(segment, "the hash over the log up to its end is not the one of the manifest")
        tell(stage, done, self.manifest.events)

    def data_keys(self) -> Iterator[KeyLine]:
        if self.manifest.data_keys is not None:
            yield from self._lines(self.manifest.data_keys, KeyLine)

    def seals(self) -> Iterator[SealLine]:
        for file in self.manifest.seals:
            yield from self._lines(file, SealLine)

    def heads(self) -> Iterator[bytes]:
        """The signed heads, each as the line that it was."""
        if self.manifest.heads is not None:
            yield from map(bytes, self._lines(self.manifest.heads, msgspec.Raw))

    def _lines(self, file: File, kind: type[Line]) -> Iterator[Line]:
        lines = 0
        for line in lines_of(self.directory, file, kind):
            lines += 1
            yield line
        if lines != file.lines:
            raise self._damaged(file, f"it has {lines} lines, and the manifest says {file.lines}")

    def _damaged(self, file: File, reason: str) -> Damaged:
        return damaged(self.directory / file.file, reason)


def lines_of(directory: Path, file: File, kind: type[Line]) -> Iterator[Line]:
    """The lines of one file; memory stays flat however many there are. Raises `Damaged`."""
    decode = msgspec.json.Decoder(kind).decode
    path = directory / file.file
    try:
        with gzip.open(path, "rb") as unpacked:
            for number, line in enumerate(unpacked, 1):
                try:
                    decoded = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise damaged(path, f"line {number} cannot be read ({error})") from None
                yield decoded
    except FileNotFoundError:
        raise Damaged(f"{path} is missing.") from None
    except EOFError:
        raise damaged(path, "it is cut off") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, str(error)) from None


def check_files(directory: Path, manifest: Manifest, tell: Tell) -> None:
    """Raises `Damaged` unless every file is there with the SHA-256 that was written down."""
    for number, file in enumerate(manifest.files, 1):
        path = directory / file.file
        hasher = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as raw:
                while block := raw.read(_BLOCK):
                    hasher.update(block)
        except FileNotFoundError:
            raise Damaged(f"{path} is missing.") from None
        if hasher.hexdigest() != file.sha256:
            raise damaged(path, "its SHA-256 is not the one that was written down for it")
        tell("Checksums", number, len(manifest.files))


@contextmanager
def opened(directory: Path) -> Iterator[Archive]:
    """A finished export, which no other process adds to meanwhile. Raises `Unable` where there is none."""
    if not directory.is_dir():
        raise Unable(f"{directory} is no directory.")
    with locked(directory, fcntl.LOCK_SH):
        manifest = read_manifest(directory / MANIFEST)
        if manifest is None and (directory / UNFINISHED).exists():
            raise Unable(f"The export into {directory} was not finished: run convergence export again.")
        if manifest is None:
            raise Unable(f"{directory} holds no export: {MANIFEST} is missing.")
        yield Archive(directory, manifest)


@contextmanager
def locked(directory: Path, how: int) -> Iterator[None]:
    """Hold the directory, alone or with other readers. The kernel frees it however this process ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unable(f"Another export or import works on {directory}.") from None
        yield
    finally:
        os.close(descriptor)
