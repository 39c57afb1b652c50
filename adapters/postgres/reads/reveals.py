"""One-time links to a first API key."""

from collections.abc import Callable
from typing import Final, TypeVar

from psycopg.sql import SQL

from adapters.postgres.event_log import Datastore

Result = TypeVar("Result")

_VALID: Final = SQL(
    " FROM customer_api_keys k WHERE r.token_hash = %s AND r.used_at IS NULL AND r.expires_at > clock_timestamp()"
    " AND k.api_key_id = r.api_key_id AND k.customer_id = r.customer_id AND k.is_active AND k.deleted_at IS NULL"
    " AND k.expires_at > clock_timestamp()"
)


def is_valid(datastore: Datastore, token_hash: str) -> bool:
    """Whether the link would show a key that works."""
    with datastore.reading() as cursor:
        row = cursor.execute(
            SQL("SELECT EXISTS (SELECT 1 FROM key_reveals r JOIN LATERAL (SELECT 1 {}) v ON true) AS valid").format(
                _VALID
            ),
            (token_hash,),
            prepare=True,
        ).fetchone()
    return bool(row and row["valid"])


def use(datastore: Datastore, token_hash: str, open_sealed: Callable[[str, str, bytes], Result]) -> Result | None:
    """Use the link up, and give `open_sealed(customer_id, api_key_id, sealed)`; None for a link that is not valid.

    The link stays unused when opening raises. Of concurrent callers one gets the key.
    """
    with datastore.transaction_cursor() as cursor:
        row = cursor.execute(
            SQL("UPDATE key_reveals r SET used_at = clock_timestamp() {}").format(_VALID)
            + SQL(" RETURNING r.customer_id, r.api_key_id, k.encrypted_api_key"),
            (token_hash,),
        ).fetchone()
        if row is None:
            return None
        return open_sealed(row["customer_id"], row["api_key_id"], bytes(row["encrypted_api_key"]))
