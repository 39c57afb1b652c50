"""The guide's chapters as calls, each answer compared with what the guide says of it."""

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar

import httpx
from google.cloud import bigquery
from rich.progress import Progress, TaskID
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from adapters.bigquery.client import plain_errors, run
from adapters.bigquery.tables import ensure_dataset
from adapters.demo.credential import service_account
from adapters.demo.server import Target
from adapters.demo.story import Step, Story
from adapters.pipelines import billing_data

T = TypeVar("T")

_MONTH: Final = 30
_ROWS_PER_DAY: Final = 200
_TABLE: Final = "gcp_billing_export_v1_01D3A0_C0FFEE_5EED00"
_KEY: Final = re.compile(r"\w+_api_[A-Za-z0-9]{16}")
_META: Final = {"x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results"}
_ENDED: Final = {"COMPLETED", "FAILED", "CANCELLED", "SKIPPED"}
_PATIENCE_S: Final = 60.0


class Unexpected(Exception):  # noqa: N818 - it says what the answer was
    """An answer that is not what the guide says. The text says which, without secrets."""


class _NotYet(Exception):  # noqa: N818
    """What is waited for has not happened."""


class Walk:
    """The guide's chapters in order."""

    def __init__(self, target: Target, http: httpx.Client, story: Story, progress: Progress, days: int) -> None:
        self._target = target
        self._http = http
        self._story = story
        self._progress = progress
        self._id = story.customer_id
        self._source = f"{story.customer_id}_billing_export"
        self._bigquery = target.bigquery()
        self._admin = {"X-Admin-Key": target.admin_key}
        self._key: dict[str, str] = {}
        self._today = datetime.now(UTC).date()
        self._dates = [self._today - timedelta(days=back) for back in range(1, days + 1)]
        self._runs: list[dict[str, Any]] = []
        self._loaded = billing_data.Loaded(0, {})

    def walk(self) -> None:
        """Take step after step; the first one that goes wrong is the last."""
        chapters: list[tuple[str, Callable[[TaskID], str]]] = [
            ("Onboard a customer", self._onboard),
            ("Add a cloud credential", self._credential),
            ("Configure the provider", self._configure),
            (f"Load {_MONTH} days of billing data into BigQuery", self._load),
            ("Schedule a pipeline", self._schedule),
            ("Trigger the scheduler", self._trigger),
            ("Queue a run of cost_billing, and process the queue", self._queue),
            (f"Run cost_billing for {len(self._dates) - 1} more days", self._run_days),
            ("Find the runs and their costs by SQL", self._query),
            ("Lower the limit, and be refused with 429", self._exceed),
        ]
        with suppress(Unexpected):
            for name, chapter in chapters:
                self._take(name, chapter)
        self._bigquery.close()  # type: ignore[no-untyped-call]

    def _take(self, name: str, chapter: Callable[[TaskID], str]) -> None:
        step = Step(name)
        self._story.steps.append(step)
        task = self._progress.add_task(name, total=1)
        began = time.monotonic()
        try:
            step.detail = chapter(task)
            step.ok = True
        except Unexpected as error:
            step.detail = str(error)
            self._progress.update(task, description=f"[red]✗ {name}[/]")
            raise
        except (httpx.HTTPError, ValueError, PermissionError, ConnectionError) as error:
            step.detail = f"{type(error).__name__}: {error}"
            raise Unexpected(step.detail) from error
        finally:
            step.seconds = round(time.monotonic() - began, 2)
            self._progress.stop_task(task)
        total = self._progress.tasks[task].total
        self._progress.update(task, completed=total)

    def _call(
        self,
        method: str,
        path: str,
        status: int | tuple[int, ...],
        headers: dict[str, str],
        body: dict[str, Any] | None = None,
    ) -> httpx.Response:
        answer = self._http.request(method, path, headers=headers, json=body)
        wanted = (status,) if isinstance(status, int) else status
        if answer.status_code not in wanted:
            detail = _json(answer).get("detail", answer.reason_phrase)
            said = " or ".join(map(str, wanted))
            raise Unexpected(f"{method} {path} answered {answer.status_code} instead of {said}: {detail}")
        return answer

    def _onboard(self, _: TaskID) -> str:
        body = {
            "customer_id": self._id,
            "company_name": "Demo Corp",
            "admin_email": "test@demo.example.com",
            "subscription_plan": "PROFESSIONAL",
        }
        headers = {} if self._target.open_onboarding else self._admin
        answer = _json(self._call("POST", "/api/v1/customers/onboard", 200, headers, body))
        key = str(answer.get("api_key"))
        _expect(_KEY.fullmatch(key) and key.startswith(f"{self._id}_api_"), "the API key has another form")
        _expect(answer.get("dataset_created") is True, "the dataset was not created")
        _expect(set(answer.get("tables_created", [])) == _META, "other tables were created")
        _expect(answer.get("dryrun_status") == "SUCCESS", f"the dryrun's status is {answer.get('dryrun_status')}")
        self._key = {"X-API-Key": key}
        return f"{self._id}, {answer.get('subscription_plan')}, key {self._id}_api_…{key[-4:]}"

    def _credential(self, _: TaskID) -> str:
        body = {
            "provider": "GCP",
            "credential_type": "SERVICE_ACCOUNT",
            "credential_name": "GCP Billing Reader",
            "credentials": service_account(),
            "project_id": "acme-gcp-project",
        }
        answer = _json(self._call("POST", f"/api/v1/customers/{self._id}/credentials", 200, self._key, body))
        _expect("private_key" not in json.dumps(answer), "the credential came back")
        return f"credential {answer.get('credential_id')}, encrypted and never shown again"

    def _configure(self, _: TaskID) -> str:
        body = {
            "provider": "GCP",
            "domain": "COST",
            "source_project_id": self._target.project,
            "source_dataset": self._source,
            "notification_emails": ["ops@demo.example.com"],
        }
        self._call("POST", f"/api/v1/customers/{self._id}/provider-configs", 200, self._key, body)
        return f"GCP/COST reads {self._target.project}.{self._source}"

    def _load(self, task: TaskID) -> str:
        table = f"{self._target.project}.{self._source}.{_TABLE}"
        with plain_errors():
            ensure_dataset(self._bigquery, self._source, self._target.location)
            self._loaded = billing_data.load(
                self._bigquery,
                table,
                first_day=self._today - timedelta(days=_MONTH),
                days=_MONTH,
                seed=7,
                rows_per_day=_ROWS_PER_DAY,
                progress=lambda done, total: self._progress.update(task, completed=done, total=total),
            )
        return f"{self._loaded.rows} rows in {table}"

    def _schedule(self, _: TaskID) -> str:
        body = {
            "provider": "GCP",
            "domain": "COST",
            "pipeline_template": "cost_billing",
            "schedule_cron": "0 2 * * *",
            "timezone": "America/New_York",
            "is_active": True,
        }
        path = f"/api/v1/scheduler/customer/{self._id}/pipelines"
        answer = _json(self._call("POST", path, 200, self._key, body))
        _expect(answer.get("config_id") and answer.get("next_run_time"), "config_id or next_run_time is missing")
        return f"next at {answer['next_run_time']}"

    def _trigger(self, _: TaskID) -> str:
        answer = _json(self._call("POST", "/api/v1/scheduler/trigger", 200, self._admin))
        counts = {name: answer.get(name) for name in ("triggered_count", "queued_count", "skipped_count")}
        _expect(all(isinstance(count, int) for count in counts.values()), "a count is missing")
        return ", ".join(f"{name} {count}" for name, count in counts.items())

    def _order(self, run_date: date, status: int | tuple[int, ...], **headers: str) -> httpx.Response:
        path = f"/api/v1/pipelines/run/{self._id}/gcp/cost/cost_billing"
        body = {"date": run_date.isoformat(), "trigger_by": "manual"}
        return self._call("POST", path, status, {**self._key, **headers}, body)

    def _queue(self, _: TaskID) -> str:
        answer = self._order(self._dates[0], 202, Prefer="respond-async")
        _expect(answer.headers.get("Location"), "the answer has no Location")
        processed = _json(self._call("POST", "/api/v1/scheduler/process-queue", 200, self._admin)).get("processed")
        by = "process-queue" if processed else "the running worker, which was faster"
        ended = self._ended(str(_json(answer)["run_id"]))
        return f"run {ended['run_id']} done by {by}"

    def _run_days(self, task: TaskID) -> str:
        self._progress.update(task, total=max(len(self._dates) - 1, 1))
        for run_date in self._dates[1:]:
            # 202 where the machine is so busy that the run has not ended within ten seconds.
            answer = _json(self._order(run_date, (200, 202)))
            self._ended(str(answer["run_id"]))
            self._progress.advance(task)
        return f"{len(self._runs)} runs completed"

    def _ended(self, run_id: str) -> dict[str, Any]:
        """The run, once it has ended well."""

        def look() -> dict[str, Any]:
            run = _json(self._call("GET", f"/api/v1/pipelines/runs/{run_id}", 200, self._key))
            if run.get("state") not in _ENDED:
                raise _NotYet(f"run {run_id} is still {run.get('state')}")
            return run

        ended = _patiently(look)
        reason = ended.get("error_message") or ended.get("error")
        _expect(ended.get("state") == "COMPLETED", f"run {run_id} is {ended.get('state')}: {reason}")
        self._runs.append(ended)
        return ended

    def _query(self, _: TaskID) -> str:
        dataset, central = (
            f"{self._target.project}.{self._id}",
            f"{self._target.project}.{self._target.central_dataset}",
        )
        runs = (
            f"SELECT pipeline_id, status, run_date, rows_processed, duration_ms FROM `{dataset}.x_meta_pipeline_runs`"  # noqa: S608 - names of our own
            " WHERE pipeline_id = 'gcp-cost-cost_billing' ORDER BY start_time DESC"
        )
        usage = (
            "SELECT usage_date, pipelines_run_today, pipelines_succeeded_today, pipelines_run_month,"  # noqa: S608
            f" concurrent_pipelines_running, daily_limit, monthly_limit FROM `{central}.customer_usage`"
            f" WHERE customer_id = '{self._id}' ORDER BY usage_date DESC LIMIT 1"
        )
        costs = (
            "SELECT ServiceName, COUNT(*) AS charges, ROUND(SUM(BilledCost), 2) AS billed_cost,"  # noqa: S608
            f" BillingCurrency FROM `{dataset}.gcp_silver_cost` GROUP BY ServiceName, BillingCurrency"
            " ORDER BY billed_cost DESC LIMIT 10"
        )

        def look() -> None:
            columns, rows = self._rows(runs)
            states = [row[1] for row in rows]
            if len(states) < len(self._runs) or set(states) != {"COMPLETED"}:
                raise _NotYet(f"x_meta_pipeline_runs shows {len(states)} runs ({', '.join(sorted(set(states)))})")
            self._story.tables["Runs"] = (columns, rows)

        _patiently(look)
        self._story.tables["Usage"] = self._rows(usage)
        self._story.tables["Cost per service"] = self._rows(costs)
        self._compare(f"{dataset}.gcp_silver_cost")
        return f"{len(self._runs)} runs, and every day's cost is the export's to the last digit"

    def _compare(self, table: str) -> None:
        """The silver table's cost of each day that was run, with what was exported for it."""
        sums = f"SELECT usage_date, COUNT(*), CAST(SUM(BilledCost) AS STRING) FROM `{table}` GROUP BY usage_date"  # noqa: S608
        silver = {usage_date: (rows, Decimal(billed)) for usage_date, rows, billed in self._rows(sums)[1]}
        for day in self._dates:
            exported = self._loaded.days[day]
            _expect(silver.get(day) == (exported.rows, exported.billed), f"{table} and the export differ on {day}")

    def _rows(self, sql: str) -> tuple[list[str], list[list[Any]]]:
        with plain_errors():
            found: bigquery.table.RowIterator = run(self._bigquery, sql).result()
            return [column.name for column in found.schema], [list(row.values()) for row in found]

    def _exceed(self, _: TaskID) -> str:
        used = _json(self._call("GET", f"/api/v1/customers/{self._id}/usage", 200, self._key))
        limits = {"max_pipelines_per_day": used["pipelines_run_today"], "reason": "The demo shows a refusal."}
        self._call("PATCH", f"/api/v1/admin/customers/{self._id}/limits", 200, self._admin, limits)
        answer = self._order(self._dates[0], 429)
        body = _json(answer)
        _expect(body.get("customer_id") == self._id and body.get("status_code") == 429, "the 429 lacks its fields")
        _expect(body.get("quota_reset_time") and answer.headers.get("Retry-After"), "the 429 does not say until when")
        return str(body["detail"])


def _expect(as_said: object, otherwise: str) -> None:
    if not as_said:
        raise Unexpected(f"Not what the guide says: {otherwise.rstrip('.')}.")


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        raise Unexpected(f"{answer.request.url.path} answered {answer.status_code} without JSON.") from None
    return body if isinstance(body, dict) else {}


def _patiently(look: Callable[[], T]) -> T:
    """What `look` finds, asked again while it says not yet."""
    try:
        return Retrying(
            retry=retry_if_exception_type(_NotYet),
            wait=wait_fixed(0.2),
            stop=stop_after_delay(_PATIENCE_S),
            reraise=True,
        )(look)
    except _NotYet as late:
        raise Unexpected(f"After {_PATIENCE_S:g} s {late}.") from None
