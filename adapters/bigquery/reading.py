"""Reading projected tables back, row by row in the order of their keys: what a verification compares."""

from collections.abc import Iterator, Sequence
from typing import Any

from google.cloud import bigquery

from projections.rows import Table


class Reader:
    """The projected tables of one project, as they stand. Safe to share between threads.

    Every method raises `Away` when BigQuery does not answer, `NotThere` when the dataset or the table is missing and
    `PermissionError` when BigQuery refuses.
    """

    def __init__(self, client: bigquery.Client, project: str) -> None:
        self._client = client
        self._project = project

    def rows(
        self, dataset: str, table: Table, *, keys: Sequence[tuple[Any, ...]] | None = None
    ) -> Iterator[dict[str, Any]]:
        """All rows, or those with these keys, in the order of the key, text as its UTF-8 bytes.

        Values are what PostgreSQL gives for the same column: aware UTC datetimes, dates, bytes, parsed JSON, None.
        `position` is the last. Rows are fetched in pages; memory stays flat.
        """
        raise NotImplementedError

    def count(self, dataset: str, table: Table) -> int:
        """How many rows the table has."""
        raise NotImplementedError
