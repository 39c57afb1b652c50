"""What was: streams and customers folded at any version or instant, over HTTP."""

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from domain.identity import customer_stream, subscription_stream
from tests.http.running import Quick, database, running


def url(what):
    return f"/api/v1/admin/streams/{what}"


def limit(admin, customer, number):
    admin.patch(
        f"/api/v1/admin/customers/{customer.id}/limits", json={"max_pipelines_per_day": number, "reason": "trial"}
    ).raise_for_status()


def test_what_the_limits_were(acme, admin):
    """At an instant between two changes; and it is the same when it is asked again later."""
    limit(admin, acme, 3)
    then = datetime.now(UTC)
    limit(admin, acme, 30)
    seen = admin.get(url(acme.id), params={"at": then.isoformat()}).json()
    assert seen["subscription"]["state"]["limits"]["max_pipelines_per_day"] == 3
    assert (seen["usage"]["admitted"], seen["usage"]["daily_remaining"]) == (0, 3)
    assert admin.get(url(acme.id)).json()["subscription"]["state"]["limits"]["max_pipelines_per_day"] == 30
    acme.run()
    assert admin.get(url(acme.id), params={"at": then.isoformat()}).json() == seen


def test_a_stream_at_every_version(acme, admin):
    run_id = acme.run().json()["run_id"]
    acme.post(f"/api/v1/pipelines/runs/{run_id}/cancel", json={"reason": "Wrong date."}).raise_for_status()
    first, second = (admin.get(url(run_id), params={"version": version}).json() for version in (1, 2))
    assert (first["kind"], first["state"]["state"], first["version"]) == ("run", "PENDING", 1)
    assert (second["state"]["state"], second["version"]) == ("CANCELLED", 2)
    assert admin.get(url(run_id)).json() == second == admin.get(url(run_id), params={"version": 99}).json()
    before = datetime.fromisoformat(first["at"]) - timedelta(microseconds=1)
    assert admin.get(url(run_id), params={"at": before.isoformat()}).status_code == 404
    assert admin.get(url(run_id), params={"at": first["at"]}).json() == first


def test_no_secret_is_shown_and_persons_are(acme, admin):
    acme.post(
        f"{acme.url}/credentials",
        json={
            "provider": "AWS",
            "credential_type": "ACCESS_KEY",
            "credential_name": "reader",
            "credentials": {"secret": "canary-55e0"},
        },
    ).raise_for_status()
    seen = admin.get(url(customer_stream(acme.id)))
    assert seen.json()["state"]["admin_email"] == "admin@acmecorp.com"
    assert "AWS" in seen.json()["state"]["credentials"].values()
    for secret in ("canary-55e0", acme.key, "hash", "sealed"):
        assert secret not in seen.text


def test_runs_at_an_instant_are_counted_and_paged(acme, admin):
    runs = [acme.run().json()["run_id"] for _ in range(3)]
    then = datetime.now(UTC)
    acme.post(f"/api/v1/pipelines/runs/{runs[0]}/cancel").raise_for_status()
    acme.run()
    seen, asked = [], {"at": then.isoformat(), "limit": 2}
    while True:
        page = admin.get(url(acme.id), params=asked).json()["runs"]
        assert page["states"] == {"PENDING": 3}
        seen += [run["stream_id"] for run in page["items"]]
        if page["next_cursor"] is None:
            break
        asked["cursor"] = page["next_cursor"]
    assert seen == runs[::-1]
    now = admin.get(url(acme.id)).json()["runs"]
    assert now["states"] == {"CANCELLED": 1, "PENDING": 3}


@pytest.mark.parametrize(
    ("what", "asked", "status"),
    [
        ("00000000-0000-4000-8000-00000000dead", {}, 404),
        ("nobody_at_all", {}, 404),
        ("a%00b", {}, 404),
        ("x", {}, 404),
        ("{id}", {"version": 1}, 422),
        ("{stream}", {"version": 0}, 422),
        ("{stream}", {"version": 2**63}, 422),
        ("{stream}", {"version": 1, "at": "2025-11-17"}, 422),
        ("{stream}", {"at": "0001-01-01"}, 422),
        ("{stream}", {"at": "1970-01-01"}, 404),
        ("{id}", {"at": "1970-01-01"}, 404),
        ("{stream}", {"at": "9998-12-31"}, 200),
        ("{id}", {"at": "9998-12-31"}, 200),
        ("{id}", {"cursor": "x"}, 422),
    ],
)
def test_what_cannot_be_seen(acme, admin, what, asked, status):
    filled = what.replace("{id}", acme.id).replace("{stream}", str(subscription_stream(acme.id)))
    answer = admin.get(url(filled), params=asked)
    assert answer.status_code == status, answer.text


def test_an_event_that_cannot_be_read_stops_the_fold_there(postgres_server, migrated_template, tmp_path):
    with database(postgres_server.dsn, migrated_template) as dsn, running(dsn, tmp_path, engine=Quick()) as api:
        acme, admin = api.onboard(), api.admin()
        run_id = acme.run().json()["run_id"]
        acme.post(f"/api/v1/pipelines/runs/{run_id}/cancel").raise_for_status()
        before = admin.get(url(run_id), params={"version": 1}).json()
        with psycopg.connect(dsn) as owner:
            owner.execute(
                "UPDATE stored_events SET topic = 'run.unheard-of@9'"
                " WHERE originator_id = %s AND originator_version = 2",
                (run_id,),
            )
        answer = admin.get(url(run_id))
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("Position ")
        assert "run.unheard-of@9" in answer.json()["detail"]
        assert admin.get(url(run_id), params={"version": 1}).json() == before
        # Its customer can be looked at all the same.
        seen = admin.get(url(acme.id)).json()
        assert len(seen["runs"]["unreadable"]) == 1
        assert seen["subscription"]["state"]["status"] == "ACTIVE"
        with psycopg.connect(dsn) as owner:
            owner.execute("DELETE FROM stored_events WHERE originator_id = %s AND originator_version = 1", (run_id,))
        assert "event 1 of the stream, before it, is missing" in admin.get(url(run_id)).json()["detail"]


def test_nothing_is_changed_by_looking(acme, admin, api):
    def log_and_rows():
        with api.service.datastore.reading() as cursor:
            tables = ("stored_events", "customer_profiles", "scheduled_pipeline_runs", "data_keys", "snapshots")
            return [
                cursor.execute(f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) AS d FROM {name} t").fetchone()
                for name in tables
            ]

    acme.run()
    before = log_and_rows()
    admin.get(url(acme.id)).raise_for_status()
    admin.get("/api/v1/admin/events", params={"customer_id": acme.id}).raise_for_status()
    assert log_and_rows() == before


def test_a_misspelt_filter_is_refused_and_does_not_answer_with_everything(acme, admin):
    refused = admin.get("/api/v1/admin/events", params={"customer": acme.id})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("customer: No such parameter: there are actor, ")
    assert admin.get("/api/v1/admin/events", params={"customer_id": acme.id, "limit": 1}).status_code == 200
