"""Limits of one server: what they answer, whom they exempt, and who may say where a request comes from."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from starlette.requests import Request

from adapters.http.figures import Figures
from adapters.http.ledger import Ledger, LocalBuckets
from adapters.http.rates import Rates
from adapters.http.sources import source
from adapters.settings import WrongSettings, read
from tests.http.running import ADMIN, Quick, Running, application, database, running
from tests.http.throttled import CALLS, FAILURES, SMALL

ANYWHERE = "/api/v1/pipelines/templates"


@pytest.fixture(scope="module")
def dsn(postgres_server, migrated_template) -> Iterator[str]:
    with database(postgres_server.dsn, migrated_template) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def small(dsn, tmp_path_factory) -> Iterator[Running]:
    """A server with small limits, behind a proxy on this machine."""
    with running(dsn, tmp_path_factory.mktemp("small"), engine=Quick(), **SMALL) as api:
        yield api


@pytest.fixture(scope="module")
def direct(dsn, tmp_path_factory) -> Iterator[Running]:
    """The same without a proxy."""
    settings = {**SMALL, "trusted_proxies": ""}
    with running(dsn, tmp_path_factory.mktemp("direct"), engine=Quick(), **settings) as api:
        yield api


def guessed(api: Running, times: int, forwarded: Callable[[int], str], **headers: str) -> list[int]:
    """What so many wrong keys were answered, each with an X-Forwarded-For of its own."""
    client = api.client()
    answers = []
    for number in range(times):
        sent = {"X-API-Key": f"c{uuid4().hex[:9]}_api_{uuid4().hex[:16]}", "X-Forwarded-For": forwarded(number)}
        answers.append(client.get(ANYWHERE, headers={**sent, **headers}).status_code)
    return answers


def escapes(answers: list[int]) -> bool:
    return 429 not in answers


def test_a_client_does_not_choose_its_source(direct):
    assert not escapes(guessed(direct, FAILURES + 2, lambda n: f"203.0.113.{n}"))


def test_behind_a_proxy_only_its_own_word_counts(small):
    assert not escapes(guessed(small, FAILURES + 2, lambda n: f"203.0.113.{n}, 198.51.100.1"))
    assert not escapes(guessed(small, FAILURES + 2, lambda n: f"203.0.113.{n}, 198.51.100.2, 127.0.0.1"))


def test_a_client_that_is_taken_for_a_proxy_would_escape(small):
    assert escapes(guessed(small, FAILURES + 2, lambda n: f"203.0.113.{n}"))


def test_an_ipv6_network_is_one_source(small):
    assert not escapes(guessed(small, FAILURES + 2, lambda n: f"2001:db8:1:1:{n:x}::1"))
    assert escapes(guessed(small, FAILURES + 2, lambda n: f"2001:db8:2:{n:x}::1"))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("192.0.2.7:50123", "192.0.2.7"),
        ("[2001:db8:1:2:3:4:5:6]:443", "2001:db8:1:2::/64"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_what_counts_as_one_source(host, expected):
    assert source(host) == expected


@pytest.mark.parametrize("given", ["0.0.0.0/0", "::/0", "*", "10.0.0.1/8", "proxy.example.com"])
def test_not_everybody_is_a_proxy(monkeypatch, given):
    monkeypatch.setenv("TRUSTED_PROXIES", given)
    with pytest.raises(WrongSettings, match=r"^Wrong setting: TRUSTED_PROXIES: must be addresses or networks"):
        read()


def test_several_proxies(monkeypatch):
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, 2001:db8::/32,192.0.2.1")
    assert [str(network) for network in read().trusted_proxies] == ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32"]


def test_an_answer_says_what_is_left(small):
    customer = small.onboard()
    answers = [customer.get(customer.url) for _ in range(3)]
    left = [int(re.fullmatch(r'"customer";r=(\d+);t=\d+', a.headers["RateLimit"])[1]) for a in answers]
    assert left[0] == CALLS - 1
    assert all(CALLS - 3 <= n < CALLS for n in left)
    assert {a.headers["RateLimit-Policy"] for a in answers} == {f'"customer";q={CALLS};w=60'}
    assert "RateLimit" not in small.admin().get(customer.url).headers


def test_beyond_the_limit(small):
    customer = small.onboard()
    for _ in range(CALLS + 5):
        answer = customer.get(customer.url)
        if answer.status_code == 429:
            break
    body = answer.json()
    assert (answer.status_code, body["customer_id"], body["status_code"]) == (429, customer.id, 429)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["RateLimit"] == '"customer";r=0;t=1'
    assert customer.get("/livez").status_code == 200
    assert small.admin().get(customer.url).status_code == 200
    other = small.onboard()
    assert other.get(other.url).status_code == 200
    figures = small.client().get("/metrics").text
    assert re.search(r'convergence_http_refused_total\{kind="customer"\} [1-9]', figures)


def test_all_keys_of_a_customer_are_one_caller(small):
    customer = small.onboard()
    second = customer.post(f"{customer.url}/api-keys", json={"name": "CI"}).json()["api_key"]
    both = [{"X-API-Key": customer.key}, {"X-API-Key": second}]
    client, began = small.client(), time.monotonic()
    answers = [client.get(customer.url, headers=both[n % 2]).status_code for n in range(2 * CALLS)]
    assert answers.count(200) <= CALLS + 1 + (time.monotonic() - began) * CALLS / 60


def test_a_used_up_quota_says_so_itself(small):
    customer = small.onboard("STARTER")
    small.admin().patch(
        f"/api/v1/admin/customers/{customer.id}/limits", json={"max_pipelines_per_day": 1, "reason": "A test."}
    ).raise_for_status()
    assert customer.run().status_code == 202
    refused = customer.run()
    assert refused.status_code == 429
    assert refused.headers["RateLimit"].startswith('"daily";r=0;t=')
    assert refused.headers["RateLimit-Policy"] == '"daily";q=1;w=86400'


def test_another_customers_address_is_answered_like_none(small):
    customer, other = small.onboard(), small.onboard()
    assert customer.get(other.url).content == other.get(customer.url).content


def test_wrong_keys_are_refused_like_this(small):
    headers = {"X-Forwarded-For": "198.51.100.20"}
    client = small.client({**headers, "X-API-Key": "acme_api_AAAAAAAAAAAAAAAA"})
    answers = [client.get(ANYWHERE) for _ in range(FAILURES)]
    assert {a.status_code for a in answers} == {401}
    while answers[-1].status_code == 401:
        answers.append(client.get(ANYWHERE))
    assert len(answers) <= FAILURES + 3
    assert int(answers[-1].headers["Retry-After"]) in range(1, 60 // FAILURES + 2)
    assert "RateLimit" not in answers[-1].headers
    assert answers[-1].json()["detail"] == "Too many wrong API keys were sent. Try again later."
    figures = small.client().get("/metrics").text
    assert re.search(r'convergence_http_refused_total\{kind="api_key"\} [1-9]', figures)


def test_a_flood_of_wrong_keys_costs_no_known_key_its_turn(small):
    known, unknown = small.onboard(), small.onboard()
    home = {"X-Forwarded-For": "198.51.100.30"}
    assert known.get(known.url, headers=home).status_code == 200
    assert set(guessed(small, 60, lambda _: "198.51.100.30")) == {401, 429}
    small.app.state.api.keys.forget([known.id])
    assert known.get(known.url, headers=home).status_code == 200
    assert unknown.get(unknown.url, headers={"X-Forwarded-For": "198.51.100.31"}).status_code == 200


def test_the_admin_key_is_not_guessed(small):
    home = {**ADMIN, "X-Forwarded-For": "198.51.100.40"}
    there = {**ADMIN, "X-Forwarded-For": "198.51.100.41"}
    status = "/api/v1/scheduler/status"
    client = small.client()
    assert client.get(status, headers=home).status_code == 200
    for headers in (home, there):
        answers = [client.get(status, headers={**headers, "X-Admin-Key": f"no{n}"}).status_code for n in range(6)]
        assert answers == [401, 401, 429, 429, 429, 429]
    assert client.get(status, headers=home).status_code == 200
    assert client.get(status, headers=there).status_code == 429
    assert client.get(status, headers={**ADMIN, "X-Forwarded-For": "198.51.100.42"}).status_code == 200


def test_operators_are_not_shut_out_by_who_guesses_beside_them(dsn, tmp_path):
    """An admin key that cannot be guessed is compared, also where wrong ones came from the very same source."""
    key = "R4nd0m-admin-key-of-many-characters-0815"
    with running(dsn, tmp_path, engine=Quick(), **SMALL, admin_api_key=key) as api:
        client = api.client()
        home = {"X-Forwarded-For": "198.51.100.43"}
        status = "/api/v1/scheduler/status"
        answers = [client.get(status, headers={**home, "X-Admin-Key": f"no{n}"}).status_code for n in range(6)]
        assert answers == [401, 401, 429, 429, 429, 429]
        assert client.get(status, headers={**home, "X-Admin-Key": key}).status_code == 200


def buckets(api: Running) -> set[bytes]:
    with api.service.datastore.reading() as cursor:
        return {bytes(row["bucket"]) for row in cursor.execute("SELECT bucket FROM allowances")}


def test_a_right_key_writes_nothing_but_its_customers_calls(small):
    customer = small.onboard()
    before = buckets(small)
    for _ in range(5):
        assert customer.get(customer.url).status_code == 200
    assert len(buckets(small) - before) <= 1


def test_over_the_limit_nothing_is_written(small):
    guessed(small, FAILURES + 1, lambda _: "198.51.100.50")
    before = buckets(small)
    assert 429 in guessed(small, 20, lambda _: "198.51.100.50")
    assert len(buckets(small) - before) <= 2


def test_many_at_once_of_a_new_caller(small):
    customer = small.onboard()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: customer.get(customer.url).status_code, range(CALLS - 10)))
    assert set(answers) == {200}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_most_calls_are_counted_from_memory(anyio_backend):
    asked, buckets_ = [], LocalBuckets()

    def take(asks):
        asked.extend(asks)
        return buckets_.take(asks)

    ledger = Ledger(take)
    rates = Rates(ledger, customer_per_minute=600, source_per_minute=60, figures=Figures())
    try:
        for _ in range(300):
            await rates.of_customer(Request({"type": "http", "state": {}, "headers": []}), "acme")
        assert len(asked) <= 15
        assert max(ask.tokens for ask in asked) == 600 // 20
        twice = Request({"type": "http", "state": {}, "headers": [], "client": ("192.0.2.1", 1)})
        await rates.of_source(twice)
        await rates.of_source(twice)
        assert twice.state.rate_limit.left == 59
    finally:
        ledger.close()


def test_limits_that_are_off(dsn, tmp_path):
    off = {"rate_limit_per_minute": 0, "source_rate_limit_per_minute": 0, "failed_keys_per_minute": 0}
    with running(dsn, tmp_path, engine=Quick(), **off) as api:
        customer = api.onboard()
        before = buckets(api)
        assert "RateLimit" not in customer.get(customer.url).headers
        assert escapes(guessed(api, 30, lambda _: "x"))
        assert buckets(api) <= before


def test_calls_without_a_key_are_counted_by_source(dsn, tmp_path):
    with running(dsn, tmp_path, engine=Quick(), source_rate_limit_per_minute=3) as api:
        body, anyone = application(f"late_{uuid4().hex[:8]}"), api.client()
        path = "/api/v1/customers/onboard"
        answers = [anyone.post(path, json={**body, "admin_email": "nonsense"}) for _ in range(3)]
        while answers[-1].status_code != 429 and len(answers) < 6:
            answers.append(anyone.post(path, json={**body, "customer_id": "acme_too"}))
        assert answers[-1].headers["RateLimit-Policy"] == '"source";q=3;w=60'
        assert anyone.get("/reveal/nothing").status_code == 429
        leak = {"sha256": "0" * 64}
        assert anyone.post("/api/v1/api-keys/leaks", json=leak).status_code == 429
        assert anyone.post("/webhooks/stripe", json={}).status_code in {400, 503}
        assert api.admin().get("/api/v1/scheduler/status").status_code == 200
