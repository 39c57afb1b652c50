"""Silver tables: the columns that the costs of all providers share, and how such a table is made and replaced.

Names and meanings are those of FOCUS 1.0, the FinOps Open Cost and Usage Specification; a name with `x_` is our own, as
FOCUS asks of custom columns, and run_id, usage_date and export_time say where a row comes from.
"""

from dataclasses import dataclass

from google.api_core.exceptions import NotFound
from google.cloud import bigquery

from adapters.pipelines.identifiers import quoted_column, quoted_table
from adapters.pipelines.jobs import AGAIN, CALL_SECONDS, Jobs

COST = "BIGNUMERIC(38, 20)"
"""18 digits before the point and 20 after it: every digit of the smallest unit price of any provider's bill."""
QUANTITY = "BIGNUMERIC(38, 15)"
"""Byte-seconds of a month are large, and quantities come with at most 15 decimals."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns with their types, the DATE column that partitions, and up to four columns that cluster."""

    columns: dict[str, str]
    partition_by: str
    cluster_by: tuple[str, ...]
    description: str


def _all(kind: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


FOCUS_COST = Layout(
    columns=(
        _all(COST, "BilledCost EffectiveCost ListCost ContractedCost ListUnitPrice ContractedUnitPrice x_Credits")
        | _all(QUANTITY, "ConsumedQuantity PricingQuantity")
        | _all("TIMESTAMP", "BillingPeriodStart BillingPeriodEnd ChargePeriodStart ChargePeriodEnd export_time")
        | _all("DATE", "usage_date")
        | _all("JSON", "Tags")
        | _all(
            "STRING",
            "AvailabilityZone BillingAccountId BillingAccountName BillingCurrency ChargeCategory ChargeClass"
            " ChargeDescription ChargeFrequency CommitmentDiscountCategory CommitmentDiscountId CommitmentDiscountName"
            " CommitmentDiscountStatus CommitmentDiscountType ConsumedUnit InvoiceIssuerName PricingCategory"
            " PricingUnit ProviderName PublisherName RegionId RegionName ResourceId ResourceName ResourceType"
            " ServiceCategory ServiceName SkuId SkuPriceId SubAccountId SubAccountName x_InvoiceMonth run_id",
        )
    ),
    partition_by="usage_date",
    cluster_by=("BillingPeriodStart", "SubAccountId", "ServiceName"),
    description="Cost and usage in the columns of FOCUS 1.0, one row per charge.",
)
LAYOUTS = {"focus_cost": FOCUS_COST}


def ensure(jobs: Jobs, client: bigquery.Client, table: bigquery.TableReference, layout: Layout) -> None:
    """Make the table where it is missing, and add the layout's columns that it does not have yet. Idempotent.

    In SQL rather than through a Table object, because only SQL gives BIGNUMERIC its digits on the emulator.
    """
    name = quoted_table(table.project, table.dataset_id, table.table_id)
    try:
        found = client.get_table(table, retry=AGAIN, timeout=CALL_SECONDS)
    except NotFound:
        jobs.query(client, _create(name, layout))
        return
    present = {field.name.lower() for field in found.schema}
    for column, kind in layout.columns.items():
        if column.lower() not in present:
            jobs.query(client, f"ALTER TABLE {name} ADD COLUMN IF NOT EXISTS {quoted_column(column)} {kind}")


def _create(name: str, layout: Layout) -> str:
    columns = ", ".join(f"{quoted_column(column)} {kind}" for column, kind in layout.columns.items())
    cluster = ", ".join(map(quoted_column, layout.cluster_by))
    return (
        f"CREATE TABLE IF NOT EXISTS {name} ({columns}) "
        f"PARTITION BY {quoted_column(layout.partition_by)} CLUSTER BY {cluster} "
        f"OPTIONS (description = '{layout.description}')"
    )


def replace(name: str, layout: Layout, select: str, *, leaving: str, kept: str) -> str:
    """One statement, and so one atomic change: the rows `leaving` go and those of `select` come.

    Of `select` only rows that are `kept` are taken, so that what a run writes is what its next run removes. Doing it
    again ends in the same rows, whatever became of the first time.
    """
    columns = [quoted_column(column) for column in layout.columns]
    # Every merge key is false: no row of the target is ever updated, which makes this a delete and an insert in one.
    return (
        f"MERGE {name} AS target\n"  # noqa: S608 - checked names, templates' SQL, bound values
        f"USING (SELECT * FROM (\n{select}\n) AS candidate WHERE {kept}) AS source\n"
        "ON FALSE\n"
        f"WHEN NOT MATCHED BY SOURCE AND {leaving} THEN DELETE\n"
        f"WHEN NOT MATCHED BY TARGET THEN INSERT ({', '.join(columns)})\n"
        f"VALUES ({', '.join(f'source.{column}' for column in columns)})"
    )
