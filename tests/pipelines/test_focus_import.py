"""focus_import: real anonymised bills in FOCUS 1.0, the same to the last digit in the silver table."""

import csv
import io
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from google.cloud import bigquery

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "focus_sample.csv"
COSTS = ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost")
QUANTITIES = ("ConsumedQuantity", "PricingQuantity", "ListUnitPrice", "ContractedUnitPrice")


@pytest.fixture(scope="module")
def sample() -> list[dict[str, str | None]]:
    if not SAMPLE.exists():
        pytest.skip(f"no sample of FOCUS data at {SAMPLE}")
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        return [{k: None if v == "NULL" else v for k, v in row.items()} for row in csv.DictReader(file)]


def put(bench, rows, table: str = "focus_export", **types: str) -> None:
    """The rows as a table of text, or of the BigQuery types given for a column."""
    names = list(rows[0])
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    config = bigquery.LoadJobConfig(
        source_format=bigquery.SourceFormat.CSV,
        schema=[bigquery.SchemaField(name, types.get(name, "STRING")) for name in names],
        write_disposition=bigquery.WriteDisposition.WRITE_TRUNCATE,
        skip_leading_rows=1,
        allow_quoted_newlines=True,
    )
    file = io.BytesIO(text.getvalue().encode())
    target = f"{bench.client.project}.{bench.source}.{table}"
    bench.client.load_table_from_file(file, target, job_config=config, num_retries=0, timeout=60).result(timeout=60)


def sums(rows) -> dict[str, Decimal]:
    return {c: sum((Decimal(row[c]) for row in rows if row[c]), Decimal(0)) for c in (*COSTS, *QUANTITIES)}


def silver(bench, provider: str, where: str = "TRUE") -> tuple[int, dict[str, Decimal]]:
    columns = ", ".join(f"SUM({c}) AS {c}" for c in (*COSTS, *QUANTITIES))
    (row,) = bench.rows(f"SELECT COUNT(*) AS n, {columns} FROM {bench.table(f'{provider}_silver_cost')} WHERE {where}")
    return row.pop("n"), row


@pytest.mark.parametrize("provider", ["aws", "azure", "oci"])
def test_totals_equal_those_of_the_file_also_when_run_twice(bench, sample, provider):
    put(bench, sample)
    for _ in range(2):
        report = bench.run(f"{provider.upper()}/COST/focus_import", "2024-09-17")
        assert report.succeeded, report.error
        assert report.rows == len(sample)
        assert silver(bench, provider) == (len(sample), sums(sample))


def test_native_types_give_the_same_and_tags_can_be_asked(bench, sample):
    times = dict.fromkeys(
        ("BillingPeriodStart", "BillingPeriodEnd", "ChargePeriodStart", "ChargePeriodEnd"), "TIMESTAMP"
    )
    put(bench, sample, **times)
    report = bench.run("aws/cost/focus_import", "2024-09-17")
    assert report.succeeded, report.error
    assert silver(bench, "aws") == (len(sample), sums(sample))
    sql = f"SELECT COUNT(*) AS n FROM {bench.table('aws_silver_cost')} WHERE JSON_VALUE(Tags, '$.environment') = 'dev'"
    assert bench.rows(sql)[0]["n"] == sum('"environment": "dev"' in (row["Tags"] or "") for row in sample)


def test_one_provider_of_a_shared_table(bench, sample):
    put(bench, sample)
    chosen = [row for row in sample if row["ProviderName"] == "Microsoft"]
    report = bench.run("azure/cost/focus_import", "2024-09-17", parameters={"provider_name": "Microsoft"})
    assert report.succeeded, report.error
    assert silver(bench, "azure") == (len(chosen), sums(chosen))
    everything = bench.run("azure/cost/focus_import", "2024-09-17")
    assert everything.succeeded
    assert silver(bench, "azure") == (len(sample), sums(sample))
    warned = [e for e in bench.progress.steps["verify"].expectations if not e.passed]
    assert "one_provider" in {e.name for e in warned}
    assert {e.severity for e in warned} == {"warn"}


def row(day: str, cost: str, *, month: str | None = None, **changes: str | None) -> dict[str, str | None]:
    start = date.fromisoformat(f"{month or day[:7]}-01")
    end = date(start.year + start.month // 12, start.month % 12 + 1, 1)
    return {
        **dict.fromkeys((*COSTS, *QUANTITIES), cost),
        "BillingCurrency": "EUR",
        "BillingPeriodStart": f"{start}T00:00:00Z",
        "BillingPeriodEnd": f"{end}T00:00:00Z",
        "ChargePeriodStart": f"{day}T00:00:00Z",
        "ChargePeriodEnd": f"{day}T01:00:00Z",
        "ChargeCategory": "Usage",
        "ProviderName": "AWS",
        "ServiceName": "S3",
        "Tags": None,
        **changes,
    }


def test_an_open_billing_period_is_replaced_as_a_whole_and_closed_ones_stay(bench):
    put(bench, [row("2025-08-03", "64"), row("2025-09-03", "1"), row("2025-09-20", "2")])
    assert bench.run("aws/cost/focus_import", "2025-08-20").rows == 1
    assert bench.run("aws/cost/focus_import", "2025-09-20").rows == 2
    # The provider corrects September and, much too late, August.
    put(bench, [row("2025-08-03", "99"), row("2025-09-03", "1.5"), row("2025-10-02", "4")])
    assert bench.run("aws/cost/focus_import", "2025-10-03").rows == 2
    sql = f"SELECT usage_date, BilledCost FROM {bench.table('aws_silver_cost')} ORDER BY 1"
    assert [tuple(r.values()) for r in bench.rows(sql)] == [
        (date(2025, 8, 3), 64),
        (date(2025, 9, 3), Decimal("1.5")),
        (date(2025, 10, 2), 4),
    ]


def test_usage_that_the_next_month_bills_comes_with_its_own_month(bench):
    put(bench, [row("2025-09-30", "1"), row("2025-09-30", "2", month="2025-10"), row("2025-12-01", "8")])
    assert bench.run("aws/cost/focus_import", "2025-09-30").rows == 2
    assert bench.run("aws/cost/focus_import", "2025-10-30").rows == 1
    assert silver(bench, "aws")[1]["BilledCost"] == 3


def test_tags_that_are_no_json_do_not_stop_costs(bench):
    put(bench, [row("2025-09-30", "1", Tags="not json"), row("2025-09-30", "2", Tags='{"a": "b"}')])
    report = bench.run("aws/cost/focus_import", "2025-09-30")
    assert report.succeeded, report.error
    sql = f"SELECT JSON_VALUE(Tags, '$.a') AS a FROM {bench.table('aws_silver_cost')} ORDER BY BilledCost"
    assert [r["a"] for r in bench.rows(sql)] == [None, "b"]


def test_a_cost_that_is_no_number_fails_without_repeating_it(bench):
    put(bench, [row("2025-09-30", "CANARY-4711")])
    report = bench.run("aws/cost/focus_import", "2025-09-30")
    assert report.error == "A cost of the source is not a number."
    assert not report.can_pass
    assert "CANARY" not in repr(bench.progress.steps) + "".join(bench.mails())
