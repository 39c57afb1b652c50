"""Writing rows as they ought to be over rows that went wrong, whatever position those claim."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.cloud import bigquery

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

        Idempotent. Rows are written a few thousand at a time: after an error some may be mended and others not.
        """
        raise NotImplementedError
