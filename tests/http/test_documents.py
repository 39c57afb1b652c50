"""Every route and figure that the documents name is one of the service's."""

import re
from pathlib import Path

from adapters.postgres.privileges import ROLE, TENANT

ROOT = Path(__file__).parents[2]
TEXT = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))


def named(text: str) -> set[tuple[str, str]]:
    """Methods and paths, in `METHOD /path` and in curl lines; what is a value is one word for all of them."""
    told = re.findall(r"\b(GET|POST|PUT|PATCH|DELETE) (/[^\s`]+)", text)
    curls = re.findall(r"curl -s (?:-X (\w+) )?\"http://localhost:8080(/[^\"]+)\"", text)
    return {(method or "GET", shape(path)) for method, path in told + curls}


def shape(path: str) -> str:
    """Values look like `{id}`, `$CONFIG_ID` or the customer of the examples."""
    return re.sub(r"\{\w+\}|\$\w+|acme_corp", "{}", path)


def unknown(text: str, document: dict) -> set[tuple[str, str]]:
    operations = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    routes = [(method, re.compile(re.sub(r"\{\w+\}", "[^/]+", path))) for method, path in operations]
    return {
        (method, path)
        for method, path in named(text)
        if not any(method == known and route.fullmatch(path) for known, route in routes)
    }


def test_every_route_that_is_named_exists(anyone):
    document = anyone.get("/openapi.json").json()
    assert len(named(TEXT)) > 10
    assert unknown(TEXT, document) == set()
    assert unknown("`POST /api/v1/customers/{id}/pause`", document) == {("POST", "/api/v1/customers/{}/pause")}


def test_every_figure_that_is_named_exists(anyone):
    figures = anyone.get("/metrics").text
    wanted = set(re.findall(r"`(convergence_\w+)", TEXT)) - {ROLE, TENANT}
    assert wanted
    assert [figure for figure in wanted if f"# TYPE {figure} " not in figures] == []
