"""Writing rows as they ought to be over rows that went wrong, whatever position those claim."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
from google.cloud import bigquery

from adapters.bigquery.client import plain_errors, run
from adapters.bigquery.merge import CHUNK_ROWS, keys_sql
from adapters.bigquery.writing import write_rows
from projections.rows import Table


class Mending:
    """Repairs rows of one project's tables. Nobody else may write a table while it is mended.

    Raises `Away` when BigQuery does not answer, `NotThere` when the dataset or the table is missing, `PermissionError`
    when BigQuery refuses and `ValueError` for a value that the table cannot hold.
    """

    def __init__(self, client: bigquery.Client, project: str) -> None:
        self._client = client
        self._project = project

    def mend(
        self,
        dataset: str,
        table: Table,
        rows: Sequence[Mapping[str, Any]] = (),
        gone: Sequence[tuple[Any, ...]] = (),
    ) -> None:
        """Write exactly these whole rows (`position` included), and delete the rows with the keys `gone`.

        Of a row that is there twice under one key, `gone` deletes both; deleting comes first, so that a key may be
        given both ways to have it there once. Idempotent. Rows are written a few thousand at a time: after an error
        some may be mended and others not.
        """
        target = f"`{self._project}.{dataset}.{table.name}`"
        with plain_errors():
            rest = iter(gone)
            while some := list(islice(rest, CHUNK_ROWS)):
                keys = bigquery.ScalarQueryParameter("keys", "STRING", msgspec.json.encode(some).decode())
                run(self._client, _delete_sql(target, table), [keys])
            write_rows(self._client, target, table, rows, guarded=False)


def _delete_sql(target: str, table: Table) -> str:
    on = " AND ".join(f"t.`{name}` = s.`{name}`" for name in table.key)
    return f"MERGE {target} AS t USING ({keys_sql(table)}) AS s ON {on} WHEN MATCHED THEN DELETE"
