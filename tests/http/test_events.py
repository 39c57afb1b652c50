"""The audit trail: everything that happened to a customer, and nothing of anybody else's."""


def test_it_says_who_did_what(acme, admin):
    answer = admin.patch(
        f"/api/v1/admin/customers/{acme.id}/limits",
        headers={"X-Request-ID": "audit-1"},
        json={"max_pipelines_per_day": 3, "reason": "trial"},
    )
    assert answer.status_code == 200, answer.text
    newest, *_, opened, key, onboarded = acme.get(f"{acme.url}/events").json()["items"]
    assert (newest["type"], newest["actor"], newest["request_id"]) == (
        "subscription.limits-overridden@1",
        "admin",
        "audit-1",
    )
    assert newest["data"]["reason"] == "trial"
    assert onboarded["type"] == "customer.onboarded@1"
    assert onboarded["data"]["company_name"] == "ACME Corporation"
    assert key["type"] == "customer.api-key-issued@1"
    assert opened["type"] == "subscription.opened@1"


def test_it_holds_runs_and_no_secrets(acme, api):
    key = acme.key
    run_id = acme.run().json()["run_id"]
    acme.post(
        f"{acme.url}/credentials",
        json={
            "provider": "AWS",
            "credential_type": "ACCESS_KEY",
            "credential_name": "reader",
            "credentials": {"secret": "canary-7d1c"},
        },
    ).raise_for_status()
    answer = acme.get(f"{acme.url}/events")
    events = answer.json()["items"]
    assert run_id in {e["stream_id"] for e in events if e["type"].startswith("run.scheduled@")}
    added = next(e for e in events if e["type"] == "customer.credential-added@1")
    assert added["data"].keys() >= {"credential_id", "provider"}
    for event in events:
        assert not event["data"].keys() & {"key_hash", "sealed_key", "sealed"}
    assert "canary" not in answer.text
    assert key not in answer.text


def test_pages_do_not_overlap_and_leave_nothing_out(acme, api):
    other = api.onboard()
    whole = acme.get(f"{acme.url}/events").json()["items"]
    seen, cursor = [], None
    while True:
        page = acme.get(f"{acme.url}/events", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == whole
    assert not {e["position"] for e in seen} & {e["position"] for e in other.get(f"{other.url}/events").json()["items"]}
    assert acme.get(f"{acme.url}/events", params={"cursor": "WyIxOyJd"}).status_code == 422
