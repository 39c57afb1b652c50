"""Keys are rotated while the service works: nothing is lost, what was retired goes, and every opening is written."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from adapters.bootstrap import Service, build, key_file
from adapters.encryption import primary_versions, rewrap, rotate, status
from adapters.kms import DataKeyGroup, KeyGroup
from adapters.kms.cloud import CloudKms
from adapters.kms.local import LocalKeyFile, add_key
from adapters.kms.vault import EnvelopeVault
from adapters.postgres import decryptions, key_rotation
from adapters.postgres.channels import DATA_KEYS
from adapters.postgres.credentials import SealedCredentials
from adapters.postgres.listener import Listener
from adapters.settings import Settings
from application.mapper import EventMapper
from application.ports import Away, KeyDestroyed, NotToBeOpened, Purpose, SealedFor
from tests.application.test_belongings import add_credential, claimed, issue, revoke
from tests.application.world import World, until
from tests.contracts.kms_server import Faults, KmsServer
from tests.http.running import NOWHERE, Quick

NOW = timedelta(0)
RING = "projects/p/locations/l/keyRings/r/cryptoKeys"


def service_on(dsn: str, directory: Path, **parts) -> Service:
    settings = Settings(data_dir=directory, bigquery_emulator_host=NOWHERE, worker_id="tests")
    return build(settings, dsn, engine=Quick(), **parts)


@pytest.fixture
def world(database_url, tmp_path) -> Iterator[World]:
    """The use cases with the keys of the service."""
    with World(database_url, tmp_path / "keys" / "wrapping.key") as made:
        yield made


@pytest.fixture
def service(database_url, tmp_path) -> Iterator[Service]:
    made = service_on(database_url, tmp_path)
    yield made
    made.close()


def rotated(service: Service, world: World, **more):
    before = None if more.pop("resume", False) else datetime.now(UTC) + timedelta(minutes=1)
    return rotate(service, lambda: world.stamp("admin/cli:test"), made_before=before, longest_pause_s=0.05, **more)


def opened(service: Service, world: World, vault: EnvelopeVault | None = None) -> dict[str, bytes]:
    """Every secret in use, as its row has it."""
    vault = vault or EnvelopeVault(service.keys, service.data_keys)
    found = {}
    for table, record, column, purpose in (
        ("customer_api_keys", "api_key_id", "encrypted_api_key", Purpose.API_KEY),
        ("customer_cloud_credentials", "credential_id", "encrypted_credentials", Purpose.CREDENTIAL),
    ):
        for row in world.rows(table, is_active=True):
            owner = SealedFor(row["customer_id"], row[record], purpose)
            found[row[record]] = vault.open(bytes(row[column]), owner)
    return found


def keys_of(world: World, **where) -> list[dict]:
    with world.datastore.reading() as cursor:
        rows = cursor.execute("SELECT * FROM data_keys ORDER BY customer_id, purpose, created_at").fetchall()
    return [row for row in rows if where.items() <= row.items()]


class Early(EnvelopeVault):
    """One for customers whose keys were made long ago."""

    def prepare(self, customer_id: str) -> None: ...


class TestDataKeys:
    def test_everything_in_use_is_sealed_anew_and_stays_what_it_is(self, acme, service):
        add_credential(acme)
        second = issue(acme)
        issued = acme.onboard("other").api_key.get_secret_value()
        before, told = opened(service, acme), acme.events()
        done = rotated(service, acme)
        assert (done.renewed, done.resealed, done.passed_over) == (6, 4, ())
        assert opened(service, acme) == before
        assert issued.encode() in before.values()
        assert acme.kinds().count("ApiKeyResealed") == 3
        assert acme.kinds().count("CredentialResealed") == 1
        assert acme.events()[: len(told)] == told
        assert key_rotation.to_reseal(service.data_keys.datastore) == []
        revoke(acme, second.api_key_id)

    def test_the_old_ones_are_destroyed_once_nothing_can_be_on_its_way_under_them(self, acme, service):
        add_credential(acme)
        before = opened(service, acme)
        assert rotated(service, acme).destroyed == 0
        retired = [row for row in keys_of(acme) if row["retired_at"] is not None]
        assert {row["purpose"] for row in retired} == {"api-keys", "credentials", "personal"}
        done = rotated(service, acme, resume=True, destroy_after=NOW)
        assert (done.renewed, done.resealed, done.destroyed, done.waiting) == (0, 0, 2, 0)
        assert [row["purpose"] for row in keys_of(acme) if row["retired_at"] is not None] == ["personal"]
        assert opened(service, acme) == before
        reader = EventMapper(EnvelopeVault(service.keys, service.data_keys))
        log = acme.store.recorder.select_notifications(start=0, limit=100)
        assert [r.event for n in log for r in reader.to_domain_events(n)] == acme.events()

    def test_one_that_something_in_use_needs_is_not_destroyed(self, acme, service):
        add_credential(acme)
        before = opened(service, acme)
        EnvelopeVault(service.keys, service.data_keys).renew("acme", DataKeyGroup.CREDENTIALS)
        assert key_rotation.destroy_retired(service.data_keys.datastore, "acme", NOW) == 0
        assert opened(service, acme) == before
        acme.execute("DELETE FROM data_keys WHERE retired_at IS NOT NULL")  # the control
        with pytest.raises(KeyDestroyed):
            opened(service, acme)

    def test_one_that_has_sealed_personal_data_of_earlier_customers_is_kept(self, world, service):
        """They are as they were before personal data had keys of their own."""
        world.vault.prepare("acme")
        world.execute("UPDATE data_keys SET name = NULL, version = NULL, seals_personal = purpose = 'credentials'")
        world.execute("DELETE FROM data_keys WHERE purpose = 'personal'")
        world.vault.forget("")
        world.vault = Early(service.keys, world.data_keys)
        world.onboard()
        add_credential(world)
        before = opened(service, world)
        done = rotated(service, world, destroy_after=NOW)
        assert (done.renewed, done.resealed, done.destroyed) == (3, 2, 1)
        kept = [row for row in keys_of(world) if row["retired_at"] is not None]
        assert [(row["purpose"], row["seals_personal"]) for row in kept] == [("credentials", True)]
        assert opened(service, world) == before
        log = world.store.recorder.select_notifications(start=0, limit=1)
        reader = EventMapper(EnvelopeVault(service.keys, service.data_keys))
        [onboarded] = reader.to_domain_events(log[0])
        assert onboarded.event.admin_email == "admin@acmecorp.com"

    def test_goes_on_where_it_was_cut_off(self, acme, service):
        for number in range(3):
            acme.onboard(f"c{number}")
        before = opened(service, acme)

        def cut(stage: str, done: int, total: int) -> None:
            if (stage, done) == ("Customers", 2):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rotated(service, acme, tell=cut)
        assert key_rotation.to_reseal(service.data_keys.datastore) == [{"purpose": "api-key", "secrets": 2}]
        assert opened(service, acme) == before
        done = rotated(service, acme, resume=True, destroy_after=NOW)
        assert (done.renewed, done.resealed, done.waiting) == (0, 2, 0)
        assert opened(service, acme) == before

    @pytest.mark.parametrize(
        ("damage", "others"),
        [
            pytest.param(
                "UPDATE customer_cloud_credentials SET encrypted_credentials = encrypted_credentials || '\\x00'::bytea"
                " WHERE credential_name = 'damaged'",
                2,
                id="a secret",
            ),
            pytest.param("UPDATE stored_events SET topic = 'unheard.of@1' WHERE notification_id = 1", 0, id="an event"),
        ],
    )
    def test_what_is_damaged_holds_up_no_others(self, acme, service, damage, others):
        """Neither other customers nor, where it can be told apart, the customer's other secrets."""
        add_credential(acme, credential_name="damaged")
        add_credential(acme)
        acme.onboard("zeta")
        acme.tamper(damage)
        done = rotated(service, acme, destroy_after=NOW)
        assert (done.resealed, done.passed_over) == (1 + others, ("acme",))
        waiting = {row["customer_id"] for row in keys_of(acme, seals_personal=False) if row["retired_at"]}
        assert waiting == {"acme"}

    def test_only_those_that_are_old_enough_or_of_one_customer(self, acme, service):
        acme.onboard("other")
        acme.execute("UPDATE data_keys SET created_at = created_at - interval '100 days' WHERE customer_id = 'acme'")
        cut = datetime.now(UTC) - timedelta(days=90)
        done = rotate(service, acme.stamp, made_before=cut)
        assert {row["customer_id"] for row in keys_of(acme) if row["retired_at"]} == {"acme"}
        assert done.renewed == 3
        assert rotate(service, acme.stamp, made_before=cut).renewed == 0
        assert rotated(service, acme, customer_id="other").renewed == 3

    def test_while_commands_and_other_rotations_go_on(self, acme, service, database_url, tmp_path):
        """Nothing that was acknowledged is lost, whatever key it was sealed under."""
        stop, added, failures = threading.Event(), [], []

        def work() -> None:
            with World(database_url, tmp_path / "keys" / "wrapping.key") as own:
                while not stop.is_set() and len(added) < 60:
                    try:
                        added.append(add_credential(own))
                    except Exception as error:  # noqa: BLE001 - shown below
                        failures.append(error)
                        return

        listener = Listener(database_url, {DATA_KEYS: acme.vault.forget})
        listener.start()
        with ThreadPoolExecutor(4) as pool:
            working = pool.submit(work)
            until(lambda: added or failures)
            rotations = [pool.submit(rotated, service, acme) for _ in range(3)]
            for rotation in rotations:
                rotation.result(60)
            stop.set()
            working.result(60)
        listener.stop()
        assert failures == []
        done = rotated(service, acme, resume=True, destroy_after=NOW)
        assert done.passed_over == ()
        assert set(added) <= opened(service, acme).keys()

    def test_an_erased_customer_is_passed_over_and_gets_no_key(self, acme, service):
        acme.onboard("other")
        acme.vault.destroy("acme")
        done = rotated(service, acme)
        assert done.renewed == 3
        assert {row["customer_id"] for row in keys_of(acme)} == {"other"}

    def test_destroying_and_renewing_at_once_never_leave_a_key(self, acme, service):
        for number in range(10):
            customer = f"gone{number}"
            acme.onboard(customer)
            barrier, envelope = threading.Barrier(2), EnvelopeVault(service.keys, service.data_keys)

            def renew(customer: str, barrier: threading.Barrier, envelope: EnvelopeVault) -> None:
                barrier.wait(10)
                for _ in range(3):
                    try:
                        envelope.renew(customer, DataKeyGroup.CREDENTIALS)
                    except KeyDestroyed:
                        return

            with ThreadPoolExecutor(1) as pool:
                renewing = pool.submit(renew, customer, barrier, envelope)
                barrier.wait(10)
                acme.vault.destroy(customer)
                renewing.result(10)
            assert keys_of(acme, customer_id=customer) == []


