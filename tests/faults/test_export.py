"""Exports of the log: exact, whole or not there, gone on with after any end, and with nothing secret in clear."""

import base64
import gzip
import json
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.archive.manifest import MANIFEST, UNFINISHED
from adapters.archive.reading import opened
from adapters.export import export
from adapters.postgres import seals
from adapters.postgres.maintenance import maintenance
from adapters.process import Unable
from application.credentials import AddCredential, add_credential
from tests.application.busy import Busy
from tests.application.world import World
from tests.faults.archives import check, files, flip_a_byte, key_of, lived_in, seal

SMALL = 20
"""Events to a segment."""


@pytest.fixture
def lived(database_url, tmp_path):
    """A world after a while."""
    with lived_in(database_url, tmp_path / "var") as world:
        busy = Busy(world, seed=11).begin()
        for _ in range(40):
            busy.step()
        world.busy = busy
        yield world


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "archive"


def stored(world: World) -> list[tuple]:
    with maintenance(world.dsn, name="test") as connection:
        return [tuple(event) for event in seals.events_to(connection, 2**62)]


def archived(directory: Path) -> list[tuple]:
    with opened(directory) as archive:
        lines = [line for line, _ in archive.events()]
    return [(e.position, e.stream_id, e.version, e.topic, e.stored, e.customer_id) for e in lines]


