"""All schedules of a customer: paused and resumed at once."""

from typing import Annotated

from fastapi import Body
from pydantic import BaseModel, Field

from adapters.http.admin import Reason
from adapters.http.api import Parts
from adapters.http.auth import Configurer
from adapters.http.idempotency import RequestName
from adapters.http.routing import WITH_BODY, customer_router
from application.schedules import PauseSchedules, ResumeSchedules, Schedules, pause_schedules, resume_schedules

router = customer_router("/scheduler/customer/{customer_id}", "Scheduled pipelines")

BecauseBody = Annotated[Reason, Body(examples=[{"reason": "The source is being moved."}])]


class SchedulesView(BaseModel):
    """Whether schedules run."""

    customer_id: str
    schedules_paused: bool
    pipelines: int = Field(description="Scheduled pipelines of the customer.")
    pipelines_resting: int = Field(description="Those among them that have no next slot.")


def _view(customer_id: str, schedules: Schedules) -> SchedulesView:
    return SchedulesView(
        customer_id=customer_id,
        schedules_paused=schedules.paused,
        pipelines=schedules.pipelines,
        pipelines_resting=schedules.resting,
    )


@router.post("/pause", summary="Pause all schedules", responses=WITH_BODY)
def post_pause(
    api: Parts,
    caller: Configurer,
    name: RequestName,  # noqa: ARG001 - pausing twice is pausing once
    body: BecauseBody,
) -> SchedulesView:
    """No slot becomes a run until the schedules are resumed. Runs that wait or run go on, and others can be asked for.

    The customer shows it as `schedules_paused`. A single pipeline rests with `is_active: false`.
    """
    command = PauseSchedules(**caller.stamp, reason=body.reason)
    return _view(caller.customer_id, pause_schedules(command, api.service.platform))


@router.post("/resume", summary="Resume all schedules", responses=WITH_BODY)
def post_resume(
    api: Parts,
    caller: Configurer,
    name: RequestName,  # noqa: ARG001 - resuming twice is resuming once
    body: BecauseBody,
) -> SchedulesView:
    """Every active pipeline goes on at its next slot. What was missed stays missed: back-fill makes it good."""
    command = ResumeSchedules(**caller.stamp | {"at": api.slot_clock()}, reason=body.reason)
    return _view(caller.customer_id, resume_schedules(command, api.service.platform))
