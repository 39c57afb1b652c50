"""Comparing every row with the log: which tables, on which sides, and what is done about rows that differ."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from adapters.bigquery.mending import Mending
from adapters.bootstrap import Service
from adapters.postgres.beside import TEMPORARY, Beside, kept
from adapters.postgres.comparison import Comparison
from adapters.postgres.maintenance import maintenance
from adapters.postgres.reads.projections import skipped
from adapters.process import Unable
from adapters.progress import Tell, untold
from adapters.verification.expected import Expected
from adapters.verification.in_bigquery import InBigQuery
from adapters.verification.in_postgres import InPostgres
from adapters.verification.report import LIMIT, Ledger, Report, Side, SideReport, SideState, TableReport
from adapters.verification.warehouse import Erasures, WarehouseRows
from application.mapper import UnreadableEvent
from application.ports import Away
from domain.identity import CUSTOMER_ID
from domain.refusals import Invalid, NotFound
from projections.rows import Scope, Table
from projections.tables import CUSTOMER_PROFILES, EVERY, OWN
from projections.targets import Target

_TABLES: Final = {table.name: table for table in EVERY}
_SIDES: Final = {
    Target.POSTGRES: (Side.POSTGRES,),
    Target.BIGQUERY: (Side.BIGQUERY,),
    Target.BOTH: (Side.POSTGRES, Side.BIGQUERY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be compared: all tables, unless some are named. `reason` is given when rows are to be mended."""

    tables: Sequence[str] = ()
    target: Target = Target.BOTH
    customer_id: str | None = None
    reason: str | None = None
    by: str = "service"
    """Who has rows mended."""
    limit: int = LIMIT
    wait_s: float = 60.0
    """How long BigQuery may take to catch up with the log, as long as it moves."""


@dataclass(frozen=True, slots=True)
class _Work:
    service: Service
    asked: Asked
    tables: Sequence[Table]
    report: Report
    tell: Tell


def verify_rows(service: Service, asked: Asked, tell: Tell = untold) -> Report:
    """Find every row that is not what the log says; with a `reason`, mend those and look at them again.

    Writes may go on meanwhile. The cost is that of the log and the tables, or of a customer's own part of them. A
    BigQuery that is away or behind is said in the report. Raises `Invalid` for a table that there is not, `NotFound`
    for a customer of whom the log knows nothing, `Away` with the database, `Unable` when an event cannot be read or
    rows cannot be mended.
    """
    tables = _chosen(asked)
    customer = asked.customer_id
    if customer is not None and not (CUSTOMER_ID.fullmatch(customer) and service.log.read_of(customer, 0, 1)):
        raise NotFound(f"No such customer: the log has no event of {customer[:63]!r}.")
    report = Report(customer_id=asked.customer_id, tables=[TableReport(table=t.name, scope=t.scope) for t in tables])
    # What one projection passes over another one may not: then each side has rows of its own by the log.
    passed_over = [(side, skipped(service.datastore, side.value)) for side in _SIDES[asked.target]]
    work = _Work(service, asked, tables, report, tell)
    try:
        for skipping, group in groupby(passed_over, key=lambda entry: entry[1]):
            _verify(work, [side for side, _ in group], skipping)
    except UnreadableEvent as unreadable:
        place = f"Position {unreadable.position}: " if unreadable.position else ""
        raise Unable(
            f"{place}{unreadable} The rows that follow from it cannot be compared. `convergence projections` says what"
            " to do."
        ) from unreadable
    return report


def _chosen(asked: Asked) -> list[Table]:
    unknown = sorted(set(asked.tables) - set(_TABLES))
    if unknown:
        raise Invalid(f"There is no table {unknown[0]}: there are {', '.join(_TABLES)}.")
    tables = [kept(table) for name, table in _TABLES.items() if not asked.tables or name in asked.tables]
    if asked.target is Target.POSTGRES:
        if asked.tables and (elsewhere := [t.name for t in tables if t.scope is Scope.CUSTOMER]):
            raise Invalid(f"{elsewhere[0]} is in BigQuery only.")
        tables = [table for table in tables if table.scope is Scope.CENTRAL]
    if asked.customer_id is not None:
        tables = [table for table in tables if table in OWN or table.scope is Scope.CUSTOMER]
        if not tables:
            raise Invalid("The rows of that table are no customer's.")
    return tables


def _verify(work: _Work, sides: Collection[Side], skipping: Collection[int]) -> None:
    service, asked, report, tell = work.service, work.asked, work.report, work.tell
    central_dataset = service.settings.customers_dataset_id
    central = [table for table in work.tables if table.scope is Scope.CENTRAL]
    ledgers = {side: Ledger(report, side, central_dataset, asked.limit) for side in sides}
    with maintenance(service.dsn, name="verify") as connection:
        # Whose datasets there are is in the profiles.
        needed = {table.name: _TABLES[table.name] for table in work.tables} | {
            CUSTOMER_PROFILES.name: CUSTOMER_PROFILES
        }
        beside = Beside(connection, TEMPORARY, list(needed.values()))
        expected = Expected(beside, service.log, asked.customer_id, skipping)
        comparison = Comparison(connection, beside, asked.customer_id)
        expected.extend(service.log.end(), tell)
        here = InPostgres(comparison, expected, beside, service.log)
        there = InBigQuery(
            dsn=service.dsn,
            customer_id=asked.customer_id,
            rows=WarehouseRows(service.bigquery, service.warehouse, central_dataset),
            mending=Mending(service.bigquery, service.bigquery.project),
            warehouse=service.warehouse,
            comparison=comparison,
            expected=expected,
            beside=beside,
            log=service.log,
            checkpoints=service.checkpoints,
            erasures=Erasures(service.datastore),
        )
        if Side.POSTGRES in sides:
            here.compare(central, ledgers[Side.POSTGRES], tell)
        report.position = expected.position
        if Side.BIGQUERY in sides:
            with _away_is_said(service, report):
                there.compare(work.tables, ledgers[Side.BIGQUERY], tell, wait_s=asked.wait_s)
        if asked.reason is None:
            return
        if Side.POSTGRES in sides:
            here.mend(central, ledgers[Side.POSTGRES], f"{asked.reason} ({asked.by})", tell)
        if Side.BIGQUERY in sides:
            with _away_is_said(service, report):
                there.mend(work.tables, ledgers[Side.BIGQUERY], f"{asked.reason} ({asked.by})", tell)


@contextmanager
def _away_is_said(service: Service, report: Report) -> Iterator[None]:
    """What was found elsewhere is worth telling when BigQuery does not answer."""
    try:
        yield
    except (Away, PermissionError) as error:
        # Raises it for itself when the database is what is away.
        service.log.end()
        report.sides[Side.BIGQUERY] = SideReport(state=SideState.AWAY, position=0, why=str(error))
        for table in report.tables:
            if (rows := table.sides.get(Side.BIGQUERY)) and not rows.digest:
                del table.sides[Side.BIGQUERY]
