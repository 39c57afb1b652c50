"""cost_billing: right to the last digit, whatever is run twice, comes late or is corrected."""

from dataclasses import replace
from datetime import date
from decimal import Decimal

import pytest
from google.cloud import bigquery

from adapters.bigquery.client import connect
from adapters.pipelines import billing_data

PLACE = "gcp/cost/cost_billing"
TABLE = "gcp_billing_export_v1_01D3A0_C0FFEE_5EED00"


@pytest.fixture
def source(bench) -> str:
    return f"{bench.client.project}.{bench.source}.{TABLE}"


def line(day: str, cost: str, *credited: str, exported: str | None = None, **changes) -> dict:
    """One row of the export, with the costs as they would be printed."""
    return {
        "billing_account_id": "01D3A0-C0FFEE-5EED00",
        "service": {"id": "6F81-5844-456A", "description": "Compute Engine"},
        "sku": {"id": "2E27-4F75-95CD", "description": "N2 Instance Core"},
        "usage_start_time": f"{day}T05:00:00+00:00",
        "usage_end_time": f"{day}T06:00:00+00:00",
        "project": {"id": "shop-prod", "number": "1", "name": "Shop", "labels": []},
        "labels": [{"key": "team", "value": 'a "quoted" name'}, {"key": "env", "value": "prod"}],
        "system_labels": [],
        "location": {"location": "europe-west1", "country": "BE", "region": "europe-west1", "zone": None},
        "export_time": f"{exported or day}T09:00:00+00:00",
        "cost": Decimal(cost),
        "currency": "USD",
        "currency_conversion_rate": 1,
        "usage": {"amount": 3600, "unit": "seconds", "amount_in_pricing_units": 1, "pricing_unit": "hour"},
        "credits": [
            {"name": "x", "amount": Decimal(c), "full_name": "x", "id": "x", "type": "PROMOTION"} for c in credited
        ],
        "invoice": {"month": day[:7].replace("-", "")},
        "cost_type": "regular",
        "cost_at_list": Decimal(cost),
        **changes,
    }


def make(bench, source, *lines, partitioning: bigquery.TimePartitioning | None = None) -> None:
    table = bigquery.Table(source, schema=billing_data.SCHEMA)
    table.time_partitioning = partitioning
    bench.client.create_table(table, timeout=30)
    billing_data.append(bench.client, source, lines)


def billed(bench) -> dict[date, tuple[int, Decimal]]:
    sql = (
        f"SELECT usage_date, COUNT(*) AS n, SUM(BilledCost) AS billed FROM {bench.table('gcp_silver_cost')} GROUP BY 1"
    )
    return {row["usage_date"]: (row["n"], row["billed"]) for row in bench.rows(sql)}


def completed(bench, day: str, **changes) -> None:
    report = bench.run(PLACE, day, **changes)
    assert report.succeeded, report.error
    assert all(e.passed for e in bench.progress.steps["verify"].expectations if e.severity == "fail")


def test_generated_days_are_right_to_the_last_digit_also_when_run_twice(bench, source):
    first = date(2025, 10, 30)
    loaded = billing_data.load(bench.client, source, first_day=first, days=3, seed=3, rows_per_day=150)
    expected = {day: (total.rows, total.billed) for day, total in loaded.days.items()}
    for _ in range(2):
        for day in expected:
            completed(bench, day.isoformat())
        assert billed(bench) == expected
    assert any(total.credits for total in loaded.days.values())


def test_costs_below_a_billionth_and_their_credits_add_up_by_hand(bench, source):
    make(
        bench,
        source,
        line("2025-11-17", "0.1", "-0.3", "-2e-7"),
        line("2025-11-17", "0.2"),
        line("2025-11-17", "1.2345678901e-8"),
        line("2025-11-17", "123456.789012345"),
    )
    completed(bench, "2025-11-17")
    by_hand = Decimal("0.1") - Decimal("0.3") - Decimal("0.0000002") + Decimal("0.2")
    by_hand += Decimal("0.000000012345678901") + Decimal("123456.789012345")
    assert billed(bench) == {date(2025, 11, 17): (4, by_hand)}
    rows = bench.rows(f"SELECT x_Credits, ContractedCost FROM {bench.table('gcp_silver_cost')} WHERE x_Credits != 0")
    assert rows == [{"x_Credits": Decimal("-0.3000002"), "ContractedCost": Decimal("0.1")}]


