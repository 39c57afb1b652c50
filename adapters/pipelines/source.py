"""The customer's own data: with whose identity it is read, and which tables and columns there are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.api_core.client_options import ClientOptions
from google.api_core.exceptions import NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import bigquery
from google.oauth2 import service_account

from adapters.bigquery.tables import dataset_of
from adapters.pipelines import identifiers
from adapters.pipelines.failures import StepFailed
from adapters.pipelines.jobs import AGAIN, CALL_SECONDS
from application.ports import CredentialReader, RunOrder

_SCOPES = ("https://www.googleapis.com/auth/bigquery",)
_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
_MOST_TABLES = 100
_CUSTOMER_MARK = "x_meta_pipeline_runs"


@dataclass(frozen=True, slots=True)
class SourceTable:
    """One table to read: its quoted name, and its columns by dotted path with their BigQuery type."""

    name: str
    columns: Mapping[str, str]
    ingestion_partitioned: bool

    def has(self, path: str) -> bool:
        """Whether the table has that column, by dotted path, whatever its case."""
        return path.lower() in self.columns

    def is_repeated(self, path: str) -> bool:
        """Whether that column holds arrays."""
        return self.columns.get(path.lower(), "").startswith("ARRAY ")

    def text(self, path: str) -> str:
        """SQL for the column as text, exactly as BigQuery prints it; NULL where the table does not have it."""
        match self.columns.get(path.lower()):
            case None:
                return "CAST(NULL AS STRING)"
            case "STRING":
                return _sql(path)
            case "JSON" | "RECORD" | "STRUCT":
                return f"TO_JSON_STRING({_sql(path)})"
            case kind if kind.startswith("ARRAY "):
                return f"TO_JSON_STRING({_sql(path)})"
            case _:
                return f"CAST({_sql(path)} AS STRING)"

    def timestamp(self, path: str) -> str:
        """SQL for the column as a TIMESTAMP, as UTC where it has no zone; NULL where the table does not have it."""
        match self.columns.get(path.lower()):
            case None:
                return "CAST(NULL AS TIMESTAMP)"
            case "TIMESTAMP":
                return _sql(path)
            case "STRING":
                return f"CAST({_sql(path)} AS TIMESTAMP)"
            case _:
                return f"TIMESTAMP({_sql(path)})"


def _sql(path: str) -> str:
    return ".".join(["t", *(identifiers.quoted_column(part) for part in path.split("."))])


class Sources:
    """Opens customers' source projects. `endpoint` is an emulator's URL; None means Google."""

    def __init__(
        self, platform: bigquery.Client, credentials: CredentialReader, *, central: str, endpoint: str | None = None
    ) -> None:
        self._platform = platform
        self._credentials = credentials
        self._central = central
        self._endpoint = endpoint

    def client(self, order: RunOrder) -> bigquery.Client:
        """A client that reads as the customer, with the credential that it left for the project.

        The platform's own identity reads the customer's own dataset and nothing else: customers name whatever project
        and dataset they like, also one that the platform was let into for another customer's sake. An emulator knows
        no identities.

        Raises `StepFailed` without a credential, and for one of the wrong shape; `Away` when it cannot be opened now.
        """
        project, dataset = _place(order, self._platform.project)
        secret = self._credentials.credential(order, "GCP", project)
        if secret is None:
            own = project == self._platform.project and dataset == dataset_of(order.customer_id)
            if own or self._endpoint is not None:
                return self._platform
            raise StepFailed(f"There is no GCP credential for the project {project}: add one that may read there.")
        if self._endpoint is not None:
            # The emulator knows no callers, and a customer's key has no business there.
            return bigquery.Client(
                project=project,
                credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
                client_options=ClientOptions(api_endpoint=self._endpoint),
            )
        return bigquery.Client(project=project, credentials=_service_account(secret))

    def tables(self, client: bigquery.Client, order: RunOrder, pattern: str) -> Sequence[SourceTable]:
        """The tables of the configured dataset that `pattern` names: one, or all that begin with what stands before *.

        Raises `StepFailed` when there is none, or when the dataset is not the customer's to read.
        """
        project, dataset = _place(order, self._platform.project)
        self._refuse_foreign(order, project, dataset)
        place = bigquery.DatasetReference(project, dataset)
        names = [identifiers.table_pattern(pattern)]
        if pattern.endswith("*"):
            listed = client.list_tables(place, retry=AGAIN, timeout=CALL_SECONDS)
            names = sorted(item.table_id for item in listed if item.table_id.startswith(pattern[:-1]))
        if not names:
            raise StepFailed(f"There is no table {pattern} in {project}.{dataset}.")
        if len(names) > _MOST_TABLES:
            raise StepFailed(f"More than {_MOST_TABLES} tables in {project}.{dataset} match {pattern}.")
        return [_described(client, place, name) for name in names]

    def _refuse_foreign(self, order: RunOrder, project: str, dataset: str) -> None:
        """In the platform's own project a run may read its customer's dataset and those that are nobody's."""
        if project != self._platform.project or dataset.lower() == order.customer_id.lower():
            return
        mark = bigquery.DatasetReference(project, dataset).table(_CUSTOMER_MARK)
        try:
            self._platform.get_table(mark, retry=AGAIN, timeout=CALL_SECONDS)
        except NotFound:
            if dataset.lower() != self._central.lower():
                return
        raise StepFailed("The configured source_dataset belongs to the platform or to another customer.")


def _place(order: RunOrder, default_project: str) -> tuple[str, str]:
    project = order.configuration.get("source_project_id") or default_project
    dataset = order.configuration.get("source_dataset")
    if not dataset:
        raise StepFailed("The pipeline needs a provider configuration that names source_dataset.")
    try:
        return identifiers.project(project), identifiers.dataset(dataset)
    except ValueError as error:
        raise StepFailed(f"The provider configuration is not valid: {error}") from None


def _service_account(secret: Mapping[str, Any]) -> service_account.Credentials:
    # A token_uri of the customer's choosing would have the platform call any address.
    if secret.get("type") != "service_account" or secret.get("token_uri", _TOKEN_URI) != _TOKEN_URI:
        raise StepFailed("The credential for the source project is not a Google service-account key.")
    try:
        credentials: service_account.Credentials = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            {**secret, "token_uri": _TOKEN_URI}, scopes=_SCOPES
        )
    except ValueError:
        raise StepFailed("The credential for the source project cannot be read as a service-account key.") from None
    return credentials


def _described(client: bigquery.Client, place: bigquery.DatasetReference, name: str) -> SourceTable:
    try:
        table = client.get_table(place.table(name), retry=AGAIN, timeout=CALL_SECONDS)
    except NotFound:
        raise StepFailed(f"There is no table {name} in {place.project}.{place.dataset_id}.") from None
    partitioning = table.time_partitioning
    return SourceTable(
        name=identifiers.quoted_table(place.project, place.dataset_id, name),
        columns=dict(_paths(table.schema)),
        ingestion_partitioned=partitioning is not None and partitioning.field is None,
    )


def _paths(fields: Iterable[bigquery.SchemaField], above: str = "") -> Iterable[tuple[str, str]]:
    for field in fields:
        path = f"{above}{field.name.lower()}"
        if field.mode == "REPEATED":
            yield path, f"ARRAY {field.field_type}"
            continue
        yield path, field.field_type
        yield from _paths(field.fields, f"{path}.")
