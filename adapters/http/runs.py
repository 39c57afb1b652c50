"""Runs: asked for, looked at, cancelled, tried again; and a customer's history of them."""

import re
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Body, Header, Path, Query, Response
from starlette.concurrency import run_in_threadpool

from adapters.http.api import Api, Parts
from adapters.http.auth import Acting, Caller, KnownRunsReader, KnownRunsWriter, RunsReader, RunsWriter
from adapters.http.idempotency import Named, RequestName
from adapters.http.outcomes import wait_until
from adapters.http.paging import Instant, Page, PageAsked
from adapters.http.routing import API, WITH_BODY, customer_router, refusals
from adapters.http.run_views import RunSummary, RunView, run_view, summary
from adapters.postgres.event_log import Reads
from adapters.postgres.reads import history as history_of
from adapters.postgres.reads import runs
from adapters.postgres.reads.listing import Where, newest_first
from adapters.postgres.tenant import TenantReads
from application.command import Line, Request, as_uuid
from application.pipelines import Name
from application.runs import CancelRun, NewRun, RequestRun, RetryRun, cancel_run, request_run, retry_run
from domain.identity import requested_run_id
from domain.pipeline_run import RunState
from domain.refusals import NotFound
from projections.tables import SCHEDULED_PIPELINE_RUNS

router = customer_router("/pipelines", "Pipelines")
history = customer_router("/customers/{customer_id}/pipelines", "Pipelines")

WAIT_SECONDS: Final = 10.0
"""How long an answer waits for the run to end."""
MOST_SECONDS: Final = 60.0
NOT_ENDED: Final[dict[int | str, dict[str, Any]]] = {
    202: {"model": RunView, "description": "The run has not ended yet; Location says where to look."}
}

_WAIT: Final = re.compile(r"\bwait\s*=\s*\"?(\d{1,5})\"?", re.IGNORECASE)
_ASYNC: Final = re.compile(r"\brespond-async\b", re.IGNORECASE)
_NO_RUN: Final = "No such run."

Prefer = Annotated[
    str | None,
    Header(description="`respond-async` answers 202 at once; `wait=5` waits 5 seconds at most instead of 10."),
]
Slug = Annotated[str, Path(max_length=64, description="As in the template registry, without regard to case.")]


class Cancellation(Request):
    """Why the run is to end."""

    reason: Line = "Cancelled on request."


@router.post(
    "/run/{customer_id}/{provider}/{domain}/{template}",
    summary="Run a pipeline",
    responses=WITH_BODY
    | refusals(429)
    | {202: {"model": RunView, "description": "It has not ended yet: see Location."}},
)
async def post_run(
    *,
    api: Parts,
    caller: RunsWriter,
    name: RequestName,
    provider: Slug,
    domain: Slug,
    template: Slug,
    response: Response,
    body: Annotated[NewRun, Body(examples=[{"date": "2025-11-17", "trigger_by": "manual"}])] = NewRun(),  # noqa: B008 - frozen
    prefer: Prefer = None,
) -> RunView:
    """Run a pipeline now, within the plan's daily, monthly and concurrent limits (429 beyond them).

    Waits up to 10 seconds for the outcome. A run that has not ended by then goes on: 202, and Location says where to
    look. Asking again with the same Idempotency-Key finds the same run.
    """
    command = RequestRun(
        **caller.stamp,
        **body.model_dump(exclude_unset=True),
        provider=provider,
        domain=domain,
        template=template,
        run_id=_run_id(caller, name),
    )
    ask = partial(request_run, command, api.service.platform, api.service.registry)
    return await _run_and_wait(api, caller.reads, command.run_id, ask, prefer=prefer, response=response)


def _run_id(caller: Acting, name: Named) -> str:
    if name.key is None:
        return name.new_id()
    if caller.identity.kind == "admin":
        return str(requested_run_id(caller.customer_id, f"admin {name.key}"))
    return str(requested_run_id(caller.customer_id, name.key))


async def _run_and_wait(
    api: Api,
    reads: Reads,
    run_id: str,
    ask: Any,  # noqa: ANN401 - any command function
    *,
    prefer: str | None,
    response: Response,
) -> RunView:
    """Ask for a run and wait for its end, as long as the caller prefers."""
    prefer = prefer or ""
    wanted = _WAIT.search(prefer)
    seconds = min(float(wanted[1]), MOST_SECONDS) if wanted else WAIT_SECONDS
    if _ASYNC.search(prefer):
        seconds = 0.0
        response.headers["Preference-Applied"] = "respond-async"
    # Registered before the run exists, so that its end cannot be missed.
    with api.outcomes.watching(run_id) as event:
        await run_in_threadpool(ask)
        ended = bool(seconds) and await wait_until(partial(runs.has_ended, reads, run_id), event, seconds)
    if not ended:
        response.status_code = 202
        response.headers["Location"] = f"{API}/pipelines/runs/{run_id}"
        response.headers["Retry-After"] = "2"
    return await run_in_threadpool(_read, api, reads, run_id)