def test_a_line_lands_in_focus_columns(bench, source):
    make(bench, source, line("2025-11-17", "1.5", cost_type="regular"))
    order = bench.order(PLACE, "2025-11-17")
    assert bench.engine().run(order, bench.progress).rows == 1
    (row,) = bench.rows(
        "SELECT * EXCEPT (Tags), JSON_VALUE(Tags, '$.team') AS team, JSON_VALUE(Tags, '$.env') AS env"
        f" FROM {bench.table('gcp_silver_cost')}"
    )
    assert row["team"] == 'a "quoted" name'
    assert row["env"] == "prod"
    assert row["run_id"] == order.run_id
    assert row["ProviderName"] == "Google Cloud"
    assert (row["ServiceName"], row["ServiceCategory"]) == ("Compute Engine", "Compute")
    assert (row["SubAccountId"], row["RegionId"]) == ("shop-prod", "europe-west1")
    assert (row["ChargeCategory"], row["ChargeClass"]) == ("Usage", None)
    assert (row["ConsumedQuantity"], row["ConsumedUnit"]) == (Decimal(3600), "seconds")
    assert row["BillingPeriodStart"].date() == date(2025, 11, 1)
    assert row["BillingPeriodEnd"].date() == date(2025, 12, 1)


def test_lines_that_come_late_reach_their_own_day_and_nothing_is_counted_twice(bench, source):
    make(bench, source, line("2025-11-14", "1"), line("2025-11-17", "2"))
    completed(bench, "2025-11-14")
    completed(bench, "2025-11-17")
    late = [line("2025-11-14", "0.25", exported="2025-11-18"), line("2025-11-18", "4")]
    billing_data.append(bench.client, source, late)
    completed(bench, "2025-11-18")
    expected = {date(2025, 11, 14): (2, Decimal("1.25")), date(2025, 11, 17): (1, 2), date(2025, 11, 18): (1, 4)}
    assert billed(bench) == expected
    completed(bench, "2025-11-18")
    completed(bench, "2025-11-14")
    assert billed(bench) == expected


def test_a_line_that_became_visible_after_its_days_run_is_found_by_the_next(bench, source):
    make(bench, source, line("2025-11-17", "1"))
    completed(bench, "2025-11-17")
    billing_data.append(bench.client, source, [line("2025-11-10", "8", exported="2025-11-17")])
    completed(bench, "2025-11-18")
    assert billed(bench) == {date(2025, 11, 10): (1, 8), date(2025, 11, 17): (1, 1)}


def test_a_day_whose_lines_are_gone_becomes_empty(bench, source):
    make(bench, source, line("2025-11-17", "1"))
    completed(bench, "2025-11-17")
    bench.rows(f"DELETE FROM `{source}` WHERE TRUE")
    completed(bench, "2025-11-17")
    assert billed(bench) == {}


def test_an_ingestion_partitioned_export_of_several_accounts_is_read_whole(bench, source):
    daily = bigquery.TimePartitioning(type_=bigquery.TimePartitioningType.DAY)
    make(bench, source, line("2025-11-17", "1"), partitioning=daily)
    make(bench, f"{source}_2", line("2025-11-17", "2"), partitioning=daily)
    completed(bench, "2025-11-17")
    assert billed(bench) == {date(2025, 11, 17): (2, 3)}
    completed(bench, "2025-11-17", parameters={"source_table": TABLE})
    assert billed(bench) == {date(2025, 11, 17): (1, 1)}


