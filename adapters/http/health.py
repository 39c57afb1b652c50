"""Whether the process lives, whether it can work, and its figures for Prometheus."""

from collections.abc import Iterator, Sequence
from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from adapters.http.api import Api, Parts
from adapters.notifications import deliveries
from adapters.postgres import processes
from adapters.postgres.reads import health, queue, runs
from adapters.problems import FULL
from adapters.projection_views import in_public, look_at, problems_of
from adapters.status_views import ProjectionView
from application.ports import Away

router = APIRouter(tags=["Health"])


class Alive(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """`degraded` works, with projections that lag: their readers see older data, commands do not wait for them."""

    status: Literal["ready", "degraded", "not ready"]
    database: str
    schema_: str = Field(serialization_alias="schema")
    log_end: int | None
    projections: list[ProjectionView]
    problems: list[str]


@router.get("/livez", summary="Is the process alive?")
async def livez() -> Alive:
    """Answers as long as the process does; looks at nothing else."""
    return Alive()


@router.get(
    "/readyz",
    summary="Can the process work?",
    responses={503: {"model": Readiness, "description": "`problems` says what is wrong."}},
)
def readyz(api: Parts, response: Response) -> Readiness:
    """The database answers and has this code's schema (503 otherwise); and how far every projection has come."""
    readiness = _readiness(api)
    if readiness.status == "not ready":
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    return readiness


def _readiness(api: Api) -> Readiness:
    try:
        current = health.schema_is_current(api.service.datastore)
        if not current:
            return _not_ready("ok", "not current", "The schema is not this code's: run convergence migrate.")
        end = api.service.log.end()
        projections = [in_public(shown) for shown in look_at(api.service.datastore, api.now())]
    except Away:
        return _not_ready("away", "unknown", "The database does not answer.")
    full = [FULL] if api.service.datastore.full else []
    problems = [found.problem for found in (*full, *problems_of(projections))]
    return Readiness(
        status="degraded" if problems else "ready",
        database="ok",
        schema_="current",
        log_end=end,
        projections=projections,
        problems=problems,
    )


def _not_ready(database: str, schema: str, problem: str) -> Readiness:
    return Readiness(
        status="not ready", database=database, schema_=schema, log_end=None, projections=[], problems=[problem]
    )


def _projection_figures(standing: Sequence[ProjectionView]) -> Iterator[GaugeMetricFamily]:
    for name, meaning, values in (
        ("lag_events", "Events that a projection has not handled.", [float(s.behind) for s in standing]),
        ("lag_seconds", "The age of the oldest of them.", [s.behind_seconds for s in standing]),
        ("stopped", "Whether it stands at an event that it can make nothing of.", [float(s.stopped) for s in standing]),
        ("alive", "Whether a process works on it.", [float(s.alive) for s in standing]),
        ("skipped_events", "Events that operators had it pass over.", [float(s.skipped) for s in standing]),
    ):
        figures = GaugeMetricFamily(f"convergence_projection_{name}", meaning, labels=["projection"])
        for shown, value in zip(standing, values, strict=True):
            if value is not None:
                figures.add_metric([shown.name], value)
        yield figures


class ServiceFigures(Collector):
    """What is read from the database when Prometheus asks."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Nothing but `convergence_up 0` while the database is away."""
        datastore = self._api.service.datastore
        try:
            states = runs.counts_by_state(datastore)
            alive = processes.alive_by_role(datastore)
            slots = queue.now(datastore)
            waiting = queue.waiting(datastore, customers=1)
            overdue = sum(over > 0 for _, over in queue.held_by_worker(datastore).values())
            end = self._api.service.log.end()
            standing = look_at(datastore, self._api.now())
            told = deliveries.counts(datastore)
        except Away:
            yield GaugeMetricFamily("convergence_database_up", "Whether the database answers.", value=0)
            return
        yield GaugeMetricFamily("convergence_database_up", "Whether the database answers.", value=1)
        by_state = GaugeMetricFamily(
            "convergence_runs",
            "Runs that wait or run, and that ended today (UTC).",
            labels=["state"],
        )
        for state, count in states.items():
            by_state.add_metric([state], count)
        yield by_state
        longest = waiting[0] if waiting else {}
        for name, meaning, value in (
            ("queue_depth", "Runs that wait for a worker.", states["PENDING"]),
            ("oldest_wait_seconds", "How long the oldest ready run waits.", longest.get("longest_wait_seconds")),
            (
                "startable_wait_seconds",
                "How long the oldest run that could start waits for a worker.",
                longest.get("longest_startable_seconds"),
            ),
            ("due_pipelines", "Pipelines whose slot has come and that were not triggered.", slots["due"]),
            ("overdue_workers", "Workers that hold runs whose leases are over.", overdue),
            ("log_end", "The position of the newest event.", end),
            ("notifications_pending", "Deliveries of notifications that wait.", told.pending),
            ("notifications_dead", "Deliveries that were given up and not replayed, in 90 days.", told.dead),
        ):
            yield GaugeMetricFamily(f"convergence_{name}", meaning, value=value or 0)
        by_role = GaugeMetricFamily("convergence_processes", "Processes that live, by role.", labels=["role"])
        for role, count in alive.items():
            by_role.add_metric([role], count)
        yield by_role
        yield from _projection_figures(standing)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Registering asks the database nothing."""
        yield from ()


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
def metrics(api: Parts) -> Response:
    """Requests by route and status, runs by state, queue depth and oldest wait, living processes, projection lag."""
    registry: CollectorRegistry = api.figures.registry
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
