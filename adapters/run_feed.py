"""Runs as they change state, read from the log as it grows, and single runs from their events."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from adapters.event_views import Closed
from adapters.following import Following, Listening
from adapters.http.run_views import RunView, moment, run_view
from adapters.postgres.event_log import Datastore
from adapters.postgres.listener import Handler, Listener
from adapters.postgres.reads import run_events, runs
from adapters.postgres.store import PostgresStore
from application.command import as_uuid
from application.mapper import EventMapper, Recorded
from application.platform import Platform
from application.runs import run_history
from projections.project import central_rows
from projections.rows import Forget
from projections.tables import SCHEDULED_PIPELINE_RUNS

_PAGE: Final = 1000
_TOLD_AT_THE_END: Final = ("rows_processed", "actual_end_time")


# Nothing in a run's events is sealed, and who looks at runs needs no keys.
_MAPPER: Final = EventMapper(Closed())


@dataclass(frozen=True, slots=True)
class Transition:
    """A run came into the state that `row` shows, and the words of the timeline for it.

    What the event does not tell of the other columns is as it stands now.
    """

    at: datetime
    position: int
    row: Mapping[str, Any]
    text: str


def one(datastore: Datastore, run_id: str) -> RunView | None:
    """A run in full, with steps and timeline; None when there is none of that id."""
    stream_id = as_uuid(run_id)
    # What is no run may be another stream, whose events are not all readable without keys.
    if stream_id is None or not runs.named(datastore, [str(stream_id)]):
        return None
    return run_view(run_history(str(stream_id), Platform(PostgresStore(datastore), _MAPPER)))


class Feed(Following[Transition]):
    """Every change of state after a position of the log, in order and exactly once, as they come."""

    def __init__(
        self,
        datastore: Datastore,
        dsn: str,
        position: int,
        listen: Callable[[str, Mapping[str, Handler]], Listening] = Listener,
    ) -> None:
        def look(after: int) -> tuple[list[Transition], int]:
            found, reached = run_events.after(datastore, after, limit=_PAGE)
            return _transitions(datastore, [r for e in found for r in _MAPPER.to_domain_events(e)]), reached

        super().__init__(look, dsn, position, listen)


def _transitions(datastore: Datastore, recorded: list[Recorded]) -> list[Transition]:
    rows = runs.named(datastore, list({str(r.envelope.stream_id) for r in recorded})) if recorded else {}
    found: list[Transition] = []
    for r in recorded:
        row = rows.get(str(r.envelope.stream_id))
        for change in central_rows(r.event, r.envelope):
            if row is None or change.table is not SCHEDULED_PIPELINE_RUNS or isinstance(change, Forget):
                continue
            if "state" in change.values:
                # Not yet known at that event, unless it tells them.
                later = {"attempt": getattr(r.event, "attempt", row["attempt"])} | dict.fromkeys(_TOLD_AT_THE_END)
                shown = {**row, **later, **change.values}
                text = moment(r.event, r.envelope).text
                found.append(Transition(r.envelope.at, r.envelope.position, shown, text))
    return found
