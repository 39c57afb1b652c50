"""Secrets that a server was told are looked for in everything that it wrote, said and sent."""

import signal
from dataclasses import dataclass, field

import httpx
import pytest

from adapters.bigquery.client import connect
from adapters.settings import LOCAL_PROJECT
from tests import canaries
from tests.e2e.conftest import Serve

ADMIN_KEY = "canary-admin-key-0815-with-more-than-32-characters"
STRIPE_SECRET = "whsec_canary0815canary0815canary0815canary0815"
PRIVATE_KEY = '-----BEGIN PRIVATE KEY-----\ncanary/private+key"4711"ü\n-----END PRIVATE KEY-----\n'
PASSWORD = "canary-password-4711/+ü"
COMPANY = "Canary Company 4711"

SERVICE_ACCOUNT = {
    "type": "service_account",
    "project_id": "canary-project",
    "private_key_id": "1",
    "private_key": PRIVATE_KEY,
    "client_email": "reader@canary-project.iam.gserviceaccount.com",
    "token_uri": "https://oauth2.googleapis.com/token",
}


@dataclass
class Told:
    """What a server was told, and what it answered."""

    secrets: dict[str, str]
    answers: list[httpx.Response] = field(default_factory=list)

    def said(self) -> bytes:
        """Every answer, but those that are there to hand a secret over once."""
        return b"\n".join(a.content + repr(sorted(a.headers.items())).encode() for a in self.answers)


@pytest.fixture(scope="module")
def told(serve_with_canaries) -> Told:
    """A server that has lived through a story with secrets of every kind, and was stopped."""
    serve = serve_with_canaries
    secrets = {"admin key": ADMIN_KEY, "Stripe's": STRIPE_SECRET, "private key": PRIVATE_KEY, "password": PASSWORD}
    told = Told(secrets)
    with httpx.Client(base_url=f"{serve.url}/api/v1", timeout=60) as client:

        def ask(
            method: str, path: str, key: str | None = None, *, hands_over: bool = False, **options
        ) -> httpx.Response:
            headers = {"X-Admin-Key": ADMIN_KEY} if key is None else {"X-API-Key": key}
            answer = client.request(method, path, headers=headers, **options)
            if not hands_over:
                told.answers.append(answer)
            return answer

        who = {"customer_id": "canary", "company_name": COMPANY, "admin_email": "canary4711@example.com"}
        onboarded = ask("POST", "/customers/onboard", hands_over=True, json=who)
        assert onboarded.status_code == 200, onboarded.text
        first = secrets["first key"] = onboarded.json()["api_key"]
        issued = ask("POST", "/customers/canary/api-keys", first, hands_over=True)
        second = secrets["second key"] = issued.json()["api_key"]
        gcp = {"provider": "GCP", "credential_type": "SERVICE_ACCOUNT", "credential_name": "reader"}
        aws = {"provider": "AWS", "credential_type": "ACCESS_KEY", "credential_name": "reader"}
        for body in ({**gcp, "credentials": SERVICE_ACCOUNT}, {**aws, "credentials": {"secret_access_key": PASSWORD}}):
            assert ask("POST", "/customers/canary/credentials", second, json=body).status_code == 200
        endpoint = {"url": "https://hooks.invalid/canary", "kinds": ["run.failed"]}
        added = ask("POST", "/customers/canary/webhook-endpoints", second, hands_over=True, json=endpoint)
        assert added.status_code == 200, added.text
        secrets["webhook secret"] = added.json()["secret"].removeprefix("whsec_")
        # What is refused is not repeated either.
        for body in ({**gcp, "credentials": {**SERVICE_ACCOUNT, "type": PASSWORD}}, {**aws, "credentials": PASSWORD}):
            assert ask("POST", "/customers/canary/credentials", second, json=body).status_code == 422
        assert ask("GET", "/customers/canary", "canary_api_" + PASSWORD[:-1]).status_code == 401
        assert ask("POST", "/customers/onboard", second, json={**who, PASSWORD: PASSWORD}).status_code == 422
        run = ask("POST", "/pipelines/run/canary/gcp/example/dryrun", second, json={"date": "2025-11-17"})
        assert run.json()["state"] == "COMPLETED", run.text
        # It cannot be done with this credential, which is an error with a story to tell.
        source = {"provider": "GCP", "domain": "COST", "source_project_id": "canary-project", "source_dataset": "bills"}
        assert ask("POST", "/customers/canary/provider-configs", second, json=source).status_code == 200
        ask("POST", "/pipelines/run/canary/gcp/cost/cost_billing", second, json={"date": "2025-11-17"})
        for path in (
            "",
            "/api-keys",
            "/credentials",
            "/webhook-endpoints",
            "/notifications",
            "/events",
            "/usage",
            "/pipelines",
        ):
            assert ask("GET", f"/customers/canary{path}", second).status_code == 200
        for path in ("/admin/events", "/admin/customers", "/admin/projections/verify", "/scheduler/status"):
            assert ask("GET", path).status_code == 200
        for body in (b"{}", STRIPE_SECRET.encode()):
            forged = client.post(
                f"{serve.url}/webhooks/stripe", content=body, headers={"Stripe-Signature": "t=1,v1=00"}
            )
            assert forged.status_code == 400
            told.answers.append(forged)
        oldest = ask("GET", "/customers/canary/api-keys", second).json()["items"][-1]
        assert ask("DELETE", f"/customers/canary/api-keys/{oldest['api_key_id']}", second).status_code == 204
    for command in (("events", "--json"), ("replay", "canary"), ("status",), ("doctor",), ("runs",)):
        done = serve.run(*command, ADMIN_API_KEY=ADMIN_KEY)
        told.answers.append(httpx.Response(200, text=done.stdout + done.stderr))
    told.answers.append(httpx.Response(200, text="\n".join(_tables(serve))))
    exported = serve.run("export", str(serve.data_dir / "exported"))
    assert exported.returncode == 0, exported.stderr
    assert serve.stop(signal.SIGTERM) == 0
    return told


