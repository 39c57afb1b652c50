"""A rotation of keys that is killed at any moment loses nothing, and the next one finishes it."""

import multiprocessing
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from adapters.bootstrap import Service, key_file
from adapters.encryption import rewrap, rotate
from adapters.kms.local import add_key
from adapters.kms.vault import EnvelopeVault
from adapters.postgres import key_rotation
from application.ports import KeyDestroyed
from tests.application.test_belongings import add_credential
from tests.application.test_encryption import keys_of, opened
from tests.application.world import World
from tests.faults.test_erasure import service_on

CUSTOMERS = 12
TIMES = 8

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.faults.test_rotation_killed"])


@pytest.fixture
def world(database_url, tmp_path) -> Iterator[World]:
    with World(database_url, tmp_path / "keys" / "wrapping.key") as made:
        for number in range(CUSTOMERS):
            made.onboard(f"c{number}")
            add_credential(made, customer_id=f"c{number}")
        yield made


@pytest.fixture
def service(database_url, tmp_path) -> Iterator[Service]:
    with service_on(database_url, tmp_path) as made:
        yield made


def _rotate(dsn: str, directory: Path, before: datetime, told: Connection) -> None:
    with World(dsn, directory / "keys" / "wrapping.key") as world, service_on(dsn, directory) as service:
        tell = partial(_tell, told)
        rotate(service, world.stamp, made_before=before, destroy_after=timedelta(0), tell=tell)
        tell("done")


def _rewrap(dsn: str, directory: Path, _: datetime, told: Connection) -> None:
    with service_on(dsn, directory) as service:
        tell = partial(_tell, told)
        rewrap(service, tell=tell)
        tell("done")


def _tell(told: Connection, what: str, *_: int) -> None:
    told.send(what)


def killed(work, world: World, directory: Path, before: datetime, after: int) -> list[str]:
    """Have another process do it, and kill that once it told so much of its progress; what it told."""
    hears, told = _context.Pipe(duplex=False)
    process = _context.Process(target=work, args=(world.dsn, directory, before, told), daemon=True)
    process.start()
    told.close()
    heard: list[str] = []
    try:
        while len(heard) < after:
            heard.append(hears.recv())
        process.kill()
        while True:
            heard.append(hears.recv())
    except EOFError:
        process.join()
    return heard


def test_of_data_keys(world, service, tmp_path):
    secrets = opened(service, world)
    assert len(secrets) == 2 * CUSTOMERS
    dice, cut_short = random.Random(7), 0  # noqa: S311 - no secret
    for _ in range(TIMES):
        heard = killed(_rotate, world, tmp_path, datetime.now(UTC), dice.randint(1, 2 * CUSTOMERS))
        cut_short += "done" not in heard
        assert opened(service, world, EnvelopeVault(service.keys, service.data_keys)) == secrets
    assert cut_short >= TIMES // 2
    before = datetime.now(UTC)
    done = rotate(service, world.stamp, made_before=before, destroy_after=timedelta(0))
    assert done.passed_over == ()
    assert done.waiting == 0
    assert key_rotation.to_reseal(service.data_keys.datastore) == []
    # None has more keys than one for each purpose, besides those that sealed what stands in the log.
    assert {row["purpose"] for row in keys_of(world) if row["retired_at"] is not None} == {"personal"}
    assert all(row["created_at"] > before for row in keys_of(world) if row["retired_at"] is None)
    assert opened(service, world, EnvelopeVault(service.keys, service.data_keys)) == secrets


def test_what_is_killed_leaves_secrets_under_both_keys(world, service, tmp_path):
    """The control: whoever took what is retired for what is not needed would lose some."""
    heard = killed(_rotate, world, tmp_path, datetime.now(UTC), CUSTOMERS + 2)
    assert "done" not in heard
    world.execute("DELETE FROM data_keys WHERE retired_at IS NOT NULL")
    with pytest.raises(KeyDestroyed):
        opened(service, world, EnvelopeVault(service.keys, service.data_keys))


def test_of_the_wrapping_key(world, service, tmp_path):
    secrets = opened(service, world)
    add_key(key_file(service.settings))
    dice, cut_short = random.Random(7), 0  # noqa: S311 - no secret
    for _ in range(TIMES):
        heard = killed(_rewrap, world, tmp_path, datetime.now(UTC), dice.randint(1, CUSTOMERS))
        cut_short += "done" not in heard
        assert opened(service, world, EnvelopeVault(service.keys, service.data_keys)) == secrets
        if "done" in heard:
            break
    assert cut_short >= 2
    done = rewrap(service)
    assert (done.others_left, done.damaged) == (0, ())
    versions = {row["version"] for row in keys_of(world)}
    assert versions == set(done.primary)
    assert opened(service, world, EnvelopeVault(service.keys, service.data_keys)) == secrets
