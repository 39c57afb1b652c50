"""Carrying signed heads out of the database: to the file at once, to BigQuery behind it."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Final, Self

from psycopg import Connection

from adapters.bootstrap import Service
from adapters.chain.heads import HeadsFile, WarehouseHeads
from adapters.chain.signing import Signer, genuine, signer
from adapters.postgres import seals
from adapters.postgres.seals import Sealed
from application.chain import Head
from application.ports import Away

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 10.0
_LAST_S: Final = 5.0
_RECENT: Final = 10_000
"""The heads of the file, a week of them at the least, that are compared with BigQuery's when this process leads."""


class Carrier:
    """Signs what the log is, at most once in the settings' interval and when something new was sealed.

    A wrapping key, a file or a BigQuery that is away holds up no sealing, and BigQuery no file: what it missed it gets
    later. Closing it does not wait for BigQuery.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self._every_s = settings.log_heads_interval_seconds
        self._file = HeadsFile(settings.heads_file)
        self._warehouse = WarehouseHeads(service.warehouse, settings.project, settings.customers_dataset_id)
        self._delivering = ThreadPoolExecutor(1, thread_name_prefix="log heads")
        self._delivery: Future[None] | None = None
        self._signer: Signer | None = None
        self._signed: tuple[int, str] = (0, "")
        self._sealed = (0, "")
        self._due_at = 0.0
        self._deliver_at = 0.0
        self._new: list[Head] = []
        self._met = False
        self._others_after = 0
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._delivering.shutdown(wait=False, cancel_futures=True)

    def compare(self, connection: Connection[Any]) -> None:
        """Look whether the log still is what the newest head of the file says; it is said loudly when it is not."""
        try:
            newest = self._file.tail(1)
        except Away as away:
            self._say("head", str(away))
            return
        if not newest:
            return
        head = newest[-1]
        self._others_after = head.position
        found = seals.hash_at(connection, head.position)
        if found is not None and found.hex() == head.hash:
            self._signed = (head.position, head.hash)
        else:
            logger.error(
                "The log is not what was signed at position %d on %s: run `convergence verify --chain`.",
                head.position,
                head.sealed_at.isoformat(),
            )

    def carry(self, end: Sealed, *, last: bool = False) -> None:
        """Sign what is sealed up to `end`, if it is new and time for it, or if it is the `last` time; deliver it."""
        self._sealed = (end.position, end.hash.hex()) if end.position else self._signed
        now = time.monotonic()
        if self._sealed != self._signed and (last or now >= self._due_at):
            try:
                self._sign(end)
            except Away as away:
                self._say("head", str(away))
                self._due_at = now + min(_AGAIN_S, self._every_s)
            else:
                self._said.pop("head", None)
                self._due_at = now + self._every_s
        self._deliver(last=last)

    def due_in(self) -> float:
        """Seconds until there is something to sign; for ever when nothing was sealed since."""
        return max(self._due_at - time.monotonic(), 0) if self._sealed != self._signed else float("inf")

    def _sign(self, end: Sealed) -> None:
        if self._signer is None:
            self._signer = signer(self._service.keys, self._service.data_keys)
        head = self._signer.sign(position=end.position, events=end.events, log_hash=end.hash, at=self._service.now())
        self._file.append([head])
        self._signed = (head.position, head.hash)
        self._new.append(head)
        self._deliver_at = 0.0

    def _deliver(self, *, last: bool) -> None:
        self._go_on(last=last)
        until = time.monotonic() + _LAST_S
        # A BigQuery that did not answer before is not waited for: it gets the head after the next start.
        while last and self._met and self._delivery is not None and (left := until - time.monotonic()) > 0:
            wait([self._delivery], timeout=left)
            self._go_on(last=last)

    def _go_on(self, *, last: bool) -> None:
        if self._delivery is not None and self._delivery.done():
            self._settle(self._delivery)
            self._delivery = None
        now = time.monotonic()
        wanted = self._new if self._met else not last
        if self._delivery is None and wanted and now >= self._deliver_at:
            self._deliver_at = now + _AGAIN_S
            heads, self._new = self._new, []
            self._delivery = self._delivering.submit(self._write, heads)

    def _settle(self, delivery: Future[None]) -> None:
        error = delivery.exception()
        if error is None:
            self._met = True
            self._said.pop("bigquery", None)
        else:
            # Whatever it missed is found by comparing.
            self._met = False
            # While everything starts BigQuery is the last to answer: that is no news.
            level = logging.INFO if isinstance(error, Away) else logging.WARNING
            self._say("bigquery", f"BigQuery gets the signed heads of the log later: {error}", level)

    def _write(self, heads: Sequence[Head]) -> None:
        if self._met:
            self._warehouse.write(heads)
        else:
            self._meet()

    def _meet(self) -> None:
        """Give BigQuery the recent heads that it lacks, and the file those that others signed since it was added to."""
        recent = self._file.tail(_RECENT)
        after = recent[0].position - 1 if len(recent) >= _RECENT else 0
        here = {(head.position, head.hash) for head in recent}
        there: set[tuple[int, str]] = set()
        others: list[Head] = []
        own = None
        for head in self._warehouse.read(after):
            there.add((head.position, head.hash))
            if head.position > self._others_after and (head.position, head.hash) not in here:
                own = own or signer(self._service.keys, self._service.data_keys).public_key
                if head.public_key == own and genuine(head):
                    others.append(head)
        if others:
            self._file.append(others)
        self._warehouse.write([head for head in recent if (head.position, head.hash) not in there])

    def _say(self, what: str, sentence: str, level: int = logging.WARNING) -> None:
        """Once, and again only when something else is wrong."""
        if self._said.get(what) != sentence:
            self._said[what] = sentence
            logger.log(level, "%s", sentence)
