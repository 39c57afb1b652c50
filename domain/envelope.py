"""What surrounds every event: where it stands in which stream, when it happened, and who caused it."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who asked for something, and what it belongs to.

    `actor` is `customer:{id}`, `admin`, `anyone`, `scheduler`, `worker:{id}` or `service`. All events of one outside
    request share its `correlation_id`; `causation_id` names the command or event that led to this command.
    """

    actor: str
    command_id: str
    correlation_id: str
    request_id: str | None = None
    causation_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The place and the circumstances of one event. `position` is its place in the whole log, once it has one."""

    stream_id: UUID
    version: int
    topic: str
    customer_id: str
    at: datetime
    by: Origin
    position: int = 0
