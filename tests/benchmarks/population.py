"""Many customers with many pipelines, made in few transactions."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from adapters.bootstrap import Service, origin
from application.command import Command
from application.platform import Transaction
from domain.customer_events import ApiKeyIssued, Onboarded, Pipeline, PipelineConfigured
from domain.plans import Overrides, Plan
from domain.subscription import open_subscription

_CUSTOMERS_PER_TRANSACTION = 50


def populate(service: Service, customers: int, pipelines: int, *, concurrent: int, prefix: str = "bench") -> datetime:
    """`customers` customers with `pipelines` daily pipelines each, without daily limits; returns the slot all share."""
    now = datetime.now(UTC)
    slot = (now + timedelta(days=1)).replace(hour=2, minute=0, second=0, microsecond=0)
    ids = [f"{prefix}_{n}" for n in range(customers)]
    for start in range(0, customers, _CUSTOMERS_PER_TRANSACTION):
        command = Command(at=now, by=origin("admin"))
        some = ids[start : start + _CUSTOMERS_PER_TRANSACTION]
        for customer_id in some:
            service.vault.prepare(customer_id)

        def work(tx: Transaction, some: list[str] = some) -> None:
            tx.customers(some)
            tx.subscriptions(some)
            for customer_id in some:
                _make(tx, customer_id, pipelines=pipelines, concurrent=concurrent, now=now, slot=slot)

        service.platform.transact(command, work)
    return slot


def _make(tx: Transaction, customer_id: str, *, pipelines: int, concurrent: int, now: datetime, slot: datetime) -> None:
    customer, subscription = tx.customer(customer_id), tx.subscription(customer_id)
    customer.append(
        [
            Onboarded(customer_id=customer_id, company_name="Bench", admin_email="bench@example.com", plan="SCALE"),
            ApiKeyIssued(
                api_key_id=str(uuid4()),
                key_hash=uuid4().hex,
                sealed_key=b"",
                last4="0000",
                expires_at=now + timedelta(days=90),
            ),
        ]
    )
    subscription.append([open_subscription(customer_id, Plan.SCALE, now)])
    overrides = Overrides(
        max_pipelines_per_day=1_000_000, max_pipelines_per_month=1_000_000, max_concurrent_pipelines=concurrent
    )
    subscription.append(subscription.must("").override_limits(overrides, "benchmark", now))
    pipeline = Pipeline(provider="GCP", domain="EXAMPLE", template="dryrun", cron="0 2 * * *", timezone="UTC")
    customer.append(
        PipelineConfigured(config_id=str(uuid4()), pipeline=pipeline, next_run_time=slot) for _ in range(pipelines)
    )
