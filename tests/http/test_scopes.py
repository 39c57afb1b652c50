"""What a key of limited scopes may do: the matrix of every customer's route and every scope.

The routes come from the OpenAPI document, so that one without an entry here fails.
"""

from collections.abc import Mapping

import pytest

from domain.scopes import Scope
from tests.http.running import Customer
from tests.http.test_callers import CALLERS, ID, address, call

SCHEDULER = "/api/v1/scheduler/customer/{customer_id}"
RUNS = "/api/v1/pipelines/runs/{run_id}"
NEEDS: Mapping[Scope | None, set[str]] = {
    None: {f"GET {ID}", "GET /api/v1/pipelines/templates"},
    Scope.RUNS_READ: {f"GET {ID}/pipelines", f"GET {SCHEDULER}/backfills/{{backfill_id}}", f"GET {RUNS}"},
    Scope.RUNS_WRITE: {
        "POST /api/v1/pipelines/run/{customer_id}/{provider}/{domain}/{template}",
        f"POST {SCHEDULER}/pipelines/{{config_id}}/backfill",
        f"POST {RUNS}/cancel",
        f"POST {RUNS}/retry",
    },
    Scope.CONFIG_WRITE: {
        f"PATCH {ID}",
        f"GET {ID}/events",
        *(f"{method} {ID}/provider-configs" for method in ("GET", "POST")),
        f"DELETE {ID}/provider-configs/{{config_id}}",
        *(f"{method} {ID}/team-members" for method in ("GET", "POST")),
        f"DELETE {ID}/team-members/{{member_id}}",
        *(f"{method} {SCHEDULER}/pipelines" for method in ("GET", "POST")),
        *(f"{method} {SCHEDULER}/pipelines/{{config_id}}" for method in ("PATCH", "DELETE")),
        *(f"POST {SCHEDULER}/{what}" for what in ("pause", "resume")),
        *(f"{method} {ID}/webhook-endpoints" for method in ("GET", "POST")),
        f"DELETE {ID}/webhook-endpoints/{{endpoint_id}}",
        f"POST {ID}/webhook-endpoints/{{endpoint_id}}/test",
        f"GET {ID}/notifications",
        *(f"{method} {ID}/bigquery-readers" for method in ("GET", "POST")),
        f"DELETE {ID}/bigquery-readers/{{grant_id}}",
    },
    Scope.CREDENTIALS_WRITE: {
        *(f"{method} {ID}/{what}" for method in ("GET", "POST") for what in ("api-keys", "credentials")),
        f"DELETE {ID}/api-keys/{{key_id}}",
        f"DELETE {ID}/credentials/{{credential_id}}",
    },
    Scope.USAGE_READ: {f"GET {ID}/usage", f"GET {ID}/usage/history"},
}


def needed(operation: str) -> list[Scope | None]:
    return [scope for scope, operations in NEEDS.items() if operation in operations]


def documented(document: dict) -> dict[str, str | None]:
    """The scope of each operation, as the document says it in three ways."""
    found = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            scope = operation.get("x-required-scope")
            for requirement in operation.get("security", []):
                assert requirement.get("CustomerKey", []) in ([], [scope])
            assert scope is None or f"`{scope}`" in operation["description"]
            found[f"{method.upper()} {path}"] = scope
    return found


def issued(acme: Customer, *scopes: str) -> dict:
    answer = acme.post(f"{acme.url}/api-keys", json={"name": " ".join(scopes), "scopes": scopes})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_customers_route_has_a_scope(anyone):
    """One that is open to any key stands in the table as such."""
    found = documented(anyone.get("/openapi.json").json())
    routes = CALLERS["customer"] | CALLERS["known"]
    assert {operation: needed(operation) for operation in routes} == {o: [found[o]] for o in routes}
    assert {found[operation] for operation in CALLERS["open"] | CALLERS["admin"]} == {None}
    assert needed("GET /api/v1/customers/{customer_id}/new") == [], "the control: nobody has decided about it"


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_may_do_what_its_scope_says_and_nothing_else(acme, anyone, scope):
    key = issued(acme, scope)["api_key"]
    allowed = {None, scope} | ({Scope.RUNS_READ} if scope is Scope.RUNS_WRITE else set())
    wrong = {}
    for operation, wanted in ((o, s) for s, operations in NEEDS.items() for o in sorted(operations)):
        method, path = operation.split(" ", 1)
        answer = call(anyone, method, address(path, acme.id), headers={"X-API-Key": key})
        refused = b"This API key lacks the scope %s." % str(wanted).encode() in answer.content
        if refused is (wanted in allowed) or (refused and answer.status_code != 403):
            wrong[operation] = answer.text
    assert wrong == {}


def test_a_key_hands_on_no_more_than_it_has(acme, anyone):
    key = issued(acme, "credentials:write", "runs:write")["api_key"]

    def ask(**body) -> tuple[int, str]:
        answer = anyone.post(f"{acme.url}/api-keys", json=body, headers={"X-API-Key": key})
        return answer.status_code, answer.json().get("detail", "")

    assert ask(name="a", scopes=["runs:read", "credentials:write"])[0] == 200, "runs:write reads, too"
    status, sentence = ask(name="b", scopes=["runs:read", "usage:read", "config:write"])
    assert (status, sentence) == (
        403,
        "This API key lacks the scope usage:read config:write, and can issue keys only of scopes that it has itself.",
    )
    status, sentence = ask(name="c")
    assert status == 403
    assert "config:write usage:read" in sentence
    everything = issued(acme, *Scope)["api_key"]
    answer = anyone.post(f"{acme.url}/api-keys", json={"name": "d"}, headers={"X-API-Key": everything})
    assert answer.status_code == 403, "scopes that are to come would be more than it has"
    again = {"customer_id": acme.id, "company_name": "ACME", "admin_email": "a@acme.com"}
    onboarded = anyone.post("/api/v1/customers/onboard", json=again, headers={"X-API-Key": key})
    assert onboarded.status_code == 403, "the key that onboarding gives is for everything"
    names = {item["name"] for item in acme.get(f"{acme.url}/api-keys").json()["items"]}
    assert names.isdisjoint({"b", "c", "d"})


def test_scopes_that_there_are_not_are_refused(acme):
    for scopes in ([], ["runs:delete"], "runs:read", [None], ["runs:read"] * 6):
        assert acme.post(f"{acme.url}/api-keys", json={"scopes": scopes}).status_code == 422
