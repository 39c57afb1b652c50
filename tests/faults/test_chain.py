"""Whoever changes the log leaves a trace: every way of it is found, and named for what it is."""

import json
import random
import stat
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.bootstrap import Service
from adapters.chain.findings import Kind
from adapters.chain.signing import Signer, own_public_key, signer
from application.chain import START
from tests.application.world import race
from tests.faults.evidence import (
    append,
    as_owner,
    checked,
    found,
    opened,
    rewrite_seals,
    seal,
    sign,
    skip_position,
    write_history,
)
from tests.http.running import database

ENDS = (21, 43, 65, 87, 109)
"""Where the seals end, and the heads stand."""
TABLES = ("stored_events", "log_seals", "data_keys")


@pytest.fixture(scope="module")
def history(postgres_server, migrated_template, tmp_path_factory) -> Iterator[tuple[Service, bytes]]:
    """A log that was sealed and signed, on a database of its own, and what its heads were."""
    with (
        database(postgres_server.dsn, migrated_template) as dsn,
        opened(dsn, tmp_path_factory.mktemp("chain")) as made,
    ):
        write_history(made)
        as_owner(made, *(f"CREATE TABLE kept_{table} AS TABLE {table}" for table in TABLES))
        yield made, made.settings.heads_file.read_bytes()


@pytest.fixture
def service(history) -> Service:
    """The same again for every test, which is much quicker than making it anew."""
    made, heads = history
    for table in TABLES:
        as_owner(made, f"TRUNCATE {table}", f"INSERT INTO {table} SELECT * FROM kept_{table}")
    as_owner(made, "SELECT setval('stored_events_notification_id_seq', 110)")
    made.settings.heads_file.write_bytes(heads)
    return made


def event(position: int) -> str:
    return f" WHERE notification_id = {position}"


def swap(one: int, other: int) -> tuple[str, ...]:
    move = "UPDATE stored_events SET notification_id = "
    return (f"{move} -1 {event(one)}", f"{move} {one} {event(other)}", f"{move} {other} {event(-1)}")