def test_every_event_is_there_byte_for_byte_and_hashes_like_the_seals(lived, directory):
    odd = [b'{ "a" :\t1.0 ,"b":"\\u00fc \xc3\xbc"}\n', b"\xff\x00\xfe", b"", b'"\\u0000\xe2\x80\xa8"']
    for version, state in enumerate(odd, 1):
        lived.tamper(
            "INSERT INTO stored_events (originator_id, originator_version, topic, state, customer_id)"
            " VALUES ('00000000-0000-0000-0000-000000000001', %s, 'odd \"ü\"@1', %s, %s)",
            version,
            state,
            None if version % 2 else "ÄCME",
        )
    seal(lived.dsn)
    done = export(lived.dsn, directory, segment_events=SMALL)
    assert archived(directory) == stored(lived)
    checked = check(directory)
    with maintenance(lived.dsn, name="test") as connection:
        sealed = seals.last(connection)
    assert (checked.hash, checked.sealed_to, checked.broken_seal) == (sealed.hash.hex(), sealed.position, None)
    assert (done.events, done.hash) == (checked.events, checked.hash) == (sealed.events, sealed.hash.hex())
    assert len(files(directory, "events")) == -(-done.events // SMALL)


def test_a_log_that_was_changed_after_it_was_sealed_is_told_by_its_archive(lived, directory):
    seal(lived.dsn)
    lived.tamper("UPDATE stored_events SET topic = topic || 'x' WHERE notification_id = 5")
    export(lived.dsn, directory)
    assert check(directory).broken_seal is not None


def test_the_next_export_adds_what_is_new_and_leaves_the_rest_alone(lived, directory):
    first = export(lived.dsn, directory, segment_events=SMALL)
    before = {path: path.stat().st_ino for path in files(directory, "events")}
    assert export(lived.dsn, directory, segment_events=SMALL).added == 0
    for _ in range(30):
        lived.busy.step()
    second = export(lived.dsn, directory, segment_events=SMALL)
    assert (second.added, second.events) == (second.events - first.events, len(stored(lived)))
    assert second.added > 0
    assert {path: path.stat().st_ino for path in before} == before
    assert archived(directory) == stored(lived)


def test_exports_while_others_write_are_stretches_of_the_log(lived, directory):
    def live() -> None:
        for _ in range(150):
            lived.busy.step()

    exports = 0
    with ThreadPoolExecutor(1) as threads:
        living = threads.submit(live)
        while not living.done():
            export(lived.dsn, directory, segment_events=SMALL)
            exports += 1
            found = archived(directory)
            assert found == stored(lived)[: len(found)]
        living.result()
    assert exports > 1
    export(lived.dsn, directory, segment_events=SMALL)
    assert archived(directory) == stored(lived)


CHILD = """
import sys
from pathlib import Path
from adapters.export import export

def tell(stage, done, total):
    if stage == "Events" and done >= int(sys.argv[2]):
        print(done, flush=True)
        sys.stdin.read()

export(sys.stdin.readline().strip(), Path(sys.argv[1]), tell=tell, segment_events=int(sys.argv[3]))
"""


def killed(world: World, directory: Path, at: int) -> None:
    """An export that is killed once it has read so many events."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), str(at), str(SMALL)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "."},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(world.dsn + "\n")
        child.stdin.flush()
        assert int(child.stdout.readline()) >= at
        child.send_signal(signal.SIGKILL)


def test_a_killed_export_goes_on_after_its_last_whole_segment(lived, directory, tmp_path):
    for at in (1, SMALL + 1, SMALL + 1):
        killed(lived, directory, at)
        assert not (directory / MANIFEST).exists()
        with pytest.raises(Unable, match="was not finished"):
            check(directory)
    before = {path: path.stat().st_ino for path in files(directory, "events")}
    assert len(before) >= 2
    done = export(lived.dsn, directory, segment_events=SMALL)
    assert {path: path.stat().st_ino for path in before} == before
    assert done.hash == export(lived.dsn, tmp_path / "other", segment_events=SMALL).hash
    assert archived(directory) == stored(lived)
    assert not list(directory.glob("*.partial"))


def test_a_finished_export_stays_whole_while_the_next_one_is_killed(lived, directory):
    first = export(lived.dsn, directory, segment_events=SMALL)
    for _ in range(60):
        lived.busy.step()
    killed(lived, directory, SMALL + 1)
    assert check(directory).hash == first.hash
    assert (directory / UNFINISHED).exists()
    export(lived.dsn, directory, segment_events=SMALL)
    assert archived(directory) == stored(lived)
    assert not (directory / UNFINISHED).exists()


def test_what_a_kill_at_the_very_end_left_behind_counts_for_nothing(lived, directory):
    killed(lived, directory, SMALL + 1)
    left = (directory / UNFINISHED).read_bytes()
    done = export(lived.dsn, directory, segment_events=SMALL)
    (directory / UNFINISHED).write_bytes(left)
    assert export(lived.dsn, directory, segment_events=SMALL).hash == done.hash
    assert archived(directory) == stored(lived)


class TestADirectory:
    def test_is_one_exports_at_a_time(self, lived, directory):
        export(lived.dsn, directory)
        with opened(directory), pytest.raises(Unable, match="Another export or import works on"):
            export(lived.dsn, directory)
        assert export(lived.dsn, directory).added == 0

    def test_of_another_log_is_refused_and_left_alone(self, lived, directory):
        done = export(lived.dsn, directory)
        lived.tamper("UPDATE stored_events SET state = state || ' '")
        with pytest.raises(Unable, match=r"events-000001.jsonl.gz ends with an event that this log does not have"):
            export(lived.dsn, directory)
        assert check(directory).hash == done.hash

    def test_of_something_else_is_refused(self, lived, directory):
        directory.mkdir()
        (directory / "thesis.txt").write_text("mine")
        with pytest.raises(Unable, match=r"holds thesis.txt, which is of no export"):
            export(lived.dsn, directory)
        assert [path.name for path in directory.iterdir()] == ["thesis.txt"]

    def test_of_another_customer_is_refused(self, lived, directory):
        export(lived.dsn, directory, customer_id="alpha")
        for customer_id in ("beta", None):
            with pytest.raises(Unable, match="holds an export of the customer alpha"):
                export(lived.dsn, directory, customer_id=customer_id)

    def test_whose_manifest_is_gone_is_not_overwritten(self, lived, directory):
        export(lived.dsn, directory)
        (directory / MANIFEST).unlink()
        with pytest.raises(Unable, match=r"holds an export whose manifest.json is gone"):
            export(lived.dsn, directory)

    def test_with_a_damaged_segment_gets_nothing_more(self, lived, directory):
        export(lived.dsn, directory, segment_events=SMALL)
        flip_a_byte(files(directory, "events")[0])
        with pytest.raises(Unable, match=r"events-000001.jsonl.gz is damaged"):
            export(lived.dsn, directory)

    def test_is_for_its_owner_alone(self, lived, directory):
        old = os.umask(0)
        try:
            export(lived.dsn, directory, segment_events=SMALL)
        finally:
            os.umask(old)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_of_one_customer_nobody_elses_things_are_in_it(lived, directory):
    seal(lived.dsn)
    export(lived.dsn, directory, customer_id="alpha")
    assert archived(directory) == [event for event in stored(lived) if event[-1] == "alpha"]
    content = b"".join(gzip.decompress(path.read_bytes()) for path in directory.glob("*.gz"))
    assert b"alpha" in content
    assert not [other for other in (b"beta", b"gamma") if other in content]
    assert not files(directory, "seals")
    with pytest.raises(Unable, match="There is no customer nobody"):
        export(lived.dsn, directory.with_name("other"), customer_id="nobody")
    assert not directory.with_name("other").exists()


def test_a_data_key_that_was_destroyed_leaves_the_directory_with_the_next_export(lived, directory):
    def owners() -> set[str]:
        with opened(directory) as archive:
            return {key.customer_id for key in archive.data_keys()}

    export(lived.dsn, directory)
    assert "alpha" in owners()
    lived.data_keys.delete("alpha")
    export(lived.dsn, directory)
    assert {"beta", "gamma"} <= owners()
    assert "alpha" not in owners()
    assert len(files(directory, "data-keys")) == 1


def test_signed_heads_beyond_the_exported_events_stay_behind(lived, directory, tmp_path):
    heads, end = tmp_path / "heads.jsonl", len(stored(lived))
    lines = [json.dumps({"position": position, "signature": "ü"}).encode() for position in (3, end, end + 1)]
    heads.write_bytes(b"\n".join([lines[0], b'{"position": 4, "sig', *lines[1:]]) + b"\n")
    export(lived.dsn, directory, heads=heads)
    with opened(directory) as archive:
        assert list(archive.heads()) == lines[:2]


def test_nothing_secret_is_in_clear(lived, directory, tmp_path):
    issued = lived.onboard("canary", company_name="Canary Company", admin_email="canary@example.com")
    command = AddCredential(
        **lived.stamp(),
        customer_id="canary",
        provider="GCP",
        credential_type="KEY",
        credential_name="reader",
        credentials={"type": "service_account", "secret": "canary in a mine"},
    )
    add_credential(command, lived.platform, lived.vault)
    export(lived.dsn, directory)
    content = b"".join(
        gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for path in directory.iterdir()
    ).replace(b"\\", b"")
    root = bytes.fromhex(key_of(tmp_path / "var").read_text().split(":")[1])
    key = issued.api_key.get_secret_value().encode()
    told = [
        form for s in (key, b"Canary Company", b"canary@example.com", b"canary in a mine", root) for form in forms(s)
    ]
    assert not [form for form in told if form in content]
    # The control: what is not secret is found in the same way.
    assert [form for form in forms(b'"customer_id":"canary"') if form in content]


def forms(secret: bytes) -> list[bytes]:
    """How a secret may be written."""
    return [secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")]
