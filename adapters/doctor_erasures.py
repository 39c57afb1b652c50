"""What the doctor looks at of erasures: that nobody came back with a backup, and that none is stuck."""

from datetime import timedelta
from typing import Final

from psycopg import Connection
from psycopg.rows import DictRow

from adapters.bigquery.client import connect
from adapters.bigquery.warehouse import BigQueryWarehouse
from adapters.erasure_ledger import Entry, LedgerFile, WarehouseLedger, latest
from adapters.finding import Finding, Result
from adapters.postgres import erasures
from adapters.running import Place
from application.ports import Away

_CHECK: Final = "erasures"
_NAMED: Final = 3
_PATIENCE: Final = timedelta(minutes=15)
"""How long an erasure may take: a worker and the projections are heard of within minutes."""
_STUCK: Final = (
    "SELECT customer_id, problem FROM erasures WHERE completed_at IS NULL AND erased_at < clock_timestamp() - %s"
    " ORDER BY erased_at"
)


def examine_erasures(connection: Connection[DictRow], place: Place) -> Finding:
    """Compare the log with the deletion ledger, in the file and in BigQuery where that answers."""
    try:
        entries = [Entry(*item) for item in LedgerFile(place.settings.ledger_file).read().items()]
    except Away as away:
        return Finding(_CHECK, Result.FAIL, str(away), "Let the service read it, or set ERASURES_FILE.")
    in_warehouse, unasked = _in_warehouse(place)
    entries += in_warehouse
    back = sorted(erasures.reborn(connection, latest(entries)))
    if back:
        why = f"{_named(back)} erased before, and here again: the database is from an older backup."
        return Finding(_CHECK, Result.FAIL, why, "Run: convergence erase --apply-ledger.")
    stuck = connection.execute(_STUCK, (_PATIENCE,)).fetchall()
    if stuck:
        why = f"of {_named([row['customer_id'] for row in stuck])} not complete: {stuck[0]['problem'] or 'never tried'}"
        return Finding(_CHECK, Result.WARN, why, "See: convergence erase CUSTOMER --status. A projector finishes them.")
    return Finding(_CHECK, Result.OK, f"{len(latest(entries))} in the deletion ledger{unasked}, nobody is back")


def _in_warehouse(place: Place) -> tuple[list[Entry], str]:
    """What BigQuery knows, and what is to be said when it was not asked."""
    settings = place.settings
    unasked = " (BigQuery was not asked)"
    if not place.has_bigquery:
        return [], unasked
    try:
        client = connect(settings.project, emulator_url=settings.emulator_url, location=settings.gcp_location)
    except ValueError:
        return [], unasked
    warehouse = BigQueryWarehouse(client, settings.project, settings.customers_dataset_id, settings.gcp_location)
    try:
        found = WarehouseLedger(warehouse, settings.project, settings.customers_dataset_id).read()
    except (Away, PermissionError):
        return [], unasked
    finally:
        warehouse.close()
    return [Entry(*item) for item in found.items()], ""


def _named(customer_ids: list[str]) -> str:
    """`acme, other and 5 more`."""
    more = len(customer_ids) - _NAMED
    return ", ".join(customer_ids[:_NAMED]) + (f" and {more} more" if more > 0 else "")
