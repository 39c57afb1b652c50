"""Who may read what in BigQuery: readers of customers' datasets, and row access policies on the central tables."""

import json
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from google.api_core import exceptions
from google.cloud import bigquery
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from adapters.bigquery.client import CALL_SECONDS, METADATA_SECONDS, RETRY, NotThere, plain_errors, run
from adapters.bigquery.tables import dataset_of
from application.readers import as_principal
from projections.rows import Table
from projections.tables import (
    CENTRAL,
    CUSTOMER_PIPELINE_CONFIGS,
    CUSTOMER_PROFILES,
    CUSTOMER_PROVIDER_CONFIGS,
    CUSTOMER_SUBSCRIPTIONS,
    CUSTOMER_TEAM_MEMBERS,
    CUSTOMER_USAGE,
    PIPELINE_EXECUTION_QUEUE,
    SCHEDULED_PIPELINE_RUNS,
)

SHARED: Final = (
    CUSTOMER_PROFILES,
    CUSTOMER_SUBSCRIPTIONS,
    CUSTOMER_USAGE,
    CUSTOMER_PROVIDER_CONFIGS,
    CUSTOMER_TEAM_MEMBERS,
    CUSTOMER_PIPELINE_CONFIGS,
    SCHEDULED_PIPELINE_RUNS,
    PIPELINE_EXECUTION_QUEUE,
)
"""Central tables of which readers see their customer's rows. Of the others, with secrets in them, they see none."""
WHOLE: Final = "whole"
"""The policy of those who see every row: once a table has a policy, whoever is in none sees nothing."""
_STAGED: Final = "whole_rebuilt"
_READER: Final = "READER"
_SERVICE_ACCOUNTS: Final = ".gserviceaccount.com"
_ATTEMPTS: Final = 5
_WHOLE_S: Final = 3600.0
_ABREAST: Final = 8


