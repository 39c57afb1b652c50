"""No route of a customer reads past the database's own protection, and datasets are named in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

import adapters.http
from adapters.http.app import ROUTERS
from adapters.http.auth import BY_CUSTOMER

HTTP = Path(adapters.http.__file__).parent
REPOSITORY = HTTP.parent.parent
BY_THE_SERVICE_ITSELF = {
    ("auth.py", "_look_up"): "whose key it is: nobody has proved yet to be anybody",
    ("auth.py", "_must_exist"): "an operator asks",
    ("api_keys.py", "list_keys"): "when keys were used, by ids that were read through the caller's reads",
    (
        "onboarding.py",
        "_provisioned",
    ): "whether the run of the onboarding itself has ended; there was no customer before",
    ("webhook_endpoints.py", "_tell"): "a command: it writes, for the customer in the address",
    ("events.py", "answer"): "where in the log a span of time lies; the events are read through the caller's reads",
    ("runs.py", "_reads"): "an operator asks; a customer's runs are read on its behalf",
}
"""Functions behind customers' routes that reach the service's own datastore, and why."""


def customers_modules() -> set[str]:
    """The files whose routes a customer's key opens."""
    routers = [router for router in ROUTERS if all(key in router.dependencies for key in BY_CUSTOMER)]
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {Path(route.endpoint.__code__.co_filename).name for route in routes} | {"auth.py"}


def own_datastore(source: str) -> Iterator[str]:
    """The functions of a file that take `….service.datastore`."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in {"datastore", "store", "dsn"}:
                    yield function.name
                    break


def test_customers_routes_read_through_their_callers():
    modules = customers_modules()
    assert {"runs.py", "customers.py", "credentials.py", "bigquery_readers.py"} <= modules
    found = {(name, function) for name in modules for function in own_datastore((HTTP / name).read_text())}
    assert found - _narrowed(found) == set(BY_THE_SERVICE_ITSELF)


def _narrowed(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that hand the datastore on only to be bound to the customer."""
    narrowed = set()
    for name, function in found:
        tree = ast.parse((HTTP / name).read_text())
        [node] = [n for n in ast.walk(tree) if getattr(n, "name", None) == function]
        taken = [n for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr in {"datastore", "store", "dsn"}]
        bound = [
            argument
            for call in ast.walk(node)
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "TenantReads"
            for argument in call.args
        ]
        if all(any(n is argument for argument in bound) for n in taken):
            narrowed.add((name, function))
    return narrowed


def test_a_route_that_reads_by_itself_is_found():
    """The control."""
    broken = "def list_members(api, caller):\n    return newest_first(api.service.datastore, TEAM, [])\n"
    assert list(own_datastore(broken)) == ["list_members"]
    assert list(own_datastore(broken.replace("api.service.datastore", "caller.reads"))) == []


NAMING = "adapters/bigquery/tables.py"
DATASETS = {"Dataset", "DatasetReference", "TableReference"}


def names_a_dataset(source: str) -> list[int]:
    """Lines that make a dataset's name of a customer's id without asking `dataset_of`.

    That is: an id in a text with dots or backticks around it, or as an argument of what names a dataset.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = node.values
            for number, part in enumerate(parts):
                if isinstance(part, ast.FormattedValue) and _is_id(part.value):
                    around = [p.value for p in parts[max(number - 1, 0) : number + 2] if isinstance(p, ast.Constant)]
                    before = around[0] if number and around else ""
                    after = around[-1] if around else ""
                    if before.endswith((".", "`")) or after.startswith((".x_", "`", ".{")):
                        found.append(node.lineno)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            if name in DATASETS and any(_is_id(value) or _calls_with_id(value) for value in values):
                found.append(node.lineno)
    return found


def _is_id(node: ast.expr) -> bool:
    return getattr(node, "attr", getattr(node, "id", None)) in {"customer_id", "tenant_id", "tenant_dataset_id"}


def _calls_with_id(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and getattr(node.func, "id", None) != "dataset_of"
        and any(_is_id(argument) for argument in node.args)
    )


def test_datasets_are_named_in_one_place():
    found = {
        str(file.relative_to(REPOSITORY)): lines
        for folder in ("adapters", "application", "projections", "domain")
        for file in (REPOSITORY / folder).rglob("*.py")
        if (lines := names_a_dataset(file.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "broken",
    [
        "DatasetReference(project, order.customer_id)",
        "bigquery.DatasetReference(project, dataset(self.order.customer_id))",
        "sql = f'SELECT * FROM `{project}.{customer_id}.x_meta_pipeline_runs`'",
        "client.create_dataset(f'{client.project}.{customer_id}')",
    ],
)
def test_a_second_place_is_found(broken):
    """The control."""
    assert names_a_dataset(broken) == [1]
    assert names_a_dataset("DatasetReference(project, dataset_of(order.customer_id))") == []
