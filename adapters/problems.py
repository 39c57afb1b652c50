"""What is wrong with the service now, and what an operator does about it."""

from collections.abc import Iterator, Mapping
from typing import Final

from adapters.projection_views import problems_of
from adapters.status_views import StatusView, Trouble

WAIT_S: Final = 60.0
"""A run that could start and waits for a worker longer than this is a problem."""
_SLOT_LATE_S: Final = 120.0
_LEASE_OVER_S: Final = 20.0
"""Workers take over every ten seconds: a lease that has been over for longer is taken over by nobody."""
_YOUNG_S: Final = 80.0
"""A worker begins to take over a lease's time after its start: of a younger one nothing can be said."""


FULL: Final = Trouble(
    problem="The database's disk is full: nothing can be stored.",
    remedy="Make room on PostgreSQL's disk. All goes on by itself then.",
)


def problems(
    status: StatusView,
    *,
    longest_wait_s: float | None,
    overdue_s: Mapping[str, float],
    wait_s: float = WAIT_S,
    given_up: int = 0,
    full: bool = False,
) -> list[Trouble]:
    """Slots that nobody triggers, runs that no worker starts or a dead one holds, projections that do not go on.

    `longest_wait_s` is how long the first of the runs that could start waits, `overdue_s` says of each worker id for
    how long the oldest of its leases has been over. `given_up` deliveries were so within a day. `full` says that
    the database's disk was.
    """
    return [
        *([FULL] if full else []),
        *_slots_late(status),
        *_runs_left_waiting(status, longest_wait_s, wait_s),
        *_runs_left_behind(status, overdue_s),
        *problems_of(status.projections),
        *undelivered(given_up),
    ]


def undelivered(given_up: int) -> Iterator[Trouble]:
    """What to do about deliveries of notifications that were given up."""
    if given_up:
        were = "1 delivery of a notification was" if given_up == 1 else f"{given_up} deliveries of notifications were"
        yield Trouble(
            problem=f"{were} given up.",
            remedy="convergence notifications list --state DEAD says why; convergence notifications replay ID retries.",
        )


def _slots_late(status: StatusView) -> Iterator[Trouble]:
    if status.due_seconds is None or status.due_seconds <= _SLOT_LATE_S:
        return
    lives = status.alive["scheduler"]
    yield Trouble(
        problem=f"{_pipelines(status.due)} been due for {span(status.due_seconds)} and not been triggered.",
        remedy="Look at the schedulers' logs: one that lives does not trigger them."
        if lives
        else "Start a scheduler: convergence scheduler.",
    )


def _runs_left_waiting(status: StatusView, seconds: float | None, wait_s: float) -> Iterator[Trouble]:
    if seconds is None or seconds <= wait_s:
        return
    if not status.alive["worker"]:
        remedy = "No worker lives. Start one: convergence worker."
    elif status.places_free:
        remedy = "Workers have room and do not take it: look at their logs."
    else:
        remedy = "All workers are busy. Start another one (convergence worker), or raise WORKER_CONCURRENCY."
    yield Trouble(problem=f"A run that could start has waited {span(seconds)} for a worker.", remedy=remedy)


def _runs_left_behind(status: StatusView, overdue: Mapping[str, float]) -> Iterator[Trouble]:
    for worker in status.workers:
        over = overdue.get(worker.worker_id, 0.0)
        if not worker.runs or (worker.alive is not False and over <= _LEASE_OVER_S):
            continue
        ago = f", last seen {span(worker.seen_seconds_ago)} ago," if worker.seen_seconds_ago is not None else ""
        others = status.alive["worker"] > 0
        soon = over <= _LEASE_OVER_S or not _grown(status)
        runs = f"{worker.runs} run" if worker.runs == 1 else f"{worker.runs} runs"
        if worker.alive:
            sentence = f"Worker {worker.worker_id} lives, and the lease of a run that it holds is over."
            remedy = "Look at its log; another worker takes the run over."
        else:
            sentence = f"Worker {worker.worker_id}{ago} is dead and holds {runs}."
            remedy = (
                "Nothing, for a minute: another worker takes them over."
                if others and soon
                else "Look at the other workers' logs: none takes them over."
                if others
                else "No worker lives to take them over. Start one: convergence worker."
            )
        yield Trouble(problem=sentence, remedy=remedy)


def _grown(status: StatusView) -> bool:
    return any(
        worker.alive and worker.started_at and (status.now - worker.started_at).total_seconds() > _YOUNG_S
        for worker in status.workers
    )


def _pipelines(count: int) -> str:
    return "1 pipeline has" if count == 1 else f"{count} pipelines have"


def span(seconds: float) -> str:
    """A span of time for people: `8 s`, `3 min 20 s`, `5 h 3 min`, `2 d 4 h`."""
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"
