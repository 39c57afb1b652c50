"""Keys that prove nothing, counted: guessing is slowed by where it comes from, and locks nobody else out."""

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache, TTLCache

from adapters.http.figures import Figures
from adapters.http.ledger import Ledger, LocalBuckets, bucket, too_many
from adapters.postgres.allowances import Allowance, Ask
from domain.identity import CUSTOMER_ID

logger = logging.getLogger(__name__)

PREFIX_SHARE: Final = 5
"""How many times as many wrong keys one customer may get, from all sources together, as one source may send."""
OPERATOR_SHARE: Final = 4
"""What part of them a source may send as admin keys."""
LOOKS_OVER_LIMIT: Final = Allowance(20, 0.05)
"""Keys that this process still looks up for a source which is over its limit: a right one is to be found."""
LOOKS_UNDER_ATTACK: Final = Allowance(2, 5.0)
"""The same for each source that is not known to be the customer's, while that customer's keys are being guessed."""
KNOWN_S: Final = 3600.0
"""How long a source is known by a right key."""
_KNOWN: Final = 100_000
_SENTENCE: Final = "Too many wrong API keys were sent. Try again later."


@dataclass(frozen=True, slots=True)
class Attempt:
    """A key that came from a source. Holds a digest of the key, never the key."""

    source: str
    digest: bytes
    prefix: str | None
    """The customer that the key names, whether there is one or not; None for a key that names none."""
    operator: bool = False


def customer_key(source: str, key: str, digest: bytes) -> Attempt:
    """A customer's key, right or wrong."""
    customer_id, _, _ = key.rpartition("_api_")
    return Attempt(source, digest, customer_id.lower() if CUSTOMER_ID.fullmatch(customer_id) else None)


def operator_key(source: str, key: str) -> Attempt:
    """An admin key, right or wrong."""
    return Attempt(source, hashlib.sha256(key.encode()).digest(), None, operator=True)


class Guesses:
    """Counts wrong keys for all processes, by source and by the customer they name; right ones are never counted.

    `admit` before a key is looked up, then `failed` or `succeeded`. Beyond the limit wrong keys get 429 instead of
    401 and nothing is written any more. A right key works all the same, but where wrong ones keep coming: there, a
    key that this process has not seen to be right from that source may have to wait for its turn to be looked up.
    """

    def __init__(
        self,
        ledger: Ledger,
        per_minute: int,
        figures: Figures,
        *,
        admin_keys_are_random: bool = False,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """No more than `per_minute` wrong keys from one source; 0 counts none.

        Admin keys that a person has thought up are not even compared beyond the limit: they could be guessed.
        """
        self._ledger = ledger
        self._figures = figures
        self._random = admin_keys_are_random
        self._timer = timer
        self._on = per_minute > 0
        self._source = Allowance.per_minute(max(1, per_minute))
        self._prefix = Allowance.per_minute(max(1, per_minute * PREFIX_SHARE))
        self._operator = Allowance.per_minute(max(1, per_minute // OPERATOR_SHARE))
        self._looks = LocalBuckets(timer=timer)
        self._over: LRUCache[bytes, float] = LRUCache(_KNOWN)
        self._right: TTLCache[tuple[str, bytes], bool] = TTLCache(_KNOWN, KNOWN_S, timer)
        self._known: TTLCache[tuple[str, str], bool] = TTLCache(_KNOWN, KNOWN_S, timer)

    def admit(self, attempt: Attempt) -> None:
        """Whether the key may be looked up; raises 429 otherwise."""
        if not self._on or (attempt.source, attempt.digest) in self._right:
            return
        wait_s = self._wait_s(_of_source(attempt))
        if wait_s and not (self._cannot_be_guessed(attempt) and self._may_look(LOOKS_OVER_LIMIT, attempt.source)):
            self._refuse(attempt, wait_s)
        if not wait_s and attempt.prefix and not self._is_known(attempt):
            wait_s = self.under_attack_s(attempt.prefix)
            if wait_s and not self._may_look(LOOKS_UNDER_ATTACK, attempt.source, attempt.prefix):
                self._refuse(attempt, max(wait_s, LOOKS_UNDER_ATTACK.spacing_s))

    async def failed(self, attempt: Attempt) -> None:
        """Count a key that proved nothing; raises 429 when there were too many."""
        if not self._on:
            return
        of_source = _of_source(attempt)
        if wait_s := self._wait_s(of_source):
            self._refuse(attempt, wait_s)
        asks = [Ask(of_source, self._operator if attempt.operator else self._source)]
        under_attack_s = 0.0
        if attempt.prefix:
            of_prefix = _of_prefix(attempt.prefix)
            under_attack_s = self.under_attack_s(attempt.prefix)
            if not under_attack_s:
                asks.append(Ask(of_prefix, self._prefix))
        grants = await self._ledger.take(*asks)
        waits = [0.0 if grant.tokens else grant.wait_s for grant in grants]
        for ask, wait_s in zip(asks, waits, strict=True):
            if wait_s:
                self._over[ask.bucket] = self._timer() + wait_s
        if waits[0]:
            logger.warning("too many wrong keys from %s", attempt.source)
            self._refuse(attempt, waits[0])
        under_attack_s = under_attack_s or sum(waits[1:])
        if under_attack_s and not self._is_known(attempt):
            logger.warning("too many wrong keys of one customer, the last one from %s", attempt.source)
            self._refuse(attempt, under_attack_s)

    def succeeded(self, attempt: Attempt) -> None:
        """The key was right: from this source it is not refused for what others send."""
        if not self._on or (attempt.source, attempt.digest) in self._right:
            return
        self._right[attempt.source, attempt.digest] = True
        if attempt.prefix:
            self._known[attempt.source, attempt.prefix] = True

    def under_attack_s(self, prefix: str) -> float:
        """For how long this process knows that too many wrong keys of that customer were sent; 0 if not."""
        return self._wait_s(_of_prefix(prefix))

    def _wait_s(self, bucket_: bytes) -> float:
        return max(0.0, self._over.get(bucket_, 0.0) - self._timer())

    def _may_look(self, allowance: Allowance, *names: str) -> bool:
        [grant] = self._looks.take([Ask(bucket("looks", *names), allowance)])
        return grant.tokens > 0

    def _cannot_be_guessed(self, attempt: Attempt) -> bool:
        return self._random or not attempt.operator

    def _is_known(self, attempt: Attempt) -> bool:
        return attempt.prefix is not None and (attempt.source, attempt.prefix) in self._known

    def _refuse(self, attempt: Attempt, wait_s: float) -> None:
        self._figures.refused("admin_key" if attempt.operator else "api_key")
        raise too_many(_SENTENCE, wait_s)


def _of_source(attempt: Attempt) -> bytes:
    return bucket("wrong admin keys of source" if attempt.operator else "wrong keys of source", attempt.source)


def _of_prefix(prefix: str) -> bytes:
    return bucket("wrong keys of customer", prefix)
