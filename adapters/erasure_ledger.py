"""The deletion ledger: who was erased, kept outside of the database, so that no backup brings anybody back."""

import fcntl
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from adapters.bigquery.client import NotThere
from adapters.bigquery.warehouse import BigQueryWarehouse
from application.ports import Away
from projections.rows import Change, Put
from projections.tables import ERASURE_LEDGER


class Entry(msgspec.Struct, frozen=True):
    """One erasure. The id is the one its owner chose, which stays taken; nothing else is said of whose it was."""

    customer_id: str
    erased_at: datetime


_LINE: Final = msgspec.json.Decoder(Entry)


class LedgerFile:
    """One erasure per line; lines are only ever added. Readable by its owner alone.

    Methods raise `Away` when the file cannot be used, with a sentence that names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, entry: Entry) -> None:
        """On disk when this returns, once. A line that a crash tore before is closed, so that it spoils no other."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                text = file.read()
                if entry in map(_entry_in, text.split(b"\n")):
                    return
                torn = bool(text) and not text.endswith(b"\n")
                file.write((b"\n" if torn else b"") + msgspec.json.encode(entry) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                _sync_directory(self.path.parent)
        except OSError as error:
            raise self._unusable(error) from error

    def read(self) -> Mapping[str, datetime]:
        """Who was erased, and when last; nobody without a file. Lines that hold no entry are left out."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unusable(error) from error
        return latest([entry for line in lines if (entry := _entry_in(line)) is not None])

    def _unusable(self, error: OSError) -> Away:
        return Away(f"The deletion ledger {self.path} cannot be used: {error.strerror or type(error).__name__}.")


class WarehouseLedger:
    """The ledger in BigQuery's central dataset. Methods raise what the warehouse raises: `Away` when it is away."""

    def __init__(self, warehouse: BigQueryWarehouse, project: str, dataset: str) -> None:
        self._warehouse = warehouse
        self._table = f"`{project}.{dataset}.{ERASURE_LEDGER.name}`"

    def add(self, entry: Entry) -> None:
        """Add it, if it is not there yet; the table is made when it is missing."""
        row = Put(ERASURE_LEDGER, {"customer_id": entry.customer_id, "erased_at": entry.erased_at})
        # It follows from no event: what counts as its position is when it was.
        self._warehouse.write([Change(row, int(entry.erased_at.timestamp()), customer_id="")])

    def read(self) -> Mapping[str, datetime]:
        """Who was erased, and when last; nobody while there is no table."""
        try:
            # The name comes from the settings.
            found = self._warehouse.query(f"SELECT customer_id, erased_at FROM {self._table}")  # noqa: S608
        except NotThere:
            return {}
        return latest([Entry(*row) for row in found.rows])


def latest(entries: list[Entry]) -> Mapping[str, datetime]:
    """The last erasure of each customer: one that came back with a backup was erased again."""
    return {entry.customer_id: entry.erased_at for entry in sorted(entries, key=lambda entry: entry.erased_at)}


def _entry_in(line: bytes) -> Entry | None:
    try:
        return _LINE.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
