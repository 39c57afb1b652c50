"""Plausible rows of Google Cloud's standard billing export; the same seed always gives the same rows."""

import json
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from google.cloud import bigquery

from adapters.pipelines.jobs import AGAIN, CALL_SECONDS, ONCE

_BATCH_ROWS = 5000
_LOAD_SECONDS = 120.0
_NANO = Decimal("1e-9")
"""Costs have at most nine decimals and six digits before them: fifteen, which a FLOAT64 prints as they went in."""

_F = bigquery.SchemaField


def _texts(*names: str) -> tuple[bigquery.SchemaField, ...]:
    return tuple(_F(name, "STRING") for name in names)


SCHEMA = (
    *_texts("billing_account_id"),
    _F("service", "RECORD", fields=_texts("id", "description")),
    _F("sku", "RECORD", fields=_texts("id", "description")),
    _F("usage_start_time", "TIMESTAMP"),
    _F("usage_end_time", "TIMESTAMP"),
    _F(
        "project",
        "RECORD",
        fields=(*_texts("id", "number", "name"), _F("labels", "RECORD", "REPEATED", fields=_texts("key", "value"))),
    ),
    _F("labels", "RECORD", "REPEATED", fields=_texts("key", "value")),
    _F("system_labels", "RECORD", "REPEATED", fields=_texts("key", "value")),
    _F("location", "RECORD", fields=_texts("location", "country", "region", "zone")),
    _F("export_time", "TIMESTAMP"),
    _F("cost", "FLOAT64"),
    *_texts("currency"),
    _F("currency_conversion_rate", "FLOAT64"),
    _F(
        "usage",
        "RECORD",
        fields=(
            _F("amount", "FLOAT64"),
            _F("unit", "STRING"),
            _F("amount_in_pricing_units", "FLOAT64"),
            _F("pricing_unit", "STRING"),
        ),
    ),
    _F(
        "credits",
        "RECORD",
        "REPEATED",
        fields=(_F("name", "STRING"), _F("amount", "FLOAT64"), *_texts("full_name", "id", "type")),
    ),
    _F("invoice", "RECORD", fields=_texts("month")),
    *_texts("cost_type"),
    _F("cost_at_list", "FLOAT64"),
)
"""The columns of the standard usage cost export."""


@dataclass(frozen=True, slots=True)
class _Sku:
    service_id: str
    service: str
    id: str
    description: str
    unit: str
    per_pricing_unit: int
    pricing_unit: str
    price: Decimal
    typical: float
    """Pricing units in an hour."""


_SKUS = (
    _Sku("6F81-5844-456A", "Compute Engine", "2E27-4F75-95CD", "N2 Instance Core running in Belgium", "seconds", 3600,
         "hour", Decimal("0.034773"), 8),
    _Sku("6F81-5844-456A", "Compute Engine", "BF8F-F7D7-2A65", "N2 Instance Ram running in Belgium", "byte-seconds",
         3600 * 2**30, "gibibyte hour", Decimal("0.004661"), 32),
    _Sku("95FF-2EF5-5EA1", "Cloud Storage", "E653-0A40-3B69", "Standard Storage Europe Multi-region", "byte-seconds",
         2592000 * 2**30, "gibibyte month", Decimal("0.026"), 3),
    _Sku("24E6-581D-38E5", "BigQuery", "1DF5-A5C4-A0B2", "Analysis (europe-west1)", "bytes", 2**40, "tebibyte",
         Decimal("6.25"), 0.2),
    _Sku("9662-B51E-5089", "Cloud SQL", "B4E1-5B64-6D29", "Cloud SQL for PostgreSQL: Zonal - vCPU", "seconds", 3600,
         "hour", Decimal("0.0413"), 4),
    _Sku("152E-C115-5142", "Cloud Run", "2DA5-55D3-E679", "CPU Allocation Time", "seconds", 1, "second",
         Decimal("0.000024"), 900),
    _Sku("A1E8-BE35-7EBC", "Cloud Pub/Sub", "A6AA-5BCC-2C64", "Message Delivery Basic", "bytes", 2**40, "tebibyte",
         Decimal(40), 0.001),
    _Sku("5490-F7B7-8DF6", "Cloud Logging", "143F-A1B0-E0BE", "Log Storage cost", "bytes", 2**30, "gibibyte",
         Decimal("0.5"), 0.3),
)  # fmt: skip
_PROJECTS = (("shop-prod", "Shop", "prod"), ("shop-dev", "Shop development", "dev"), ("data-platform", "Data", "prod"))
_TEAMS = ("checkout", "search", "ledger", "growth")
_REGIONS = (("europe-west1", "BE", "europe-west1-b"), ("us-central1", "US", "us-central1-a"))
_ACCOUNT = "01D3A0-C0FFEE-5EED00"


