"""Schedules over HTTP: overlap and jitter, paused and resumed, and days filled in."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tests.application.world import until

DAILY = {"provider": "GCP", "domain": "COST", "pipeline_template": "cost_billing", "schedule_cron": "0 2 * * *"}


def scheduler(customer) -> str:
    return f"/api/v1/scheduler/customer/{customer.id}"


def configure(customer, **more) -> dict:
    answer = customer.post(f"{scheduler(customer)}/pipelines", json={**DAILY, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ago(days: int) -> str:
    return str(datetime.now(UTC).date() - timedelta(days=days))


@pytest.fixture
def daily(acme) -> str:
    """Where the days of a daily pipeline are filled in."""
    return f"{scheduler(acme)}/pipelines/{configure(acme)['config_id']}/backfill"


class TestPipelines:
    def test_overlap_and_jitter(self, acme):
        made = configure(acme, overlap="cancel_running", jitter_seconds=90)
        assert (made["overlap"], made["jitter_seconds"]) == ("cancel_running", 90)
        url = f"{scheduler(acme)}/pipelines/{made['config_id']}"
        changed = acme.patch(url, json={"jitter_seconds": 0, "overlap": "skip"}).json()
        assert (changed["overlap"], changed["jitter_seconds"]) == ("skip", 0)
        assert configure(acme)["jitter_seconds"] == 0

    @pytest.mark.parametrize("wrong", [{"jitter_seconds": 3601}, {"jitter_seconds": -1}, {"overlap": "cancel"}])
    def test_wrong_ones(self, acme, wrong):
        answer = acme.post(f"{scheduler(acme)}/pipelines", json={**DAILY, **wrong})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == next(iter(wrong))

    @pytest.mark.parametrize("hours", [1, -1], ids=["ahead", "behind"])
    def test_a_wrong_clock_passes_over_no_slot_and_adds_none(self, api, acme, admin, hours):
        """Slots come due by the database's clock, so that is what the next one is found by."""

        def away(instant: str) -> float:
            return (datetime.fromisoformat(instant) - datetime.now(UTC)).total_seconds()

        because = {"json": {"reason": "test"}}
        with api.clock.moved(hours=hours):
            made = configure(acme, schedule_cron="0 0 1 1 *")
            url = f"{scheduler(acme)}/pipelines/{made['config_id']}"
            changed = acme.patch(url, json={"schedule_cron": "* * * * *"}).json()
            assert -5 < away(changed["next_run_time"]) < 65
            # The control: what is only shown goes by the clock that is wrong.
            assert hours * 3600 - 5 < away(changed["next_slots"][0]["utc"]) < hours * 3600 + 65
            assert -5 < away(configure(acme, schedule_cron="* * * * *")["next_run_time"]) < 65
            for rest, wake in (
                (lambda: acme.post(f"{scheduler(acme)}/pause", **because), f"{scheduler(acme)}/resume"),
                (
                    lambda: admin.post(f"/api/v1/admin/customers/{acme.id}/suspend", **because),
                    f"/api/v1/admin/customers/{acme.id}/reactivate",
                ),
            ):
                assert rest().status_code == 200
                assert admin.post(wake, **because).status_code == 200
                listed = acme.get(f"{scheduler(acme)}/pipelines").json()["items"]
                assert len(listed) == 2
                assert all(-5 < away(pipeline["next_run_time"]) < 65 for pipeline in listed)