def _tables(serve) -> list[str]:
    """Everything that BigQuery holds in its central dataset."""
    client = connect(LOCAL_PROJECT, emulator_url=f"http://127.0.0.1:{serve.emulator_port}", location="US")
    try:
        return [
            str([tuple(row.values()) for row in client.list_rows(table, timeout=30)])
            for table in client.list_tables("customers_metadata", timeout=30)
        ]
    finally:
        client.close()


@pytest.fixture(scope="module")
def serve_with_canaries(tmp_path_factory):
    server = Serve(
        tmp_path_factory.mktemp("canaries") / "var",
        {"ADMIN_API_KEY": ADMIN_KEY, "STRIPE_WEBHOOK_SECRET": STRIPE_SECRET},
    )
    try:
        server.start()
        server.await_bigquery()
        yield server
    finally:
        server.end()


def test_no_file_that_it_wrote_holds_a_secret(serve_with_canaries, told):
    """PostgreSQL's and BigQuery's files, mails, exports, signed heads: all that is below the data directory."""
    assert canaries.found_below(serve_with_canaries.data_dir, told.secrets) == {}


def test_no_answer_and_no_line_of_the_log_holds_a_secret(serve_with_canaries, told):
    assert canaries.found_in(told.said(), told.secrets.values()) == set()
    assert canaries.found_in(serve_with_canaries.log.read_bytes(), told.secrets.values()) == set()


def test_the_search_finds_what_is_there(serve_with_canaries, told):
    """The control: names are in the tables that people read, in mails, and in what commands print."""
    found = canaries.found_below(serve_with_canaries.data_dir, {"company": COMPANY})["company"]
    assert {file.split("/")[0] for file in found} >= {"postgres", "outbox", "bigquery"}
    assert COMPANY.encode() in told.said()
