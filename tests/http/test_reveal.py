"""The link of a welcome mail: looking reveals nothing, pressing the button reveals once."""

import base64
import hashlib
import re
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest


@pytest.fixture
def link(api, acme):
    """A link to the customer's first key, made as the mail makes it."""

    def make(lasts=timedelta(days=7)):
        token = secrets.token_urlsafe(32)
        key_id = acme.get(f"{acme.url}/api-keys").json()["items"][-1]["api_key_id"]
        with api.service.datastore.reading() as cursor:
            cursor.execute(
                "INSERT INTO key_reveals (token_hash, customer_id, api_key_id, expires_at) VALUES (%s, %s, %s, %s)",
                (hashlib.sha256(token.encode()).hexdigest(), acme.id, key_id, datetime.now(UTC) + lasts),
            )
        return f"/reveal/{token}"

    return make


def test_looking_reveals_nothing(anyone, acme, link):
    url = link()
    for _ in range(3):
        page = anyone.get(url)
        assert page.status_code == 200
        assert acme.key not in page.text
        assert '<form method="post">' in page.text
    assert acme.key in anyone.post(url).text


def test_the_button_works_once(anyone, acme, link):
    url = link()
    page = anyone.post(url)
    assert (page.status_code, page.headers["Cache-Control"]) == (200, "no-store")
    assert f"<code>{acme.key}</code>" in page.text
    assert [anyone.post(url).status_code, anyone.get(url).status_code] == [404, 404]


def test_of_many_at_once_one_gets_the_key(anyone, acme, link):
    url, start = link(), threading.Barrier(12)

    def one(_):
        start.wait()
        return anyone.post(url, headers={"Idempotency-Key": "the-same"})

    with ThreadPoolExecutor(12) as pool:
        pages = list(pool.map(one, range(12)))
    assert sorted(page.status_code for page in pages) == [200] + [404] * 11
    assert sum(acme.key in page.text for page in pages) == 1


def test_links_that_do_not_work_look_the_same(anyone, acme, link):
    used, ended, revoked = link(), link(lasts=timedelta(seconds=-1)), link()
    anyone.post(used)
    other = acme.post(f"{acme.url}/api-keys").json()
    first = acme.get(f"{acme.url}/api-keys").json()["items"][-1]
    anyone.delete(f"{acme.url}/api-keys/{first['api_key_id']}", headers={"X-API-Key": other["api_key"]})
    urls = [used, ended, revoked, "/reveal/unknown", "/reveal/" + "x" * 5000, "/reveal/%00"]
    pages = [method(url) for url in urls for method in (anyone.get, anyone.post)]
    assert {page.status_code for page in pages} == {404}
    assert len({page.content for page in pages}) == 1


def test_the_pages_style_is_allowed_and_nothing_else(anyone, link):
    page = anyone.get(link())
    style = re.search(r"<style>(.*)</style>", page.text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "<script" not in page.text


def test_a_token_is_in_no_log(anyone, link, caplog):
    caplog.set_level("DEBUG")
    url = link()
    anyone.get(url)
    anyone.post(url)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("adapters")]
    assert any("/reveal/:token" in line for line in ours)
    assert not any(url.removeprefix("/reveal/") in line for line in ours)
