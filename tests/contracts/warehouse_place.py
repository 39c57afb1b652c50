"""Where the suites of the warehouse run: an emulator or Google, and what they say of rows."""

from dataclasses import dataclass, field
from uuid import uuid4

from google.cloud import bigquery

from adapters.bigquery.client import connect
from projections.rows import Change, Put

LOCATION = "US"


@dataclass
class Place:
    """Where the suite runs, and the customers it made there."""

    project: str
    emulator_url: str | None
    central: str = field(default_factory=lambda: f"contract_{uuid4().hex[:12]}")
    customers: list[str] = field(default_factory=list)

    def client(self) -> bigquery.Client:
        return connect(self.project, self.emulator_url, LOCATION)

    def customer(self) -> str:
        self.customers.append(f"contract_{uuid4().hex[:12]}")
        return self.customers[-1]


def whole(table, **values):
    return Put(table, {**dict.fromkeys(table.names), **values})


def log(*rows, customer="acme_corp", start=1):
    return [Change(row, position, customer) for position, row in enumerate(rows, start)]


def fresh():
    return f"{uuid4().hex}-"
