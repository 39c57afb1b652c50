"""Where signed heads lie outside the database: a file of JSON lines, and a table in BigQuery."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import msgspec

from adapters.bigquery.client import NotThere
from adapters.bigquery.warehouse import BigQueryWarehouse
from application.chain import Head
from application.ports import Away
from projections.rows import Change, Put
from projections.tables import LOG_HEADS

_LINE: Final = msgspec.json.Decoder(Head)
_LINE_BYTES: Final = 512
"""About as long as a line gets, for reading from the end."""
_PAGE: Final = 5_000
# What somebody emptied is read as a head that nobody signed.
_COLUMNS: Final = (
    "position, coalesce(events, 0) AS events, hash,"
    " coalesce(sealed_at, TIMESTAMP '1970-01-01 00:00:00 UTC') AS sealed_at,"
    " coalesce(key_id, '') AS key_id, coalesce(public_key, '') AS public_key, coalesce(signature, '') AS signature"
)


class HeadsFile:
    """One head per line, in the order of signing; lines are only ever added. Readable by its owner alone.

    Methods raise `Away` when the file cannot be used, with a sentence that names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, heads: Sequence[Head]) -> None:
        """On disk when this returns. A line that a crash tore before is closed, so that it spoils no other."""
        text = b"".join(msgspec.json.encode(head) + b"\n" for head in heads)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                size = os.fstat(file.fileno()).st_size
                torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
                file.write(b"\n" + text if torn else text)
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                _fsync_directory(self.path.parent)
        except OSError as error:
            raise self._unusable(error) from error

    def tail(self, count: int) -> list[Head]:
        """At least the last `count` heads, if there are so many, oldest first. Lines that hold none are left out."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = file.seek(max(0, size - max(count, 16) * _LINE_BYTES))
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from error
        # The first one may have begun before what was read.
        found = (_head_in(line) for line in (lines[1:] if start else lines))
        return [head for head in found if head is not None]

    def read(self) -> Iterator[tuple[int, bytes, Head | None]]:
        """Each line with its number, from 1, and the head that it holds, if it holds one. Nothing without a file."""
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, line, _head_in(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> Away:
        return Away(f"The file of signed heads {self.path} cannot be used: {error.strerror or type(error).__name__}.")


def _head_in(line: bytes) -> Head | None:
    try:
        return _LINE.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WarehouseHeads:
    """The heads in BigQuery's central dataset. Methods raise what the warehouse raises: `Away` when it is away."""

    def __init__(self, warehouse: BigQueryWarehouse, project: str, dataset: str) -> None:
        self._warehouse = warehouse
        self._table = f"`{project}.{dataset}.{LOG_HEADS.name}`"

    def write(self, heads: Sequence[Head]) -> None:
        """Add them, those that are not there yet; the table is made when it is missing."""
        changes = []
        for head in heads:
            values = asdict(head)
            position = values.pop("position")
            changes.append(Change(Put(LOG_HEADS, values), position, customer_id=""))
        if changes:
            self._warehouse.write(changes)

    def read(self, after: int = 0) -> Iterator[Head]:
        """The heads at positions after `after`, in order, page by page; none while there is no table."""
        position, log_hash = after, "~"
        while True:
            # The name comes from the settings, values are bound.
            sql = (
                f"SELECT {_COLUMNS} FROM {self._table}"  # noqa: S608
                " WHERE position > @position OR (position = @position AND hash > @hash)"
                f" ORDER BY position, hash LIMIT {_PAGE}"
            )
            try:
                page = self._warehouse.query(sql, {"position": position, "hash": log_hash})
            except NotThere:
                return
            for row in page.rows:
                yield Head(**dict(zip(page.columns, row, strict=True)))
            if len(page.rows) < _PAGE:
                return
            position, log_hash = page.rows[-1][0], page.rows[-1][2]
