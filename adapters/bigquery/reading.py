"""Reading projected tables back, row by row in the order of their keys: what a verification compares."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from operator import itemgetter
from typing import Any, Final

import msgspec
import requests
from google.api_core import exceptions
from google.cloud import bigquery

from adapters.bigquery.client import CALL_SECONDS, METADATA_SECONDS, RETRY, plain_errors, run
from adapters.bigquery.merge import keys_sql, value_of
from adapters.bigquery.tables import POSITION
from projections.rows import Column, Table, Type

PAGE_ROWS: Final = 20_000
"""Rows per statement: at Google each one reads the whole table; an emulator holds its answer in memory."""
_ANSWER_ROWS: Final = 5_000
_KEYS: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Keys = Sequence[tuple[Any, ...]]


class Reader:
    """The projected tables of one project, as they stand. Safe to share between threads.

    Every method raises `Away` when BigQuery does not answer, `NotThere` when the dataset or the table is missing and
    `PermissionError` when BigQuery refuses.
    """

    def __init__(self, client: bigquery.Client, project: str) -> None:
        self._client = client
        self._project = project

    def rows(
        self, dataset: str, table: Table, *, keys: Keys | None = None, page: int = PAGE_ROWS
    ) -> Iterator[dict[str, Any]]:
        """All rows, or those with these keys, in the order of the key, text as its UTF-8 bytes.

        Values are what PostgreSQL gives for the same column: aware UTC datetimes, dates, bytes, parsed JSON, None.
        `position` is the last. Rows are fetched in pages, each a statement of its own, so that a table that is written
        meanwhile is read as it changes; memory stays flat. Of a row that is there twice both are given.
        """
        if keys is not None:
            ordered = iter(sorted(set(keys)))  # Python compares text by code points, which is the order of UTF-8
            while some := list(islice(ordered, _KEYS)):
                yield from self._page(_chosen_sql(self._target(dataset, table), table), table, some)
            return
        target, key_of = self._target(dataset, table), itemgetter(*table.key)
        last: Keys = []
        while True:
            found = list(self._page(_page_sql(target, table, page, after=bool(last)), table, last))
            if len(found) < page:
                yield from found
                return
            # The last key's rows are read again with the next page, which may hold others of the same key.
            end = key_of(found[-1])
            whole = list(takewhile(lambda row, end=end: key_of(row) != end, found))  # type: ignore[misc]
            yield from whole
            if whole:
                last = [tuple(whole[-1][name] for name in table.key)]
            else:
                page *= 2

    def count(self, dataset: str, table: Table) -> int:
        """How many rows the table has."""
        with plain_errors():
            job = run(self._client, f"SELECT COUNT(*) FROM {self._target(dataset, table)}")  # noqa: S608 - a name
            [row] = job.result(retry=RETRY, job_retry=None, timeout=CALL_SECONDS)
        return int(row[0])

    def _target(self, dataset: str, table: Table) -> str:
        return f"`{self._project}.{dataset}.{table.name}`"

    def _page(self, sql: str, table: Table, keys: Keys) -> Iterator[dict[str, Any]]:
        decode = _decoder(table)
        parameter = bigquery.ScalarQueryParameter("keys", "STRING", msgspec.json.encode(keys).decode())
        with plain_errors():
            job = run(self._client, sql, [parameter] if keys else [])
            try:
                answer = job.result(page_size=_ANSWER_ROWS, retry=RETRY, job_retry=None, timeout=CALL_SECONDS)
                lines = [row[0] for row in answer]
            finally:
                # An emulator keeps every answer in memory until it is told not to.
                with suppress(exceptions.GoogleAPIError, requests.RequestException):
                    self._client.delete_job_metadata(
                        job.job_id, location=job.location, retry=RETRY, timeout=METADATA_SECONDS
                    )
        return map(decode, lines)


@lru_cache(maxsize=256)
def _page_sql(target: str, table: Table, page: int, *, after: bool) -> str:
    order = ", ".join(f"`{name}`" for name in table.key)
    where = f" WHERE {_beyond(table)}" if after else ""
    return f"SELECT {_row(table)} FROM {target} AS t{where} ORDER BY {order} LIMIT {page}"  # noqa: S608 - names


@lru_cache(maxsize=256)
def _chosen_sql(target: str, table: Table) -> str:
    on = " AND ".join(f"t.`{name}` = k.`{name}`" for name in table.key)
    order = ", ".join(f"t.`{name}`" for name in table.key)
    return f"SELECT {_row(table)} FROM {target} AS t JOIN ({keys_sql(table)}) AS k ON {on} ORDER BY {order}"  # noqa: S608 - names


def _beyond(table: Table, place: int = 0) -> str:
    """That a row's key comes after the one in `@keys`."""
    name = table.key[place]
    kind = next(column.type for column in table.columns if column.name == name)
    last = value_of("@keys", f"$[0][{place}]", kind)
    later = f"t.`{name}` > {last}"
    if place + 1 == len(table.key):
        return later
    return f"({later} OR (t.`{name}` = {last} AND {_beyond(table, place + 1)}))"


def _row(table: Table) -> str:
    """A row as one JSON text, which is many times faster to fetch than a value at a time, and exact."""
    columns = (*table.columns, POSITION)
    return f"TO_JSON_STRING(STRUCT({', '.join(f'{_sent(c)} AS c{place}' for place, c in enumerate(columns))})) AS r"


def _sent(column: Column) -> str:
    name = f"t.`{column.name}`"
    match column.type:
        case Type.TIMESTAMP:
            return f"UNIX_MICROS({name})"
        case Type.DATE:
            return f"CAST({name} AS STRING)"
        case Type.BYTES:
            return f"TO_BASE64({name})"
        case _:
            return name


def _decoder(table: Table) -> Callable[[str], dict[str, Any]]:
    """From the text of a row to its values."""
    names = (*table.names, POSITION.name)
    conversions = [
        (f"c{place}", convert)
        for place, column in enumerate((*table.columns, POSITION))
        if (convert := _CONVERSIONS.get(column.type)) is not None
    ]
    fields = [f"c{place}" for place in range(len(names))]

    def decode(text: str) -> dict[str, Any]:
        sent = msgspec.json.decode(text)
        for field, convert in conversions:
            if (value := sent[field]) is not None:
                sent[field] = convert(value)
        return {name: sent[field] for name, field in zip(names, fields, strict=True)}

    return decode


_CONVERSIONS: Final[Mapping[Type, Callable[[Any], Any]]] = {
    # Google writes integers beyond 2^53 as text.
    Type.TIMESTAMP: lambda value: _EPOCH + timedelta(microseconds=int(value)),
    Type.INT64: int,
    Type.DATE: date.fromisoformat,
    Type.BYTES: lambda value: msgspec.convert(value, bytes),
}
