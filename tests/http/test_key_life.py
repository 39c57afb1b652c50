"""The life of an API key: named, listed, used, warned about, replaced, found by a stranger, gone."""

import hashlib
import threading
from datetime import UTC, datetime, timedelta

import pytest

from adapters.http.key_uses import KeyUses
from adapters.postgres import key_uses
from adapters.postgres.key_uses import Use
from adapters.postgres.reads import keys
from adapters.postgres.reads.keys import Holder
from tests.application.world import until
from tests.http.running import Customer

LEAKS = "/api/v1/api-keys/leaks"
HEADER = "X-API-Key-Expires"


def issue(acme: Customer, **body) -> dict:
    answer = acme.post(f"{acme.url}/api-keys", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def listed(acme: Customer) -> dict[str, dict]:
    return {item["api_key_id"]: item for item in acme.get(f"{acme.url}/api-keys").json()["items"]}


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_keys_of_other_names_do_not_replace_each_other(api, acme):
    ci = issue(acme, name="CI", scopes=["runs:write"])
    assert (ci["name"], ci["scopes"], ci["replaced"]) == ("CI", ["runs:write"], [])
    second = issue(acme, name="CI", scopes=["runs:write"])
    [replaced] = second["replaced"]
    until = datetime.fromisoformat(replaced["works_until"])
    assert replaced["api_key_id"] == ci["api_key_id"]
    assert timedelta(hours=23, minutes=59) < until - datetime.now(UTC) <= timedelta(hours=24)
    assert f"works until {until:%Y-%m-%d %H:%M:%S} UTC" in second["message"]
    assert acme.post(f"{acme.url}/api-keys", json={"name": "CI"}).status_code == 409
    found = listed(acme)
    assert sorted((key["name"], key["days_left"]) for key in found.values()) == [("", 90), ("CI", 1), ("CI", 90)]
    with api.clock.moved(days=2):
        assert acme.get(acme.url).status_code == 200, "the first key is of another name"


def test_a_name_is_one_line(acme):
    for name in ("", "a\nb", "x" * 201, 7):
        assert acme.post(f"{acme.url}/api-keys", json={"name": name}).status_code == 422


def test_every_answer_says_when_the_key_ends_from_day_76_on(api, acme, anyone):
    [key] = listed(acme).values()
    ends = datetime.fromisoformat(key["expires_at"])
    addresses = (acme.url, f"{acme.url}/nothing", "/api/v1/customers/other_one")
    with api.clock.moved(days=75, hours=23):
        assert [HEADER in acme.get(a).headers for a in addresses] == [False] * 3
    with api.clock.moved(days=76):
        answers = [acme.get(a) for a in (acme.url, f"{acme.url}/usage", "/api/v1/customers/other_one")]
        assert [a.status_code for a in answers] == [200, 200, 403]
        assert {a.headers[HEADER] for a in answers} == {ends.isoformat(timespec="seconds").replace("+00:00", "Z")}
        assert HEADER not in anyone.get("/livez").headers
    with api.clock.moved(days=90):
        assert HEADER not in acme.get(acme.url).headers


def test_who_is_to_be_told_of_an_end(api, acme):
    """Page by page, and nobody of a key that another one of its name has replaced."""
    for name in ("CI", "dashboard"):
        issue(acme, name=name)
    issue(acme, name="CI")
    now, datastore = datetime.now(UTC), api.service.datastore

    def pages(at: datetime, within: timedelta) -> list[keys.ExpiringKey]:
        found: list[keys.ExpiringKey] = []
        while page := keys.expiring(datastore, at, within, after=found[-1] if found else None, limit=1):
            found += page
        return [key for key in found if key.customer_id == acme.id]

    soon = timedelta(days=14)
    assert pages(now, soon) == []
    assert pages(now + timedelta(days=75, hours=23), soon) == []
    told = pages(now + timedelta(days=76, seconds=5), soon)
    assert [key.name for key in told] == ["", "dashboard", "CI"]
    assert {key.last4 for key in told} <= {key["last4"] for key in listed(acme).values()}
    assert pages(now + timedelta(days=91), soon) == []


def test_the_last_use_is_known_without_a_write_per_request(api, acme, admin):
    def writes() -> int:
        with api.service.datastore.reading() as cursor:
            row = cursor.execute("SELECT count(*) AS n FROM api_key_uses WHERE customer_id = %s", (acme.id,)).fetchone()
        return row["n"]

    for _ in range(3):
        assert acme.get(acme.url).status_code == 200
    admin.get(acme.url)
    assert writes() == 0
    [key] = listed(acme).values()
    assert (key["last_used_at"], key["last_used_from"]) == (None, None)
    api.app.state.api.key_uses.flush(api.service.datastore)
    assert writes() == 1
    [key] = listed(acme).values()
    assert timedelta(0) < datetime.now(UTC) - datetime.fromisoformat(key["last_used_at"]) < timedelta(seconds=30)
    assert key["last_used_from"] == "127.0.0.1"


def test_the_newest_use_counts_whoever_writes_last(api, acme):
    [key_id] = listed(acme)
    now = datetime.now(UTC)
    for minutes, source in ((5, "::5"), (9, "::9"), (2, "::2")):
        key_uses.record(api.service.datastore, [Use(key_id, acme.id, now + timedelta(minutes=minutes), source)])
    found = key_uses.last_uses(api.service.datastore, [key_id])[key_id]
    assert (found.at, found.source) == (now + timedelta(minutes=9), "::9")


def test_what_cannot_be_written_keeps_nothing_later_from_it(api, acme, caplog):
    [key_id] = listed(acme)
    holder = Holder(acme.id, key_id, "ACTIVE", None, datetime.now(UTC))
    uses, stop, datastore = KeyUses(), threading.Event(), api.service.datastore
    uses.note(holder, datetime.now(UTC), "no text for a database: \0")
    writing = threading.Thread(target=uses.run, args=(datastore, stop), kwargs={"every_s": 0.01})
    writing.start()
    until(lambda: "uses of API keys are lost" in caplog.text)
    uses.note(holder, datetime.now(UTC), "192.0.2.7")
    until(lambda: key_id in key_uses.last_uses(datastore, [key_id]))
    stop.set()
    writing.join()


def test_nothing_is_written_of_a_customer_that_was_erased_meanwhile(api, acme, admin):
    [key_id] = listed(acme)
    erased = {"confirm": acme.id, "reason": "Asked for it."}
    assert admin.post(f"/api/v1/admin{acme.url[7:]}/erase", json=erased).status_code < 300
    api.app.state.api.key_uses.flush(api.service.datastore)
    assert key_uses.last_uses(api.service.datastore, [key_id]) == {}


def report(anyone, key: str, **more):
    return anyone.post(LEAKS, json={"sha256": sha256(key), **more})


def test_a_leaked_key_is_revoked_and_nobody_learns_whose_it_was(acme, anyone):
    leaked = issue(acme, name="CI")
    answers = [
        report(anyone, f"{acme.id}_api_AAAAAAAAAAAAAAAA"),
        report(anyone, leaked["api_key"].lower() + "x"),
        report(anyone, leaked["api_key"], url=f"https://jo:secret@pastes.example/{leaked['api_key']}?q=1"),
        report(anyone, leaked["api_key"]),
    ]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.content for answer in answers}) == 1
    names = [{name for name in answer.headers if name != "x-request-id"} for answer in answers]
    assert all(found == names[0] for found in names)
    assert anyone.get(acme.url, headers={"X-API-Key": leaked["api_key"]}).status_code == 401
    assert acme.get(acme.url).status_code == 200, "the other key goes on"
    shown = listed(acme)[leaked["api_key_id"]]
    assert not shown["is_active"]
    assert shown["revoked_reason"] == "reported as leaked: found at pastes.example"
    events = acme.get(f"{acme.url}/events").json()["items"]
    assert [e["type"] for e in events].count("customer.api-key-revoked@2") == 1
    assert leaked["api_key"] not in str(events)


@pytest.mark.parametrize("url", ["https://x_api_y/", "no address", "http://[", "https://" + "x" * 150 + ".example"])
def test_of_a_strangers_text_only_a_host_is_kept(acme, anyone, url):
    leaked = issue(acme)
    assert report(anyone, leaked["api_key"], url=url).status_code == 202
    assert listed(acme)[leaked["api_key_id"]]["revoked_reason"] == "reported as leaked"


@pytest.mark.parametrize("body", [{}, {"sha256": "xyz"}, {"sha256": "0" * 63}, {"sha256": "0" * 64, "key": "k"}])
def test_a_report_that_is_none(anyone, body):
    answer = anyone.post(LEAKS, json=body)
    assert answer.status_code == 422
    assert "xyz" not in answer.text