class TestPausing:
    def test_all_rest_and_go_on(self, acme):
        configure(acme)
        configure(acme, is_active=False)
        assert acme.get(acme.url).json()["schedules_paused"] is False
        paused = acme.post(f"{scheduler(acme)}/pause", json={"reason": "The source is being moved."})
        assert (paused.status_code, paused.json()) == (
            200,
            {"customer_id": acme.id, "schedules_paused": True, "pipelines": 2, "pipelines_resting": 2},
        )
        assert acme.get(acme.url).json()["schedules_paused"] is True
        listed = acme.get(f"{scheduler(acme)}/pipelines").json()["items"]
        assert [(p["next_run_time"], p["next_slots"]) for p in listed] == [(None, [])] * 2
        assert configure(acme)["next_run_time"] is None
        resumed = acme.post(f"{scheduler(acme)}/resume", json={"reason": "Moved."}).json()
        assert (resumed["schedules_paused"], resumed["pipelines"], resumed["pipelines_resting"]) == (False, 3, 1)
        assert acme.get(acme.url).json()["schedules_paused"] is False
        listed = acme.get(f"{scheduler(acme)}/pipelines").json()["items"]
        assert sorted(len(p["next_slots"]) for p in listed) == [0, 5, 5]

    def test_by_an_operator_who_says_why(self, acme, admin):
        assert admin.post(f"{scheduler(acme)}/pause", json={}).status_code == 422
        assert admin.post(f"{scheduler(acme)}/pause", json={"reason": "Unpaid."}).status_code == 200
        [newest, *_] = acme.get(f"{acme.url}/events").json()["items"]
        assert newest["type"].startswith("customer.schedules-paused@")
        assert (newest["actor"], newest["data"]["reason"]) == ("admin", "Unpaid.")


