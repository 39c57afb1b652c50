"""Asking for a rebuild of projected tables, which a projector then does."""

from typing import Annotated

from fastapi import Body, Response
from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import AdminCaller
from adapters.http.idempotency import RequestName
from adapters.http.routing import API, WITH_BODY, admin_router
from adapters.postgres import rebuilds
from adapters.postgres.rebuilds import State
from adapters.rebuild import chosen
from application.command import Line, Request
from projections.targets import Target

router = admin_router("/admin/projections", "Administration")


class RebuildRequest(Request):
    """What is made anew from the log, and why."""

    tables: tuple[Annotated[str, Field(max_length=63)], ...] = Field(
        default=(), max_length=100, description="Names of tables; all of the target's when there are none."
    )
    target: Target = Target.POSTGRES
    reason: Line


class RebuildAnswer(BaseModel):
    """The rebuild as it was taken up."""

    rebuild_id: str
    state: State
    tables: list[str]
    target: Target


@router.post("/rebuild", summary="Rebuild tables", status_code=202, responses=WITH_BODY)
def post_rebuild(
    api: Parts,
    caller: AdminCaller,
    name: RequestName,
    response: Response,
    body: Annotated[RebuildRequest, Body(examples=[{"tables": ["customer_usage"], "reason": "Edited by hand."}])],
) -> RebuildAnswer:
    """Make tables anew from the event log beside the live ones, compare them, and swap them; work goes on meanwhile.

    A projector does it; `Location` says where to look how far it is. 409 while another rebuild is not finished.
    """
    asked = rebuilds.ask(
        api.service.datastore,
        name.new_id(),
        tables=chosen(body.tables, body.target),
        target=body.target,
        asked_by=caller.by.actor,
        reason=body.reason,
    )
    response.headers["Location"] = f"{API}/admin/projections"
    return RebuildAnswer(
        rebuild_id=str(asked.rebuild_id), state=asked.state, tables=list(asked.tables), target=asked.target
    )
