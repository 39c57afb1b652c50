"""Processes that give commands, one after the other, and say which were acknowledged, until they are killed."""

import multiprocessing
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from uuid import uuid4

from application.credentials import AddCredential, add_credential
from application.team import AddTeamMember, add_team_member
from tests.application.world import World

Acknowledged = tuple[str, str]
"""The table in which the effect of a command is, and its key there."""

KEYS = {
    "customer_profiles": "customer_id",
    "customer_team_members": "member_id",
    "customer_cloud_credentials": "credential_id",
    "customer_pipeline_configs": "config_id",
    "scheduled_pipeline_runs": "run_id",
}
MUCH = {"max_team_members": 100_000, "max_pipelines_per_day": 100_000, "max_pipelines_per_month": 100_000}
_MOST_OF_A_KIND = 90

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.acknowledging"])


def work(dsn: str, key_file: Path, at: datetime, told: Connection) -> None:
    """Give commands for a customer of one's own, for ever; every line is sent once the command has returned."""
    dice = random.Random(os.getpid())  # noqa: S311 - which commands is no secret
    with World(dsn, key_file, size=2) as world:
        world.at = at
        while True:
            customer_id = f"c{uuid4().hex[:12]}"
            world.onboard(customer_id)
            _say(told, "customer_profiles", customer_id)
            world.limits(customer_id, **MUCH)
            for number in range(_MOST_OF_A_KIND):
                _some_command(world, customer_id, told, dice.randrange(5), number)


def _say(told: Connection, table: str, key: str) -> None:
    told.send_bytes(f"{table} {key}".encode())


def _some_command(world: World, customer_id: str, told: Connection, which: int, number: int) -> None:
    stamp = {**world.stamp(), "customer_id": customer_id}
    match which:
        case 0:
            adding = AddTeamMember(**stamp, email=f"p{number}@example.com", name="P")
            _say(told, "customer_team_members", add_team_member(adding, world.platform))
        case 1:
            credential = AddCredential(
                **stamp, provider="AWS", credential_type="ACCESS_KEY", credential_name="n", credentials={"secret": "s"}
            )
            _say(told, "customer_cloud_credentials", add_credential(credential, world.platform, world.vault))
        case 2:
            _say(told, "customer_pipeline_configs", world.pipeline(customer_id))
        case 3:
            orders = world.claim(f"w{os.getpid()}", limit=2)
            world.report(orders, f"w{os.getpid()}")
        case _:
            _say(told, "scheduled_pipeline_runs", world.request(customer_id))


class Clients:
    """So many of these processes, and what they were told."""

    def __init__(self, count: int, world: World, key_file: Path) -> None:
        self.acknowledged: set[Acknowledged] = set()
        self._told: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for _ in range(count):
            told, says = _context.Pipe(duplex=False)
            process = _context.Process(target=work, args=(world.dsn, key_file, world.at, says), daemon=True)
            process.start()
            says.close()
            self._told.append(told)
            self._processes.append(process)

    def listen(self, until: int) -> None:
        """Returns once that much was acknowledged to them together."""
        while len(self.acknowledged) < until:
            assert self._told, "all of them ended by themselves"
            self._hear()

    def kill(self) -> set[Acknowledged]:
        """SIGKILL for all of them; everything that was acknowledged to them, to the last word."""
        for process in self._processes:
            process.kill()
        while self._told:
            self._hear()
        for process in self._processes:
            process.join()
        return self.acknowledged

    def _hear(self) -> None:
        for told in wait(self._told):
            assert isinstance(told, Connection)
            try:
                table, _, key = told.recv_bytes().decode().partition(" ")
            except EOFError:
                told.close()
                self._told.remove(told)
            else:
                self.acknowledged.add((table, key))


@contextmanager
def clients(count: int, world: World, key_file: Path) -> Iterator[Clients]:
    """They are dead when the block ends."""
    made = Clients(count, world, key_file)
    try:
        yield made
    finally:
        made.kill()


def lost(world: World, acknowledged: set[Acknowledged]) -> set[Acknowledged]:
    """What was acknowledged, and is not in the tables or not in the log."""
    events = " ".join(world.scalar("SELECT array_agg(convert_from(state, 'UTF8')) AS states FROM stored_events"))
    streams = " ".join(map(str, world.scalar("SELECT array_agg(DISTINCT originator_id) AS ids FROM stored_events")))
    there = {(table, row[KEYS[table]]) for table in KEYS for row in world.rows(table)}
    return {(table, key) for table, key in acknowledged if (table, key) not in there or key not in events + streams}
