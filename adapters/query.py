"""SQL for BigQuery from the command line: what the guide's `bq query` lines do, on whatever the service uses."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, LiteralString

import psycopg
from google.cloud import bigquery
from psycopg.rows import TupleRow

from adapters.bigquery.client import connect, plain_errors, run
from adapters.postgres.event_log import connection_arguments
from adapters.process import Unable
from adapters.settings import Settings
from application.ports import Away
from projections.tables import EVERY

_CHANGES: Final = re.compile(
    r"\A(?:\s|--[^\n]*\n|/\*.*?\*/)*(INSERT|UPDATE|DELETE|MERGE|TRUNCATE)\b[^`\w]*(?:\b(?:INTO|FROM|TABLE)\b\s*)?([`\w.:-]+)",
    re.IGNORECASE | re.DOTALL,
)
_POSITION: Final = "SELECT coalesce((SELECT position FROM checkpoints WHERE projection = 'bigquery'), 0)"
_INSTEAD: Final = {
    "customer_profiles": "POST /api/v1/admin/customers/{id}/reactivate (or suspend)",
    "customer_subscriptions": "PATCH /api/v1/admin/customers/{id}/limits (or PUT …/plan)",
    "customer_usage": "POST /api/v1/admin/customers/{id}/usage/reset (or recount)",
    "customer_pipeline_configs": "PATCH /api/v1/scheduler/customer/{id}/pipelines/{config_id}",
    "scheduled_pipeline_runs": "POST /api/v1/pipelines/runs/{run_id}/cancel (or retry)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What BigQuery said: rows (at most as many as were asked for), or how many rows a statement changed."""

    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    total_rows: int = 0
    affected_rows: int | None = None
    statement: str = "SELECT"
    warning: str | None = None
    returns_rows: bool = field(default=True)


def events_behind(dsn: str, patience_s: float) -> int | None:
    """Wait until BigQuery's rows follow from every event there is now; how many are missing when patience ends.

    None when the database does not say. The order of commands is kept this way: what was done before is seen.
    """
    try:
        with psycopg.connect(**connection_arguments(dsn, name="query"), autocommit=True) as connection:
            end = _number(connection, "SELECT coalesce(max(notification_id), 0) FROM stored_events")
            until = time.monotonic() + patience_s
            while (behind := end - _number(connection, _POSITION)) > 0 and time.monotonic() < until:
                time.sleep(0.05)
            return max(0, behind)
    except psycopg.Error:
        return None


def _number(connection: psycopg.Connection[TupleRow], statement: LiteralString) -> int:
    row = connection.execute(statement).fetchone()
    return int(row[0]) if row else 0


def query(settings: Settings, sql: str, limit: int) -> Answer:
    """Run one statement of GoogleSQL and fetch at most `limit` rows of its answer, 0 for all.

    Raises `Unable` with BigQuery's own sentence, or one that says how to reach it.
    """
    if not sql.strip():
        raise Unable("There is no SQL to run.")
    try:
        client = connect(settings.project, emulator_url=settings.emulator_url, location=settings.gcp_location)
        with plain_errors():
            job = run(client, sql)
            return _answer(job, sql, limit)
    except Away as away:
        hint = "start `convergence serve` first" if settings.embedded_bigquery else "try again later"
        raise Unable(f"{str(away).rstrip('.')}: {hint}.") from away
    except (ValueError, PermissionError) as error:
        raise Unable(str(error)) from error


def _answer(job: bigquery.QueryJob, sql: str, limit: int) -> Answer:
    changes = _CHANGES.match(sql)
    statement = str(job.statement_type or (changes[1].upper() if changes else "SELECT"))
    if changes:
        return Answer(
            affected_rows=job.num_dml_affected_rows,
            statement=statement,
            warning=_overwritten(changes[2]),
            returns_rows=False,
        )
    result = job.result()
    columns = [column.name for column in result.schema]
    rows = [list(row.values()) for row in (islice(result, limit) if limit else result)]
    total = int(result.total_rows or len(rows))
    return Answer(columns=columns, rows=rows, total_rows=total, statement=statement, returns_rows=bool(columns))


def _overwritten(table: str) -> str | None:
    name = table.replace("`", "").replace(":", ".").rpartition(".")[2]
    if name not in {known.name for known in EVERY}:
        return None
    instead = _INSTEAD.get(name, "the API")
    return (
        f"{name} is a copy that the next event or a rebuild overwrites, and the service does not decide by it: "
        f"use {instead} for a change that counts."
    )
