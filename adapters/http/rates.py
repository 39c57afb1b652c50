"""How often a customer, or a source without a key, may call: counted for all processes, mostly from memory.

A process leases tokens from the shared allowance, a few at first and more where they are used up, and spends them
without asking again. What it has not spent after `LEASE_S` is lost. So nobody gets more than the allowance, but for
what is leased and not yet spent: in no stretch of time more than the tokens of the bucket, those that come back in
that time, and a lease (a twentieth of the allowance) for each process.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from cachetools import LRUCache
from starlette.requests import HTTPConnection

from adapters.http.figures import Figures
from adapters.http.ledger import Ledger, bucket, seconds, too_many
from adapters.http.sources import source_of
from adapters.postgres.allowances import Allowance, Ask

LEASE_S: Final = 10.0
"""How long leased tokens are good for."""
LARGEST: Final = 20
"""A lease is at most the allowance divided by this,"""
SMALLEST: Final = 100
"""and at first the allowance divided by this."""
SENDERS_SHARE: Final = 10
"""How many times as much as others a sender of signed webhooks may call."""
_LEASES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of an allowance, as an answer's header fields say it (draft-ietf-httpapi-ratelimit-headers)."""

    name: str
    allowance: Allowance
    left: int
    wait_s: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """RateLimit: what is left and in how many seconds there is more, or all; RateLimit-Policy: of how much."""
        burst, spacing_s = self.allowance.burst, self.allowance.spacing_s
        more_s = (burst - self.left) * spacing_s if self.left else self.wait_s
        return {
            "RateLimit": f'"{self.name}";r={self.left};t={seconds(more_s)}',
            "RateLimit-Policy": f'"{self.name}";q={burst};w={seconds(burst * spacing_s)}',
        }


@dataclass(slots=True)
class _Lease:
    size: int
    tokens: int = 0
    until: float = 0.0
    shared: int = 0
    """What was left for all processes when it was made."""
    spent: int = 0
    empty_until: float = 0.0
    renewal: asyncio.Task[None] | None = None


class Rates:
    """The rate limits of one application. To be used in its event loop only."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        customer_per_minute: int,
        source_per_minute: int,
        figures: Figures,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """A limit of 0 is none."""
        self._ledger = ledger
        self._figures = figures
        self._timer = timer
        self._customer = Allowance.per_minute(customer_per_minute) if customer_per_minute else None
        self._source = Allowance.per_minute(source_per_minute) if source_per_minute else None
        self._sender = Allowance.per_minute(source_per_minute * SENDERS_SHARE) if source_per_minute else None
        self._leases: dict[str, LRUCache[str, _Lease]] = {
            name: LRUCache(_LEASES) for name in ("customer", "source", "sender")
        }

    async def of_customer(self, request: HTTPConnection, customer_id: str) -> None:
        """One call of a customer, with whichever of its keys; raises 429 for one too many."""
        if self._customer:
            await self._count(request, "customer", self._customer, customer_id)

    async def of_source(self, request: HTTPConnection) -> None:
        """One call without a key, however often it is asked about; raises 429 for one too many."""
        if self._source and getattr(request.state, "rate_limit", None) is None:
            await self._count(request, "source", self._source, source_of(request))

    async def of_sender(self, request: HTTPConnection) -> None:
        """One delivery of a webhook, before its signature is checked; raises 429 for one too many."""
        if self._sender:
            await self._count(request, "sender", self._sender, source_of(request))

    async def _count(self, request: HTTPConnection, name: str, allowance: Allowance, who: str) -> None:
        leases = self._leases[name]
        lease = leases.get(who)
        if lease is None:
            lease = leases[who] = _Lease(size=max(1, allowance.burst // SMALLEST))
        while True:
            now = self._timer()
            if lease.tokens and now < lease.until:
                lease.tokens -= 1
                lease.spent += 1
                request.state.rate_limit = Standing(name, allowance, lease.tokens + lease.shared)
                return
            if now < lease.empty_until:
                if name == "customer":
                    request.state.customer_id = who
                self._refuse(request, Standing(name, allowance, 0, lease.empty_until - now))
            if lease.renewal is None:
                lease.renewal = asyncio.create_task(self._renew(lease, Ask(bucket(f"calls of {name}", who), allowance)))
            # A caller that goes away does not take along what others wait for.
            await asyncio.shield(lease.renewal)

    async def _renew(self, lease: _Lease, ask: Ask) -> None:
        largest = max(1, ask.allowance.burst // LARGEST)
        wanted = lease.spent if lease.tokens else lease.size * 2 if lease.spent else lease.size
        lease.size = min(largest, max(1, ask.allowance.burst // SMALLEST, wanted))
        try:
            [grant] = await self._ledger.take(Ask(ask.bucket, ask.allowance, lease.size))
            lease.tokens, lease.spent, lease.shared = grant.tokens, 0, grant.left
            now = self._timer()
            lease.until = now + LEASE_S
            lease.empty_until = 0.0 if grant.tokens else now + grant.wait_s
        finally:
            lease.renewal = None

    def _refuse(self, request: HTTPConnection, standing: Standing) -> NoReturn:
        request.state.rate_limit = standing
        self._figures.refused(standing.name)
        raise too_many("Too many requests. Try again later.", standing.wait_s)
