"""What Cloud Scheduler and worker pools call: trigger due schedules, execute a queued run, look at the queue."""

from functools import partial

from pydantic import BaseModel, Field

from adapters.http.api import Api, Parts
from adapters.http.auth import AdminCaller
from adapters.http.idempotency import RequestName
from adapters.http.routing import admin_router
from adapters.http.run_views import RunView, run_view
from adapters.scheduler import trigger_now
from adapters.status import api_worker_id, look
from adapters.status_views import StatusView
from adapters.worker import process_one
from application.runs import run_history

router = admin_router("/scheduler", "Scheduler")


class TriggerView(BaseModel):
    """What one pass did."""

    triggered_count: int = Field(description="Pipelines that were due.")
    queued_count: int = Field(description="Runs that wait for a worker now.")
    skipped_count: int = Field(description="Runs that found no quota or overlap; the history says why.")


class Processed(RunView):
    """The run that was executed."""

    processed: int = 1


class NothingProcessed(BaseModel):
    """The queue was empty."""

    processed: int = 0


@router.post("/trigger", summary="Trigger due schedules")
def post_trigger(api: Parts, caller: AdminCaller, name: RequestName) -> TriggerView:  # noqa: ARG001 - slots name runs
    """Make the runs of all slots that are due. Safe to call at any time by any number of callers: one slot, one run."""
    done = trigger_now(api.service, caller.by)
    return TriggerView(triggered_count=done.triggered, queued_count=done.queued, skipped_count=done.skipped)


@router.post("/process-queue", summary="Execute one queued run")
async def post_process_queue(
    api: Parts,
    caller: AdminCaller,
    name: RequestName,  # noqa: ARG001 - it makes nothing that needs an id
) -> Processed | NothingProcessed:
    """Claim one waiting run, execute it, and answer with its details; `processed: 0` when none waits."""
    name_of_worker = api_worker_id(api.service.settings.worker_id)
    # The worker is who acts, in the caller's request.
    run_id = await api.slowly(
        partial(process_one, api.service, name_of_worker, stop=api.stopping, request_id=caller.by.request_id)
    )
    if run_id is None:
        return NothingProcessed()
    return await api.slowly(partial(_processed, api, run_id))


def _processed(api: Api, run_id: str) -> Processed:
    view = run_view(run_history(run_id, api.service.platform))
    return Processed.model_validate(view.model_dump())


@router.get("/status", summary="Look at the queue and the processes")
def get_status(api: Parts, caller: AdminCaller) -> StatusView:  # noqa: ARG001 - any operator
    """What is due, waits and runs, which processes live, and what is wrong.

    A customer's waiting runs come with what keeps them from starting, a running one with its worker and the time left
    on its lease. `problems` says what an operator has to do; it is empty when all is well.
    """
    return look(api.service.datastore)
