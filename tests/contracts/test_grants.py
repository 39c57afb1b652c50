"""What BigQuery is told of readers: the emulator's access lists and row policies, and a server that conflicts."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
import requests
from google.cloud import bigquery

from adapters.bigquery.client import NotThere, connect
from adapters.bigquery.grants import SHARED, BigQueryGrants
from adapters.bigquery.warehouse import BigQueryWarehouse
from projections.tables import CUSTOMER_API_KEYS, CUSTOMER_TEAM_MEMBERS
from tests.contracts.warehouse_place import log, whole

PROJECT = "grants-project"
JO, ANN, OPS = "user:jo@acmecorp.com", "group:ann@acmecorp.com", "group:ops@platform.example"
ITSELF = "serviceAccount:convergence@grants-project.iam.gserviceaccount.com"
"""Whom the emulator takes the service for: a request says who sends it."""


@pytest.fixture
def place(bigquery_emulator) -> Iterator[Any]:
    """A central dataset and two customers."""
    client = connect(PROJECT, bigquery_emulator, "US")
    client._http.headers["X-Bqemu-Caller"] = ITSELF
    central = f"central_{uuid4().hex[:8]}"
    warehouse = BigQueryWarehouse(client, PROJECT, central, "US")
    customers = [f"c_{uuid4().hex[:8]}" for _ in range(2)]
    warehouse.ensure_central()
    for customer_id in customers:
        warehouse.ensure_customer(customer_id)
    yield client, central, customers, warehouse, bigquery_emulator
    for dataset in (central, *customers):
        client.delete_dataset(dataset, delete_contents=True, not_found_ok=True)
    warehouse.close()


@pytest.fixture
def nowhere() -> Iterator[bigquery.Client]:
    client = connect(PROJECT, "http://127.0.0.1:1", "US")
    yield client
    client.close()


def entries(client: bigquery.Client, customer_id: str) -> set[tuple[str, str]]:
    found = client.get_dataset(customer_id).access_entries
    return {(str(e.entity_type), str(e.entity_id)) for e in found if e.role == "READER"}


def test_exactly_the_active_ones_read_the_customers_dataset(place):
    client, central, (acme, other), _, _ = place
    dataset = client.get_dataset(acme)
    operators = bigquery.AccessEntry("READER", "userByEmail", "auditor@platform.example")
    dataset.access_entries = [*dataset.access_entries, operators]
    client.update_dataset(dataset, ["access_entries"])
    before = entries(client, acme)
    grants = BigQueryGrants(client, PROJECT, central)
    for _ in range(2):
        grants.tell(acme, [JO, ANN], [])
        assert entries(client, acme) - before == {
            ("userByEmail", "jo@acmecorp.com"),
            ("groupByEmail", "ann@acmecorp.com"),
        }
    grants.tell(acme, [ANN], [JO])
    assert entries(client, acme) - before == {("groupByEmail", "ann@acmecorp.com")}
    grants.tell(acme, [], [JO, ANN])
    assert entries(client, acme) == before
    assert ("userByEmail", "auditor@platform.example") in before
    assert entries(client, other) == entries(client, other) - {("userByEmail", "jo@acmecorp.com")}


def test_a_dataset_that_is_not_there(place):
    client, central, _, _, _ = place
    grants = BigQueryGrants(client, PROJECT, central)
    with pytest.raises(NotThere):
        grants.tell("nobody_at_all", [JO], [])
    grants.tell("nobody_at_all", [], [JO])


@pytest.mark.parametrize("who", ['user:a@b.com", "allUsers', "allUsers", "user:jo", "jo@acmecorp.com"])
def test_nothing_else_than_a_principal_is_sent(nowhere, who):
    """Whatever is sent raises `Away` here."""
    for told in (([who], []), ([], [who])):
        with pytest.raises(ValueError, match="must"):
            BigQueryGrants(nowhere, PROJECT, "central").tell("acme", *told)
    with pytest.raises(ValueError, match="must"):
        BigQueryGrants(nowhere, PROJECT, "central", [who])


@pytest.mark.parametrize("customer_id", ["a'b", "a b", "a`b", "é" * 4, "a'; --"])
def test_no_other_id_gets_into_a_statement(nowhere, customer_id):
    with pytest.raises(ValueError, match="customer id"):
        BigQueryGrants(nowhere, PROJECT, "central", [OPS]).tell(customer_id, [JO], [])


def seen(url: str, central: str, table: str, caller: str) -> set[str]:
    """Whose rows a caller of the emulator sees in a central table."""
    answer = requests.post(
        f"{url}/bigquery/v2/projects/{PROJECT}/queries",
        json={"query": f"SELECT DISTINCT customer_id FROM `{PROJECT}.{central}.{table}`", "useLegacySql": False},
        headers={"X-Bqemu-Caller": caller},
        timeout=30,
    )
    answer.raise_for_status()
    return {row["f"][0]["v"] for row in answer.json().get("rows", [])}


def test_readers_see_their_customers_rows_and_nobody_elses(place):
    client, central, customers, warehouse, url = place
    acme, other = customers
    stranger = "user:stranger@example.com"
    for number, customer_id in enumerate(customers):
        warehouse.write(
            log(
                whole(CUSTOMER_TEAM_MEMBERS, member_id=f"m{number}", customer_id=customer_id),
                whole(CUSTOMER_API_KEYS, api_key_id=f"k{number}", customer_id=customer_id),
                customer=customer_id,
                start=1 + 10 * number,
            )
        )
    for table in (CUSTOMER_TEAM_MEMBERS.name, CUSTOMER_API_KEYS.name):
        assert seen(url, central, table, stranger) == {acme, other}  # the control: nothing is bound yet
    grants = BigQueryGrants(client, PROJECT, central, [OPS])
    grants.tell(acme, [JO], [])
    assert CUSTOMER_TEAM_MEMBERS in SHARED
    for caller, rows in ((JO, {acme}), (stranger, set()), (ITSELF, {acme, other})):
        assert seen(url, central, CUSTOMER_TEAM_MEMBERS.name, caller) == rows, caller
    for caller, rows in ((JO, set()), (stranger, set()), (ITSELF, {acme, other})):
        assert seen(url, central, CUSTOMER_API_KEYS.name, caller) == rows, caller
    assert CUSTOMER_API_KEYS not in SHARED
    # Nobody is left to read, as after an erasure, when nobody knows any more who it was.
    grants.tell(acme, [], [])
    assert seen(url, central, CUSTOMER_TEAM_MEMBERS.name, JO) == set()
    drop = f"DROP ROW ACCESS POLICY `{{}}` ON `{PROJECT}.{central}.{CUSTOMER_TEAM_MEMBERS.name}`"
    with pytest.raises(ValueError, match=f"rows_of_{acme}"):
        warehouse.query(drop.format(f"rows_of_{acme}"))
    warehouse.query(drop.format("whole"))  # the control: this one is there


class Conflicting(BaseHTTPRequestHandler):
    """A dataset that somebody else changes just before each of the first writes."""

    def _answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self._answer(200, self.server.dataset)

    def do_PATCH(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        dataset = self.server.dataset
        self.server.written.append((self.headers["If-Match"], dataset["etag"]))
        if self.server.conflicts:
            self.server.conflicts -= 1
            more = {"role": "READER", "userByEmail": f"late{self.server.conflicts}@platform.example"}
            dataset |= {"etag": uuid4().hex, "access": [*dataset["access"], more]}
        if self.headers["If-Match"] != dataset["etag"]:
            error = {"code": 412, "message": "Precondition Failed", "errors": [{"reason": "conditionNotMet"}]}
            self._answer(412, {"error": error})
            return
        dataset |= {"etag": uuid4().hex, "access": sent["access"]}
        self._answer(200, dataset)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def conflicting(times: int) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Conflicting)
    server.conflicts, server.written = times, []
    server.dataset = {
        "datasetReference": {"projectId": PROJECT, "datasetId": "acme"},
        "etag": "1",
        "access": [{"role": "OWNER", "specialGroup": "projectOwners"}],
    }
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_others_change_meanwhile_is_kept():
    with conflicting(2) as server:
        client = connect(PROJECT, f"http://127.0.0.1:{server.server_port}", "US")
        BigQueryGrants(client, PROJECT, "central").tell("acme", [JO], [])
        client.close()
    who = {e.get("userByEmail", e.get("specialGroup")) for e in server.dataset["access"]}
    assert who == {"projectOwners", "late0@platform.example", "late1@platform.example", "jo@acmecorp.com"}
    assert len(server.written) == 3
    assert all(given == there for given, there in server.written)


def test_nothing_is_written_where_nothing_changes():
    with conflicting(0) as server:
        client = connect(PROJECT, f"http://127.0.0.1:{server.server_port}", "US")
        grants = BigQueryGrants(client, PROJECT, "central")
        grants.tell("acme", [JO], [])
        grants.tell("acme", [JO], [ANN])
        client.close()
    assert len(server.written) == 1
