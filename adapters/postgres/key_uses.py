"""When and from where API keys were last used."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from adapters.postgres.event_log import Datastore
from adapters.postgres.json_rows import json_of

# In the order of the ids, so that two processes never wait for each other. Of a customer that was erased meanwhile
# there are no keys: nothing is written of them.
_RECORD: Final = (
    "INSERT INTO api_key_uses AS u (api_key_id, customer_id, last_used_at, source)"
    " SELECT n.api_key_id, n.customer_id, n.at, n.source FROM json_to_recordset(%s)"
    "  AS n(api_key_id text, customer_id text, at timestamptz, source text)"
    " JOIN customer_api_keys k ON k.api_key_id = n.api_key_id AND k.deleted_at IS NULL ORDER BY n.api_key_id"
    " ON CONFLICT (api_key_id) DO UPDATE SET last_used_at = excluded.last_used_at, source = excluded.source"
    " WHERE excluded.last_used_at > u.last_used_at"
)
_STATEMENT_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Use:
    """The newest use of one key: when, and the address of who used it."""

    api_key_id: str
    customer_id: str
    at: datetime
    source: str | None


def record(datastore: Datastore, uses: Iterable[Use]) -> None:
    """Write each key's use, unless a newer one is known. Raises `Away` with the database."""
    rows = sorted(uses, key=lambda use: use.api_key_id)
    with datastore.reading() as cursor:
        for start in range(0, len(rows), _STATEMENT_ROWS):
            found = [asdict(use) for use in rows[start : start + _STATEMENT_ROWS]]
            cursor.execute(_RECORD, (json_of(found),), prepare=True)


def last_uses(datastore: Datastore, api_key_ids: Collection[str]) -> Mapping[str, Use]:
    """By id; a key that was never used is not among them."""
    with datastore.reading() as cursor:
        found = cursor.execute(
            "SELECT api_key_id, customer_id, last_used_at AS at, source FROM api_key_uses WHERE api_key_id = ANY(%s)",
            (list(api_key_ids),),
            prepare=True,
        ).fetchall()
    return {row["api_key_id"]: Use(**row) for row in found}
