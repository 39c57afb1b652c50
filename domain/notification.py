"""Notifications: what is worth telling a customer, what makes it one occasion, and how long its delivery is tried."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid5

_NAMESPACE: Final = UUID("6f0d4d0e-5a3b-5c0e-9a51-3c1f2f7e8b10")


class Kind(StrEnum):
    """What happened. Every kind but `test` is mailed; endpoints choose among all but `welcome` and `test`."""

    WELCOME = "welcome"
    RUN_FAILED = "run.failed"
    RUN_SKIPPED = "run.skipped"
    QUOTA_80 = "quota.80"
    QUOTA_100 = "quota.100"
    KEY_EXPIRING = "key.expiring"
    KEY_ISSUED = "key.issued"
    KEY_REVOKED = "key.revoked"
    SUSPENDED = "customer.suspended"
    REACTIVATED = "customer.reactivated"
    TEST = "test"


POSTED: Final = tuple(kind for kind in Kind if kind not in {Kind.WELCOME, Kind.TEST})
"""The kinds that an endpoint can ask for."""


class DeliveryState(StrEnum):
    """What became of a notification at one receiver."""

    PENDING = "PENDING"
    """It waits for its first or next attempt."""
    DELIVERED = "DELIVERED"
    """The receiver took it, at least once."""
    DEAD = "DEAD"
    """It was given up: an operator can have it tried again."""
    DROPPED = "DROPPED"
    """There is nobody, or no need, to tell any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """One thing to tell a customer about, once. `name` tells it apart from others of its kind and customer.

    `about` holds references and numbers: nothing that names a person, and no secret.
    """

    kind: Kind
    customer_id: str
    name: str
    occurred_at: datetime
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dedupe_key(self) -> str:
        return f"{self.kind}/{self.customer_id}/{self.name}"

    @property
    def notification_id(self) -> UUID:
        """The same for the same occasion, whenever and by whomever it is found."""
        return uuid5(_NAMESPACE, self.dedupe_key)


STALE_AFTER: Final = timedelta(days=30)
"""What happened longer ago is not told any more: also when the whole log is read once again."""
KEPT_FOR: Final = timedelta(days=90)
"""For how long notifications are kept, which is longer than `STALE_AFTER`: none can come up a second time."""

ATTEMPTS: Final = 12
_FIRST_WAIT: Final = timedelta(seconds=10)
_FACTOR: Final = 4
_LONGEST_WAIT: Final = timedelta(hours=12)


def wait_after(attempts: int) -> timedelta:
    """How long to wait after so many attempts have failed: 10 s, 40 s, 160 s … 12 h; in all about three days."""
    grown = float(_FACTOR) ** min(attempts - 1, ATTEMPTS)
    return min(_LONGEST_WAIT, _FIRST_WAIT * grown)
