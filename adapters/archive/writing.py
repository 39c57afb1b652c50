"""Writing an archive's files: each appears under its name when it is whole and on disk, for our own eyes only."""

import gzip
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from adapters.archive.manifest import File
from adapters.process import Unable

PARTIAL: Final = ".partial"
_LEVEL: Final = 4
"""Of gzip: beyond it, time grows much faster than the files shrink."""
_ENCODER: Final = msgspec.json.Encoder()


class NewFile:
    """A file of gzip-compressed JSON lines on its way. It is there when the block ends, and not at all if it fails.

    Equal lines make equal files. Raises `Unable` when the disk is full.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self.lines = 0
        self._directory = directory
        self._partial = directory / f"{name}{PARTIAL}"
        self._hasher = hashlib.sha256()

    def __enter__(self) -> Self:
        self._descriptor = _create(self._partial)
        self._packed = gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=_Sink(self._put), mtime=0)
        return self

    def write(self, lines: Iterable[object]) -> None:
        """Append a line of JSON for each."""
        encoded = [_ENCODER.encode(line) for line in lines]
        self.lines += len(encoded)
        try:
            self._packed.write(b"".join(line + b"\n" for line in encoded))
        except OSError as error:
            raise _full(self._partial, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._packed.close()
                os.fsync(self._descriptor)
        except OSError as failure:
            kind = type(failure)
            raise _full(self._partial, failure) from failure
        finally:
            os.close(self._descriptor)
            if kind is not None:
                self._partial.unlink()
        self._partial.rename(self._directory / self.name)
        sync(self._directory)

    @property
    def file(self) -> File:
        """How a manifest lists it, once the block has ended."""
        return File(file=self.name, sha256=self.sha256, lines=self.lines)

    @property
    def sha256(self) -> str:
        return self._hasher.hexdigest()

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.write(self._descriptor, rest)
            self._hasher.update(rest[:written])
            rest = rest[written:]


class _Sink:
    """What `gzip` writes to: everything it is given, at once."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put

    def write(self, data: bytes) -> int:
        self._put(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""


def replace(path: Path, content: Iterable[bytes]) -> None:
    """Put a file in the place of the one that may be there: it is the old one or the new one, whatever happens."""
    partial = path.with_name(f"{path.name}{PARTIAL}")
    descriptor = _create(partial)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        partial.unlink()
        raise _full(partial, error) from error
    partial.rename(path)
    sync(path.parent)


def sync(directory: Path) -> None:
    """Have the directory's entries on disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> int:
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _full(path: Path, error: OSError) -> Unable:
    return Unable(f"{path} cannot be written: {error.strerror}. Run the export again to go on from there.")
