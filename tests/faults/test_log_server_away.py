"""PostgreSQL is killed under a whole service: every route says so in time, and all of it comes back by itself."""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from adapters.embedded.child import free_port
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.channels import LOG
from adapters.postgres.checkpoints import leading
from adapters.postgres.listener import Listener
from adapters.postgres.schema import migrate
from adapters.scheduler import run_scheduler
from adapters.worker import run_worker
from application.ports import Away
from tests.application.world import until
from tests.faults.commands import COMMANDS, ELSEWHERE, Routes
from tests.faults.test_server_killed import kill
from tests.http.running import ADMIN, Customer, Quick, Running, running

LONGEST_S = 10.0
HEALED_S = 15.0
NEEDS_NO_DATABASE = {"/livez", "/metrics", "/api/v1/pipelines/templates"}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[EmbeddedPostgres]:
    """One that keeps what it acknowledged."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres"), free_port()) as made:
        with psycopg.connect(made.dsn, row_factory=psycopg.rows.dict_row) as connection:
            migrate(connection)
        yield made


@pytest.fixture(scope="module")
def api(server, tmp_path_factory) -> Iterator[Running]:
    with running(server.dsn, tmp_path_factory.mktemp("api"), engine=Quick(), poll_interval_seconds=1.0) as made:
        yield made


@pytest.fixture
def roles(api) -> Iterator[None]:
    """A worker and a scheduler beside the API."""
    stop = threading.Event()
    threads = [threading.Thread(target=role, args=(api.service, stop)) for role in (run_worker, run_scheduler)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


def reads(api: Running, acme: Customer) -> Iterator[tuple[str, Callable[[], httpx.Response]]]:
    """Every GET there is, as an operator asks it."""
    admin = api.client(ADMIN)
    document = admin.get("/openapi.json").json()
    for path, item in document["paths"].items():
        if "get" in item and path not in NEEDS_NO_DATABASE:
            address = path.replace("{customer_id}", acme.id)
            address = re.sub(r"\{\w+_id\}", str(uuid4()), address)
            yield f"GET {path}", lambda address=address: admin.get(re.sub(r"\{\w+\}", "postgres", address))


def timed(ask: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    return ask(), time.monotonic() - began


def test_every_route_says_that_the_database_is_away(api, server):
    routes = Routes(api)
    asked = {name: getattr(routes, name)(api.onboard()) for name in COMMANDS}
    acme = api.onboard()
    questions = dict(reads(api, acme))
    for name, ask in asked.items():
        questions[name] = lambda ask=ask: ask(uuid4().hex)
    admin = api.client(ADMIN)
    for route, body in ELSEWHERE.items():
        path = route.partition(" ")[2].replace("{notification_id}", str(uuid4()))
        path = re.sub(r"\{\w+\}", "postgres", path)
        questions[route] = lambda path=path, body=body: admin.post(path, json=body)
    server.stop()
    try:
        with ThreadPoolExecutor(32) as threads:
            answers = dict(zip(questions, threads.map(timed, questions.values()), strict=True))
        alive, seconds = timed(lambda: api.client().get("/livez"))
        figures = api.client().get("/metrics")
    finally:
        server.start()
    assert (alive.status_code, seconds < 2) == (200, True)
    assert "convergence_database_up 0.0" in figures.text
    other = {name: (a.status_code, a.text) for name, (a, _) in answers.items() if a.status_code != 503}
    assert other == {}
    assert {name for name, (a, _) in answers.items() if int(a.headers.get("Retry-After", 0)) < 1} == set()
    assert {name: s for name, (_, s) in answers.items() if s >= LONGEST_S} == {}
    until(lambda: acme.get(acme.url).status_code == 200, seconds=HEALED_S)


def there_again(server: EmbeddedPostgres) -> float:
    """When a server that was killed takes connections again: how long its recovery takes is the disk's business."""

    def answers() -> bool:
        try:
            psycopg.connect(server.dsn, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    until(answers, seconds=120)
    return time.monotonic()


class Callers:
    """Clients that ask for runs under names, and repeat themselves until they are answered."""

    def __init__(self, acme: Customer) -> None:
        self.acme = acme
        self.runs: dict[str, str] = {}
        self.statuses: set[int] = set()
        self.stop = threading.Event()

    def ask(self, _: int) -> None:
        while not self.stop.is_set():
            name = uuid4().hex
            while not self.stop.is_set():
                answer, seconds = timed(lambda name=name: self.acme.run(headers={"Idempotency-Key": name}))
                assert seconds < LONGEST_S
                self.statuses.add(answer.status_code)
                if answer.status_code == 202:
                    self.runs[name] = answer.json()["run_id"]
                    break
                assert answer.status_code in {409, 503}, answer.text
                self.stop.wait(0.1)


def killed_under_load(api: Running, server: EmbeddedPostgres, times: int) -> None:
    acme = api.onboard("SCALE")
    more = {"max_pipelines_per_day": 100_000, "max_pipelines_per_month": 100_000, "reason": "test"}
    more["max_concurrent_pipelines"] = 1_000
    api.client(ADMIN).patch(f"/api/v1/admin/customers/{acme.id}/limits", json=more)
    callers = Callers(acme)
    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(callers.ask, number) for number in range(4)]
        try:
            for _ in range(times):
                before = len(callers.runs)
                until(lambda before=before: len(callers.runs) > before + 10, seconds=60)
                kill(server)
                back, before = there_again(server), len(callers.runs)
                until(lambda before=before: len(callers.runs) > before + 4, seconds=60)
                assert time.monotonic() - back < HEALED_S
        finally:
            callers.stop.set()
        for one in asking:
            one.result()
    with api.service.datastore.reading() as cursor:
        query = "SELECT run_id FROM scheduled_pipeline_runs WHERE customer_id = %s"
        there = [row["run_id"] for row in cursor.execute(query, (acme.id,))]
    assert set(callers.runs.values()) <= set(there)
    assert len(set(callers.runs.values())) == len(callers.runs)
    # Each name has one run; the last of each caller may not have been answered.
    assert len(there) <= len(callers.runs) + 4
    assert acme.get(f"{acme.url}/usage").json()["pipelines_run_today"] == len(there)


