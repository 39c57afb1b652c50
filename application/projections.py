"""What operators decide about projections."""

from typing import Literal

from pydantic import Field

from application.command import Command, Line
from application.platform import Platform, Transaction
from domain.projection import Projection

ProjectionName = Literal["postgres", "bigquery", "notifications"]


class SkipEvent(Command):
    """Have a projection pass over the event that it stands stopped at, for good and also when it is made anew."""

    projection: ProjectionName
    position: int = Field(ge=1, le=2**63 - 1)
    reason: Line


def skip_event(command: SkipEvent, platform: Platform) -> None:
    """Record that the projection passes over the event; doing so again changes nothing.

    Raises `Conflict`, saying where the projection stands, when that is not the event that it stands stopped at.
    """

    def work(tx: Transaction) -> None:
        # Held until the end: its leader does not move it on meanwhile.
        stop = tx.session.lock_stop(command.projection)
        stream = tx.projection(command.projection)
        known = stream.state or Projection(name=command.projection)
        stream.append(known.skip(command.position, stop, command.reason))

    platform.transact(command, work)
