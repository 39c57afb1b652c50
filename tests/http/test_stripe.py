"""POST /webhooks/stripe, with the signatures and the events that Stripe sends."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from adapters.deadlines import meet_all
from adapters.postgres.reads import billing
from domain.customer_events import ApiKeyIssued, Onboarded
from tests.http.running import ADMIN, Quick, database, running
from tests.stripe.deliveries import SECRET, VERSIONS, event, signed

URL = "/webhooks/stripe"
PRICES = '{"price_professional": "PROFESSIONAL", "price_scale": "SCALE"}'
NEXT_SECRET = "whsec_9b2e4c6A8d0f1e3b5a7c9D1e3f5a7b9c"


@pytest.fixture(scope="module")
def api(postgres_server, migrated_template, tmp_path_factory):
    """A server that takes Stripe's test mode."""
    chosen = {"stripe_webhook_secret": f"{NEXT_SECRET}, {SECRET}", "stripe_prices": PRICES}
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path_factory.mktemp("stripe"), engine=Quick(), **chosen) as server,
    ):
        yield server


class Payer:
    """A customer of Stripe's, and what Stripe tells of it."""

    def __init__(self, api):
        self.api = api
        self.tail = uuid4().hex[:12]
        self.id = f"works_{self.tail}"
        self.cus = f"cus_{self.tail}"
        self.http = api.client()
        self.admin = api.client(ADMIN)

    def event(self, name, version=VERSIONS[0], **changes):
        changes = {"id": f"evt_{name}{self.tail}", "customer": self.cus, **changes}
        if name == "checkout":
            changes = {"client_reference_id": self.id, **changes}
        return event(name, version, **changes)

    def send(self, told, secret=SECRET, **more):
        body, headers = signed(told, secret, **more)
        return self.http.post(URL, content=body, headers=headers)

    def tell(self, *names, **changes):
        for name in names:
            answer = self.send(self.event(name, **changes))
            assert (answer.status_code, answer.json()) == (200, {"received": True})

    @property
    def billing(self):
        answer = self.admin.get(f"/api/v1/admin/customers/{self.id}/billing")
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def profile(self):
        return self.admin.get(f"/api/v1/customers/{self.id}").json()

    def log(self):
        found = self.api.service.store.recorder.select_notifications(start=0, limit=100_000)
        return [r for n in found for r in self.api.service.mapper.to_domain_events(n)]

    def mine(self):
        return [r for r in self.log() if r.envelope.customer_id == self.id]


@pytest.fixture
def payer(api):
    return Payer(api)


@pytest.mark.parametrize("version", VERSIONS)
def test_from_checkout_to_the_end(api, payer, version):
    for name in ("created", "checkout", "updated"):
        assert payer.send(payer.event(name, version)).status_code == 200
    profile = payer.profile
    assert (profile["company_name"], profile["admin_email"]) == ("Example Works GmbH", "owner@example.com")
    assert (profile["subscription_plan"], profile["stripe_customer_id"]) == ("PROFESSIONAL", payer.cus)
    [account] = payer.billing["accounts"]
    assert (account["standing"], account["plan"], account["live"]) == ("good", "PROFESSIONAL", False)
    now = int(time.time())
    assert payer.send(payer.event("failed", version, created=now)).status_code == 200
    [account] = payer.billing["accounts"]
    assert account["standing"] == "grace"
    assert datetime.fromisoformat(account["grace_until"]) == datetime.fromtimestamp(now, UTC) + timedelta(days=7)
    assert payer.send(payer.event("paid", version, created=now + 1)).status_code == 200
    assert payer.billing["accounts"][0]["standing"] == "good"
    unpaid = {"cancellation_details": {"reason": "payment_failed"}, "ended_at": now - 60}
    assert payer.send(payer.event("deleted", version, **unpaid)).status_code == 200
    [account] = payer.billing["accounts"]
    assert (account["standing"], account["cause"]) == ("suspended", "subscription-ended")
    assert payer.profile["status"] == "SUSPENDED"


def test_the_first_key_is_made_for_the_welcome_mail(payer):
    payer.tell("checkout")
    first, key = payer.mine()[:2]
    assert isinstance(first.event, Onboarded)
    # By this place in its stream the mail is sent, whichever way the customer came.
    assert (type(key.event), key.envelope.version) == (ApiKeyIssued, 2)


def test_sixteen_deliveries_of_the_same_event(payer):
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: payer.send(payer.event("checkout")).status_code, range(16)))
    assert answers == [200] * 16
    assert [type(r.event).__name__ for r in payer.mine()].count("Onboarded") == 1


