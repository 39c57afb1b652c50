"""The people of a customer."""

from datetime import datetime
from typing import Annotated, Final

from fastapi import Body
from pydantic import BaseModel

from adapters.http.api import Parts
from adapters.http.auth import Configurer
from adapters.http.idempotency import RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import WITH_BODY, customer_router
from adapters.postgres.reads.listing import Where, newest_first, one
from application.team import AddTeamMember, NewTeamMember, RemoveTeamMember, add_team_member, remove_team_member
from projections.tables import CUSTOMER_TEAM_MEMBERS

router = customer_router("/customers/{customer_id}/team-members", "Team")

EXAMPLE: Final = {"email": "jo@acmecorp.com", "name": "Jo Doe", "role": "MEMBER"}


class TeamMemberView(BaseModel):
    member_id: str
    customer_id: str
    email: str
    name: str
    role: str
    is_active: bool
    created_at: datetime
    updated_at: datetime


@router.get("", summary="List team members")
def list_members(caller: Configurer, paging: PageAsked) -> Page[TeamMemberView]:
    """The people of the customer, newest first."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(caller.reads, CUSTOMER_TEAM_MEMBERS, where, after=paging.after, limit=paging.more)
    return paging.page(rows, TeamMemberView.model_validate, ("created_at", "member_id"))


@router.post("", summary="Add a team member", responses=WITH_BODY)
def post_member(
    api: Parts, caller: Configurer, name: RequestName, body: Annotated[NewTeamMember, Body(examples=[EXAMPLE])]
) -> TeamMemberView:
    """Add a person, within the plan's limit."""
    command = AddTeamMember(**caller.stamp, **body.model_dump(exclude_unset=True), member_id=name.new_id())
    member_id = add_team_member(command, api.service.platform)
    row = one(caller.reads, CUSTOMER_TEAM_MEMBERS, caller.customer_id, member_id)
    return TeamMemberView.model_validate(row)


@router.delete("/{member_id}", summary="Remove a team member", status_code=204)
def delete_member(api: Parts, caller: Configurer, member_id: str) -> None:
    """The person's place is free again."""
    remove_team_member(RemoveTeamMember(**caller.stamp, member_id=member_id), api.service.platform)
