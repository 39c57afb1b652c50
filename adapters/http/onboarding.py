"""Customers come: POST customers/onboard."""

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from adapters.http.api import Api, Parts
from adapters.http.auth import BY_CUSTOMER, Caller, may_onboard
from adapters.http.idempotency import SHOWN_ONCE, RequestName, Route
from adapters.http.outcomes import wait_until
from adapters.http.routing import API, WITH_BODY, refusals
from adapters.postgres.reads import runs
from adapters.worker import process_one
from application.customers import Issued, NewCustomer, Onboard, Provision, onboard, provision
from application.ports import Away
from application.runs import run_history
from domain import identity
from domain.run_events import RunCompleted, RunFailed

logger = logging.getLogger(__name__)
router = APIRouter(prefix=API, tags=["Customers"], route_class=Route, dependencies=BY_CUSTOMER)

BUDGET_SECONDS: Final = 8.0
"""How long an onboarding waits for BigQuery and the dryrun; what is not done by then is finished behind."""

DryrunStatus = Literal["SUCCESS", "FAILED", "PENDING"]

EXAMPLE: Final = {
    "customer_id": "acme_corp",
    "company_name": "ACME Corporation",
    "admin_email": "admin@acmecorp.com",
    "subscription_plan": "PROFESSIONAL",
}


class Onboarding(NewCustomer):
    """Who wants to join. `customer_id` names the customer everywhere, its BigQuery dataset included."""

    customer_id: str = Field(description="3 to 50 ASCII letters, digits and underscores. `tenant_id` is an alias.")

    @model_validator(mode="before")
    @classmethod
    def _alias(cls, given: Any) -> Any:  # noqa: ANN401 - what the caller sent
        if not isinstance(given, dict) or "tenant_id" not in given:
            return given
        tenant_id = given["tenant_id"]
        if given.get("customer_id", tenant_id) != tenant_id:
            raise ValueError("customer_id and tenant_id are two names for the same thing, and must be equal")
        return {**{k: v for k, v in given.items() if k != "tenant_id"}, "customer_id": tenant_id}


class Onboarded(BaseModel):
    """The new customer. The API key is shown in this answer and never again."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "customer_id": "acme_corp",
                    "tenant_id": "acme_corp",
                    "api_key": "acme_corp_api_xK9mPqWz7LnR4vYt",
                    "subscription_plan": "PROFESSIONAL",
                    "dataset_created": True,
                    "tables_created": ["x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results"],
                    "dryrun_status": "SUCCESS",
                    "message": "Customer ACME Corporation onboarded successfully.",
                }
            ]
        }
    )

    customer_id: str
    tenant_id: str
    api_key: str | None = Field(description="Null only where the answer to a repeated Idempotency-Key is given again.")
    subscription_plan: str
    dataset_created: bool
    tables_created: list[str]
    dryrun_status: DryrunStatus
    message: str


@dataclass(frozen=True, slots=True)
class _Progress:
    tables: tuple[str, ...] = ()
    dryrun: DryrunStatus = "PENDING"


@router.post(
    "/customers/onboard",
    summary="Onboard a customer",
    responses=WITH_BODY | refusals(401, 403, 422, 429, 503),
)
async def post_onboard(
    request: Request, api: Parts, name: RequestName, body: Annotated[Onboarding, Body(examples=[EXAMPLE])]
) -> Onboarded:
    """Make a customer: its record, API key, subscription, usage, BigQuery dataset and tables, and run the dryrun.

    Open to anybody for a new id where OPEN_ONBOARDING is on; otherwise it takes the admin key. An id that exists needs
    its own key or the admin key: it gets a new API key, and the plan changes only for the admin. When BigQuery is away
    the answer says `dataset_created: false` and `dryrun_status: PENDING`, and the rest is done as soon as it is back.
    """
    settings = api.service.settings
    customer_id = identity.customer_id(body.customer_id, central_dataset=settings.customers_dataset_id)
    caller = await may_onboard(request, customer_id)
    command = Onboard(
        **caller.stamp,
        **body.model_dump(exclude_unset=True),
        known_as={"nobody": "nobody", "admin": "admin", "customer": "owner"}[caller.identity.kind],
        api_key_id=name.new_id(),
    )
    issued = await run_in_threadpool(onboard, command, api.service.platform, api.service.vault)
    progress = await _provisioned(api, caller, customer_id)
    return _answer(issued, progress)


def _answer(issued: Issued, progress: _Progress) -> Onboarded:
    did = "onboarded successfully" if issued.new_customer else "has a new API key"
    message = f"Customer {issued.company_name} {did}." if issued.api_key else SHOWN_ONCE
    if issued.api_key and not progress.tables:
        message += " Its dataset is being prepared and will be there soon."
    return Onboarded(
        customer_id=issued.customer_id,
        tenant_id=issued.customer_id,
        api_key=issued.api_key.get_secret_value() if issued.api_key else None,
        subscription_plan=issued.plan,
        dataset_created=bool(progress.tables),
        tables_created=list(progress.tables),
        dryrun_status=progress.dryrun,
        message=message,
    )


async def _provisioned(api: Api, caller: Caller, customer_id: str) -> _Progress:
    """How far the dataset and its dryrun came in the time there is. The customer exists already: this never raises."""
    if api.warehouse_flag.is_down:
        return _Progress()
    run_id = str(identity.onboarding_run_id(customer_id))
    deadline = time.monotonic() + BUDGET_SECONDS
    with api.outcomes.watching(run_id) as ended:
        work = asyncio.get_running_loop().run_in_executor(api.slow, _provision, api, caller, customer_id, run_id)
        await asyncio.wait({work}, timeout=BUDGET_SECONDS)
        if not work.done():
            api.warehouse_flag.lower()
            return _Progress()
        tables = work.result()
        if not tables:
            return _Progress()
        try:
            # A worker may have been faster: then the dryrun is in its hands.
            left = max(0.0, deadline - time.monotonic())
            done = await wait_until(partial(runs.has_ended, api.service.datastore, run_id), ended, left)
            return _Progress(tables, await api.slowly(partial(_dryrun_status, api, run_id)) if done else "PENDING")
        except Away as away:
            logger.warning("the dryrun of %s was not seen to end: %s", customer_id, away)
            return _Progress(tables)


def _provision(api: Api, caller: Caller, customer_id: str, run_id: str) -> tuple[str, ...]:
    """The tables of the customer once they are there and its dryrun was run; none when that could not be done now."""
    service = api.service
    tables: tuple[str, ...] = ()
    try:
        command = Provision(**caller.stamp, customer_id=customer_id)
        tables = provision(command, service.platform, service.warehouse)
        api.warehouse_flag.raise_again()
        worker_id = f"api-{service.settings.worker_id}"[:80]
        process_one(service, worker_id, run_id, stop=api.stopping, request_id=caller.by.request_id)
    except Away as away:
        api.warehouse_flag.lower()
        logger.warning("onboarding of %s goes on behind: %s", customer_id, away)
    except Exception:
        # The customer exists and its key must reach its owner, whatever else went wrong.
        logger.exception("onboarding of %s goes on behind", customer_id)
    return tables


def _dryrun_status(api: Api, run_id: str) -> DryrunStatus:
    for recorded in run_history(run_id, api.service.platform):
        if isinstance(recorded.event, RunCompleted):
            return "SUCCESS"
        if isinstance(recorded.event, RunFailed):
            return "FAILED"
    return "PENDING"