def test_both_secrets_of_a_rotation_count(payer):
    assert payer.send(payer.event("created"), NEXT_SECRET).status_code == 200
    assert payer.send(payer.event("updated"), SECRET).status_code == 200


def test_forged_stale_and_unsigned_deliveries_are_refused_without_an_echo(payer):
    told = payer.event("checkout")
    body, headers = signed(told)
    answers = [
        payer.send(told, "whsec_0000000000000000000000000000wrong"),
        payer.send(told, age=301),
        payer.http.post(URL, content=body + b" ", headers=headers),
        payer.http.post(URL, content=body),
        payer.http.post(URL, content=b"\xff\x00", headers=headers),
    ]
    assert {answer.status_code for answer in answers} == {400}
    assert len({answer.content for answer in answers}) == 1
    assert payer.id not in answers[0].text
    assert payer.mine() == []


def test_what_is_signed_and_no_event_is_refused(payer):
    for told in (b"[]", b'"x"', b"{}", {"object": "event", "id": "evt_1"}):
        assert payer.send(told).status_code == 400


def test_a_body_that_is_too_large_is_refused(payer):
    assert payer.send({"x": "y" * 300_000}).status_code == 413


def test_unknown_types_are_recorded_once_and_without_their_payload(payer):
    told = payer.event("paid", type="invoice.finalized", id=f"evt_unknown{payer.tail}")
    assert [payer.send(told).status_code for _ in range(3)] == [200] * 3
    noted = [r.event for r in payer.log() if getattr(r.event, "event_id", "") == told["id"]]
    assert [(e.type, e.outcome) for e in noted] == [("invoice.finalized", "unknown")]


def test_live_money_is_not_mixed_with_test_money(payer):
    answer = payer.send(payer.event("checkout", livemode=True))
    assert answer.status_code == 400
    assert "test mode" in answer.json()["detail"]
    assert payer.mine() == []
    problems = payer.admin.get("/api/v1/admin/billing/problems").json()["items"]
    [mine] = [p for p in problems if p["subject"] == f"evt_checkout{payer.tail}"]
    assert (mine["problem"], mine["customer_id"]) == ("other-mode", None)
    # The same event counts where it belongs: it comes again once the setting is right.
    payer.tell("checkout")
    assert payer.profile["status"] == "ACTIVE"


def test_problems_are_listed_page_by_page_and_go_when_they_are_solved(payer):
    payer.send(payer.event("checkout", client_reference_id="no good id!", id=f"evt_a{payer.tail}"))
    payer.send(payer.event("updated", id=f"evt_b{payer.tail}", type="customer.subscription.updated", items=None))
    seen, cursor = [], None
    while True:
        given = {"limit": 1, **({"cursor": cursor} if cursor else {})}
        page = payer.admin.get("/api/v1/admin/billing/problems", params=given).json()
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    mine = {p["problem"] for p in seen if p["stripe_customer_id"] == payer.cus or payer.tail in p["subject"]}
    assert mine == {"bad-customer-id", "unreadable"}
    assert len({(p["problem"], p["subject"]) for p in seen}) == len(seen)
    by_hand = {"customer_id": payer.id, "company_name": "W", "admin_email": "w@example.com"}
    payer.api.app.state.api.warehouse_flag.lower()
    payer.admin.post("/api/v1/customers/onboard", json={**by_hand, "stripe_customer_id": payer.cus})
    meet_all(payer.api.service)
    assert payer.billing["accounts"][0]["stripe_customer_id"] == payer.cus
    left = billing.problems(payer.api.service.datastore, None, limit=100)
    assert payer.cus not in {p["stripe_customer_id"] for p in left}


def test_an_event_that_is_understood_at_last_is_no_problem_any_more(payer):
    told = payer.event("created", id=f"evt_c{payer.tail}")
    payer.send({**told, "data": {"object": {**told["data"]["object"], "items": None}}})

    def open_problems() -> set[str]:
        found = billing.problems(payer.api.service.datastore, None, limit=100)
        return {p["problem"] for p in found if p["subject"] == told["id"]}

    assert open_problems() == {"unreadable"}
    assert [payer.send(told).status_code for _ in range(2)] == [200, 200]
    assert open_problems() == set()


def test_without_a_secret_it_says_what_to_set(postgres_server, migrated_template, tmp_path):
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        running(dsn, tmp_path, engine=Quick()) as server,
    ):
        body, headers = signed(event("paid"))
        answer = server.client().post(URL, content=body, headers=headers)
    assert answer.status_code == 503
    assert "STRIPE_WEBHOOK_SECRET is not set" in answer.json()["detail"]
