"""What the log and the tables do not tell whoever reads their bytes."""

import base64
import json

import pytest
from eventsourcing.persistence import StoredEvent

from application import customers, team
from application.credentials import AddCredential, add_credential
from application.mapper import UnreadableEvent
from application.ports import KeyDestroyed, Purpose, SealedFor
from application.provider_configs import ConfigureProvider, configure_provider
from domain.customer_events import Onboarded, ProviderConfigured, TeamMemberAdded
from tests import canaries
from tests.application.world import World

COMPANY, EMAIL, PERSON = "Canary Company 4711", "canary4711@example.com", "Canary Person 4711"
OPS, SECRET = "ops-canary4711@example.com", "canary-secret-4711-XYZ"


@pytest.fixture
def told(world) -> World:
    """A world that was told a secret of every kind."""
    world.api_key = world.onboard(company_name=COMPANY, admin_email=EMAIL).api_key.get_secret_value()
    stamp, platform = world.stamp, world.platform
    team.add_team_member(team.AddTeamMember(**stamp(), customer_id="acme", email=EMAIL, name=PERSON), platform)
    configure_provider(
        ConfigureProvider(
            **stamp(),
            customer_id="acme",
            provider="GCP",
            domain="cost",
            source_project_id="acme-project",
            source_dataset="billing",
            notification_emails=(OPS, EMAIL),
        ),
        platform,
    )
    customers.change_contact(
        customers.ChangeContact(**stamp(), customer_id="acme", company_name=COMPANY + "!"), platform
    )
    add_credential(
        AddCredential(
            **stamp(),
            customer_id="acme",
            provider="AWS",
            credential_type="KEY",
            credential_name="reader",
            credentials={"secret": SECRET},
        ),
        platform,
        world.vault,
    )
    return world


def table_bytes(world: World, table: str) -> bytes:
    """Everything in the table: as text, as JSON, and its binary columns as they are."""
    with world.datastore.reading() as cursor:
        rows = cursor.execute(f"SELECT t::text AS text, to_jsonb(t)::text AS json FROM {table} t").fetchall()
        values = [value for row in cursor.execute(f"SELECT * FROM {table}") for value in row.values()]
    return b"\n".join(
        [v for v in values if isinstance(v, bytes)] + [part.encode() for row in rows for part in row.values()]
    )


def found_in(world: World, table: str, texts: list[str]) -> set[str]:
    return canaries.found_in(table_bytes(world, table), texts)


@pytest.mark.parametrize("table", ["stored_events", "snapshots", "data_keys"])
def test_the_log_names_no_person_and_holds_no_secret(told, table):
    assert found_in(told, table, [COMPANY, EMAIL, PERSON, OPS, SECRET, told.api_key]) == set()


def test_no_table_holds_a_secret(told):
    tables = told.scalar("SELECT array_agg(tablename::text) FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) > 15
    assert {table: found for table in tables if (found := found_in(told, table, [SECRET, told.api_key]))} == {}


def test_the_search_finds_what_is_there(told):
    """The control: names are in the tables that people read, and the search sees through every disguise."""
    assert found_in(told, "customer_profiles", [COMPANY, EMAIL]) == {COMPANY, EMAIL}
    for disguised in (
        SECRET.encode(),
        base64.b64encode(SECRET.encode()),
        base64.b64encode(b"a" + SECRET.encode()),
        base64.b64encode(b"ab" + SECRET.encode() + b"c"),
        SECRET.encode().hex().encode(),
    ):
        told.execute("DELETE FROM data_keys WHERE customer_id = 'canary'")
        told.execute("INSERT INTO data_keys VALUES ('canary', 'x', %s)", disguised)
        assert found_in(told, "data_keys", [SECRET]) == {SECRET}


def test_the_mapper_opens_them(told):
    events = {type(event): event for event in told.events()}
    assert (events[Onboarded].company_name, events[Onboarded].admin_email) == (COMPANY, EMAIL)
    assert (events[TeamMemberAdded].email, events[TeamMemberAdded].name) == (EMAIL, PERSON)
    assert events[ProviderConfigured].notification_emails == (OPS, EMAIL)


def stored(world: World, kind: str) -> StoredEvent:
    [found] = [n for n in world.store.recorder.select_notifications(start=0, limit=100) if n.topic.startswith(kind)]
    return StoredEvent(found.originator_id, found.originator_version, found.topic, found.state)


def with_data(event: StoredEvent, **changes) -> StoredEvent:
    state = json.loads(event.state)
    state["data"].update(changes)
    return StoredEvent(event.originator_id, event.originator_version, event.topic, json.dumps(state).encode())


class TestSwappedCiphertextsDoNotOpen:
    def test_between_fields_of_one_event(self, told):
        event = stored(told, "customer.onboarded")
        data = json.loads(event.state)["data"]
        assert (
            told.mapper.to_domain_event(with_data(event, company_name=data["company_name"])).event.company_name
            == COMPANY
        )
        with pytest.raises(UnreadableEvent, match="altered, or belongs to another owner"):
            told.mapper.to_domain_event(with_data(event, company_name=data["admin_email"]))

    def test_between_events_of_one_customer(self, told):
        other = json.loads(stored(told, "customer.team-member-added").state)["data"]
        with pytest.raises(UnreadableEvent, match="altered, or belongs to another owner"):
            told.mapper.to_domain_event(with_data(stored(told, "customer.onboarded"), admin_email=other["email"]))

    def test_between_customers(self, told):
        event = stored(told, "customer.onboarded")
        told.onboard("other", company_name=COMPANY, admin_email=EMAIL)
        theirs = [n for n in told.store.recorder.select_notifications(start=0, limit=100) if n.topic == event.topic][1]
        with pytest.raises(UnreadableEvent) as refusal:
            told.mapper.to_domain_event(with_data(event, admin_email=json.loads(theirs.state)["data"]["admin_email"]))
        assert isinstance(refusal.value.__cause__, KeyDestroyed)

    def test_between_the_rows_of_two_credentials(self, told):
        row = told.row("customer_cloud_credentials")
        sealed = bytes(row["encrypted_credentials"])
        owner = SealedFor("acme", row["credential_id"], Purpose.CREDENTIAL)
        assert json.loads(told.vault.open(sealed, owner)) == {"secret": SECRET}
        for wrong in (
            SealedFor("acme", "another", Purpose.CREDENTIAL),
            SealedFor("acme", row["credential_id"], Purpose.PERSONAL),
        ):
            with pytest.raises(ValueError, match=r"altered|does not have the data key"):
                told.vault.open(sealed, wrong)