class BigQueryGrants:
    """Tells BigQuery who may read. Everything can be said again, and says the whole truth about one customer.

    `whole` are the principals that see all rows of the central tables beside the service itself: operators and their
    tools. Without any there are no row access policies: they would hide every row from whoever was not thought of.

    Methods raise as `BigQueryWarehouse`'s do.
    """

    def __init__(
        self, client: bigquery.Client, project: str, central_dataset: str, whole: Collection[str] = ()
    ) -> None:
        self._client = client
        self._project = project
        self._central = central_dataset
        self._whole = frozenset(map(as_principal, whole))
        self._itself: str | None = None
        self._whole_due = 0.0

    def tell(self, customer_id: str, active: Sequence[str], revoked: Sequence[str]) -> None:
        """Let exactly the active ones of these read the customer's dataset and rows. What others were given stays.

        Raises `NotThere` while the customer has no dataset, if somebody is to read it.
        """
        for who in (*active, *revoked):
            as_principal(who)
        with plain_errors():
            self._open(customer_id, active, revoked)
            if self._whole:
                self._bind(customer_id, active)

    def bind_staged(self, tables: Sequence[Table], suffix: str) -> None:
        """Have tables that are to be copied over the live ones show nothing to readers until `tell` says so again.

        A copy brings its policies along, and takes away those that were there. They have another name than the live
        table's: two of one name are refused. To be called before the copy; `tell` takes them away again.
        """
        with plain_errors():
            for table in tables if self._whole else ():
                if _has_policies(table):
                    self._bind_whole(table)
                    self._policy(_STAGED, table, self._everybody(), "TRUE", suffix)

    def _open(self, customer_id: str, active: Sequence[str], revoked: Sequence[str]) -> None:
        """Read, change and write back the dataset's access list, unless somebody else wrote it meanwhile."""
        for attempt in Retrying(
            retry=retry_if_exception_type(exceptions.PreconditionFailed),
            wait=wait_random_exponential(multiplier=0.05, max=1),
            stop=stop_after_attempt(_ATTEMPTS),
            reraise=True,
        ):
            with attempt:
                self._change(customer_id, active, revoked)

    def _change(self, customer_id: str, active: Sequence[str], revoked: Sequence[str]) -> None:
        name = f"{self._project}.{dataset_of(customer_id)}"
        try:
            dataset = self._client.get_dataset(name, retry=RETRY, timeout=METADATA_SECONDS)
        except exceptions.NotFound as missing:
            if active:
                raise NotThere(f"The dataset of {customer_id} is not there yet.") from missing
            return
        wanted, unwanted = set(map(_entry, active)), set(map(_entry, revoked))
        there = {_named(entry) for entry in dataset.access_entries}
        kept = [entry for entry in dataset.access_entries if _named(entry) not in unwanted - wanted]
        new = [bigquery.AccessEntry(*entry) for entry in sorted(wanted - there)]
        if new or len(kept) < len(dataset.access_entries):
            dataset.access_entries = [*kept, *new]
            self._client.update_dataset(dataset, ["access_entries"], retry=RETRY, timeout=METADATA_SECONDS)

    def _bind(self, customer_id: str, active: Sequence[str]) -> None:
        if time.monotonic() >= self._whole_due:
            # First of all: with any other policy alone the service would lose its own rows.
            self._side_by_side(self._bind_whole, filter(_has_policies, CENTRAL))
            self._whole_due = time.monotonic() + _WHOLE_S
        name, rows = _policy_of(customer_id), f"customer_id = '{dataset_of(customer_id)}'"

        def bind(table: Table) -> None:
            if active:
                self._policy(name, table, active, rows)
            else:
                self._drop(name, table)

        self._side_by_side(bind, SHARED)

    def _bind_whole(self, table: Table) -> None:
        self._policy(WHOLE, table, self._everybody(), "TRUE")
        self._drop(_STAGED, table)

    def _side_by_side(self, work: Callable[[Table], None], tables: Iterable[Table]) -> None:
        """At Google each statement takes a second or more, and those on different tables do not wait for each other."""
        with ThreadPoolExecutor(_ABREAST, thread_name_prefix="grants") as threads:
            list(threads.map(work, tables))

    def _everybody(self) -> Sequence[str]:
        """Who sees all rows; the service itself is asked who it is."""
        if self._itself is None:
            [row] = run(self._client, "SELECT SESSION_USER()").result(retry=RETRY, timeout=CALL_SECONDS)
            kind = "serviceAccount" if row[0].endswith(_SERVICE_ACCOUNTS) else "user"
            self._itself = as_principal(f"{kind}:{row[0]}")
        return sorted({self._itself, *self._whole})

    def _policy(self, name: str, table: Table, principals: Sequence[str], rows: str, suffix: str = "") -> None:
        whom = ", ".join(json.dumps(as_principal(who)) for who in principals)
        place = f"`{self._project}.{self._central}.{table.name}{suffix}`"
        run(
            self._client,
            f"CREATE OR REPLACE ROW ACCESS POLICY {name} ON {place} GRANT TO ({whom}) FILTER USING ({rows})",
        )

    def _drop(self, name: str, table: Table) -> None:
        place = f"`{self._project}.{self._central}.{table.name}`"
        with suppress(exceptions.NotFound):  # an emulator minds, whatever the statement says
            run(self._client, f"DROP ROW ACCESS POLICY IF EXISTS {name} ON {place}")


def _has_policies(table: Table) -> bool:
    return table in CENTRAL and "customer_id" in table.names


def _policy_of(customer_id: str) -> str:
    return f"rows_of_{dataset_of(customer_id)}"


def _entry(who: str) -> tuple[str, str, str]:
    """The entry of a dataset's access list: role, kind and whom. Service accounts are users by e-mail there."""
    kind, _, email = who.partition(":")
    return _READER, "groupByEmail" if kind == "group" else "userByEmail", email


def _named(entry: bigquery.AccessEntry) -> tuple[str, str, str]:
    return str(entry.role), str(entry.entity_type), str(entry.entity_id).lower()
