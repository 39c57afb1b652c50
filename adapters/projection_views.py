"""How far projections are, what keeps them from going on, and what an operator does about it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Final

from adapters.postgres import rebuilds
from adapters.postgres.event_log import Datastore
from adapters.postgres.reads import projections
from adapters.postgres.reads.projections import Standing
from adapters.status_views import ProjectionsView, ProjectionView, RebuildView, SkipView, Trouble
from projections.follow import ProblemKind

LAGGING_SECONDS: Final = 60.0
"""Events that wait longer than this for a projection are worth a word."""
_REBUILDS: Final = 5


def look_at(datastore: Datastore, now: datetime | None = None) -> list[ProjectionView]:
    """Every projection, by the database's clock unless `now` is given; raises `Away` with the database."""
    return [view(standing) for standing in projections.standings(datastore, now)]


def look_at_all(datastore: Datastore) -> ProjectionsView:
    """As `look_at`, with what is passed over and rebuilt."""
    views = look_at(datastore)
    return ProjectionsView(
        log_end=max(shown.log_end for shown in views),
        items=views,
        skipped=[SkipView.model_validate(skip, from_attributes=True) for skip in projections.skips(datastore)],
        rebuilds=[
            RebuildView.model_validate({**asdict(rebuild), "rebuild_id": str(rebuild.rebuild_id)})
            for rebuild in rebuilds.newest(datastore, _REBUILDS)
        ],
    )


def view(found: Standing) -> ProjectionView:
    """A projection as it is shown: one that only lags has a problem too."""
    return ProjectionView(
        name=found.projection,
        position=found.position,
        log_end=found.log_end,
        behind=found.behind,
        behind_seconds=None if found.behind_seconds is None else round(found.behind_seconds, 1),
        events_per_second=None if found.events_per_second is None else round(found.events_per_second, 1),
        alive=found.led,
        stopped=found.stopped,
        problem=found.problem or _lags(found),
        problem_kind=found.problem_kind,
        problem_position=found.problem_position,
        problem_topic=found.problem_topic,
        problem_since=found.problem_since,
        skipped=found.skipped,
    )


def in_public(shown: ProjectionView) -> ProjectionView:
    """As anybody may see it: a backend's own words may name customers."""
    match shown.problem_kind:
        case ProblemKind.EVENT:
            problem = f"stopped at position {shown.problem_position}."
        case ProblemKind.AWAY:
            problem = "waits for a backend that does not answer."
        case ProblemKind.FAULT:
            problem = "does not go on; the log of the projector says why."
        case _:
            return shown
    return shown.model_copy(update={"problem": problem})


def _lags(found: Standing) -> str | None:
    if not found.behind or (found.behind_seconds or 0.0) <= LAGGING_SECONDS:
        return None
    alone = "" if found.led else " No process works on it."
    return f"is {found.behind} events and {found.behind_seconds:.0f} seconds behind.{alone}"


def problems_of(views: Sequence[ProjectionView]) -> Iterator[Trouble]:
    """What is wrong with projections, and what an operator does about it."""
    for shown in views:
        if shown.problem is not None:
            yield Trouble(problem=f"Projection {shown.name}: {shown.problem}", remedy=_remedy(shown))


def _remedy(shown: ProjectionView) -> str:
    match shown.problem_kind:
        case ProblemKind.EVENT:
            skip = f'convergence projections skip {shown.name} --position {shown.problem_position} --reason "..."'
            return f"A newer version may read it; the log can be restored; or have it passed over for good: {skip}"
        case ProblemKind.AWAY:
            return "It goes on by itself once the backend answers."
        case ProblemKind.FAULT:
            return "Look at the log of the projector."
    if shown.alive:
        return "It catches up, or is slow: look at its rate with convergence projections, and at the projector's log."
    return "Start a projector: convergence projector."
