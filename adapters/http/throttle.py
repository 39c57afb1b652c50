"""What one caller may ask of the service: wrong keys and calls, counted together by all processes."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from adapters.http.figures import Figures
from adapters.http.guesses import Guesses
from adapters.http.ledger import Ledger
from adapters.http.rates import Rates
from adapters.postgres.allowances import Ask, Grant, sweep, take
from adapters.postgres.event_log import Datastore
from adapters.settings import Settings

_CONNECTIONS: Final = 2
SWEEP_EVERY_S: Final = 60.0


class SharedAllowances:
    """The allowances in the database, over connections of their own: to be over the limit must not cost the others'.

    Where they are used they are also cleared away, once a minute by each process.
    """

    def __init__(self, dsn: str, *, timer: Callable[[], float] = time.monotonic) -> None:
        self._datastore = Datastore(dsn, size=_CONNECTIONS, name="limits")
        self._timer = timer
        self._lock = threading.Lock()
        self._sweep_at = timer() + SWEEP_EVERY_S

    def take(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        """What each of the asks gets, in their order. Raises `Away` with the database."""
        if self._is_due():
            sweep(self._datastore)
        return take(self._datastore, asks)

    def close(self) -> None:
        """Close the connections."""
        self._datastore.close()

    def _is_due(self) -> bool:
        with self._lock:
            now = self._timer()
            if now < self._sweep_at:
                return False
            self._sweep_at = now + SWEEP_EVERY_S
            return True


@dataclass(frozen=True, slots=True)
class Throttle:
    """The limits of one application."""

    guesses: Guesses
    rates: Rates
    ends: Sequence[Callable[[], None]] = ()

    @classmethod
    def over(cls, ledger: Ledger, settings: Settings, figures: Figures) -> Self:
        """The limits that the settings name, counted by a ledger."""
        return cls(
            Guesses(
                ledger,
                settings.failed_keys_per_minute,
                figures,
                admin_keys_are_random=settings.admin_keys_are_random,
            ),
            Rates(
                ledger,
                customer_per_minute=settings.rate_limit_per_minute,
                source_per_minute=settings.source_rate_limit_per_minute,
                figures=figures,
            ),
        )

    @classmethod
    def shared(cls, dsn: str, settings: Settings, figures: Figures) -> Self:
        """The same, counted in the database at `dsn` for all processes. Connects to nothing yet."""
        allowances = SharedAllowances(dsn)
        ledger = Ledger(allowances.take)
        made = cls.over(ledger, settings, figures)
        return cls(made.guesses, made.rates, (allowances.close, ledger.close))

    def close(self) -> None:
        """Let go of threads and connections."""
        for end in self.ends:
            end()
