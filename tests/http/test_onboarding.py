"""POST customers/onboard: one customer per id, a key that is shown once, and BigQuery that may be away."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from tests.http.running import ADMIN, Quick, application, database, running

URL = "/api/v1/customers/onboard"
KEY = re.compile(r"[A-Za-z0-9_]{3,50}_api_[A-Za-z0-9]{16}")


def new_id():
    return f"new_{uuid4().hex[:12]}"


@pytest.fixture
def nobody(api):
    """A client without a key; BigQuery is known to be away, so that nothing waits for it."""
    api.app.state.api.warehouse_flag.lower()
    return api.client()


def rows(api, table, customer_id):
    with api.service.datastore.reading() as cursor:
        query = f"SELECT * FROM {table} WHERE lower(customer_id) = lower(%s)"
        return cursor.execute(query, (customer_id,)).fetchall()


def test_the_answer_with_bigquery_away(nobody):
    customer_id = new_id()
    answer = nobody.post(URL, json=application(customer_id))
    body = answer.json()
    assert answer.status_code == 200
    assert list(body) == [
        "customer_id",
        "tenant_id",
        "api_key",
        "subscription_plan",
        "dataset_created",
        "tables_created",
        "dryrun_status",
        "message",
    ]
    assert KEY.fullmatch(body["api_key"])
    assert body["api_key"].startswith(f"{customer_id}_api_")
    assert (body["customer_id"], body["tenant_id"]) == (customer_id, customer_id)
    assert (body["dataset_created"], body["tables_created"], body["dryrun_status"]) == (False, [], "PENDING")
    assert body["message"].startswith("Customer ACME Corporation onboarded successfully.")
    assert nobody.get(f"/api/v1/customers/{customer_id}", headers={"X-API-Key": body["api_key"]}).status_code == 200


def test_bigquery_away_costs_the_first_one_a_few_seconds_and_the_next_nothing(
    postgres_server, migrated_template, tmp_path
):
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path, engine=Quick()) as api,
    ):
        client, seconds = api.client(), []
        for customer_id in ("first", "second"):
            before = time.monotonic()
            answer = client.post(URL, json=application(customer_id))
            seconds.append(time.monotonic() - before)
            assert answer.json()["dryrun_status"] == "PENDING"
    assert seconds[0] < 15
    assert seconds[1] < 2


def test_the_plan_is_starter_unless_it_is_said(nobody):
    body = application(new_id())
    del body["subscription_plan"]
    assert nobody.post(URL, json=body).json()["subscription_plan"] == "STARTER"


def test_tenant_id_is_another_name(nobody):
    customer_id = new_id()
    body = application(customer_id)
    body["tenant_id"] = body.pop("customer_id")
    assert nobody.post(URL, json=body).json()["customer_id"] == customer_id
    both = application(new_id())
    assert nobody.post(URL, json=both | {"tenant_id": both["customer_id"]}).status_code == 200


def test_fifty_equal_requests_make_one_customer(api, nobody):
    customer_id, start = new_id(), threading.Barrier(50)

    def one(_):
        start.wait()
        return nobody.post(URL, json=application(customer_id))

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(one, range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 49
    assert sum("api_key" in answer.json() for answer in answers) == 1
    for table in ("customer_profiles", "customer_subscriptions", "customer_usage", "customer_api_keys"):
        assert len(rows(api, table, customer_id)) == 1


def test_an_id_in_other_letters_is_taken(nobody):
    customer_id = new_id()
    nobody.post(URL, json=application(customer_id))
    for who in ({}, ADMIN):
        answer = nobody.post(URL, json=application(customer_id.upper()), headers=who)
        assert answer.status_code == 409
        assert "api_key" not in answer.json()


def test_onboarding_again(api, nobody):
    acme = api.onboard()
    assert nobody.post(URL, json=application(acme.id)).status_code == 409
    assert api.onboard().post(URL, json=application(acme.id)).status_code == 403
    owner = acme.post(URL, json=application(acme.id, plan="SCALE")).json()
    assert owner["subscription_plan"] == "PROFESSIONAL"
    assert owner["api_key"] != acme.key
    assert acme.get(acme.url).status_code == 200
    operator = nobody.post(URL, json=application(acme.id, plan="SCALE"), headers=ADMIN).json()
    assert operator["subscription_plan"] == "SCALE"
    # Two keys are active: the third one put an end to the first.
    assert acme.get(acme.url).status_code == 401
    for key in (owner["api_key"], operator["api_key"]):
        assert nobody.get(acme.url, headers={"X-API-Key": key}).status_code == 200


def test_a_bad_key_does_not_count_as_none(nobody):
    assert nobody.post(URL, json=application(new_id()), headers={"X-API-Key": "x"}).status_code == 401
    assert nobody.post(URL, json=application(new_id()), headers={"X-Admin-Key": "x"}).status_code == 401


def test_where_onboarding_is_closed(postgres_server, migrated_template, tmp_path):
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path, engine=Quick(), open_onboarding=False) as api,
    ):
        api.app.state.api.warehouse_flag.lower()
        client = api.client()
        assert client.post(URL, json=application("closed")).status_code == 401
        answer = client.post(URL, json=application("closed"), headers=ADMIN)
        assert answer.status_code == 200
        again = client.post(URL, json=application("closed"), headers={"X-API-Key": answer.json()["api_key"]})
        assert again.status_code == 200


def test_the_key_is_in_no_table(api, nobody):
    key = nobody.post(URL, json=application(new_id()), headers={"Idempotency-Key": uuid4().hex}).json()["api_key"]
    with api.service.datastore.reading() as cursor:
        names = cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for name in [row["tablename"] for row in names]:
            for row in cursor.execute(f"SELECT t::text AS row FROM {name} t").fetchall():
                assert key not in row["row"]
                assert key.encode().hex() not in row["row"]
