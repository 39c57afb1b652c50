"""A projection as an operator decides about it: which events it passes over."""

from dataclasses import dataclass, replace
from typing import Final

from domain.refusals import Conflict

POSTGRES: Final = "postgres"
"""The tables of the service itself, written with the events; they follow the log only when they are made anew."""
WAREHOUSE: Final = "bigquery"
NOTIFICATIONS: Final = "notifications"
PROJECTIONS: Final = (POSTGRES, WAREHOUSE, NOTIFICATIONS)


# --- facts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSkipped:
    """`position` is that of the event in the log, `topic` the name under which it is stored there."""

    projection: str
    position: int
    topic: str
    reason: str


# --- decisions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The event before which a projection stands still, because it can make nothing of it."""

    position: int
    topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """One reader of the whole log. It belongs to no customer."""

    name: str
    skipped: frozenset[int] = frozenset()
    customer_id: str = ""

    def skip(self, position: int, stop: Stop | None, reason: str) -> tuple[EventSkipped, ...]:
        """Pass over the event that it stands before, for good; doing so again changes nothing.

        Raises `Conflict`, saying where it stands, for any other one.
        """
        if position in self.skipped:
            return ()
        if stop is None:
            raise Conflict(f"Projection {self.name} does not stand stopped at an event: there is nothing to skip.")
        if position != stop.position:
            raise Conflict(f"Projection {self.name} stands stopped at position {stop.position}, not at {position}.")
        return (EventSkipped(projection=self.name, position=position, topic=stop.topic, reason=reason),)


# --- fold ---------------------------------------------------------------------------------------------------------


def evolve(state: Projection | None, event: EventSkipped) -> Projection:
    """A projection is there from the beginning: what is decided about it first is its first event."""
    known = state or Projection(name=event.projection)
    return replace(known, skipped=known.skipped | {event.position})
