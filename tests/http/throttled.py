"""Processes that serve the API with small limits, each also in variants whose limits are broken."""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import httpx

from adapters.bootstrap import build
from adapters.http.figures import Figures
from adapters.http.guesses import Attempt, Guesses
from adapters.http.ledger import Ledger, LocalBuckets, too_many
from adapters.http.throttle import SharedAllowances, Throttle
from adapters.settings import Settings
from tests.http.running import NOWHERE, Clock, Running

PROCESSES: Final = 3
CALLS: Final = 60
FAILURES: Final = 8
SMALL: Final = {
    "rate_limit_per_minute": CALLS,
    "source_rate_limit_per_minute": 600,
    "failed_keys_per_minute": FAILURES,
    "trusted_proxies": "127.0.0.1",
}
"""Sources are chosen by X-Forwarded-For: the tests stand where a proxy would."""
VARIANTS: Final = (("shared", "alone", "locking"), ("shared", "alone"), ("shared",))
"""What each process serves."""


class LocksTheCustomerOut(Guesses):
    """Refuses every key of a customer whose keys are being guessed, right or wrong."""

    def admit(self, attempt: Attempt) -> None:
        if attempt.prefix and (wait_s := self.under_attack_s(attempt.prefix)):
            raise too_many("Locked.", wait_s)


def limits(variant: str, dsn: str, settings: Settings) -> Throttle:
    """The real limits, ones that each process counts alone, or ones that lock a customer out."""
    figures = Figures()
    if variant == "alone":
        return Throttle.over(Ledger(LocalBuckets().take), settings, figures)
    shared = Throttle.shared(dsn, settings, figures)
    if variant == "locking":
        allowances = SharedAllowances(dsn)
        ledger = Ledger(allowances.take)
        guesses = LocksTheCustomerOut(ledger, FAILURES, figures)
        return Throttle(guesses, shared.rates, (allowances.close, ledger.close, *shared.ends))
    return shared


def serve(dsn: str, directory: Path, variants: Sequence[str], told: Connection) -> None:
    """One process: every variant on a port of its own, until the other end of the pipe is closed."""
    settings = Settings(data_dir=directory, bigquery_emulator_host=NOWHERE, worker_id="tests", **SMALL)
    service = build(settings, dsn)
    with ExitStack() as stack:
        stack.callback(service.close)
        servers = {v: Running(service, Clock(), throttle=limits(v, dsn, settings)) for v in variants}
        for server in servers.values():
            stack.enter_context(server)
        told.send({variant: server.url for variant, server in servers.items()})
        try:
            told.recv()
        except EOFError:
            return


@contextmanager
def processes(dsn: str, directory: Path) -> Iterator[Mapping[str, list[httpx.Client]]]:
    """Clients of the processes, by variant."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.http.throttled"])
    with ExitStack() as stack:
        started = []
        for variants in VARIANTS:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(dsn, directory, variants, there), daemon=True)
            process.start()
            there.close()
            stack.callback(process.join, 30)
            started.append(here)
        for here in started:
            stack.callback(here.close)
        urls = [here.recv() for here in started]
        yield {
            variant: [stack.enter_context(httpx.Client(base_url=u[variant], timeout=30)) for u in urls if variant in u]
            for variant in VARIANTS[0]
        }
