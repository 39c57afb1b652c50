"""Very many customers, runs and events, copied from one that the use cases made: a million events in half a minute."""

from typing import Any

from psycopg import Cursor

from adapters.bootstrap import Service, origin, utc_now
from application.execution import ClaimRuns, Outcome, ReportOutcomes, claim_runs, report_outcomes
from application.ports import RunReport
from application.runs import RequestRun, request_run
from domain.identity import subscription_stream
from tests.benchmarks.databases import rested
from tests.benchmarks.population import populate

_EVENTS = (
    "INSERT INTO stored_events (originator_id, originator_version, topic, state, customer_id)"
    " SELECT c.new_id, e.originator_version, e.topic, convert_to(replace(replace(convert_from(e.state, 'UTF8'),"
    "  %(old)s, c.customer_id), %(id)s, c.new_id::text), 'UTF8'), c.customer_id"
    " FROM copied c CROSS JOIN stored_events e WHERE e.originator_id = %(id)s::uuid"
    " ORDER BY c.new_id, e.originator_version"
)
_SNAPSHOTS = (
    "INSERT INTO snapshots SELECT (jsonb_populate_record(s, jsonb_build_object('stream_id', c.new_id, 'state',"
    " convert_to(replace(convert_from(s.state, 'UTF8'), %(old)s, c.customer_id), 'UTF8')))).*"
    " FROM copied c CROSS JOIN snapshots s WHERE s.stream_id = %(id)s::uuid"
)


def _rows(cursor: Cursor[Any], table: str, key: str, names: dict[str, str]) -> None:
    cursor.execute(
        f"INSERT INTO {table} SELECT (jsonb_populate_record(t, jsonb_build_object('{key}', c.new_id,"
        f" 'customer_id', c.customer_id))).* FROM copied c CROSS JOIN {table} t WHERE t.{key} = %(id)s",
        names,
    )


def waiting(service: Service, customers: int, each: int) -> None:
    """So many customers with so many waiting runs each."""
    populate(service, 1, 0, concurrent=100, prefix="model")
    run_id = _ask(service)
    ids = [f"copy_{number}" for number in range(customers)]
    with service.datastore.transaction_cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE copied (new_id uuid, customer_id text) ON COMMIT DROP")
        cursor.execute(
            "INSERT INTO copied SELECT * FROM unnest(%s::uuid[], %s::text[])", ([*map(subscription_stream, ids)], ids)
        )
        names = {"old": "model_0", "id": str(subscription_stream("model_0"))}
        cursor.execute(_EVENTS, names)
        cursor.execute(_SNAPSHOTS, names)
        _rows(cursor, "customer_subscriptions", "subscription_id", names)
        cursor.execute("TRUNCATE copied")
        cursor.execute(
            "INSERT INTO copied SELECT gen_random_uuid(), c FROM unnest(%s::text[]) c, generate_series(1, %s)",
            (ids, each),
        )
        _runs(cursor, {"old": "model_0", "id": run_id})
    rested(service)


def history(service: Service, events: int) -> None:
    """So many more events, of runs that have ended."""
    with service.datastore.reading() as cursor:
        made = cursor.execute("SELECT 1 FROM customer_subscriptions WHERE customer_id = 'past_0'").fetchone()
    if made is None:
        populate(service, 1, 0, concurrent=10, prefix="past")
    run_id = _ask(service, "past_0")
    [order] = claim_runs(_stamped(ClaimRuns, worker_id="bench", run_id=run_id), service.platform)
    done = Outcome(
        run_id=run_id,
        customer_id="past_0",
        attempt=order.attempt,
        at=utc_now(),
        report=RunReport(succeeded=True),
    )
    report_outcomes(_stamped(ReportOutcomes, worker_id="bench", outcomes=(done,)), service.platform)
    with service.datastore.transaction_cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("CREATE TEMPORARY TABLE copied (new_id uuid, customer_id text) ON COMMIT DROP")
        cursor.execute(
            "INSERT INTO copied SELECT gen_random_uuid(), 'past_' || n %% 1000 FROM generate_series(1, %s) n",
            (events // 3,),
        )
        _runs(cursor, {"old": "past_0", "id": run_id})
    rested(service)


def _runs(cursor: Cursor[Any], names: dict[str, str]) -> None:
    cursor.execute(_EVENTS, names)
    for table in ("scheduled_pipeline_runs", "pipeline_execution_queue"):
        _rows(cursor, table, "run_id", names)


def _ask(service: Service, customer_id: str = "model_0") -> str:
    command = _stamped(RequestRun, customer_id=customer_id, provider="gcp", domain="example", template="dryrun")
    return str(request_run(command, service.platform, service.registry))


def _stamped(kind: type[Any], **fields: Any) -> Any:
    return kind(at=utc_now(), by=origin("bench"), **fields)
