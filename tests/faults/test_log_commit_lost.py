"""The database stores what a request decided, and its answer is lost: sent again, the request has had one effect."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from application.platform import Platform
from tests.application.world import migrated
from tests.faults.commands import ANSWERS_OTHERWISE, COMMANDS, ELSEWHERE, WHY, Asked, Routes
from tests.faults.proxy import Proxy
from tests.http.running import Customer, Quick, Running, database, running


@pytest.fixture(scope="module")
def template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


@contextmanager
def served(server_dsn, template, directory, **changed: Any) -> Iterator[tuple[Running, Proxy]]:
    """A service whose PostgreSQL is at the other end of a network that loses things."""
    with (
        database(server_dsn, template) as dsn,
        Proxy(dsn) as proxy,
        running(proxy.dsn, directory, engine=Quick()) as api,
    ):
        for name, part in changed.items():
            service = replace(api.service, **{name: part(api.service)})
            api.app.state.api = replace(api.app.state.api, service=service)
        yield api, proxy


@pytest.fixture(scope="module")
def apart(postgres_server, template, tmp_path_factory):
    with served(postgres_server.dsn, template, tmp_path_factory.mktemp("apart")) as made:
        yield made


@pytest.fixture
def api(apart) -> Running:
    return apart[0]


@pytest.fixture
def proxy(apart) -> Proxy:
    return apart[1]


def recorded(api: Running, acme: Customer) -> list[str]:
    """The kinds of everything that happened to this customer, and to the one that it stands for."""
    query = "SELECT topic FROM stored_events WHERE customer_id = ANY(%s) ORDER BY notification_id"
    with psycopg.connect(api.service.dsn) as connection:
        names = [acme.id, acme.id.replace("acme", "new")]
        return [topic for (topic,) in connection.execute(query, (names,))]


def plain(answer: httpx.Response, acme: Customer) -> str:
    """An answer without what differs from customer to customer and from moment to moment."""
    text = answer.text.replace(acme.id.removeprefix("acme_"), "ID")
    text = re.sub(r'("(?:api_key|secret)": ?)"[^"]+"', r"\1null", text)
    text = re.sub(r'("message": ?)"[^"]+"', r"\1null", text)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|\+00:00)", "INSTANT", text)
    return re.sub(r'("(last4|duration_ms|etag)": ?)[^,}]+', r"\1null", text).replace('": ', '":')


def lost_and_sent_again(
    api: Running, proxy: Proxy, acme: Customer, ask: Asked, *, name: str | None, meanwhile: Callable[[], Any]
) -> httpx.Response:
    """What the caller gets in the end, who was not told what became of the first attempt."""
    lost = proxy.answers_lost
    proxy.lose_answers()
    before = recorded(api, acme)
    first = ask(name)
    assert first.status_code == 503, first.text
    assert int(first.headers["Retry-After"]) >= 1
    assert "Nothing was changed" not in first.text
    assert proxy.answers_lost == lost + 1
    assert recorded(api, acme) > before, "it was stored"
    meanwhile()
    return ask(name)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_request_whose_answer_was_lost_has_one_effect(api, proxy, command):
    prepare = getattr(Routes(api), command)
    undisturbed, acme = api.onboard(), api.onboard()
    expected = prepare(undisturbed)(uuid4().hex)
    assert expected.status_code in {200, 202, 204}, expected.text
    ask, name = prepare(acme), uuid4().hex
    second = lost_and_sent_again(api, proxy, acme, ask, name=name, meanwhile=lambda: None)
    assert second.status_code == expected.status_code, second.text
    assert recorded(api, acme) == recorded(api, undisturbed)
    if command not in ANSWERS_OTHERWISE:
        assert plain(second, acme) == plain(expected, undisturbed)
    third = ask(name)
    assert third.headers["Idempotency-Replayed"] == "true"
    assert third.content == second.content
    assert recorded(api, acme) == recorded(api, undisturbed)


@pytest.mark.parametrize("command", ["add_member", "run", "reset_usage"])
def test_a_request_that_never_came_through_is_carried_out(api, proxy, command):
    prepare = getattr(Routes(api), command)
    undisturbed, acme = api.onboard(), api.onboard()
    prepare(undisturbed)(uuid4().hex)
    ask, name = prepare(acme), uuid4().hex
    before = recorded(api, acme)
    proxy.cut_before_commits()
    assert ask(name).status_code == 503
    assert recorded(api, acme) == before
    assert ask(name).status_code < 300
    assert recorded(api, acme) == recorded(api, undisturbed)


def test_every_command_is_among_them(api):
    """A route that changes something and is not asked for here fails."""
    routes = Routes(api)
    asked = [getattr(routes, command)(api.onboard()) for command in COMMANDS]
    document = api.client().get("/openapi.json").json()
    wanted = {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method in {"post", "put", "patch", "delete"}
    }
    missing = {
        f"{method} {path}"
        for method, path in wanted
        if not any(a.method == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), a.url) for a in asked)
    }
    assert missing == set(ELSEWHERE)


def undone(routes: Routes, acme: Customer) -> dict[str, tuple[Asked, Callable[[], httpx.Response], Callable[[], Any]]]:
    """Commands, what somebody else does before they are sent again, and what that has led to."""
    admin = f"/api/v1/admin/customers/{acme.id}"

    def removed() -> httpx.Response:
        [member] = acme.get(f"{acme.url}/team-members").json()["items"]
        return acme.delete(f"{acme.url}/team-members/{member['member_id']}")

    def key_revoked() -> httpx.Response:
        newest = acme.get(f"{acme.url}/api-keys").json()["items"][0]
        return acme.delete(f"{acme.url}/api-keys/{newest['api_key_id']}")

    def profile() -> Any:
        return acme.get(acme.url).json()

    return {
        "change_contact": (
            routes.change_contact(acme),
            lambda: acme.patch(acme.url, json={"company_name": "ACME Inc."}),
            lambda: profile()["company_name"],
        ),
        "change_plan": (
            routes.change_plan(acme),
            lambda: routes.admin.put(f"{admin}/plan", json={"plan": "STARTER", **WHY}),
            lambda: profile()["subscription_plan"],
        ),
        "pause": (
            routes.pause(acme),
            lambda: acme.post(f"/api/v1/scheduler/customer/{acme.id}/resume", json=WHY),
            lambda: profile()["schedules_paused"],
        ),
        "reset_usage": (
            routes.reset_usage(acme),
            acme.run,
            lambda: acme.get(f"{acme.url}/usage").json()["pipelines_run_today"],
        ),
        "add_member": (
            routes.add_member(acme),
            removed,
            lambda: acme.get(f"{acme.url}/team-members").json()["items"],
        ),
        "issue_key": (
            routes.issue_key(acme),
            key_revoked,
            lambda: sum(key["is_active"] for key in acme.get(f"{acme.url}/api-keys").json()["items"]),
        ),
    }


UNDONE = ["change_contact", "change_plan", "pause", "reset_usage", "add_member", "issue_key"]


def effect_of_sending_again(api: Running, proxy: Proxy, command: str) -> tuple[list[str], list[str], Any, Any]:
    acme = api.onboard()
    ask, undo, look = undone(Routes(api), acme)[command]
    seen: list[Any] = []

    def meanwhile() -> None:
        answer = undo()
        assert answer.status_code < 300, answer.text
        seen.extend((recorded(api, acme), look()))

    lost_and_sent_again(api, proxy, acme, ask, name=uuid4().hex, meanwhile=meanwhile)
    return seen[0], recorded(api, acme), seen[1], look()


@pytest.mark.parametrize("command", UNDONE)
def test_what_others_did_meanwhile_stays(api, proxy, command):
    """The request was carried out: sent again, it does not undo what was decided after it."""
    events_then, events_now, then, now = effect_of_sending_again(api, proxy, command)
    assert events_now == events_then
    assert now == then


def test_the_precondition_was_met_the_first_time(api, proxy):
    acme = api.onboard()
    tag = {"If-Match": acme.get(acme.url).headers["ETag"], "Idempotency-Key": uuid4().hex}
    proxy.lose_answers()
    change = {"company_name": "ACME Ltd."}
    assert acme.patch(acme.url, json=change, headers=tag).status_code == 503
    assert acme.patch(acme.url, json=change, headers=tag).json()["company_name"] == "ACME Ltd."
    assert acme.patch(acme.url, json=change, headers={"If-Match": tag["If-Match"]}).status_code == 412


def test_answers_that_are_lost_again_and_again(api, proxy):
    """Also the answer to the repeat, and to the repeat of that."""
    acme = api.onboard()
    ask, name = Routes(api).reset_usage(acme), uuid4().hex
    proxy.lose_answers()
    before = len(recorded(api, acme))
    assert ask(name).status_code == 503
    for _ in range(3):
        proxy.cut()
        deadline = time.monotonic() + 20
        while (answer := ask(name)).status_code in {409, 503}:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.2)
        assert answer.status_code == 200
    assert len(recorded(api, acme)) == before + 1


class Forgetful(Platform):
    """The control: does not store which commands it carried out."""

    def once(self, command, work, again=None) -> Any:
        return self.transact(command, work)


def test_a_service_that_forgets_does_things_twice(postgres_server, template, tmp_path):
    forgetful = {"platform": lambda service: Forgetful(service.store, service.mapper)}
    with served(postgres_server.dsn, template, tmp_path, **forgetful) as (api, proxy):
        for command in UNDONE:
            events_then, events_now, _, _ = effect_of_sending_again(api, proxy, command)
            assert len(events_now) > len(events_then), command


@pytest.mark.parametrize("command", ["add_credential", "run", "schedule"])
def test_a_request_without_a_name_is_done_twice(api, proxy, command):
    """The other control, and why a request should be named."""
    undisturbed, acme = api.onboard(), api.onboard()
    prepare = getattr(Routes(api), command)
    prepare(undisturbed)(None)
    lost_and_sent_again(api, proxy, acme, prepare(acme), name=None, meanwhile=lambda: None)
    assert len(recorded(api, acme)) > len(recorded(api, undisturbed))


def test_names_are_forgotten_after_a_day(api, proxy):
    acme = api.onboard()
    ask, name = Routes(api).override_limits(acme), uuid4().hex
    proxy.lose_answers()
    assert ask(name).status_code == 503
    with psycopg.connect(api.service.dsn) as connection:
        connection.execute("UPDATE commands_done SET done_at = %s", (datetime.now(UTC) - timedelta(hours=25),))
    reset = {"max_pipelines_per_day": None, **WHY}
    Routes(api).admin.patch(f"/api/v1/admin/customers/{acme.id}/limits", json=reset)
    assert ask(name).json()["subscription"]["max_pipelines_per_day"] == 7
    assert recorded(api, acme).count("subscription.limits-overridden@1") == 3
