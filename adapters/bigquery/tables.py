"""The tables as BigQuery's objects, and making them where they are missing."""

import re

from google.cloud import bigquery

from adapters.bigquery.client import METADATA_SECONDS, RETRY, run
from projections.rows import Column, Table, Type

POSITION = Column("position", Type.INT64, "The place in the event log of the last event that touched the row.")
_DATASET = re.compile(r"[A-Za-z0-9_]{3,50}")


def dataset_of(customer_id: str) -> str:
    """The dataset of a customer: its id. Raises `ValueError` for an id that could not be one."""
    if not _DATASET.fullmatch(customer_id):
        raise ValueError("A customer id has 3 to 50 characters: ASCII letters, digits and underscores.")
    return customer_id


def schema_of(table: Table) -> list[bigquery.SchemaField]:
    """The table's columns, `position` last. The key and `position` are never NULL."""
    required = {*table.key, POSITION.name}
    return [
        bigquery.SchemaField(
            column.name,
            column.type.value,
            mode="REQUIRED" if column.name in required else "NULLABLE",
            description=column.description,
        )
        for column in (*table.columns, POSITION)
    ]


def ensure_dataset(client: bigquery.Client, dataset_id: str, location: str) -> None:
    """Make the dataset if it is missing."""
    dataset = bigquery.Dataset(f"{client.project}.{dataset_id}")
    dataset.location = location
    client.create_dataset(dataset, exists_ok=True, retry=RETRY, timeout=METADATA_SECONDS)


def delete_dataset(client: bigquery.Client, dataset_id: str) -> None:
    """Remove the dataset with everything in it, if there is one."""
    name = f"{client.project}.{dataset_id}"
    client.delete_dataset(name, delete_contents=True, not_found_ok=True, retry=RETRY, timeout=METADATA_SECONDS)


def ensure_table(client: bigquery.Client, dataset_id: str, table: Table) -> bigquery.Table:
    """Make the table, partitioned and clustered, if it is missing; add the columns that are new to it; how it is now.

    Existing columns, partitioning and clustering are never changed.
    """
    wanted = bigquery.Table(f"{client.project}.{dataset_id}.{table.name}", schema=schema_of(table))
    wanted.description = table.description
    wanted.clustering_fields = list(table.cluster_by) or None
    if table.partition_by:
        wanted.time_partitioning = bigquery.TimePartitioning(
            type_=bigquery.TimePartitioningType.DAY, field=table.partition_by
        )
    found = client.create_table(wanted, exists_ok=True, retry=RETRY, timeout=METADATA_SECONDS)
    if not _missing(wanted, found):
        return found
    for field in _missing(wanted, found):
        # One column for each statement: an emulator takes no more.
        sql = f"ALTER TABLE `{client.project}.{dataset_id}.{table.name}` ADD COLUMN IF NOT EXISTS `{field.name}`"
        run(client, f"{sql} {field.field_type}")
    # The statements add them for SQL. An emulator keeps a description of its own for the API, which is told too.
    found = client.get_table(wanted.reference, retry=RETRY, timeout=METADATA_SECONDS)
    if missing := _missing(wanted, found):
        found.schema = [*found.schema, *missing]
        found = client.update_table(found, ["schema"], retry=RETRY, timeout=METADATA_SECONDS)
    return found


def _missing(wanted: bigquery.Table, found: bigquery.Table) -> list[bigquery.SchemaField]:
    """The wanted fields that are not there, as what a table with rows can be given: nullable."""
    there = {field.name for field in found.schema}
    return [bigquery.SchemaField(f.name, f.field_type) for f in wanted.schema if f.name not in there]
