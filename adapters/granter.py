"""The granter: tells BigQuery who may read customers' data, until it knows, and again every hour."""

import logging
import threading
from typing import Final

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from adapters.bigquery.grants import BigQueryGrants
from adapters.bootstrap import Service
from adapters.postgres import grants
from adapters.postgres.checkpoints import leading
from application.ports import Away

logger = logging.getLogger(__name__)

GRANT: Final = "grant"
"""The lead of the one process that tells BigQuery."""
_LOOK_S: Final = 5.0
_MAX_SLEEP_S: Final = 30.0


def grants_of(service: Service) -> BigQueryGrants:
    """What tells the service's BigQuery. An emulator, which cannot replace a policy, gets none."""
    settings = service.settings
    whole = settings.bigquery_whole_readers if settings.emulator_url is None else ()
    return BigQueryGrants(service.bigquery, settings.project, settings.customers_dataset_id, whole)


def tell_all(service: Service, told: BigQueryGrants) -> int:
    """Tell BigQuery of every customer's readers that are due; of how many it knows now.

    Raises `Away` when BigQuery does not answer. What it refuses is noted with the customer, and tried again later.
    """
    known = 0
    for readers in grants.due(service.datastore):
        try:
            told.tell(readers.customer_id, readers.active, readers.revoked)
        except (PermissionError, ValueError) as refused:
            grants.failed(service.datastore, readers, str(refused))
            logger.warning("BigQuery cannot be told of the readers of %s: %s", readers.customer_id, type(refused))
        except Away as away:
            grants.failed(service.datastore, readers, str(away))
            raise
        else:
            grants.applied(service.datastore, readers)
            known += 1
    return known


class Granter(threading.Thread):
    """Looks every `look_s` seconds until `stop` is set. One process at a time tells BigQuery."""

    def __init__(self, service: Service, stop: threading.Event, *, look_s: float = _LOOK_S) -> None:
        super().__init__(name=GRANT)
        self._service = service
        self._stop_asked = stop
        self._look_s = look_s
        self._grants = grants_of(service)

    def run(self) -> None:
        """Go on until it is stopped; after an error, wait longer and longer."""
        for attempt in Retrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_exponential_jitter(multiplier=0.5, max=_MAX_SLEEP_S),
            stop=lambda _: self._stop_asked.is_set(),
            sleep=self._sleep,
            before_sleep=_tell,
            retry_error_callback=lambda _: None,
        ):
            with attempt:
                self._work()

    def _sleep(self, seconds: float) -> None:
        self._stop_asked.wait(seconds)

    def _work(self) -> None:
        while not self._stop_asked.is_set():
            if grants.due(self._service.datastore, limit=1):
                with leading(self._service.dsn, GRANT) as lead:
                    if lead:
                        tell_all(self._service, self._grants)
            self._stop_asked.wait(self._look_s)


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Away):
        logger.warning("readers wait for BigQuery: %s", error)
    else:
        logger.error("the granter stopped and will be tried again", exc_info=error)
