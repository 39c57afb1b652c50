"""Names that decide uniqueness: the same thing is the same stream, so the store itself refuses the second one."""

import re
from datetime import UTC, date, datetime
from functools import lru_cache
from hashlib import sha1
from typing import Final
from uuid import UUID, uuid5

from domain.refusals import Invalid

_NAMESPACE: Final = UUID("8f2d7a56-3c7f-5b0e-9a55-1c0de5f1a9e4")
_CUSTOMER: Final = uuid5(_NAMESPACE, "customer")
_SUBSCRIPTION: Final = uuid5(_NAMESPACE, "subscription")
_RUN: Final = uuid5(_NAMESPACE, "run")
_PROJECTION: Final = uuid5(_NAMESPACE, "projection")
_BILLING: Final = uuid5(_NAMESPACE, "billing")

CUSTOMER_ID: Final = re.compile(r"[A-Za-z0-9_]{3,50}", re.ASCII)
_RESERVED: Final = frozenset({"information_schema", "system", "admin", "customers_metadata"})


def customer_id(text: str, *, central_dataset: str) -> str:
    """A customer's id as its owner chose it: 3-50 ASCII letters, digits and underscores, and no reserved name.

    Raises `Invalid`. The central dataset's name is refused because a customer's id is also the name of its dataset.
    """
    if not CUSTOMER_ID.fullmatch(text):
        raise Invalid("customer_id must be 3 to 50 characters, ASCII letters, digits and underscores only.")
    if text.startswith("_") or text.lower() in _RESERVED | {central_dataset.lower()}:
        raise Invalid("This customer_id is reserved. Choose another one.")
    return text


@lru_cache(maxsize=4096)
def customer_stream(customer: str) -> UUID:
    """The stream of a customer; ids that differ only in case are the same customer."""
    return uuid5(_CUSTOMER, customer.lower())


@lru_cache(maxsize=4096)
def subscription_stream(customer: str) -> UUID:
    return uuid5(_SUBSCRIPTION, customer.lower())


def projection_stream(projection: str) -> UUID:
    """The stream of what operators decide about a projection."""
    return uuid5(_PROJECTION, projection)


def billing_stream(stripe_id: str, *, live: bool) -> UUID:
    """The stream of a customer of Stripe's, or of one event that is about none; live and test mode never meet."""
    return uuid5(_BILLING, f"{'live' if live else 'test'}:{stripe_id}")


def scheduled_run_id(config_id: str, slot: datetime) -> UUID:
    """The run of one slot of one pipeline, whatever its schedule's revision and however many schedulers there are."""
    # As `uuid5(_RUN, name)`, at half the price: at a full hour there are a hundred thousand.
    name = f"{config_id}@{_to_the_second(slot.astimezone(UTC))}"
    return UUID(bytes=sha1(_RUN.bytes + name.encode(), usedforsecurity=False).digest()[:16], version=5)


@lru_cache(maxsize=4096)
def _to_the_second(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds")


def backfill_run_id(customer: str, backfill_id: str, day: date) -> UUID:
    """The run that fills in one day, however often its back-fill is asked for.

    Another customer's back-fill of the same id is another one: nobody is told that there is one.
    """
    return uuid5(_RUN, f"backfill:{customer.lower()}:{backfill_id}@{day.isoformat()}")


def onboarding_run_id(customer: str) -> UUID:
    """The platform's own check of a new customer's dataset."""
    return uuid5(_RUN, f"onboarding:{customer.lower()}")


def requested_run_id(customer: str, idempotency_key: str) -> UUID:
    """The run of a manual request that named itself, so that asking again finds the same run."""
    return uuid5(_RUN, f"requested:{customer.lower()}:{idempotency_key}")