@pytest.mark.usefixtures("roles")
def test_a_killed_server_under_load(api, server):
    killed_under_load(api, server, 2)


@pytest.mark.soak
@pytest.mark.usefixtures("roles")
def test_a_server_that_is_killed_again_and_again(api, server):
    killed_under_load(api, server, 40)


def test_roles_come_back(api, server, roles, caplog):
    """Pool, listeners, lead, worker and scheduler, without a hand."""
    caplog.set_level(logging.WARNING)
    woken: list[str] = []
    listener = Listener(server.dsn, {LOG: woken.append})
    listener.start()
    acme = api.onboard()
    assert acme.run(prefer="wait=20").json()["state"] == "COMPLETED"

    heard = len(woken)

    def keep_leading() -> Any:
        with leading(server.dsn, "p") as lead:
            assert lead
            kill(server)
            until(lambda: not lead.wanted() and False, seconds=LONGEST_S)

    with pytest.raises(Away):
        keep_leading()
    back = there_again(server)
    until(lambda: led(server), seconds=HEALED_S)
    until(lambda: acme.get(acme.url).status_code == 200, seconds=HEALED_S)
    until(lambda: len(woken) > heard, seconds=HEALED_S)
    heard = len(woken)
    assert acme.run(prefer="wait=20").json()["state"] == "COMPLETED"
    until(lambda: len(woken) > heard, seconds=HEALED_S)
    assert time.monotonic() - back < 2 * HEALED_S
    listener.stop()


def led(server: EmbeddedPostgres) -> bool:
    try:
        with leading(server.dsn, "p") as lead:
            return bool(lead)
    except Away:
        return False
