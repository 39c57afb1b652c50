"""Every command that can be given over HTTP, and how a customer comes to it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.http.running import ADMIN, Customer, Running, application

CREDENTIAL = {
    "provider": "AWS",
    "credential_type": "ACCESS_KEY",
    "credential_name": "n",
    "credentials": {"secret": "hunter2"},
}
CONFIG = {"provider": "GCP", "domain": "COST", "source_project_id": "acme-gcp-project", "source_dataset": "billing"}
PIPELINE = {"provider": "GCP", "domain": "COST", "pipeline_template": "cost_billing", "schedule_cron": "0 2 * * *"}
JO = {"email": "jo@acmecorp.com", "name": "Jo"}
WEBHOOK = {"url": "https://hooks.acmecorp.com/convergence", "kinds": ["run.failed"]}
READER = {"principal": "group:analysts@acmecorp.com"}
WHY = {"reason": "test"}
RUN = {"date": "2025-11-17", "trigger_by": "manual"}


@dataclass
class Asked:
    """One request, which can be sent again."""

    send: Callable[..., httpx.Response]
    method: str
    url: str
    body: Any = None

    def __call__(self, name: str | None) -> httpx.Response:
        headers = {"Prefer": "respond-async"} | ({} if name is None else {"Idempotency-Key": name})
        return self.send(self.method, self.url, json=self.body, headers=headers)


class Routes:
    """How a customer comes to each command: what was there before, and the request itself."""

    def __init__(self, api: Running) -> None:
        self.api = api
        self.admin = api.client(ADMIN)

    def _made(self, acme: Customer, part: str, body: Any, key: str) -> str:
        answer = acme.post(f"{acme.url}/{part}", json=body)
        assert answer.status_code == 200, answer.text
        return f"{acme.url}/{part}/{answer.json()[key]}"

    def _pipelines(self, acme: Customer) -> str:
        return f"/api/v1/scheduler/customer/{acme.id}/pipelines"

    def _pipeline(self, acme: Customer) -> str:
        answer = acme.post(self._pipelines(acme), json=PIPELINE)
        assert answer.status_code == 200, answer.text
        return f"{self._pipelines(acme)}/{answer.json()['config_id']}"

    def _run(self, acme: Customer) -> str:
        return f"/api/v1/pipelines/runs/{acme.run().json()['run_id']}"

    def _cancelled(self, acme: Customer) -> str:
        run = self._run(acme)
        assert acme.post(f"{run}/cancel").status_code == 200
        return run

    def _operator(self, acme: Customer, method: str, part: str, body: Any) -> Asked:
        return Asked(self.admin.request, method, f"/api/v1/admin/customers/{acme.id}/{part}", body)

    def onboard(self, acme: Customer) -> Asked:
        new = application(acme.id.replace("acme", "new"))
        return Asked(self.api.client().request, "POST", "/api/v1/customers/onboard", new)

    def onboard_again(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", "/api/v1/customers/onboard", application(acme.id))

    def issue_key(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"{acme.url}/api-keys")

    def revoke_key(self, acme: Customer) -> Asked:
        return Asked(acme.request, "DELETE", self._made(acme, "api-keys", None, "api_key_id"))

    def report_leak(self, acme: Customer) -> Asked:
        key = acme.post(f"{acme.url}/api-keys", json={"name": "leaked"}).json()["api_key"]
        found = {"sha256": hashlib.sha256(key.encode()).hexdigest(), "url": "https://pastes.example/1"}
        return Asked(self.api.client().request, "POST", "/api/v1/api-keys/leaks", found)

    def add_credential(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"{acme.url}/credentials", CREDENTIAL)

    def revoke_credential(self, acme: Customer) -> Asked:
        return Asked(acme.request, "DELETE", self._made(acme, "credentials", CREDENTIAL, "credential_id"))

    def configure_provider(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"{acme.url}/provider-configs", CONFIG)

    def remove_provider(self, acme: Customer) -> Asked:
        return Asked(acme.request, "DELETE", self._made(acme, "provider-configs", CONFIG, "config_id"))

    def add_member(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"{acme.url}/team-members", JO)

    def remove_member(self, acme: Customer) -> Asked:
        return Asked(acme.request, "DELETE", self._made(acme, "team-members", JO, "member_id"))

    def add_webhook(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"{acme.url}/webhook-endpoints", WEBHOOK)

    def remove_webhook(self, acme: Customer) -> Asked:
        return Asked(acme.request, "DELETE", self._made(acme, "webhook-endpoints", WEBHOOK, "endpoint_id"))

    def grant_reader(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"{acme.url}/bigquery-readers", READER)

    def revoke_reader(self, acme: Customer) -> Asked:
        return Asked(acme.request, "DELETE", self._made(acme, "bigquery-readers", READER, "grant_id"))

    def schedule(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", self._pipelines(acme), PIPELINE)

    def change_pipeline(self, acme: Customer) -> Asked:
        return Asked(acme.request, "PATCH", self._pipeline(acme), {"timezone": "Europe/Berlin"})

    def remove_pipeline(self, acme: Customer) -> Asked:
        return Asked(acme.request, "DELETE", self._pipeline(acme))

    def fill_in(self, acme: Customer) -> Asked:
        days = {"from": "2025-10-01", "to": "2025-10-03"}
        return Asked(acme.request, "POST", f"{self._pipeline(acme)}/backfill", days)

    def pause(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"/api/v1/scheduler/customer/{acme.id}/pause", WHY)

    def resume(self, acme: Customer) -> Asked:
        assert self.pause(acme)(None).status_code == 200
        return Asked(acme.request, "POST", f"/api/v1/scheduler/customer/{acme.id}/resume", WHY)

    def run(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"/api/v1/pipelines/run/{acme.id}/gcp/example/dryrun", RUN)

    def cancel(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"{self._run(acme)}/cancel")

    def retry(self, acme: Customer) -> Asked:
        return Asked(acme.request, "POST", f"{self._cancelled(acme)}/retry")

    def change_contact(self, acme: Customer) -> Asked:
        return Asked(acme.request, "PATCH", acme.url, {"company_name": "ACME Ltd."})

    def suspend(self, acme: Customer) -> Asked:
        return self._operator(acme, "POST", "suspend", WHY)

    def reactivate(self, acme: Customer) -> Asked:
        assert self.suspend(acme)(None).status_code == 200
        return self._operator(acme, "POST", "reactivate", WHY)

    def change_plan(self, acme: Customer) -> Asked:
        return self._operator(acme, "PUT", "plan", {"plan": "SCALE", **WHY})

    def override_limits(self, acme: Customer) -> Asked:
        return self._operator(acme, "PATCH", "limits", {"max_pipelines_per_day": 7, **WHY})

    def reset_usage(self, acme: Customer) -> Asked:
        assert acme.run().status_code == 202
        return self._operator(acme, "POST", "usage/reset", WHY)

    def recount_usage(self, acme: Customer) -> Asked:
        return self._operator(acme, "POST", "usage/recount", WHY)

    def erase(self, acme: Customer) -> Asked:
        return self._operator(acme, "POST", "erase", {"confirm": acme.id, **WHY})

    def trigger(self, acme: Customer) -> Asked:
        config_id = self._pipeline(acme).rpartition("/")[2]
        with self.api.service.datastore.reading() as cursor:
            cursor.execute(
                "UPDATE customer_pipeline_configs SET next_run_time = date_trunc('minute', clock_timestamp())"
                " WHERE config_id = %s",
                (config_id,),
            )
        return Asked(self.admin.request, "POST", "/api/v1/scheduler/trigger")


COMMANDS = sorted(name for name in vars(Routes) if not name.startswith("_"))
ANSWERS_OTHERWISE = {"trigger"}
"""What is due is triggered once; who asks again is told that nothing was."""
ELSEWHERE: dict[str, Any] = {
    "POST /api/v1/customers/{customer_id}/webhook-endpoints/{endpoint_id}/test": None,
    "POST /api/v1/admin/notifications/{notification_id}/replay": None,
    "POST /api/v1/scheduler/process-queue": None,
    "POST /webhooks/stripe": None,
    "POST /api/v1/admin/projections/rebuild": WHY,
    "POST /api/v1/admin/projections/{projection}/skip": {"position": 1, **WHY},
}
"""Each request executes another run; a rebuild is no event, and its id follows from the name; an event that is passed
over is so for good, however often that is asked for. A test of an endpoint and a replay are no events either: the id
of the one follows from the name, and the other is refused once it is done. Stripe's events name themselves, whoever
sends them how often. With the body that each takes."""