class TestOtherProcesses:
    @pytest.mark.parametrize("told", [True, False])
    def test_forget_an_erased_customers_keys_at_once(self, acme, service, database_url, told):
        """Without being told (the control) they would read on for five minutes."""
        sealed, owner = acme.vault.seal(b"x", OWNER), OWNER
        elsewhere = EnvelopeVault(service.keys, service.data_keys)
        listening, heard = threading.Event(), threading.Event()

        def forget(customer_id: str) -> None:
            if told:
                elsewhere.forget(customer_id)
            (heard if customer_id == "acme" else listening).set()

        listener = Listener(database_url, {DATA_KEYS: forget})
        listener.start()
        assert listening.wait(10)
        assert elsewhere.open(sealed, owner) == b"x"
        acme.vault.destroy("ACME")
        assert heard.wait(5)
        if told:
            with pytest.raises(KeyDestroyed):
                elsewhere.open(sealed, owner)
        else:
            assert elsewhere.open(sealed, owner) == b"x"
        listener.stop()

    def test_forget_all_when_they_may_have_missed_something(self, acme, service):
        elsewhere = EnvelopeVault(service.keys, service.data_keys)
        sealed = elsewhere.seal(b"x", OWNER)
        acme.vault.destroy("acme")
        elsewhere.forget("")
        with pytest.raises(KeyDestroyed):
            elsewhere.open(sealed, OWNER)