class TestBackfill:
    def test_the_days_are_queued_and_watched(self, api, acme, daily):
        api.engine.go.set()
        answer = acme.post(daily, json={"from": ago(3), "to": ago(1), "reason": "Late invoices."})
        assert answer.status_code == 200, answer.text
        done = answer.json()
        assert (done["queued"], done["refused"], done["next_from"], done["refusal"]) == (3, 0, None, None)
        assert answer.headers["Location"] == f"{scheduler(acme)}/backfills/{done['backfill_id']}"
        seen = acme.get(answer.headers["Location"]).json()
        assert (seen["total"], seen["states"]) == (3, {"PENDING": 3})
        assert (seen["first_date"], seen["last_date"], seen["config_id"]) == (ago(3), ago(1), done["config_id"])
        assert [run["run_date"] for run in seen["items"]] == [ago(1), ago(2), ago(3)]
        assert {run["trigger_by"] for run in seen["items"]} == {"customer: Late invoices."}
        with api.worker():
            until(lambda: acme.get(answer.headers["Location"]).json()["states"] == {"COMPLETED": 3})

    def test_the_same_request_has_one_effect_and_one_answer(self, acme, daily):
        body, headers = {"from": ago(3), "to": ago(1)}, {"Idempotency-Key": str(uuid4())}
        first, second = (acme.post(daily, json=body, headers=headers) for _ in range(2))
        assert first.json() == second.json()
        assert second.headers["Idempotency-Replayed"] == "true"
        assert acme.get(f"{acme.url}/usage").json()["pipelines_run_today"] == 3

    def test_an_answer_that_was_lost_is_given_again(self, api, acme, daily):
        """The kept answer is gone: the ids follow from the key, so that the runs are found."""
        body, headers = {"from": ago(30), "to": ago(1)}, {"Idempotency-Key": str(uuid4())}
        first = acme.post(daily, json=body, headers=headers)
        with api.service.datastore.reading() as cursor:
            assert cursor.execute("DELETE FROM idempotent_requests").rowcount >= 1
        second = acme.post(daily, json=body, headers=headers)
        assert "Idempotency-Replayed" not in second.headers
        assert (first.status_code, first.json()) == (second.status_code, second.json())
        assert (first.json()["queued"], first.json()["next_from"]) == (25, ago(5))

    def test_what_found_no_room_is_gone_on_with(self, acme, admin, daily):
        limits = f"/api/v1/admin/customers/{acme.id}/limits"
        admin.patch(limits, json={"max_pipelines_per_day": 2, "reason": "x"})
        done = acme.post(daily, json={"from": ago(3), "to": ago(1)}).json()
        assert (done["queued"], done["refused"], done["next_from"]) == (2, 1, ago(1))
        assert done["refusal"] == "Daily pipeline quota exceeded. Used 2/2 pipelines today."
        admin.patch(limits, json={"max_pipelines_per_day": 9, "reason": "x"})
        on = {"from": done["next_from"], "to": ago(1), "backfill_id": done["backfill_id"]}
        assert acme.post(daily, json=on).json()["queued"] == 1
        assert acme.get(f"{scheduler(acme)}/backfills/{done['backfill_id']}").json()["total"] == 3

    def test_nothing_that_fits_is_429(self, acme, admin, daily):
        admin.patch(f"/api/v1/admin/customers/{acme.id}/limits", json={"max_pipelines_per_day": 0, "reason": "x"})
        headers = {"Idempotency-Key": str(uuid4())}
        answers = [acme.post(daily, json={"from": ago(3), "to": ago(1)}, headers=headers) for _ in range(2)]
        for answer in answers:
            assert answer.status_code == 429
            assert answer.json()["detail"] == "Daily pipeline quota exceeded. Used 0/0 pipelines today."
            assert answer.json()["quota_reset_time"].endswith("T00:00:00Z")
            assert int(answer.headers["Retry-After"]) > 0

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"from": "2025-11-02", "to": "2025-11-01"}, None),
            ({"from": "2023-11-02", "to": "2025-11-01"}, None),
            ({"from": "2025-11-01", "to": "2999-01-01"}, None),
            ({"from": "2025-11-01"}, "to"),
            ({"from": "yesterday", "to": "2025-11-01"}, "from"),
            ({"first": "2025-11-01", "last": "2025-11-01"}, None),
            ({"from": "2025-11-01", "to": "2025-11-01", "backfill_id": "x"}, "backfill_id"),
            ({"from": "2025-11-01", "to": "2025-11-01", "reason": "\n"}, "reason"),
        ],
    )
    def test_wrong_days(self, acme, daily, body, field):
        answer = acme.post(daily, json=body)
        assert answer.status_code == 422, answer.text
        if field:
            assert [wrong["field"] for wrong in answer.json()["errors"]] == [field]

    def test_another_customers_is_not_there(self, api, acme, daily):
        done = acme.post(daily, json={"from": ago(1), "to": ago(1)}).json()
        other = api.onboard()
        assert other.post(daily, json={"from": ago(1), "to": ago(1)}).status_code == 403
        url = f"{scheduler(other)}/pipelines/{configure(other)['config_id']}/backfill"
        mine, theirs = (
            other.post(url, json={"from": ago(1), "to": ago(1), "backfill_id": i})
            for i in (done["backfill_id"], str(uuid4()))
        )
        # The same id is another back-fill for another customer: nothing tells that somebody uses it.
        assert (mine.status_code, theirs.status_code) == (200, 200)
        third = api.onboard()
        for unknown in (done["backfill_id"], str(uuid4()), "x", done["backfill_id"].upper(), "a%00b"):
            answer = third.get(f"{scheduler(third)}/backfills/{unknown}")
            assert (answer.status_code, answer.json()["detail"]) == (404, "No such back-fill.")

    @pytest.mark.parametrize("limit", [1, 3, 7, 200])
    def test_its_runs_page_by_page(self, acme, daily, limit):
        done = acme.post(daily, json={"from": ago(7), "to": ago(1)}).json()
        url, found, cursor = f"{scheduler(acme)}/backfills/{done['backfill_id']}", [], None
        while True:
            page = acme.get(url, params={"limit": limit, **({"cursor": cursor} if cursor else {})}).json()
            found += [run["run_date"] for run in page["items"]]
            assert page["total"] == 7
            if (cursor := page["next_cursor"]) is None:
                break
        assert found == [ago(n) for n in range(1, 8)]
