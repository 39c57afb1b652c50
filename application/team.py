"""The people of a customer."""

from enum import StrEnum

from pydantic import EmailStr, Field

from application.command import Command, Identifier, Line, Request, new_id
from application.platform import Platform, Transaction
from domain.customer_events import TeamMemberAdded


class Role(StrEnum):
    OWNER = "OWNER"
    MEMBER = "MEMBER"
    VIEWER = "VIEWER"


class NewTeamMember(Request):
    email: EmailStr
    name: Line
    role: Role = Role.MEMBER


class AddTeamMember(NewTeamMember, Command):
    customer_id: str
    member_id: Identifier = Field(default_factory=new_id)


def add_team_member(command: AddTeamMember, platform: Platform) -> str:
    """Add a person, within the plan's limit (`Forbidden` beyond); returns the member's id.

    Asking again with the same member_id finds the same person.
    """
    added = TeamMemberAdded(member_id=command.member_id, email=command.email, name=command.name, role=command.role)

    def work(tx: Transaction) -> None:
        customer, subscription = tx.held_account(command.customer_id)
        limits = subscription.must("No such customer.").limits
        state = customer.must("No such customer.")
        if command.member_id not in state.team:
            customer.append(state.add_team_member(added, limits.max_team_members))

    platform.once(command, work)
    return command.member_id


class RemoveTeamMember(Command):
    customer_id: str
    member_id: str


def remove_team_member(command: RemoveTeamMember, platform: Platform) -> None:
    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        customer.append(customer.must("No such customer.").remove_team_member(command.member_id))

    platform.once(command, work)
