"""Finishing what onboarding could not: customers whose dataset is missing get it as soon as BigQuery answers."""

import logging
import threading
from typing import Final

from adapters.bootstrap import Service, origin, utc_now
from adapters.postgres.reads import history
from application.customers import Provision, provision
from application.mapper import envelope_of
from application.ports import Away
from domain.envelope import Origin
from domain.identity import customer_stream

logger = logging.getLogger(__name__)

_EVERY_S: Final = 5.0
_AFTER_S: Final = 15
"""Onboarding provisions by itself; the background takes over when that has not happened after this many seconds."""


def provision_pending(service: Service, stop: threading.Event, *, every_s: float = _EVERY_S) -> None:
    """Provision customers without a dataset, oldest first, until `stop` is set."""
    while not stop.wait(every_s):
        try:
            for customer_id in _unprovisioned(service):
                if stop.is_set():
                    return
                _provision(service, customer_id)
        except Away as away:
            logger.warning("provisioning waits: %s", away)


def _provision(service: Service, customer_id: str) -> None:
    try:
        command = Provision(at=utc_now(), by=_origin(service, customer_id), customer_id=customer_id)
        provision(command, service.platform, service.warehouse)
    except Away:
        raise
    except Exception:
        # The others' turn must come all the same.
        logger.exception("the dataset of %s cannot be provisioned", customer_id)
    else:
        logger.info("provisioned the dataset of %s", customer_id)


def _origin(service: Service, customer_id: str) -> Origin:
    """The service by itself, carrying on what the onboarding began."""
    by = origin(f"service:{service.settings.worker_id}")
    first = history.first(service.datastore, customer_stream(customer_id))
    onboarded = envelope_of(first) if first else None
    return by if onboarded is None else by.carrying_on(onboarded.by, onboarded.by)


def _unprovisioned(service: Service) -> list[str]:
    with service.datastore.reading() as cursor:
        rows = cursor.execute(
            "SELECT customer_id FROM customer_profiles WHERE NOT dataset_created AND status <> 'ERASED'"
            " AND created_at < clock_timestamp() - make_interval(secs => %s) ORDER BY created_at LIMIT 100",
            (_AFTER_S,),
            prepare=True,
        ).fetchall()
    return [row["customer_id"] for row in rows]
