"""No input gives a 5xx, every error has the one body, and none of them repeats what was sent."""

import json
import socket
import time

import pytest

from tests.http.running import Quick, application, database, running

JSON = {"Content-Type": "application/json"}
SECRET = "hunter2-canary"
DEEP = b'{"customer_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def is_problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert next(iter(body)) == "detail"
    assert isinstance(body["detail"], str)
    assert body["status"] == body["status_code"] == status
    assert body["type"].startswith("urn:convergence:problem:")
    assert {"title", "instance"} <= set(body)
    assert SECRET not in answer.text
    return body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{nope", 400),
        (b"\xff\xfe{}", 400),
        (b'{"a": NaN}', 400),
        (b'{"a": 1e999}', 400),
        (b'{"a": -Infinity}', 400),
        (b'{"a": ' + b"9" * 5000 + b"}", 400),
        (b'{"a": 9223372036854775808}', 400),
        (b'{"a": "\\ud800"}', 400),
        (b'{"a": "\\u0000"}', 400),
        (b'{"\\u0000": 1}', 400),
        (b'"' + b'\\"' * 120_000, 400),
        (DEEP, 400),
        (b'{"a":' * 50_000, 400),
        (b"", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"null", 422),
        (b"{}", 422),
        (b" " * (256 * 1024 + 1), 413),
    ],
    ids=lambda value: str(value)[:24],
)
def test_bodies(anyone, body, status):
    before = time.monotonic()
    is_problem(anyone.post("/api/v1/customers/onboard", content=body, headers=JSON), status)
    assert time.monotonic() - before < 5


def test_a_large_body_of_unknown_length(anyone):
    def chunks():
        for _ in range(60):
            yield b" " * 1_000_000

    is_problem(anyone.post("/api/v1/customers/onboard", content=chunks(), headers=JSON), 413)
    is_problem(anyone.post("/api/v1/customers/onboard", content=b" " * 60_000_000, headers=JSON), 413)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_types(anyone, content_type):
    is_problem(anyone.post("/api/v1/customers/onboard", content=b"{}", headers={"Content-Type": content_type}), 415)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"customer_id": "ab"}, "customer_id"),
        ({"customer_id": "a" * 51}, "customer_id"),
        ({"customer_id": "acme corp"}, "customer_id"),
        ({"customer_id": "acmé"}, "customer_id"),
        ({"customer_id": "acme\n"}, "customer_id"),
        ({"customer_id": "../etc"}, "customer_id"),
        ({"customer_id": "customers_metadata"}, "customer_id"),
        ({"customer_id": "INFORMATION_SCHEMA"}, "customer_id"),
        ({"customer_id": "_acme"}, "customer_id"),
        ({"customer_id": 7}, "customer_id"),
        ({"tenant_id": "another"}, "customer_id"),
        ({"company_name": ""}, "company_name"),
        ({"company_name": "a\nb"}, "company_name"),
        ({"company_name": "x" * 201}, "company_name"),
        ({"company_name": None}, "company_name"),
        ({"admin_email": f"{SECRET}("}, "admin_email"),
        ({"admin_email": f"{SECRET}@ä..ö"}, "admin_email"),
        ({"admin_email": ["a@acmecorp.com"]}, "admin_email"),
        ({"subscription_plan": SECRET}, "subscription_plan"),
        ({"subscription_plan": None}, "subscription_plan"),
        ({SECRET: 1}, "body"),
    ],
    ids=str,
)
def test_onboarding_that_is_wrong(anyone, change, field):
    body = is_problem(anyone.post("/api/v1/customers/onboard", json=application("acme_wrong") | change), 422)
    assert field in body["detail"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (
            "credentials",
            {"provider": "GCP", "credential_type": "KEY", "credential_name": "n", "credentials": {}},
            "cred",
        ),
        (
            "credentials",
            {
                "provider": "GCP",
                "credential_type": "SERVICE_ACCOUNT",
                "credential_name": "n",
                "credentials": {"type": SECRET, "private_key": SECRET},
            },
            "service_account",
        ),
        (
            "credentials",
            {
                "provider": "GCP",
                "credential_type": "SERVICE_ACCOUNT",
                "credential_name": "n",
                "credentials": {
                    "type": "service_account",
                    "private_key": SECRET,
                    "project_id": "p",
                    "client_email": "e",
                }
                | {"token_uri": f"https://{SECRET}.example/token"},
            },
            "token_uri",
        ),
        ("credentials", {"provider": SECRET, "credentials": SECRET, SECRET: SECRET}, "provider"),
        ("provider-configs", {"provider": "GCP", "domain": "COST", "source_project_id": "a/../b"}, "source_project_id"),
        ("provider-configs", {"notification_emails": [SECRET]}, "notification_emails[0]"),
        ("team-members", {"email": SECRET, "name": "\u202e\u0007"}, "email"),
    ],
    ids=str,
)
def test_nouns_that_are_wrong(acme, path, body, field):
    assert field in is_problem(acme.post(f"{acme.url}/{path}", json=body), 422)["detail"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schedule_cron": "0 0 2 * * *"}, "five fields"),
        ({"schedule_cron": "@reboot"}, "alias"),
        ({"schedule_cron": "0 0 30 2 *"}, "30"),
        ({"schedule_cron": "x" * 101}, "schedule_cron"),
        ({"schedule_cron": ""}, "five fields"),
        ({"timezone": "Mars/Olympus"}, "zone"),
        ({"timezone": "../../etc/passwd"}, "zone"),
        ({"pipeline_template": "../secrets"}, "pipeline_template"),
        ({"pipeline_template": "unknown"}, "template"),
        ({"parameters": {"days": "many"}}, "days"),
        ({"parameters": {SECRET: 1}}, "days"),
        ({"parameters": []}, "parameters"),
        ({"date_offset_days": -1}, "date_offset_days"),
        ({"catch_up": "always"}, "catch_up"),
        ({"is_active": "perhaps"}, "is_active"),
    ],
    ids=str,
)
def test_schedules_that_are_wrong(acme, change, word):
    body = {"provider": "GCP", "domain": "COST", "pipeline_template": "cost_billing", "schedule_cron": "0 2 * * *"}
    answer = acme.post(f"/api/v1/scheduler/customer/{acme.id}/pipelines", json=body | change)
    assert word in is_problem(answer, 422)["detail"]


