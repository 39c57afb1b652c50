"""Limits that several processes share: how far they hold, and whom they leave alone."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from tests.http.running import Customer, Quick, database, running
from tests.http.throttled import CALLS, FAILURES, processes

Clients = Mapping[str, list[httpx.Client]]


@pytest.fixture(scope="module")
def place(postgres_server, migrated_template, tmp_path_factory):
    directory = tmp_path_factory.mktemp("api")
    with database(postgres_server.dsn, migrated_template) as dsn:
        yield dsn, directory


@pytest.fixture(scope="module")
def three(place) -> Iterator[Clients]:
    """Three processes on one database, the real one and its broken variants in each."""
    with processes(*place) as clients:
        yield clients


@pytest.fixture(scope="module")
def onboard(place) -> Iterator[Callable[[], Customer]]:
    """New customers whose keys none of the three processes has seen."""
    dsn, directory = place
    with running(dsn, directory, engine=Quick()) as api:
        yield api.onboard


def wrong_key(customer_id: str) -> str:
    return f"{customer_id}_api_{uuid4().hex[:16]}"


def statuses(clients: Sequence[httpx.Client], each: int, ask: Callable[[httpx.Client], int]) -> Counter[int]:
    """What all of them were answered, each process asked at the same time."""
    with ThreadPoolExecutor(len(clients)) as pool:
        asked = [pool.submit(lambda c=client: [ask(c) for _ in range(each)]) for client in clients]
        return Counter(status for future in asked for status in future.result())


def calls_hold(clients: Sequence[httpx.Client], customer: Customer) -> bool:
    """Whether several processes let no more through than the limit, what came back meanwhile, and a lease of each."""
    headers = {"X-API-Key": customer.key}
    began = time.monotonic()
    answers = statuses(clients, CALLS, lambda client: client.get(customer.url, headers=headers).status_code)
    leased = len(clients) * CALLS // 20
    most = CALLS + (time.monotonic() - began) * CALLS / 60 + leased
    assert set(answers) <= {200, 429}
    assert answers[200] >= CALLS - leased
    return answers[200] <= most


def failures_hold(clients: Sequence[httpx.Client], source: str) -> bool:
    """Whether several processes answer 401 no more often than one may."""

    def ask(client: httpx.Client) -> int:
        headers = {"X-API-Key": wrong_key(f"c_{uuid4().hex[:10]}"), "X-Forwarded-For": source}
        return client.get("/api/v1/pipelines/templates", headers=headers).status_code

    began = time.monotonic()
    answers = statuses(clients, FAILURES, ask)
    assert set(answers) <= {401, 429}
    return answers[401] <= FAILURES + (time.monotonic() - began) * FAILURES / 60


def guess_from_everywhere(clients: Sequence[httpx.Client], customer_id: str, net: int) -> Counter[int]:
    """Wrong keys of one customer from many sources, to every process, until all of them refuse new ones."""
    answers: Counter[int] = Counter()
    for client in clients:
        for host in range(5 * FAILURES + 5):
            headers = {"X-API-Key": wrong_key(customer_id), "X-Forwarded-For": f"10.{net}.7.{host}"}
            answers[client.get(f"/api/v1/customers/{customer_id}", headers=headers).status_code] += 1
    return answers


def works(client: httpx.Client, customer: Customer, source: str) -> bool:
    headers = {"X-API-Key": customer.key, "X-Forwarded-For": source}
    return client.get(customer.url, headers=headers).status_code == 200


def test_a_customers_calls_are_counted_together(three, onboard):
    assert calls_hold(three["shared"], onboard())


def test_counted_by_each_process_they_are_too_many(three, onboard):
    assert not calls_hold(three["alone"], onboard())


def test_wrong_keys_of_a_source_are_counted_together(three):
    assert failures_hold(three["shared"], "192.0.2.1")


def test_counted_by_each_process_wrong_keys_are_too_many(three):
    assert not failures_hold(three["alone"], "192.0.2.2")


def test_guessing_from_everywhere_locks_no_customer_out(three, onboard):
    victim = onboard()
    answers = guess_from_everywhere(three["shared"], victim.id, 1)
    assert answers[401] <= 5 * FAILURES + 2
    assert answers[429] >= FAILURES
    assert all(works(client, victim, f"198.51.100.{n}") for n, client in enumerate(three["shared"]))


def test_a_lock_on_the_customer_would(three, onboard):
    victim = onboard()
    guess_from_everywhere(three["locking"], victim.id, 2)
    assert not any(works(client, victim, f"198.51.100.{n}") for n, client in enumerate(three["locking"]))


def test_a_right_key_works_where_wrong_ones_come_from(three, onboard):
    customer = onboard()
    assert failures_hold(three["shared"], "192.0.2.3")
    assert all(works(client, customer, "192.0.2.3") for client in three["shared"])


def test_nobody_learns_which_customers_there_are(three, onboard):
    existing = onboard().id
    answers = []
    for net, customer_id in enumerate((existing, existing[:-1] + "_"), start=3):
        seen = []
        client = three["shared"][0]
        for host in range(5 * FAILURES + 5):
            headers = {"X-API-Key": wrong_key(customer_id), "X-Forwarded-For": f"10.{net}.7.{host}"}
            answer = client.get(f"/api/v1/customers/{customer_id}", headers=headers)
            seen.append((answer.status_code, answer.content))
        answers.append(Counter(seen))
    assert len(answers[0]) == 2
    # A token or two may come back while they are asked.
    assert set(answers[0]) == set(answers[1])
    assert (answers[0] - answers[1]).total() <= 3


def test_a_key_that_one_process_revokes_is_dead_in_the_others_within_a_second(three, onboard):
    acme = onboard()
    first, *others = three["shared"]
    owner = {"X-API-Key": acme.key}
    issued = first.post(f"{acme.url}/api-keys", headers=owner).json()
    given = {"X-API-Key": issued["api_key"], "X-Forwarded-For": "192.0.2.77"}
    for client in others:
        assert [client.get(acme.url, headers=given).status_code for _ in range(3)] == [200] * 3, "it is remembered"
    assert first.delete(f"{acme.url}/api-keys/{issued['api_key_id']}", headers=owner).status_code == 204
    deadline = time.monotonic() + 1
    for client in others:
        while client.get(acme.url, headers=given).status_code == 200:
            assert time.monotonic() < deadline
