"""Projections as operators see them, and having one pass over an event."""

from typing import Annotated

from fastapi import Body
from pydantic import Field

from adapters.http.api import Parts
from adapters.http.auth import AdminCaller
from adapters.http.idempotency import RequestName
from adapters.http.routing import WITH_BODY, admin_router
from adapters.projection_views import look_at_all
from adapters.status_views import ProjectionsView
from application.command import Line, Request
from application.projections import ProjectionName, SkipEvent, skip_event

router = admin_router("/admin/projections", "Administration")


class SkipRequest(Request):
    """Which event, and why it can be done without."""

    position: int = Field(ge=1, le=2**63 - 1, description="That of the event at which the projection stands stopped.")
    reason: Line


@router.get("", summary="Look at the projections")
def get_projections(api: Parts, caller: AdminCaller) -> ProjectionsView:  # noqa: ARG001 - any operator
    """How far each projection has come and how fast, whether a process works on it, and what keeps it from going on.

    `postgres` is the service's own tables: they are written with the events, and follow the log only when they are
    rebuilt. `rebuilds` are those asked for last.
    """
    return look_at_all(api.service.datastore)


@router.post("/{projection}/skip", summary="Pass over an event", responses=WITH_BODY)
def post_skip(
    api: Parts,
    caller: AdminCaller,
    name: RequestName,  # noqa: ARG001 - skipping twice is skipping once
    projection: ProjectionName,
    body: Annotated[SkipRequest, Body(examples=[{"position": 4711, "reason": "Written by a broken release."}])],
) -> ProjectionsView:
    """Have a projection pass over the event that it stands stopped at, for good: also after a restart or a rebuild.

    It is recorded as an event itself. The event that is passed over stays in the log, and commands still need it. 409,
    saying where the projection stands, for any other position.
    """
    command = SkipEvent(**caller.stamp, projection=projection, position=body.position, reason=body.reason)
    skip_event(command, api.service.platform)
    return look_at_all(api.service.datastore)
