"""One database with a virtual clock for all tests of a module."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.simulation.virtual_clock import VirtualClock, virtual_database


@dataclass(frozen=True)
class Stage:
    """Where a life can be lived: a virtual database, its clock, and the file of a key."""

    dsn: str
    key_file: Path
    clock: VirtualClock


@pytest.fixture(scope="module")
def stage(postgres_server, tmp_path_factory) -> Iterator[Stage]:
    with virtual_database(postgres_server.dsn) as dsn:
        clock = VirtualClock(dsn)
        yield Stage(dsn, tmp_path_factory.mktemp("keys") / "key", clock)
        clock.close()