OWNER = SealedFor("acme", "r", Purpose.CREDENTIAL)


class TestWrappingKeys:
    def test_a_new_line_in_the_key_file_wraps_and_the_old_one_unwraps(self, acme, service):
        [old] = {row["version"] for row in keys_of(acme, purpose="credentials")}
        before = opened(service, acme)
        assert add_key(key_file(service.settings)) == 2
        assert primary_versions(service.keys)[KeyGroup.CREDENTIALS] != old
        assert opened(service, acme) == before
        acme.onboard("other")  # by a process that runs since before
        assert old not in {row["version"] for row in keys_of(acme, customer_id="other")}
        done = rewrap(service)
        assert (done.rewrapped, done.others_left, done.damaged) == (3, 0, ())
        assert old in done.unused
        assert opened(service, acme).items() >= before.items()
        assert rewrap(service).rewrapped == 0

    def test_the_old_line_is_needed_no_more(self, acme, service):
        file = key_file(service.settings)
        before = opened(service, acme)
        add_key(file)
        old, new = file.read_text().splitlines(keepends=True)
        file.write_text(new)
        with pytest.raises(ValueError, match="another key"):  # the control
            opened(service, acme, EnvelopeVault(LocalKeyFile(file), service.data_keys))
        file.write_text(old + new)
        rewrap(service)
        file.write_text(new)
        assert opened(service, acme, EnvelopeVault(LocalKeyFile(file), service.data_keys)) == before

    def test_of_several_that_add_a_key_each_adds_its_own(self, tmp_path):
        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(lambda _: add_key(tmp_path / "k"), range(8)))
        assert sorted(counts) == list(range(2, 10))

    def test_several_that_rewrap_at_once_and_a_rotation_beside_them(self, acme, service, database_url, tmp_path):
        for number in range(20):
            acme.onboard(f"c{number}")
        before = opened(service, acme)
        add_key(key_file(service.settings))
        others = [service_on(database_url, tmp_path) for _ in range(2)]
        with ThreadPoolExecutor(3) as pool:
            rewrapping = [pool.submit(rewrap, other) for other in others]
            rotating = pool.submit(rotated, service, acme)
            assert sum(done.result(60).rewrapped for done in rewrapping) <= 63
            rotating.result(60)
        for other in others:
            other.close()
        rewrap(service)
        assert opened(service, acme) == before
        assert {row["version"] for row in keys_of(acme)} <= set(primary_versions(service.keys).values())

    def test_the_key_that_signs_the_logs_heads_too(self, acme, service):
        from adapters.chain.signing import signer  # noqa: PLC0415

        own = signer(service.keys, service.data_keys).key_id
        add_key(key_file(service.settings))
        assert rewrap(service).rewrapped == 4
        file = key_file(service.settings)
        file.write_text(file.read_text().splitlines(keepends=True)[-1])
        assert signer(LocalKeyFile(file), service.data_keys).key_id == own

    def test_a_damaged_key_is_named_and_holds_nothing_up(self, acme, service):
        acme.onboard("zeta")
        broken = "SET wrapped = 'damaged', version = NULL WHERE (customer_id, purpose) = ('acme', 'api-keys')"
        acme.execute(f"UPDATE data_keys {broken}")
        acme.execute("UPDATE data_keys SET version = NULL WHERE customer_id = 'zeta'")
        done = rewrap(service)
        assert (done.rewrapped, done.damaged, done.others_left) == (3, ("acme (api-keys)",), 1)

    def test_in_cloud_kms_through_an_outage(self, database_url, tmp_path):
        server = KmsServer(frozenset({f"{RING}/api", f"{RING}/credentials"}))
        with server.running(), server.client() as client:
            keys = CloudKms("p", "l", "r", "api", "credentials", client=client, timeout_s=0.3)
            service = service_on(database_url, tmp_path, keys=keys)
            world = World(database_url, tmp_path / "unused")
            world.vault = EnvelopeVault(keys, world.data_keys)
            world.platform = service.platform
            world.onboard()
            assert primary_versions(keys)[KeyGroup.API_KEYS] == f"{RING}/api/cryptoKeyVersions/1"
            server.rotate()
            before = opened(service, world)
            server.faults = Faults(silent=True, remaining=4)
            done = rewrap(service, longest_pause_s=0.05)
            assert done.rewrapped == 3
            assert set(done.unused) == {f"{RING}/{key}/cryptoKeyVersions/1" for key in ("api", "credentials")}
            server.disable(1)
            with pytest.raises(Away):  # the control: what was wrapped before does need it
                wrapped_before(server, keys)
            assert opened(service, world) == before
            service.close()
            world.close()


