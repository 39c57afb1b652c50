"""Scheduled pipelines: configured, listed, changed, removed; and the templates they are made from."""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

from fastapi import Body
from pydantic import BaseModel, Field

from adapters.http.api import Api, Parts
from adapters.http.auth import Acting, Configurer, KnownCaller
from adapters.http.idempotency import RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import WITH_BODY, customer_router
from adapters.pipelines.registry import Template
from adapters.postgres.reads.listing import Where, newest_first, one
from application.pipelines import (
    ChangePipeline,
    ConfigurePipeline,
    NewPipeline,
    PipelineChange,
    RemovePipeline,
    change_pipeline,
    configure_pipeline,
    remove_pipeline,
)
from domain.schedule import Schedule, next_slots
from projections.tables import CUSTOMER_PIPELINE_CONFIGS

router = customer_router("/scheduler/customer/{customer_id}/pipelines", "Scheduled pipelines")
templates = customer_router("/pipelines/templates", "Pipelines")

EXAMPLE: Final = {
    "provider": "GCP",
    "domain": "COST",
    "pipeline_template": "cost_billing",
    "schedule_cron": "0 2 * * *",
    "timezone": "America/New_York",
    "is_active": True,
}
_SLOTS: Final = 5


class Slot(BaseModel):
    """One slot, in both clocks."""

    utc: datetime
    local: str = Field(description="On the clock of the pipeline's zone.")


class PipelineView(BaseModel):
    """A scheduled pipeline, and when it runs next."""

    config_id: str
    customer_id: str
    provider: str
    domain: str
    pipeline_template: str
    schedule_cron: str
    timezone: str
    is_active: bool
    next_run_time: datetime | None
    next_slots: list[Slot] = Field(
        description="The next five; none while the pipeline rests, by itself or with all of the customer's."
    )
    last_run_time: datetime | None
    last_run_state: str | None
    parameters: dict[str, Any]
    date_offset_days: int
    catch_up: str
    overlap: str
    jitter_seconds: int
    created_at: datetime
    updated_at: datetime


class ParameterView(BaseModel):
    name: str
    type: str
    default: Any
    description: str


class StepView(BaseModel):
    id: str
    type: str
    depends_on: list[str]


class TemplateView(BaseModel):
    """A pipeline that can be run or scheduled."""

    id: str
    provider: str
    domain: str
    name: str
    version: int
    description: str
    parameters: list[ParameterView]
    steps: list[StepView]


def _view(row: Mapping[str, Any], now: datetime) -> PipelineView:
    slots: list[Slot] = []
    if row["next_run_time"] is not None:
        zone = ZoneInfo(row["timezone"])
        found = next_slots(Schedule(row["schedule_cron"], row["timezone"]), now, _SLOTS)
        slots = [Slot(utc=slot, local=slot.astimezone(zone).isoformat()) for slot in found]
    return PipelineView.model_validate({**row, "next_slots": slots, "jitter_seconds": row["jitter_seconds"] or 0})


def _read(api: Api, caller: Acting, config_id: str) -> PipelineView:
    return _view(one(caller.reads, CUSTOMER_PIPELINE_CONFIGS, caller.customer_id, config_id), api.now())


@router.get("", summary="List scheduled pipelines")
def list_pipelines(api: Parts, caller: Configurer, paging: PageAsked) -> Page[PipelineView]:
    """The customer's scheduled pipelines, newest first, each with its next five slots."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(caller.reads, CUSTOMER_PIPELINE_CONFIGS, where, after=paging.after, limit=paging.more)
    return paging.page(rows, partial(_view, now=api.now()), ("created_at", "config_id"))


@router.post("", summary="Schedule a pipeline", responses=WITH_BODY)
def post_pipeline(
    api: Parts, caller: Configurer, name: RequestName, body: Annotated[NewPipeline, Body(examples=[EXAMPLE])]
) -> PipelineView:
    """Run a template at the times of a cron expression (five fields, or an alias such as @daily) in a time zone.

    A run's `date` is the day before its slot unless `date_offset_days` says otherwise. `catch_up` decides about slots
    that were missed, `overlap` about a slot that comes while an earlier run has not ended: `queue` lets both run one
    after the other, `skip` leaves the new one out, `cancel_running` ends the earlier one. With `jitter_seconds` each
    run waits for up to that long, the same time at every slot, so that pipelines of one schedule do not all start at
    once. Runs asked for by hand, retries and back-fill overlap with nothing.
    """
    stamp = caller.stamp | {"at": api.slot_clock()}
    command = ConfigurePipeline(**stamp, **body.model_dump(exclude_unset=True), config_id=name.new_id())
    config_id = configure_pipeline(command, api.service.platform, api.service.registry)
    return _read(api, caller, config_id)


@router.patch("/{config_id}", summary="Change a scheduled pipeline", responses=WITH_BODY)
def patch_pipeline(
    api: Parts,
    caller: Configurer,
    config_id: str,
    body: Annotated[PipelineChange, Body(examples=[{"is_active": False}])],
) -> PipelineView:
    """Another schedule, zone, state or parameters.

    With another cron, zone or state the next slot is the first after this moment; otherwise it stays.
    """
    stamp = caller.stamp | {"at": api.slot_clock()}
    command = ChangePipeline(**stamp, **body.model_dump(exclude_unset=True), config_id=config_id)
    change_pipeline(command, api.service.platform, api.service.registry)
    return _read(api, caller, config_id)


@router.delete("/{config_id}", summary="Remove a scheduled pipeline", status_code=204)
def delete_pipeline(api: Parts, caller: Configurer, config_id: str) -> None:
    """The pipeline is scheduled no more; its runs stay in the history."""
    remove_pipeline(RemovePipeline(**caller.stamp, config_id=config_id), api.service.platform)


@templates.get("", summary="List pipeline templates")
def list_templates(api: Parts, caller: KnownCaller, paging: PageAsked) -> Page[TemplateView]:  # noqa: ARG001 - any key
    """Every template that can be run or scheduled, with its parameters and steps, by provider, domain and name."""
    after = paging.after_name
    rows = [{"id": t.id, "template": t} for t in api.service.registry.all()]
    start = next((i + 1 for i, row in enumerate(rows) if row["id"] == after), 0)
    return paging.page(rows[start : start + paging.more], lambda row: _template(row["template"]), ("id",))


def _template(template: Template) -> TemplateView:
    return TemplateView(
        id=template.id,
        provider=template.provider,
        domain=template.domain,
        name=template.name,
        version=template.version,
        description=template.description,
        parameters=[
            ParameterView(name=name, type=p.type, default=p.default, description=p.description)
            for name, p in template.parameters.items()
        ],
        steps=[StepView(id=step.id, type=step.type, depends_on=list(step.depends_on)) for step in template.steps],
    )
