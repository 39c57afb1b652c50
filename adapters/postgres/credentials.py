"""A customer's cloud credentials, opened for the run that needs one."""

import json
from collections.abc import Mapping
from typing import Any, Final

from adapters.postgres.event_log import Datastore
from application.ports import NotToBeOpened, Opener, Purpose, RunOrder, SealedFor, Vault

# The lease is the fencing token: from the moment another worker has the run, this one does not.
_FOUND: Final = (
    "SELECT c.credential_id, c.encrypted_credentials FROM run_leases l LEFT JOIN LATERAL ("
    "  SELECT credential_id, encrypted_credentials FROM customer_cloud_credentials"
    "  WHERE customer_id = l.customer_id AND provider = upper(%(provider)s) AND is_active AND deleted_at IS NULL"
    "  AND (%(project)s::text IS NULL OR project_id = %(project)s)"
    "  ORDER BY created_at DESC, credential_id LIMIT 1) AS c ON true"
    " WHERE l.run_id = %(run)s AND l.attempt = %(attempt)s AND l.worker_id = %(worker)s"
    " AND l.customer_id = %(customer)s AND l.begun AND l.expires_at > clock_timestamp()"
)


class SealedCredentials:
    """Reads the newest fitting credential of a run's customer and opens it. Nothing of it is kept."""

    def __init__(self, datastore: Datastore, vault: Vault) -> None:
        self._datastore = datastore
        self._vault = vault

    def credential(self, order: RunOrder, provider: str, project_id: str | None) -> Mapping[str, Any] | None:
        """The newest active credential of that provider (and project, where given), or None.

        Raises `NotToBeOpened` unless the worker that claimed this attempt of the run, for this customer, holds it now.
        """
        wanted = {
            "provider": provider,
            "project": project_id,
            "run": order.run_id,
            "attempt": order.attempt,
            "worker": order.worker_id,
            "customer": order.customer_id,
        }
        with self._datastore.reading() as cursor:
            row = cursor.execute(_FOUND, wanted, prepare=True).fetchone()
        if row is None:
            raise NotToBeOpened(f"Run {order.run_id} is not held by who asks for its customer's credential.")
        if row["credential_id"] is None:
            return None
        owner = SealedFor(order.customer_id, row["credential_id"], Purpose.CREDENTIAL)
        by = Opener(actor=f"worker:{order.worker_id}", reason="run", run_id=order.run_id, attempt=order.attempt)
        opened: Mapping[str, Any] = json.loads(self._vault.open(bytes(row["encrypted_credentials"]), owner, by))
        return opened