def _reads(api: Api, caller: Caller) -> Reads:
    customer_id = caller.identity.customer_id
    return api.service.datastore if customer_id is None else TenantReads(api.service.datastore, customer_id)


def _read(api: Api, reads: Reads, run_id: str) -> RunView:
    stream_id = as_uuid(run_id)
    stored = () if stream_id is None else history_of.stream(reads, stream_id)
    recorded = [r for event in stored for r in api.service.mapper.to_domain_events(event)]
    if not recorded:
        raise NotFound(_NO_RUN)
    return run_view(recorded)


def _own(api: Api, caller: Caller, run_id: str) -> RunView:
    """The run, for its owner and operators. To anybody else it is as if it did not exist."""
    run = _read(api, _reads(api, caller), run_id)
    if caller.identity.kind == "customer" and caller.identity.customer_id != run.customer_id:
        raise NotFound(_NO_RUN)
    return run


@router.get("/runs/{run_id}", summary="Read a run")
def get_run(api: Parts, caller: KnownRunsReader, run_id: str) -> RunView:
    """The run with its steps, data-quality results and timeline."""
    return _own(api, caller, run_id)


@router.post(
    "/runs/{run_id}/cancel",
    summary="Cancel a run",
    responses=WITH_BODY | NOT_ENDED,
)
def post_cancel(
    *,
    api: Parts,
    caller: KnownRunsWriter,
    name: RequestName,  # noqa: ARG001 - a cancellation makes nothing that needs an id
    run_id: str,
    response: Response,
    body: Annotated[Cancellation, Body(examples=[{"reason": "Wrong date."}])] = Cancellation(),  # noqa: B008 - frozen
) -> RunView:
    """A waiting run ends at once and gives its unit of quota back; a running one stops at its next heartbeat."""
    run = _own(api, caller, run_id)
    command = CancelRun(**caller.stamp, customer_id=run.customer_id, run_id=run_id, reason=body.reason)
    cancel_run(command, api.service.platform)
    cancelled = _read(api, _reads(api, caller), run_id)
    if not RunState(cancelled.state).ended:
        response.status_code = 202
        response.headers["Location"] = f"{API}/pipelines/runs/{run_id}"
    return cancelled


@router.post(
    "/runs/{run_id}/retry",
    summary="Try a run again",
    responses=refusals(400, 409, 429) | NOT_ENDED,
)
async def post_retry(
    *, api: Parts, caller: KnownRunsWriter, name: RequestName, run_id: str, response: Response, prefer: Prefer = None
) -> RunView:
    """A new run with the date and parameters of one that failed, was cancelled or skipped. It counts as any other."""
    run = await run_in_threadpool(_own, api, caller, run_id)
    new_run_id = name.new_id()
    command = RetryRun(**caller.stamp, customer_id=run.customer_id, run_id=run_id, new_run_id=new_run_id)
    ask = partial(retry_run, command, api.service.platform, api.service.registry)
    return await _run_and_wait(api, _reads(api, caller), new_run_id, ask, prefer=prefer, response=response)


@history.get("", summary="List a customer's runs")
def list_runs(
    *,
    api: Parts,
    caller: RunsReader,
    paging: PageAsked,
    state: Annotated[RunState | None, Query(description="Only runs in this state.")] = None,
    template: Annotated[Name | None, Query(description="Only runs of this template.")] = None,
    since: Annotated[Instant | None, Query(alias="from", description="Only runs created at or after this.")] = None,
    until: Annotated[Instant | None, Query(alias="to", description="Only runs created before this.")] = None,
) -> Page[RunSummary]:
    """Every run of the customer, newest first: state, times, rows and error of each."""
    where = [Where("customer_id", "=", caller.customer_id)]
    if state is not None:
        where.append(Where("state", "=", state.value))
    if template is not None:
        where.append(Where("pipeline_template", "=", template.lower()))
    if since is not None:
        where.append(Where("created_at", ">=", since))
    if until is not None:
        where.append(Where("created_at", "<", until))
    rows = newest_first(caller.reads, SCHEDULED_PIPELINE_RUNS, where, after=paging.after, limit=paging.more)
    return paging.page(rows, partial(run_summary, api), ("created_at", "run_id"))


def run_summary(api: Api, row: dict[str, Any]) -> RunSummary:
    """A row of scheduled_pipeline_runs as a list shows it."""
    template = api.service.registry.find(row["provider"], row["domain"], row["pipeline_template"])
    return summary(row, template.id if template else None)
