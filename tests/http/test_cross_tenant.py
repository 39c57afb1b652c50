"""Ids of another customer's things, in the address, the query and the body: answered as ids that never were.

Which ids there are is read from the OpenAPI document: one that nobody says how to come by fails.
"""

import re
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from domain.identity import customer_stream
from tests.faults.commands import CONFIG, CREDENTIAL, JO, PIPELINE, READER, WEBHOOK
from tests.http.running import Customer

CUSTOMERS = re.compile(r"/api/v1/(customers|scheduler/customer|pipelines)(/|$)")
PLACES = {"provider", "domain", "template"}
"""Parts of an address that name a template, which is everybody's."""
DAYS = {"from": "2025-10-01", "to": "2025-10-02"}


def made(part: str, body: Any, name: str) -> Callable[[Customer], str]:
    def make(owner: Customer) -> str:
        answer = owner.post(f"{owner.url}/{part}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()[name]

    return make


def pipeline(owner: Customer) -> str:
    return owner.post(f"/api/v1/scheduler/customer/{owner.id}/pipelines", json=PIPELINE).json()["config_id"]


def backfill(owner: Customer) -> str:
    url = f"/api/v1/scheduler/customer/{owner.id}/pipelines/{pipeline(owner)}/backfill"
    return owner.post(url, json=DAYS).json()["backfill_id"]


def run(owner: Customer) -> str:
    return owner.run().json()["run_id"]


IN_PATH = {
    "key_id": made("api-keys", None, "api_key_id"),
    "credential_id": made("credentials", CREDENTIAL, "credential_id"),
    "config_id": pipeline,
    "member_id": made("team-members", JO, "member_id"),
    "endpoint_id": made("webhook-endpoints", WEBHOOK, "endpoint_id"),
    "grant_id": made("bigquery-readers", READER, "grant_id"),
    "notification_id": lambda owner: str(uuid4()),
    "backfill_id": backfill,
    "run_id": run,
}
IN_QUERY = {"stream_id": lambda owner: str(customer_stream(owner.id))}
IN_BODY = {"backfill_id"}
BODIES: dict[str, Any] = {
    "PATCH /api/v1/scheduler/customer/{customer_id}/pipelines/{config_id}": {"is_active": False},
    "POST /api/v1/scheduler/customer/{customer_id}/pipelines/{config_id}/backfill": DAYS,
}
"""What is asked for where the body has to be right before the id is looked at."""


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        if CUSTOMERS.match(path)
        for method, operation in item.items()
    }


def ids_in_path(operation: str) -> list[str]:
    return [name for name in re.findall(r"\{(\w+)\}", operation) if name != "customer_id" and name not in PLACES]


def id_fields(document: dict[str, Any], schema: Any, seen: frozenset[str] = frozenset()) -> set[str]:
    """The fields of a body that take an id, however deep."""
    name = schema.get("$ref")
    if name in seen:
        return set()
    if name is not None:
        return id_fields(document, document["components"]["schemas"][name.rpartition("/")[2]], seen | {name})
    found = {field for field in schema.get("properties", {}) if field.endswith("_id")}
    inner = [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]
    inner += [schema["items"]] if "items" in schema else []
    return found.union(*(id_fields(document, part, seen) for part in inner))


@pytest.fixture(scope="module")
def document(anyone) -> dict[str, Any]:
    return anyone.get("/openapi.json").json()


def test_every_id_is_known(document):
    """Also those in bodies and queries.

    `source_project_id` and `project_id` are Google's, `stripe_customer_id` is Stripe's; an onboarding names the
    customer itself, whom its key proves.
    """
    in_path = {name for operation in operations(document) for name in ids_in_path(operation)}
    assert in_path <= IN_PATH.keys()
    in_query, in_body = set(), set()
    for operation in operations(document).values():
        in_query |= {p["name"] for p in operation.get("parameters", []) if p["in"] == "query" and "id" in p["name"]}
        for content in operation.get("requestBody", {}).get("content", {}).values():
            in_body |= id_fields(document, content["schema"])
    assert {name for name in in_query if name.endswith("_id")} == IN_QUERY.keys() | {"correlation_id"}
    assert in_body == IN_BODY | {"customer_id", "stripe_customer_id", "source_project_id", "project_id"}


def asked(acme: Customer, operation: str, name: str, wanted: str) -> Any:
    method, path = operation.split(" ", 1)
    url = path.replace("{customer_id}", acme.id).replace(f"{{{name}}}", wanted)
    body = BODIES.get(operation, {} if method in {"POST", "PUT", "PATCH"} else None)
    return acme.request(method, url, json=body, headers={"Prefer": "respond-async"})


def test_ids_of_another_customer_in_the_address(api, acme, document):
    other = api.onboard()
    checked = 0
    for operation in operations(document):
        for name in ids_in_path(operation):
            theirs = IN_PATH[name](other)
            if "provider-configs" in operation:
                theirs = made("provider-configs", CONFIG, "config_id")(other)
            foreign = [asked(acme, operation, name, i) for i in (theirs, theirs.upper(), str(uuid4()), "x")]
            assert {answer.status_code for answer in foreign} == {404}, (operation, foreign[0].text)
            assert len({answer.content for answer in foreign}) == 1, operation
            checked += 1
            # The control: for its owner it is there.
            if name != "notification_id":
                assert asked(other, operation, name, theirs).status_code != 404, operation
    assert checked >= 10


def test_ids_of_another_customer_in_a_query(api, acme):
    other = api.onboard()

    def found(caller: Customer, stream_id: str) -> dict[str, Any]:
        return caller.get(f"{caller.url}/events", params={"stream_id": stream_id}).json()

    theirs = found(acme, IN_QUERY["stream_id"](other))
    assert theirs == found(acme, str(uuid4()))
    assert theirs["items"] == []
    assert found(other, IN_QUERY["stream_id"](other))["items"]


def test_ids_of_another_customer_in_a_body(api, acme):
    """A back-fill of another customer is none to go on with: its id is answered as one that never was."""
    other = api.onboard()
    theirs = backfill(other)
    of_other = f"/api/v1/scheduler/customer/{other.id}/backfills/{theirs}"
    before = other.get(of_other).json()
    url = f"/api/v1/scheduler/customer/{acme.id}/pipelines/{pipeline(acme)}/backfill"

    def begun(wanted: str) -> tuple[int, Any]:
        answer = acme.post(url, json={**DAYS, "backfill_id": wanted})
        return answer.status_code, {**answer.json(), "backfill_id": None}

    assert begun(theirs) == begun(str(uuid4()))
    assert other.get(of_other).json() == before
    # The control: who asked has begun one of its own.
    assert acme.get(f"/api/v1/scheduler/customer/{acme.id}/backfills/{theirs}").status_code == 200
