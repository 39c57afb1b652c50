"""Back-fill: runs of a scheduled pipeline for days that lie behind, and how far they are."""

from datetime import date
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import Body, Response
from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import RunsReader, RunsWriter
from adapters.http.idempotency import RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import API, WITH_BODY, customer_router, refusals
from adapters.http.run_views import RunSummary
from adapters.http.runs import run_summary
from adapters.postgres.reads import backfills
from application.backfill import Backfill, backfill
from application.command import Line, Request, as_uuid
from domain.pipeline_run import RunState
from domain.refusals import NotFound

router = customer_router("/scheduler/customer/{customer_id}", "Scheduled pipelines")


class Days(Request):
    """Which days to fill in, both included."""

    first: date = Field(alias="from")
    last: date = Field(alias="to", description="At the latest today, on the clock of the pipeline's zone.")
    reason: Line | None = None
    backfill_id: UUID | None = Field(
        default=None, description="An earlier back-fill of the pipeline to go on with: days that have a run keep it."
    )


class BackfillAnswer(BaseModel):
    """What became of the days."""

    backfill_id: str
    customer_id: str
    config_id: str
    queued: int = Field(description="Days that have a run now, of this request or an earlier one with the same id.")
    refused: int = Field(description="Days that found no room in today's or this month's quota: they have no run.")
    next_from: date | None = Field(description="The first day that was refused: where to go on once there is room.")
    refusal: str | None = Field(description="Why days were refused.")


class BackfillView(Page[RunSummary]):
    """How far a back-fill is; `items` are its runs, the newest day first."""

    backfill_id: str
    customer_id: str
    config_id: str
    total: int = Field(description="Runs of the back-fill.")
    states: dict[RunState, int] = Field(description="How many of them are in which state.")
    first_date: date
    last_date: date


@router.post("/pipelines/{config_id}/backfill", summary="Fill in days", responses=WITH_BODY | refusals(429))
def post_backfill(
    *,
    api: Parts,
    caller: RunsWriter,
    name: RequestName,
    config_id: str,
    response: Response,
    body: Annotated[Days, Body(examples=[{"from": "2025-10-01", "to": "2025-10-31", "reason": "Late invoices."}])],
) -> BackfillAnswer:
    """One run of the pipeline for each day, the oldest first, with the pipeline's own parameters; at most 366 days.

    The runs count against today's and this month's quota, and run behind all others, in at most half of the concurrent
    places. What finds no room is not queued: ask for it again from `next_from` on, under the same `backfill_id` if it
    is to be one back-fill. 429 when not one day fits.
    """
    command = Backfill(
        **caller.stamp,
        config_id=config_id,
        first=body.first,
        last=body.last,
        reason=body.reason,
        backfill_id=str(body.backfill_id) if body.backfill_id else name.new_id(),
    )
    done = backfill(command, api.service.platform, api.service.registry)
    response.headers["Location"] = f"{API}/scheduler/customer/{caller.customer_id}/backfills/{done.backfill_id}"
    return BackfillAnswer(
        backfill_id=done.backfill_id,
        customer_id=caller.customer_id,
        config_id=config_id,
        queued=done.queued,
        refused=done.refused,
        next_from=done.next_from,
        refusal=done.refusal,
    )


@router.get("/backfills/{backfill_id}", summary="Look at a back-fill")
def get_backfill(api: Parts, caller: RunsReader, paging: PageAsked, backfill_id: str) -> BackfillView:
    """How many of its runs wait, run and have ended, and the runs themselves, the newest day first."""
    datastore = caller.reads
    known = as_uuid(backfill_id) is not None
    found = backfills.progress(datastore, caller.customer_id, backfill_id) if known else None
    if found is None:
        raise NotFound("No such back-fill.")
    rows = backfills.newest_days_first(
        datastore, caller.customer_id, backfill_id, after=paging.after, limit=paging.more
    )
    page = paging.page(rows, partial(run_summary, api), ("scheduled_time", "run_id"))
    return BackfillView(
        items=page.items,
        next_cursor=page.next_cursor,
        backfill_id=backfill_id,
        customer_id=caller.customer_id,
        config_id=found.config_id,
        total=found.total,
        states=dict(found.states),
        first_date=found.first,
        last_date=found.last,
    )
