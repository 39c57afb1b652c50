"""The four roles of the service (api, scheduler, worker, projector), each a thread here or a process of its own."""

import logging
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import Final

import uvicorn

from adapters.bootstrap import Service, build
from adapters.database import connected, required
from adapters.http.app import create_app
from adapters.kms.local import KeyFileRefused
from adapters.postgres import schema
from adapters.presence import Presence
from adapters.process import Late, Part, Shutdown, Unable, bind, settle, stop_in_order
from adapters.projector import run_projector
from adapters.running import Place
from adapters.scheduler import run_scheduler, run_takeover
from adapters.settings import Settings
from adapters.worker import run_worker
from application.ports import Away, Purpose

logger = logging.getLogger(__name__)

_ANSWER_S: Final = 20
"""How long requests in hand have to be answered once the API stops."""


class Role(StrEnum):
    API = "api"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    PROJECTOR = "projector"


OPENS: Final[Mapping[Role, frozenset[Purpose]]] = {
    # It shows a first API key once, and executes a run when it is asked to: as the worker that it then is.
    Role.API: frozenset({Purpose.PERSONAL, Purpose.API_KEY, Purpose.CREDENTIAL}),
    Role.SCHEDULER: frozenset({Purpose.PERSONAL}),
    Role.WORKER: frozenset({Purpose.PERSONAL, Purpose.CREDENTIAL}),
    # It signs what is posted to customers' endpoints.
    Role.PROJECTOR: frozenset({Purpose.PERSONAL, Purpose.WEBHOOK}),
}
"""What a process of one role alone opens of what customers have sealed."""

_WORK: Final[dict[Role, Callable[[Service, threading.Event, Presence], None]]] = {
    Role.SCHEDULER: lambda service, stop, _: run_scheduler(service, stop),
    Role.WORKER: lambda service, stop, presence: run_worker(service, stop, began=presence.watch),
    Role.PROJECTOR: lambda service, stop, _: run_projector(service, stop),
}


def part(role: Role, service: Service, presence: Presence) -> Part:
    """A role other than the API as a part of this process; a worker's figures are shown by `presence`."""
    work = _WORK[role]
    return Part(role, lambda stop: work(service, stop, presence))


def api_part(
    service: Service,
    listener: socket.socket,
    on_answering: Callable[[], None],
    *,
    takeover: Callable[[Service, threading.Event], None] = run_takeover,
) -> Part:
    """The API on a socket that is bound already; `on_answering` is called once it answers."""

    def serve(stop: threading.Event) -> None:
        # It executes runs when it is asked to, and there may be no worker to notice that another one like it died.
        threading.Thread(target=takeover, args=(service, stop), name="takeover", daemon=True).start()
        _serve_http(service, listener, on_answering, stop)

    return Part(Role.API, serve)


class _Server(uvicorn.Server):
    """Tells when it answers."""

    def __init__(self, config: uvicorn.Config, on_answering: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_answering = on_answering

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_answering()


def _serve_http(
    service: Service, listener: socket.socket, on_answering: Callable[[], None], stop: threading.Event
) -> None:
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        # TRUSTED_PROXIES says whose word is taken.
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_keep_alive=20,
        timeout_graceful_shutdown=_ANSWER_S,
    )
    server = _Server(config, on_answering)

    def end() -> None:
        stop.wait()
        server.should_exit = True

    threading.Thread(target=end, name="api stop", daemon=True).start()
    server.run(sockets=[listener])


def run_role(role: Role, place: Place, shutdown: Shutdown, announce: Callable[[], None]) -> None:
    """Run one role until a signal comes; returns when it has stopped. Raises `Unable` with a sentence."""
    settings = place.settings
    listener = bind(settings.host, settings.port) if role is Role.API else None
    service = opened(place, OPENS[role])
    try:
        if shutdown.is_due:
            return
        with Presence(service, [role]) as presence:
            running = api_part(service, listener, announce) if listener else part(role, service, presence)
            running.start(shutdown)
            if not listener:
                announce()
            logger.info("stopping (%s)", shutdown.wait())
            end([[running]])
    finally:
        service.close()
        if listener:
            listener.close()
    if shutdown.failure is not None:
        raise Unable(shutdown.failure)


def end(groups: Sequence[Sequence[Part]]) -> None:
    """Stop the parts in order; raises `Late` when one does not stop in time."""
    late = stop_in_order(groups)
    if late:
        raise Late(f"The {' and the '.join(late)} did not stop in time; what was in hand is taken over by others.")


def opened(place: Place, opens: Collection[Purpose] = frozenset({Purpose.PERSONAL})) -> Service:
    """The service on the database of `place`, whose schema fits this code. Raises `Unable`.

    `opens` is what it may open of customers' secrets.
    """
    with connected(place.dsn) as connection:
        if not schema.is_current(connection):
            raise Unable("The database's schema is not this version's: run `convergence migrate` first.")
    return built(place.settings, required(place.dsn), opens)


def built(settings: Settings, dsn: str, opens: Collection[Purpose] = frozenset(Purpose)) -> Service:
    """`bootstrap.build`, with what can be wrong on this machine said in a sentence by `Unable`."""
    try:
        service = build(settings, dsn, opens=opens)
    except (ValueError, KeyFileRefused, Away) as error:
        raise Unable(str(error)) from error
    except OSError as error:
        raise Unable(f"{error.filename or settings.data_dir} cannot be used: {error.strerror}.") from error
    settle()
    return service
