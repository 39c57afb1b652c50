"""What surrounds every event: where it stands in which stream, when it happened, and who caused it."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who asked for something, and what it belongs to.

    `actor` says what kind of caller it was, and which one of them: `customer:{customer_id}/{api_key_id}`; `admin` with
    the operators' key, `admin/next` with the one that is to follow it, `admin/cli:{os user}` at a command line;
    `scheduler:{worker_id}`, `worker:{worker_id}` and `service:{worker_id}` for processes of the service, by the
    WORKER_ID that names them; `stripe`; `anyone` who needs no key. Events of earlier days may name the kind alone.

    `command_id` is shared by all events that were decided together. `request_id` is the HTTP request in which that was
    done, `correlation_id` what all of it belongs to in the end: the request or command that set it off, also where a
    worker does the rest later. `causation_id` is the command whose events led to this one.
    """

    actor: str
    command_id: str
    correlation_id: str
    request_id: str | None = None
    causation_id: str | None = None

    @property
    def kind(self) -> str:
        """`customer`, `admin`, `scheduler`, `worker`, `service`, `stripe` or `anyone`."""
        return self.actor.partition(":")[0].partition("/")[0]

    def carrying_on(self, began: "Origin", latest: "Origin") -> "Origin":
        """The same, as part of what `began` set off and caused by what `latest` did."""
        return Origin(
            actor=self.actor,
            command_id=self.command_id,
            correlation_id=began.correlation_id,
            request_id=self.request_id,
            causation_id=latest.command_id,
        )


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
