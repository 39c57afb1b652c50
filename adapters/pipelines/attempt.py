"""One attempt of one run: what its steps share."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from google.cloud import bigquery
from jinja2 import Environment, StrictUndefined

from adapters.bigquery.tables import dataset_of
from adapters.pipelines import identifiers
from adapters.pipelines.failures import StepFailed
from adapters.pipelines.jobs import Jobs, QueryParameter
from adapters.pipelines.parameters import Parameter, ParameterType
from adapters.pipelines.source import Sources, SourceTable
from application.ports import Mailer, RunOrder

_REFERENCE = re.compile(r"@([a-zA-Z_]\w*)")
_SQL_TYPE = {
    ParameterType.STRING: "STRING",
    ParameterType.INT: "INT64",
    ParameterType.DATE: "DATE",
    ParameterType.BOOL: "BOOL",
}
# SQL is no HTML: what a template may interpolate are names from `identifiers`, everything else is a bound parameter.
_JINJA = Environment(undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True)  # noqa: S701


@dataclass(frozen=True, slots=True)
class Bound:
    """A value that SQL refers to as `@name`: one value, or an array of them."""

    type: str
    value: Any

    def parameter(self, name: str) -> QueryParameter:
        if isinstance(self.value, (list, tuple)):
            return bigquery.ArrayQueryParameter(name, self.type, list(self.value))
        return bigquery.ScalarQueryParameter(name, self.type, self.value)


@dataclass(slots=True)
class Attempt:
    """What the steps of one attempt of a run work with: each has its own `jobs`, and all share `variables`.

    `failure` is the run's error so far, in words; `may_come_again` that another attempt will follow it.
    """

    order: RunOrder
    directory: Path
    platform: bigquery.Client
    sources: Sources
    jobs: Jobs
    mailer: Mailer
    now: Callable[[], datetime]
    parameters: Mapping[str, Any]
    variables: dict[str, Bound] = field(default_factory=dict)
    failure: str | None = None
    may_come_again: bool = False
    opened: list[tuple[bigquery.Client, Sequence[SourceTable]]] = field(default_factory=list)
    """The source, once a step has needed it."""

    @property
    def stage(self) -> bigquery.TableReference:
        """The attempt's own table between reading and delivering. A second worker on the same run has another."""
        name = f"x_stage_{re.sub(r'[^A-Za-z0-9]', '_', self.order.run_id)}_{self.order.attempt}"
        return self.dataset.table(identifiers.table(name))

    @property
    def dataset(self) -> bigquery.DatasetReference:
        """The customer's dataset in the platform's project."""
        return bigquery.DatasetReference(identifiers.project(self.platform.project), dataset_of(self.order.customer_id))

    def table(self, name: str) -> str:
        """The quoted name of a table in the customer's dataset; `{provider}` stands for the run's provider."""
        return identifiers.quoted_table(self.platform.project, self.dataset.dataset_id, self.table_id(name))

    def table_id(self, name: str) -> str:
        """The table that a template means by `name`."""
        return identifiers.table(name.replace("{provider}", self.order.provider))

    def source(self) -> tuple[bigquery.Client, Sequence[SourceTable]]:
        """The client for the customer's source, and the tables that the parameter source_table names. Found once."""
        if not self.opened:
            client = self.sources.client(self.order)
            self.opened.append((client, self.sources.tables(client, self.order, str(self.parameters["source_table"]))))
        return self.opened[0]

    def render(self, file: str, *, reads_source: bool = False) -> str:
        """The SQL of a template's file with names filled in."""
        names: dict[str, Any] = {
            "table": self.table,
            "tables_view": f"`{self.dataset.project}.{self.dataset.dataset_id}.INFORMATION_SCHEMA.TABLES`",
            "stage": identifiers.quoted_table(self.stage.project, self.stage.dataset_id, self.stage.table_id),
        }
        if reads_source:
            names["sources"] = self.source()[1]
        return _JINJA.from_string((self.directory / file).read_text("utf-8")).render(names)

    def bind(self, sql: str, extra: Mapping[str, Bound] | None = None) -> list[QueryParameter]:
        """The values that `sql` refers to. Raises `StepFailed` for one that no parameter or earlier step gives."""
        known = {**self.variables, **(extra or {})}
        used = dict.fromkeys(_REFERENCE.findall(sql))
        missing = [name for name in used if name not in known]
        if missing:
            raise StepFailed(f"The statement needs @{missing[0]}, which no earlier step has found.")
        return [known[name].parameter(name) for name in used]


def first_variables(order: RunOrder, declared: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Bound]:
    """What SQL may refer to from the start: the run's own values, and its parameters but for table names."""
    variables = {
        "run_id": Bound("STRING", order.run_id),
        "run_date": Bound("DATE", order.run_date),
        "customer_id": Bound("STRING", order.customer_id),
        "provider": Bound("STRING", order.provider),
        "day_end": Bound("TIMESTAMP", datetime.combine(order.run_date, datetime.max.time(), UTC)),
    }
    for name, parameter in declared.items():
        if parameter.type is not ParameterType.TABLE:
            value = date.fromisoformat(values[name]) if parameter.type is ParameterType.DATE else values[name]
            variables[name] = Bound(_SQL_TYPE[parameter.type], value)
    return variables