@pytest.mark.parametrize("date", ["2025-02-30", "2025-13-01", "yesterday", "0000-00-00", [], {"a": 1}, "9" * 300])
def test_dates_that_do_not_exist(acme, date):
    assert "date" in is_problem(acme.run(json={"date": date}), 422)["detail"]


@pytest.mark.parametrize("date", ["0001-01-01", "9999-12-31", None])
def test_dates_at_the_ends_of_the_calendar(acme, date):
    assert acme.run(json={"date": date}).status_code == 202


@pytest.mark.parametrize("template", ["gcp/example/unknown", "..%2F..%2Fx/y/z", "gcp/%00/dryrun", "GCP/x%0Ay/DRYRUN"])
def test_templates_that_do_not_exist(acme, template):
    is_problem(acme.run(template), 404)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/customers/{id}/../{id}x",
        "/api/v1/customers/{id}%2Fusage%2Fx",
        "/api/v1/customers/%00",
        "/api/v1/customers/{id}%0A",
        "/api/v1/customers/%ff%fe",
        "/api/v1/customers/",
        "/api/v1/customers/{id}/",
        "//api/v1/customers/{id}",
        "/api/v1/pipelines/runs/%00",
        "/api/v1/pipelines/runs/a%0Ab",
        "/reveal/%00",
        "/reveal/%f0%28",
    ],
)
def test_addresses(acme, path):
    assert 400 <= acme.get(path.replace("{id}", acme.id)).status_code < 500


@pytest.mark.parametrize("key", ["%00", "a%0Ab", "..", "%2e%2e%2f", "x" * 3000, "é"])
@pytest.mark.parametrize("noun", ["api-keys", "credentials", "provider-configs", "team-members"])
def test_ids_in_addresses(acme, noun, key):
    assert acme.delete(f"{acme.url}/{noun}/{key}").status_code in {404, 405}


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=x",
        "limit=" + "9" * 400,
        "cursor=x",
        "cursor=%00",
        "cursor=W10",
        "cursor=eyJhIjoxfQ",
        "cursor=" + "A" * 301,
        "cursor=WyIyMDI1LTAxLTAxIiwieCJd",
        "cursor=WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwieCJd",
        "state=NONE",
        "template=%00",
        "from=yesterday",
        "from=0001-01-01T00:00:00%2B14:00",
        "to=9999-12-31T23:59:59-12:00",
    ],
)
def test_queries(acme, query):
    is_problem(acme.get(f"{acme.url}/pipelines?{query}"), 422)


def test_an_unknown_query_parameter_is_no_error(acme):
    assert acme.get(f"{acme.url}/pipelines?nobody_knows=1").status_code == 200


@pytest.mark.parametrize("method", ["TRACE", "PUT", "DELETE", "OPTIONS", "PROPFIND", "HEAD"])
def test_methods(anyone, method):
    answer = anyone.request(method, "/api/v1/customers/onboard")
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: \xe9\xff\r\nConnection: close\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\x00bad: y\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"POST /api/v1/customers/onboard HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/customers/onboard HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda head: str(head[:40]),
)
def test_raw_requests(api, head):
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
        connection.sendall(head)
        connection.settimeout(20)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 4"), answer


class Broken:
    """A registry that fails as nobody foresaw."""

    def find(self, *_):
        raise RuntimeError(SECRET)


def test_nothing_is_leaked_by_a_fault(postgres_server, migrated_template, tmp_path, caplog):
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path, engine=Quick(), registry=Broken()) as api,
    ):
        answer = api.onboard().run(headers={"X-Request-ID": "find-me"})
    assert "find-me" in is_problem(answer, 500)["detail"]
    assert SECRET in caplog.text
    assert "find-me" in caplog.text


def test_headers_of_every_answer(anyone):
    for path in ("/livez", "/nowhere", "/docs"):
        headers = anyone.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_json_that_is_too_deep_by_one_level(acme):
    body = b'{"date":' + b"[" * 64 + b"]" * 64 + b"}"
    answer = acme.post(f"/api/v1/pipelines/run/{acme.id}/gcp/example/dryrun", content=body, headers=JSON)
    assert "64 levels" in is_problem(answer, 400)["detail"]


def test_brackets_in_texts_are_not_levels(acme):
    person = {"email": "jo@acmecorp.com", "name": '[{"\\' * 40}
    assert acme.post(f"{acme.url}/team-members", json=person).status_code == 200


def test_deep_json_that_is_allowed(acme):
    nested = json.loads("[" * 60 + "]" * 60)
    body = {
        "provider": "AWS",
        "credential_type": "ACCESS_KEY",
        "credential_name": "n",
        "credentials": {"a": nested},
    }
    assert acme.post(f"{acme.url}/credentials", json=body).status_code == 200