INSERT = (
    "INSERT INTO stored_events (originator_id, originator_version, topic, state, notification_id)"
    " VALUES (gen_random_uuid(), 1, 'run.completed@1', '{{}}', {})"
)
TAMPERED = {
    "state": (["UPDATE stored_events SET state = state || ' '" + event(30)], {(Kind.ALTERED, 30)}),
    "topic": (["UPDATE stored_events SET topic = 'run.failed@1'" + event(21)], {(Kind.ALTERED, 21)}),
    "customer": (["UPDATE stored_events SET customer_id = 'globex'" + event(109)], {(Kind.ALTERED, 109)}),
    "version": (["UPDATE stored_events SET originator_version = 99" + event(1)], {(Kind.ALTERED, 1)}),
    "stream": (["UPDATE stored_events SET originator_id = gen_random_uuid()" + event(45)], {(Kind.ALTERED, 45)}),
    "two in different seals": (
        ["UPDATE stored_events SET state = '{}' WHERE notification_id IN (30, 80)"],
        {(Kind.ALTERED, 30), (Kind.ALTERED, 80)},
    ),
    "deleted": (["DELETE FROM stored_events" + event(30)], {(Kind.DELETED, 30)}),
    "deleted under a head": (["DELETE FROM stored_events" + event(43)], {(Kind.DELETED, 43)}),
    "deleted, all of a seal": (
        ["DELETE FROM stored_events WHERE notification_id BETWEEN 23 AND 43"],
        {(Kind.DELETED, p) for p in range(23, 44) if p != 33},
    ),
    "inserted into a gap": ([INSERT.format(33)], {(Kind.INSERTED, 33)}),
    "inserted between seals": ([INSERT.format(44)], {(Kind.INSERTED, 44)}),
    "swapped": (swap(30, 35), {(Kind.MOVED, 30), (Kind.MOVED, 35)}),
    "swapped far apart": (swap(3, 100), {(Kind.MOVED, 3), (Kind.MOVED, 100)}),
    "moved to a gap": (["UPDATE stored_events SET notification_id = 33" + event(80)], {(Kind.MOVED, 33)}),
    "moved between seals": (["UPDATE stored_events SET notification_id = 44" + event(80)], {(Kind.MOVED, 44)}),
    "moved to the end": (["UPDATE stored_events SET notification_id = 200" + event(80)], {(Kind.MOVED, 200)}),
    "moved over another": (
        ["DELETE FROM stored_events" + event(30), "UPDATE stored_events SET notification_id = 30" + event(80)],
        {(Kind.DELETED, 30), (Kind.MOVED, 30)},
    ),
    "cut off": (["DELETE FROM stored_events WHERE notification_id > 100"], {(Kind.TRUNCATED, 100)}),
    "cut off with its seals": (
        ["DELETE FROM stored_events WHERE notification_id > 65", "DELETE FROM log_seals WHERE last_position > 65"],
        {(Kind.TRUNCATED, 65)},
    ),
    "seal removed": (["DELETE FROM log_seals WHERE last_position = 65"], {(Kind.SEAL_REMOVED, 65)}),
    "first seal removed": (["DELETE FROM log_seals WHERE last_position = 21"], {(Kind.SEAL_REMOVED, 21)}),
    "last seal removed": (["DELETE FROM log_seals WHERE last_position = 109"], {(Kind.SEAL_REMOVED, 109)}),
    "all seals removed": (["DELETE FROM log_seals"], {(Kind.SEAL_REMOVED, 109)}),
    "seal removed and an event under it altered": (
        ["DELETE FROM log_seals WHERE last_position = 65", "UPDATE stored_events SET state = '{}'" + event(50)],
        {(Kind.SEAL_REMOVED, 65), (Kind.REWRITTEN, 65)},
    ),
    "hash of a seal": (["UPDATE log_seals SET hash = '\\x00' WHERE last_position = 65"], {(Kind.SEAL_CHANGED, 65)}),
    "list of a seal": (
        ["UPDATE log_seals SET digests = overlay(digests PLACING '\\x00' FROM 40) WHERE last_position = 65"],
        {(Kind.SEAL_CHANGED, 65)},
    ),
    "list of a seal, cut": (
        ["UPDATE log_seals SET digests = substring(digests FROM 25) WHERE last_position = 65"],
        {(Kind.SEAL_CHANGED, 65)},
    ),
    "list of a seal, damaged": (
        ["UPDATE log_seals SET digests = '\\x01' WHERE last_position = 65"],
        {(Kind.SEAL_CHANGED, 65)},
    ),
    "seal invented beyond the end": (
        [
            (
                "INSERT INTO log_seals (last_position, first_position, events, digests, hash)"
                " VALUES (500, 400, 1, '\\x01', '\\x02')"
            )
        ],
        {(Kind.SEAL_CHANGED, 500), (Kind.TRUNCATED, 109)},
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_whatever_is_done_to_the_log_is_found(service, how):
    statements, expected = TAMPERED[how]
    as_owner(service, *statements)
    assert found(service) == expected


def test_an_event_is_named(service):
    as_owner(service, "UPDATE stored_events SET topic = 'run.failed@1'" + event(30))
    [finding] = checked(service).findings
    assert (finding.position, finding.topic, finding.version) == (30, "run.failed@1", 8)
    assert finding.stream_id in finding.sentence
    assert "The event at position 30 (run.failed@1, version 8 of stream" in finding.sentence


def test_an_untouched_log(service):
    result = checked(service)
    assert (result.found, result.notes) == (0, ())
    assert (result.events, result.seals, result.heads_in_file) == (100, 5, 5)
    assert (result.position, result.sealed_position, result.signed_position) == (109, 109, 109)
    assert (result.unsealed_events, result.unsigned_events) == (0, 0)


def test_what_is_not_sealed_or_signed_yet_is_told(service):
    append(service, 3)
    seal(service)
    append(service, 4)
    result = checked(service)
    assert result.found == 0
    assert (result.unsealed_events, result.unsigned_events) == (4, 7)
    assert result.sealed_at > result.signed_at
    as_owner(service, "UPDATE stored_events SET state = '{}' WHERE notification_id > 115")
    assert checked(service).found == 0  # nothing has been seen of it


CONSISTENT = {
    "altered": (["UPDATE stored_events SET state = '{}'" + event(30)], (Kind.REWRITTEN, 43)),
    "deleted": (["DELETE FROM stored_events" + event(50)], (Kind.REWRITTEN, 65)),
    "inserted": ([INSERT.format(33)], (Kind.REWRITTEN, 43)),
    "swapped": (list(swap(70, 75)), (Kind.REWRITTEN, 87)),
    "first altered": (["UPDATE stored_events SET state = '{}'" + event(1)], (Kind.REWRITTEN, 21)),
    "cut off": (["DELETE FROM stored_events WHERE notification_id > 70"], (Kind.TRUNCATED, 70)),
}


@pytest.mark.parametrize("how", CONSISTENT)
def test_a_consistent_rewrite_is_found_by_the_heads_alone(service, how, tmp_path):
    statements, expected = CONSISTENT[how]
    as_owner(service, *statements)
    rewrite_seals(service)
    assert found(service) == {expected}
    assert found(service, heads_file=tmp_path / "none") == set()


def test_a_rewrite_is_between_two_heads(service):
    as_owner(service, "UPDATE stored_events SET state = '{}'" + event(50))
    rewrite_seals(service)
    append(service)
    sign(service, seal(service))  # the service goes on, and signs what is there now
    [finding] = checked(service).findings
    assert "the head that was signed at position 65 on " in finding.sentence
    assert "rewritten after the head that was signed at position 43 on" in finding.sentence
    assert "So do 2 more, up to position 109." in finding.sentence


def test_a_rewrite_of_some_seals_is_found_without_heads(service, tmp_path):
    before = seals_of(service)
    as_owner(service, "UPDATE stored_events SET state = '{}'" + event(30))
    rewrite_seals(service)
    for last, row_hash in before.items():
        if last > 43:
            as_owner(service, f"UPDATE log_seals SET hash = '\\x{row_hash}' WHERE last_position = {last}")
    assert found(service, heads_file=tmp_path / "none") == {(Kind.REWRITTEN, 65)}


def seals_of(service: Service) -> dict[int, str]:
    with service.datastore.reading() as cursor:
        rows = cursor.execute("SELECT last_position, hash FROM log_seals").fetchall()
    return {row["last_position"]: bytes(row["hash"]).hex() for row in rows}


def edit(service: Service, change) -> None:
    path = service.settings.heads_file
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def test_a_forged_head_is_found(service):
    def change(lines):
        head = json.loads(lines[1])
        lines[1] = json.dumps({**head, "hash": START.hex()})

    edit(service, change)
    assert found(service) == {(Kind.HEAD_FORGED, 43)}


def test_a_head_of_another_key_is_found(service):
    """Somebody rewrites everything, and signs it with a key of their own: its own public key would prove it."""
    as_owner(service, "UPDATE stored_events SET state = '{}'" + event(30))
    rewrite_seals(service)
    stranger = Signer(Ed25519PrivateKey.generate())
    own = own_public_key(service.keys, service.data_keys)

    def change(lines):
        for number, line in enumerate(lines):
            head = json.loads(line)
            log_hash = bytes.fromhex(seals_of(service)[head["position"]])
            forged = stranger.sign(
                position=head["position"], events=head["events"], log_hash=log_hash, at=service.now()
            )
            shown = {name: getattr(forged, name) for name in head if name != "sealed_at"}
            lines[number] = json.dumps({**shown, "sealed_at": forged.sealed_at.isoformat()})

    edit(service, change)
    expected = {(Kind.HEAD_FORGED, position) for position in ENDS}
    assert found(service) == expected
    assert found(service, public_keys=[own]) == expected
    assert found(service, public_keys=[stranger.public_key]) == set()  # the control: whom one believes
    as_owner(service, "DELETE FROM data_keys")
    assert found(service) == {(Kind.KEY_MISSING, 0)}
    with pytest.raises(ValueError, match="32 bytes in base64"):
        checked(service, public_keys=["c2hvcnQ="])


def test_lines_that_are_no_heads(service):
    edit(service, lambda lines: lines.insert(2, '{"position": 1}'))
    assert found(service) == {(Kind.HEAD_UNREADABLE, 0)}


def test_a_torn_line_spoils_no_other(service):
    path = service.settings.heads_file
    path.write_bytes(path.read_bytes()[:-100])
    append(service)
    sign(service, seal(service))
    result = checked(service)
    assert (result.found, result.heads_in_file, result.signed_position) == (0, 5, 130)
    assert len(result.notes) == 1
    assert "A crash tore line 5" in result.notes[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_many_findings_are_counted_and_some_of_them_kept(service):
    as_owner(service, "UPDATE stored_events SET state = '{}'")
    result = checked(service, most=10)
    assert (result.found, len(result.findings)) == (100, 10)


def test_first_use_by_many_makes_one_key(database_url, tmp_path):
    with opened(database_url, tmp_path) as service:
        keys = race(8, lambda _: signer(service.keys, service.data_keys).public_key)
    assert len(set(keys)) == 1


def test_an_empty_log(database_url, tmp_path):
    with opened(database_url, tmp_path) as service:
        skip_position(service)
        assert (checked(service).found, checked(service).hash) == (0, START.hex())


@pytest.mark.parametrize("seed", range(12))
def test_any_few_changes_are_found(service, seed):
    """Also when the seals were made anew over them: then by the heads."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    positions = [position for position in range(1, 110) if position % 11]
    places = chance.sample(positions, 4)
    deeds = {
        "alter": [f"UPDATE stored_events SET state = state || '{seed}' {event(places[0])}"],
        "remove": [f"DELETE FROM stored_events {event(places[1])}"],
        "swap": swap(places[2], places[3]),
        "insert": [INSERT.format(chance.randrange(11, 110, 22))],
    }
    done = chance.sample(sorted(deeds), chance.randint(1, 4))
    for deed in done:
        as_owner(service, *deeds[deed])
    kinds = {kind for kind, _ in found(service)}
    named = {"alter": Kind.ALTERED, "remove": Kind.DELETED, "swap": Kind.MOVED, "insert": Kind.INSERTED}
    cut_off = places[1] == 109 and "remove" in done
    assert kinds == {named[deed] for deed in done if not (cut_off and deed == "remove")} | (
        {Kind.TRUNCATED} if cut_off else set()
    )
    rewrite_seals(service)
    assert {kind for kind, _ in found(service)} <= {Kind.REWRITTEN, Kind.TRUNCATED}
    assert checked(service).found > 0
