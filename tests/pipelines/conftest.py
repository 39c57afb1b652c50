"""A customer with its dataset on the emulator, and an engine that runs pipelines for it."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery

from adapters.bigquery.client import connect
from adapters.bigquery.warehouse import BigQueryWarehouse
from adapters.mail.outbox import OutboxMailer
from adapters.pipelines.engine import Engine, Limits
from adapters.pipelines.registry import Registry
from application.ports import RunOrder, RunReport, StepReport

PROJECT = "platform-project"
CENTRAL = "customers_metadata"


class Progress:
    """Keeps the reports; calls `on_check` at each look."""

    def __init__(self, on_check: Callable[[], None] = lambda: None) -> None:
        self.steps: dict[str, StepReport] = {}
        self.on_check = on_check

    def finished(self, step: StepReport) -> None:
        self.steps[step.name] = step

    def check(self) -> None:
        self.on_check()


class NoCredentials:
    """Nobody left a credential."""

    def credential(self, order: RunOrder, provider: str, project_id: str | None) -> Mapping[str, Any] | None:
        return None


@dataclass
class Bench:
    """One customer, its BigQuery, and runs of its pipelines."""

    url: str
    directory: Path
    customer: str = field(default_factory=lambda: f"c{uuid.uuid4().hex[:12]}")
    progress: Progress = field(default_factory=Progress)
    registry: Registry = field(default_factory=Registry.load)
    credentials: Any = field(default_factory=NoCredentials)
    limits: Limits = field(default_factory=lambda: Limits(longest_pause_s=0.05))

    def __post_init__(self) -> None:
        self.client = connect(PROJECT, emulator_url=self.url, location="US")
        self.outbox = self.directory / "outbox"
        self.mailer: Any = OutboxMailer(self.outbox)
        self.source = f"{self.customer}_export"

    def engine(self, url: str | None = None) -> Engine:
        return Engine(
            registry=self.registry,
            client=connect(PROJECT, emulator_url=url or self.url, location="US"),
            central=CENTRAL,
            credentials=self.credentials,
            mailer=self.mailer,
            now=lambda: datetime.now(UTC),
            endpoint=url or self.url,
            limits=self.limits,
        )

    def order(self, place: str, day: str, **changes: Any) -> RunOrder:
        provider, domain, template = place.split("/")
        usual = {
            "run_id": str(uuid.uuid4()),
            "customer_id": self.customer,
            "attempt": 1,
            "trigger_type": "manual",
            "parameters": {},
            "configuration": {
                "source_project_id": PROJECT,
                "source_dataset": self.source,
                "notification_emails": ["ops@example.com"],
            },
        }
        return RunOrder(
            **{**usual, **changes, "provider": provider, "domain": domain, "template": template},
            run_date=date.fromisoformat(day),
        )

    def run(self, place: str, day: str, url: str | None = None, **changes: Any) -> RunReport:
        self.progress.steps.clear()
        return self.engine(url).run(self.order(place, day, **changes), self.progress)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return [dict(row.items()) for row in self.client.query_and_wait(sql, api_timeout=60, wait_timeout=60)]

    def table(self, name: str) -> str:
        return f"`{PROJECT}.{self.customer}.{name}`"

    def template(self, name: str, yaml: str, **sql: str) -> None:
        """Put a template of one's own at gcp/test/{name}, with its SQL files, and use it from now on."""
        place = self.directory / "templates" / "gcp" / "test"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.yml").write_text(f"id: gcp-test-{name}\nversion: 1\ndescription: A test.\n{yaml}")
        for file, text in sql.items():
            (place / f"{file}.sql").write_text(text)
        self.registry = Registry.load(self.directory / "templates")

    def mails(self) -> list[str]:
        return [file.read_text() for file in sorted(self.outbox.glob("*.eml"))]


@pytest.fixture
def bench(bigquery_emulator, tmp_path):
    bench = Bench(bigquery_emulator, tmp_path)
    BigQueryWarehouse(bench.client, PROJECT, CENTRAL, "US").ensure_customer(bench.customer)
    bench.client.create_dataset(bigquery.DatasetReference(PROJECT, bench.source), timeout=30)
    yield bench
    for dataset in (bench.customer, bench.source):
        bench.client.delete_dataset(dataset, delete_contents=True, not_found_ok=True, timeout=30)
    bench.client.close()
