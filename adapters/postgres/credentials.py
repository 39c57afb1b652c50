"""A customer's cloud credentials, opened for the run that needs one."""

import json
from collections.abc import Mapping
from typing import Any

from adapters.postgres.event_log import Datastore
from application.ports import Purpose, SealedFor, Vault


class SealedCredentials:
    """Reads the newest fitting credential of a customer and opens it. Nothing of it is kept."""

    def __init__(self, datastore: Datastore, vault: Vault) -> None:
        self._datastore = datastore
        self._vault = vault

    def credential(self, customer_id: str, provider: str, project_id: str | None) -> Mapping[str, Any] | None:
        """The newest active credential of that provider (and project, where given), or None."""
        with self._datastore.reading() as cursor:
            row = cursor.execute(
                "SELECT credential_id, encrypted_credentials FROM customer_cloud_credentials"
                " WHERE customer_id = %s AND provider = upper(%s) AND is_active AND deleted_at IS NULL"
                " AND (%s::text IS NULL OR project_id = %s) ORDER BY created_at DESC, credential_id LIMIT 1",
                (customer_id, provider, project_id, project_id),
                prepare=True,
            ).fetchone()
        if row is None:
            return None
        owner = SealedFor(customer_id, row["credential_id"], Purpose.CREDENTIAL)
        opened: Mapping[str, Any] = json.loads(self._vault.open(bytes(row["encrypted_credentials"]), owner))
        return opened