@dataclass(frozen=True, slots=True)
class DayTotal:
    """What a usage day (UTC) comes to, exactly. `billed` is what silver tables have as BilledCost."""

    rows: int = 0
    cost: Decimal = Decimal(0)
    credits: Decimal = Decimal(0)

    @property
    def billed(self) -> Decimal:
        return self.cost + self.credits


@dataclass(frozen=True, slots=True)
class Loaded:
    """How many rows there are, and what each usage day comes to."""

    rows: int
    days: Mapping[date, DayTotal] = field(repr=False)


def lines(first_day: date, days: int, seed: int, rows_per_day: int) -> Iterator[dict[str, Any]]:
    """Rows of the export, numbers as Decimal, day by day: the same for the same arguments.

    About one in twenty is exported two to four days late, one in fifty corrects an earlier charge, and the last day of
    a month carries its tax.
    """
    for offset in range(days):
        day = first_day + timedelta(days=offset)
        # A generator of its own for each day: a day's rows do not depend on how many were asked for before it.
        chance = random.Random(f"{seed}/{day.isoformat()}")  # noqa: S311 - plausible, not secret
        for _ in range(rows_per_day):
            yield _line(day, chance)
        if (day + timedelta(days=1)).month != day.month:
            yield _tax(day, chance)


def load(
    client: bigquery.Client,
    table_id: str,
    *,
    first_day: date,
    days: int,
    seed: int,
    rows_per_day: int,
    progress: Callable[[int, int], object] | None = None,
) -> Loaded:
    """Make the table `table_id` (`project.dataset.table`) anew with these rows; its dataset exists.

    `progress` is told the rows that are in and about how many there will be. Raises what Google's client raises.
    """
    client.delete_table(table_id, not_found_ok=True, retry=ONCE, timeout=CALL_SECONDS)
    table = bigquery.Table(table_id, schema=SCHEMA)
    table.time_partitioning = bigquery.TimePartitioning(type_=bigquery.TimePartitioningType.DAY, field="export_time")
    client.create_table(table, retry=ONCE, timeout=CALL_SECONDS)
    return append(client, table_id, lines(first_day, days, seed, rows_per_day), progress, days * rows_per_day)


def append(
    client: bigquery.Client,
    table_id: str,
    rows: Iterable[Mapping[str, Any]],
    progress: Callable[[int, int], object] | None = None,
    expected: int = 0,
) -> Loaded:
    """Add rows such as `lines` gives, in batches, to a table that exists. Raises what Google's client raises."""
    totals: dict[date, DayTotal] = {}
    batch: list[str] = []
    count = 0
    for row in rows:
        day = date.fromisoformat(row["usage_start_time"][:10])
        seen = totals.get(day, DayTotal())
        credit = sum((item["amount"] for item in row["credits"]), Decimal(0))
        totals[day] = DayTotal(seen.rows + 1, seen.cost + row["cost"], seen.credits + credit)
        batch.append(json.dumps(row, default=float))
        count += 1
        if len(batch) == _BATCH_ROWS:
            _send(client, table_id, batch)
            batch.clear()
            if progress is not None:
                progress(count, max(expected, count))
    if batch:
        _send(client, table_id, batch)
    if progress is not None:
        progress(count, count)
    return Loaded(count, totals)