def test_an_old_export_without_newer_columns_is_read(bench, source):
    old = [f for f in billing_data.SCHEMA if f.name not in ("cost_at_list", "cost_type", "labels")]
    bench.client.create_table(bigquery.Table(source, schema=old), timeout=30)
    bench.rows(
        f"INSERT INTO `{source}` (billing_account_id, service, usage_start_time, usage_end_time, export_time, cost,"
        " currency)"
        " VALUES ('a', STRUCT('1' AS id, 'Cloud Run' AS description), TIMESTAMP '2025-11-17 00:00:00+00',"
        " TIMESTAMP '2025-11-17 01:00:00+00', TIMESTAMP '2025-11-17 02:00:00+00', 0.5, 'EUR')"
    )
    completed(bench, "2025-11-17")
    assert billed(bench) == {date(2025, 11, 17): (1, Decimal("0.5"))}


def test_costs_that_do_not_add_up_fail_the_run(bench, source):
    """The reconciliation finds what SQL lost: here a template whose delivery drops a digit."""
    make(bench, source, line("2025-11-17", "0.123456789"))
    shipped = bench.registry.find("gcp", "cost", "cost_billing")
    place = bench.directory / "templates" / "gcp" / "cost"
    place.mkdir(parents=True)
    for file in shipped.directory.glob("cost_billing*"):
        text = file.read_text().replace(
            "CAST(cost AS BIGNUMERIC(38, 20))", "ROUND(CAST(cost AS BIGNUMERIC(38, 20)), 8)"
        )
        (place / file.name).write_text(text)
    bench.registry = type(bench.registry).load(bench.directory / "templates")
    report = bench.run(PLACE, "2025-11-17")
    assert not report.succeeded
    assert report.error == "Data quality: reconciliation: costs differ from the source."
    assert not report.can_pass


def test_no_table_leaves_a_sentence_and_the_stage_never_stays(bench, source):
    report = bench.run(PLACE, "2025-11-17")
    assert report.error == f"There is no table gcp_billing_export_v1_* in {bench.client.project}.{bench.source}."
    make(bench, source, line("2025-11-17", "1"))
    completed(bench, "2025-11-17")
    tables = {table.table_id for table in bench.client.list_tables(bench.customer, timeout=30)}
    assert tables == {"x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results", "gcp_silver_cost"}


def test_the_generator_gives_the_same_for_the_same_seed():
    def of(seed: int, days: int) -> list:
        return list(billing_data.lines(date(2025, 11, 1), days, seed, 40))

    assert of(1, 3) == of(1, 3)
    assert of(1, 3)[:40] == of(1, 1)
    assert of(1, 3) != of(2, 3)
    kinds = {row["cost_type"] for row in of(1, 30)}
    assert kinds == {"regular", "adjustment", "tax"}
    assert any(row["export_time"][:10] > row["usage_start_time"][:10] for row in of(1, 3))


def test_totals_of_a_day_are_cost_and_credits():
    total = billing_data.DayTotal(rows=1, cost=Decimal("1.5"), credits=Decimal("-0.25"))
    assert replace(total, rows=2).billed == Decimal("1.25")


def test_the_customers_own_project_is_read_with_the_credential_for_it(bench):
    asked = []

    class Keys:
        def credential(self, *question: object) -> dict:
            asked.append(question)
            return {"type": "service_account", "private_key": "CANARY"}

    project = f"customer-{bench.customer}"
    theirs = connect(project, emulator_url=bench.url, location="US")
    theirs.create_dataset("billing_export", timeout=30)
    make(bench, f"{project}.billing_export.{TABLE}", line("2025-11-17", "1.25"))
    bench.credentials = Keys()
    configuration = {"source_project_id": project, "source_dataset": "billing_export"}
    completed(bench, "2025-11-17", configuration=configuration)
    assert [(order.customer_id, *rest) for order, *rest in asked] == [(bench.customer, "GCP", project)]
    assert billed(bench) == {date(2025, 11, 17): (1, Decimal("1.25"))}
    assert "CANARY" not in repr(bench.progress.steps)
    theirs.delete_dataset("billing_export", delete_contents=True, timeout=30)
    theirs.close()
