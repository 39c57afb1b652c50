"""The key service goes away and comes back under a running server; and operators see who has had what opened."""

import hashlib
import secrets
from collections.abc import Iterator

import psycopg
import pytest

from adapters.bootstrap import build
from adapters.kms.cloud import CloudKms
from adapters.settings import Settings
from tests.contracts.kms_server import KmsServer
from tests.http.running import NOWHERE, Clock, Quick, Running, database

RING = "projects/p/locations/l/keyRings/r/cryptoKeys"
CANARY = "canary-secret-7231-XYZ"
CREDENTIAL = {
    "provider": "AWS",
    "credential_type": "ACCESS_KEY",
    "credential_name": "reader",
    "credentials": {"secret": CANARY},
}


@pytest.fixture(scope="module")
def dsn(postgres_server, migrated_template) -> Iterator[str]:
    with database(postgres_server.dsn, migrated_template) as made:
        yield made


def everything(dsn: str) -> bytes:
    """Every row of every table, as text."""
    with psycopg.connect(dsn) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [row for (name,) in tables for row in connection.execute(f"SELECT t::text FROM {name} t").fetchall()]
    return b"\n".join(text.encode() for (text,) in rows)


def test_while_the_key_service_is_away_nothing_is_taken_in_and_then_all_goes_on(dsn, tmp_path):
    """Nothing is restarted, and nothing is ever stored in clear."""
    kms = KmsServer(frozenset({f"{RING}/api", f"{RING}/credentials"}))
    with kms.running():
        pass  # takes a port that nobody listens on now
    with kms.client() as client:
        keys = CloudKms("p", "l", "r", "api", "credentials", client=client, timeout_s=1.5)
        settings = Settings(data_dir=tmp_path, bigquery_emulator_host=NOWHERE, worker_id="tests")
        service = build(settings, dsn, engine=Quick(), keys=keys)
        with Running(service, Clock(), None) as api:
            with kms.running():
                acme = api.onboard()
                assert acme.post(f"{acme.url}/credentials", json=CREDENTIAL).status_code == 200
            service.vault.forget("")
            for _ in range(2):
                answer = acme.post(f"{acme.url}/credentials", json=CREDENTIAL)
                assert answer.status_code == 503, answer.text
                assert CANARY not in answer.text
            fresh = {"customer_id": "fresh", "company_name": "F", "admin_email": "f@example.com"}
            answer = api.client().post("/api/v1/customers/onboard", json=fresh)
            assert answer.status_code == 503
            assert api.client().get("/livez").status_code == 200
            with kms.running():
                assert acme.post(f"{acme.url}/credentials", json=CREDENTIAL).status_code == 200
                assert api.client().post("/api/v1/customers/onboard", json=fresh).status_code == 200
                assert len(acme.get(f"{acme.url}/credentials").json()["items"]) == 2
        service.close()
    stored = everything(dsn)
    assert b"ACCESS_KEY" in stored
    for form in (CANARY.encode(), CANARY.encode().hex().encode()):
        assert form not in stored
    with psycopg.connect(dsn) as connection:  # the control: the search finds what is there
        connection.execute("INSERT INTO checkpoints (projection, position) VALUES (%s, 0)", (CANARY,))
    assert CANARY.encode() in everything(dsn)


def test_a_revealed_key_is_listed_for_operators(api, admin, acme, anyone):
    token, key = secrets.token_urlsafe(32), acme.get(f"{acme.url}/api-keys").json()["items"][-1]["api_key_id"]
    with api.service.datastore.reading() as cursor:
        cursor.execute(
            "INSERT INTO key_reveals (token_hash, customer_id, api_key_id, expires_at)"
            " VALUES (%s, %s, %s, clock_timestamp() + interval '1 day')",
            (hashlib.sha256(token.encode()).hexdigest(), acme.id, key),
        )
    url = f"/api/v1/admin/customers/{acme.id}/decryptions"
    anyone.get(f"/reveal/{token}")
    assert admin.get(url).json()["items"] == []
    assert acme.key in anyone.post(f"/reveal/{token}", headers={"X-Request-ID": "seen-1"}).text
    [item] = admin.get(url).json()["items"]
    assert {**item, "at": None} == {
        "at": None,
        "customer_id": acme.id,
        "purpose": "api-key",
        "record_id": key,
        "actor": "anyone",
        "reason": "reveal",
        "run_id": None,
        "attempt": None,
        "request_id": "seen-1",
    }
    assert acme.key not in admin.get(url).text
    assert acme.get(url).status_code in {401, 403}


def test_decryptions_come_in_pages(api, admin, acme):
    with api.service.datastore.reading() as cursor:
        for number in range(5):
            cursor.execute(
                "INSERT INTO decryptions (customer_id, record_id, purpose, actor)"
                " VALUES (%s, %s, 'webhook', 'service:1')",
                (acme.id, str(number)),
            )
    url, seen, cursor = f"/api/v1/admin/customers/{acme.id}/decryptions", [], None
    while True:
        page = admin.get(url, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [item["record_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["4", "3", "2", "1", "0"]
    assert admin.get(url, params={"cursor": "x"}).status_code == 422
    assert admin.get("/api/v1/admin/customers/nobody_here/decryptions").status_code == 404