def _send(client: bigquery.Client, table_id: str, batch: list[str]) -> None:
    config = bigquery.LoadJobConfig(
        source_format=bigquery.SourceFormat.NEWLINE_DELIMITED_JSON,
        schema=list(SCHEMA),
        write_disposition=bigquery.WriteDisposition.WRITE_APPEND,
    )
    with tempfile.TemporaryFile() as file:
        file.writelines(line.encode() + b"\n" for line in batch)
        job = client.load_table_from_file(
            file, table_id, rewind=True, job_config=config, num_retries=0, timeout=_LOAD_SECONDS
        )
        job.result(retry=AGAIN, timeout=_LOAD_SECONDS)


def _line(day: date, chance: random.Random) -> dict[str, Any]:
    sku = chance.choice(_SKUS)
    start = datetime.combine(day, time(chance.randrange(24)), UTC)
    quantity = Decimal(f"{sku.typical * chance.lognormvariate(0, 0.6):.6f}")
    cost = (quantity * sku.price).quantize(_NANO)
    correction = chance.random() < 0.02
    late = chance.random() < 0.05
    exported = start + timedelta(hours=chance.randrange(1, 9), days=chance.randrange(2, 5) if late else 0)
    return {
        **_where(chance),
        "billing_account_id": _ACCOUNT,
        "service": {"id": sku.service_id, "description": sku.service},
        "sku": {"id": sku.id, "description": sku.description},
        "usage_start_time": start.isoformat(),
        "usage_end_time": (start + timedelta(hours=1)).isoformat(),
        "export_time": exported.isoformat(),
        "cost": -cost if correction else cost,
        "currency": "USD",
        "currency_conversion_rate": 1,
        "usage": {
            "amount": quantity * sku.per_pricing_unit,
            "unit": sku.unit,
            "amount_in_pricing_units": quantity,
            "pricing_unit": sku.pricing_unit,
        },
        "credits": [] if correction else list(_credits(cost, chance)),
        "invoice": {"month": day.strftime("%Y%m")},
        "cost_type": "adjustment" if correction else "regular",
        "cost_at_list": -cost if correction else (cost * Decimal("1.1")).quantize(_NANO),
    }


def _where(chance: random.Random) -> dict[str, Any]:
    project, name, environment = chance.choice(_PROJECTS)
    region, country, zone = chance.choice(_REGIONS)
    labels = [{"key": "env", "value": environment}, {"key": "team", "value": chance.choice(_TEAMS)}]
    return {
        "project": {"id": project, "number": str(sum(map(ord, project))), "name": name, "labels": labels[:1]},
        "labels": labels if chance.random() < 0.8 else [],
        "system_labels": [],
        "location": {"location": region, "country": country, "region": region, "zone": zone},
    }


def _credits(cost: Decimal, chance: random.Random) -> Iterator[dict[str, Any]]:
    for kind, name, share, how_often in (
        ("SUSTAINED_USAGE_DISCOUNT", "Sustained use discount", "0.2", 0.3),
        ("FREE_TIER", "Free tier", "0.05", 0.1),
        ("PROMOTION", "Start-up programme", "0.333333", 0.1),
    ):
        if chance.random() < how_often:
            amount = -(cost * Decimal(share)).quantize(_NANO)
            yield {"name": name, "amount": amount, "full_name": name, "id": kind.lower(), "type": kind}


def _tax(day: date, chance: random.Random) -> dict[str, Any]:
    start = datetime.combine(day, time(23), UTC)
    return {
        "billing_account_id": _ACCOUNT,
        "service": {"id": "TAX", "description": "Invoice"},
        "sku": {"id": "TAX", "description": "Tax"},
        "usage_start_time": start.isoformat(),
        "usage_end_time": (start + timedelta(hours=1)).isoformat(),
        "project": None,
        "labels": [],
        "system_labels": [],
        "location": None,
        "export_time": (start + timedelta(days=3)).isoformat(),
        "cost": Decimal(chance.randrange(1000, 99999)) / 100,
        "currency": "USD",
        "currency_conversion_rate": 1,
        "usage": None,
        "credits": [],
        "invoice": {"month": day.strftime("%Y%m")},
        "cost_type": "tax",
        "cost_at_list": None,
    }
