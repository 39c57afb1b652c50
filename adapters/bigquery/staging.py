"""Tables filled beside the live ones and put in their place: how a rebuild replaces a warehouse's tables."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from google.cloud import bigquery

from projections.rows import Change, Table

SUFFIX = "__rebuild"
_WRITERS = 4
"""Tables worked on at the same time."""


class Staging:
    """The staged twins, `{table}__rebuild`, of a warehouse's tables. One thread works with it.

    Every method raises `Away` when BigQuery does not answer or has no quota left for now, `PermissionError` when it
    refuses, `ValueError` for what it does not accept. A failure leaves the live tables as they were.
    """

    def __init__(self, client: bigquery.Client, project: str, central_dataset: str, location: str) -> None:
        self._client = client
        self._project = project
        self._central = central_dataset
        self._location = location
        self._staged: dict[tuple[str, str], Table] = {}
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="staging")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the writers. The client stays open, and staged tables stay."""
        self._writers.shutdown(cancel_futures=True)

    @property
    def staged(self) -> Sequence[tuple[str, Table]]:
        """Dataset and table of what is staged and not yet swapped or dropped."""
        return [(dataset, table) for (dataset, _), table in self._staged.items()]

    def load(self, dataset: str, table: Table, rows: Iterable[Mapping[str, Any]]) -> int:
        """Fill the table's staged twin with these whole rows (`position` included); returns how many there are.

        The twin is laid out as the live table, and replaces one that an earlier rebuild left. A `dataset` among the
        values that is no column of the table is passed over. The dataset and the live table are made if they are
        missing. Memory stays flat. Raises `ValueError` when BigQuery ends up with another number of rows.
        """
        raise NotImplementedError

    def load_each(
        self, table: Table, rows: Iterable[Mapping[str, Any]], datasets: Iterable[str] = ()
    ) -> Mapping[str, int]:
        """As `load`, for a customers' table of many datasets side by side; returns each dataset's number of rows.

        `rows` come with the `dataset` they belong to, all of one dataset together. `datasets` without any rows get an
        empty table.
        """
        raise NotImplementedError

    def write(self, changes: Sequence[Change]) -> None:
        """Apply changes of a later stretch of the log to the staged tables, as the warehouse does to the live ones.

        A table that is not staged yet, a new customer's, is staged empty first.
        """
        raise NotImplementedError

    def swap(self, dataset: str, table: Table) -> None:
        """Put the staged table in the place of the live one, and drop it.

        At Google queries see all of the old rows or all of the new ones. After an error it can be called again.
        """
        raise NotImplementedError

    def swap_all(self) -> None:
        """`swap` everything that is staged, side by side."""
        raise NotImplementedError

    def drop(self, dataset: str, table: Table) -> None:
        """Remove the staged table, if there is one."""
        raise NotImplementedError

    def drop_all(self) -> None:
        """`drop` everything that is staged."""
        raise NotImplementedError