def wrapped_before(server: KmsServer, keys: CloudKms) -> None:
    """Unwrap something that version 1 has wrapped."""
    server.primary = 1
    wrapped = keys.wrap(b"x", OWNER)
    server.primary = 2
    keys.unwrap(wrapped, OWNER)


class TestDecryptions:
    def test_a_run_that_opens_a_credential_is_written_down(self, acme, database_url, tmp_path):
        credential_id = add_credential(acme)
        order = claimed(acme)
        service = build(Settings(data_dir=tmp_path, bigquery_emulator_host=NOWHERE), database_url)
        reader: SealedCredentials = service.engine._sources._credentials
        assert reader.credential(order, "AWS", None) == {"secret": "s3cr3t"}
        [row] = decryptions.of_customer(service.data_keys.datastore, "acme", limit=10)
        found = (row["purpose"], row["record_id"], row["actor"], row["reason"], row["run_id"], row["attempt"])
        assert found == ("credential", credential_id, "worker:w1", "run", order.run_id, 1)
        with pytest.raises(NotToBeOpened):
            reader.credential(replace(order, attempt=7), "AWS", None)
        assert len(decryptions.of_customer(service.data_keys.datastore, "acme", limit=10)) == 1
        service.close()

    def test_no_process_but_one_that_executes_runs_opens_it(self, acme, database_url, tmp_path):
        add_credential(acme)
        order = claimed(acme)
        for opens in (set(), {Purpose.PERSONAL, Purpose.API_KEY, Purpose.WEBHOOK}):
            service = build(Settings(data_dir=tmp_path, bigquery_emulator_host=NOWHERE), database_url, opens=opens)
            with pytest.raises(NotToBeOpened):
                service.engine._sources._credentials.credential(order, "AWS", None)
            service.close()
        assert decryptions.of_customer(acme.datastore, "acme", limit=10) == []

    def test_a_service_opens_no_credential_but_for_a_run(self, acme, service):
        row = acme.row("customer_cloud_credentials", credential_id=add_credential(acme))
        with pytest.raises(NotToBeOpened):
            service.vault.open(bytes(row["encrypted_credentials"]), replace(OWNER, record_id=row["credential_id"]))

    def test_rotations_are_written_down_as_well(self, acme, service):
        credential_id = add_credential(acme)
        rotated(service, acme)
        rows = decryptions.of_customer(acme.datastore, "acme", limit=10)
        assert {(row["purpose"], row["actor"], row["reason"]) for row in rows} == {
            ("api-key", "admin/cli:test", "reseal"),
            ("credential", "admin/cli:test", "reseal"),
        }
        assert credential_id in {row["record_id"] for row in rows}

    def test_are_never_changed_by_the_service(self, acme, service):
        add_credential(acme)
        rotated(service, acme)
        for change in ("UPDATE decryptions SET actor = ''", "DELETE FROM decryptions", "TRUNCATE decryptions"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                acme.execute(change)
        acme.tamper("UPDATE decryptions SET actor = actor")  # the control: it would work

    def test_newest_first_in_pages(self, acme, service):
        rotated(service, acme)
        rotated(service, acme)
        first, second = decryptions.of_customer(acme.datastore, "acme", limit=2)
        assert first["id"] > second["id"]
        assert decryptions.of_customer(acme.datastore, "acme", before=first["id"], limit=1) == [second]


def test_status_says_what_is_left(acme, service):
    add_credential(acme)
    assert status(service)["to_reseal"] == []
    EnvelopeVault(service.keys, service.data_keys).renew("acme", DataKeyGroup.CREDENTIALS)
    found = status(service)
    assert found["to_reseal"] == [{"purpose": "credential", "secrets": 1}]
    groups = {row["purpose"]: (row["sealing"], row["to_be_destroyed"]) for row in found["data_keys"]}
    assert groups == {"api-keys": (1, 0), "credentials": (1, 1), "personal": (1, 0)}
    assert {row["version"] for row in found["wrapped_under"]} == set(found["primary_versions"])
