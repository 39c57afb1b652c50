"""The rows as the log says they are, up to a position of it that can be moved on."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from adapters.postgres.beside import Beside
from adapters.postgres.checkpoints import PostgresLog
from adapters.progress import Tell, untold
from projections.follow import Placed

_PAGE: Final = 5_000


class Expected:
    """Tables beside the live ones, filled from the log: with a `customer_id` from that customer's own events only.

    `position` is how far: every row is what the events up to there make of it.
    """

    def __init__(
        self, beside: Beside, log: PostgresLog, customer_id: str | None, skipping: Collection[int] = frozenset()
    ) -> None:
        self._beside = beside
        self._log = log
        self._customer_id = customer_id
        self._skipping = skipping
        self.position = 0
        beside.create()

    def extend(self, to: int, tell: Tell = untold) -> None:
        """Move on to a position that the log has reached; never back. Raises `UnreadableEvent`."""
        at = self.position
        while at < to and (page := self._read(at)):
            within = [placed for placed in page if placed.at.position <= to]
            if within:
                self._beside.write(within)
            at = page[-1].at.position
            tell("Reading the log", min(at, to), to)
        self.position = max(self.position, to)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Around a transaction: what rolls back with it was not read."""
        before = self.position
        try:
            yield
        except BaseException:
            self.position = before
            raise

    def _read(self, after: int) -> Sequence[Placed]:
        if self._customer_id is not None:
            return self._log.read_of(self._customer_id, after, _PAGE, self._skipping)
        return self._log.read(after, _PAGE, self._skipping)
