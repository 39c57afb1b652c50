"""Who has had which secret opened: written before it is, and never changed."""

from typing import Any, Final

from adapters.postgres.event_log import Datastore
from application.ports import Opener, SealedFor

_RECORD: Final = (
    "INSERT INTO decryptions (customer_id, record_id, purpose, actor, reason, run_id, attempt, request_id)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
)
_OF_CUSTOMER: Final = (
    "SELECT id, at, customer_id, record_id, purpose, actor, reason, run_id, attempt, request_id"
    " FROM decryptions WHERE customer_id = %s AND (%s::bigint IS NULL OR id < %s) ORDER BY id DESC LIMIT %s"
)


def record(datastore: Datastore, owner: SealedFor, by: Opener) -> None:
    """Durable when this returns. Raises `Away` with the database."""
    with datastore.reading() as cursor:
        cursor.execute(
            _RECORD,
            (
                owner.customer_id,
                owner.record_id,
                owner.purpose.value,
                by.actor,
                by.reason,
                by.run_id,
                by.attempt,
                by.request_id,
            ),
            prepare=True,
        )


def of_customer(
    datastore: Datastore, customer_id: str, *, before: int | None = None, limit: int
) -> list[dict[str, Any]]:
    """What was opened of this customer's, the newest first; `before` is the id at which the page before ended."""
    with datastore.reading() as cursor:
        return cursor.execute(_OF_CUSTOMER, (customer_id, before, before, limit), prepare=True).fetchall()
