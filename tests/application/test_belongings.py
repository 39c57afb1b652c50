"""What a customer keeps with us: API keys, credentials, source configurations, people; within its plan."""

import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from adapters.postgres.credentials import SealedCredentials
from application import api_keys, credentials, provider_configs, team
from application.customers import Issued
from application.ports import NotToBeOpened, RunOrder
from domain.refusals import Conflict, Forbidden, NotFound
from tests.application.world import World, race


def issue(world: World, customer_id: str = "acme") -> Issued:
    command = api_keys.IssueApiKey(**world.stamp(), customer_id=customer_id)
    return api_keys.issue_api_key(command, world.platform, world.vault)


def revoke(world: World, api_key_id: str, customer_id: str = "acme") -> None:
    command = api_keys.RevokeApiKey(**world.stamp(), customer_id=customer_id, api_key_id=api_key_id)
    api_keys.revoke_api_key(command, world.platform)


def add_credential(world: World, provider: str = "AWS", **more) -> str:
    given = {"credential_type": "ACCESS_KEY", "credential_name": "reader", "credentials": {"secret": "s3cr3t"}, **more}
    command = credentials.AddCredential(**world.stamp(), **{"customer_id": "acme", "provider": provider, **given})
    return credentials.add_credential(command, world.platform, world.vault)


def claimed(world: World, customer_id: str = "acme") -> RunOrder:
    """A run of the customer that a worker holds and has begun."""
    [order] = world.claim(run_id=world.request(customer_id))
    return order


def configure(world: World, **more) -> str:
    given = {
        "provider": "GCP",
        "domain": "cost",
        "source_project_id": "acme-project",
        "source_dataset": "billing_export",
        "notification_emails": ("ops@acmecorp.com",),
        **more,
    }
    command = provider_configs.ConfigureProvider(**world.stamp(), customer_id="acme", **given)
    return provider_configs.configure_provider(command, world.platform)


def add_member(world: World, email: str) -> str:
    command = team.AddTeamMember(**world.stamp(), customer_id="acme", email=email, name="Ann")
    return team.add_team_member(command, world.platform)


class TestApiKeys:
    def test_a_second_one_and_no_third(self, acme):
        second = issue(acme)
        assert not second.new_customer
        with pytest.raises(Conflict, match="2 API keys are active"):
            issue(acme)
        revoke(acme, second.api_key_id)
        row = acme.row("customer_api_keys", api_key_id=second.api_key_id)
        assert (row["is_active"], row["revoked_at"]) == (False, acme.at)
        issue(acme)

    def test_two_at_once_never_make_three(self, acme):
        answers = race(8, lambda _: issue(acme))
        assert sum(isinstance(a, Issued) for a in answers) == 1
        assert len(acme.rows("customer_api_keys")) == 2

    def test_of_another_customer_are_not_there(self, acme):
        acme.onboard("other")
        theirs = acme.row("customer_api_keys", customer_id="other")["api_key_id"]
        with pytest.raises(NotFound):
            revoke(acme, theirs)
        assert acme.row("customer_api_keys", customer_id="other")["is_active"]


class TestCredentials:
    def test_are_sealed_and_opened_for_their_customers_runs(self, acme):
        credential_id = add_credential(acme, project_id="acme-1")
        row = acme.row("customer_cloud_credentials")
        assert (row["credential_id"], row["provider"], row["is_active"]) == (credential_id, "AWS", True)
        assert b"s3cr3t" not in bytes(row["encrypted_credentials"])
        reader, order = SealedCredentials(acme.datastore, acme.vault), claimed(acme)
        assert reader.credential(order, "aws", None) == {"secret": "s3cr3t"}
        assert reader.credential(order, "AWS", "acme-1") == {"secret": "s3cr3t"}
        assert reader.credential(order, "AWS", "acme-2") is None
        acme.onboard("other")
        assert reader.credential(claimed(acme, "other"), "AWS", None) is None

    @pytest.mark.parametrize(
        "mistaken",
        [
            {"attempt": 2},
            {"worker_id": "w2"},
            {"worker_id": ""},
            {"customer_id": "other"},
            {"run_id": "4f0c6a52-1d3e-4c56-9a55-0d1ec5f1a9e4"},
        ],
    )
    def test_are_opened_for_nobody_who_does_not_hold_the_run(self, acme, mistaken):
        acme.onboard("other")
        add_credential(acme)
        reader, order = SealedCredentials(acme.datastore, acme.vault), claimed(acme)
        with pytest.raises(NotToBeOpened):
            reader.credential(replace(order, **mistaken), "AWS", None)
        assert reader.credential(order, "AWS", None) == {"secret": "s3cr3t"}  # the control

    def test_are_opened_no_more_once_the_run_is_anothers_or_has_ended(self, acme):
        add_credential(acme)
        reader, order = SealedCredentials(acme.datastore, acme.vault), claimed(acme)
        acme.execute("UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 second'")
        with pytest.raises(NotToBeOpened):
            reader.credential(order, "AWS", None)
        assert acme.take_over() == [order.run_id]
        [second] = acme.claim("w2", run_id=order.run_id)
        with pytest.raises(NotToBeOpened):
            reader.credential(order, "AWS", None)
        assert reader.credential(second, "AWS", None) == {"secret": "s3cr3t"}
        acme.report([second], "w2")
        with pytest.raises(NotToBeOpened):
            reader.credential(second, "AWS", None)

    def test_are_opened_for_no_run_that_was_claimed_and_never_begun(self, acme):
        add_credential(acme)
        [order] = acme.claim(run_id=acme.request(), begin=False)
        with pytest.raises(NotToBeOpened):
            SealedCredentials(acme.datastore, acme.vault).credential(order, "AWS", None)

    def test_the_newest_is_used_and_a_revoked_one_is_not(self, acme):
        add_credential(acme, credentials={"n": 1})
        acme.wait(seconds=1)
        newest = add_credential(acme, credentials={"n": 2})
        reader, order = SealedCredentials(acme.datastore, acme.vault), claimed(acme)
        assert reader.credential(order, "AWS", None) == {"n": 2}
        command = credentials.RevokeCredential(**acme.stamp(), customer_id="acme", credential_id=newest)
        credentials.revoke_credential(command, acme.platform)
        assert reader.credential(order, "AWS", None) == {"n": 1}
        with pytest.raises(NotFound):
            credentials.revoke_credential(command, acme.platform)

    def test_asking_again_with_the_same_id_finds_the_same(self, acme):
        for _ in range(2):
            assert add_credential(acme, credential_id="once") == "once"
        assert acme.kinds().count("CredentialAdded") == 1

    def test_as_many_providers_as_the_plan_allows(self, world):
        world.onboard(plan="STARTER")
        for provider in ("AWS", "AZURE", "OCI"):
            add_credential(world, provider)
        with pytest.raises(Forbidden, match="The plan allows 3 providers"):
            add_credential(world, "OPENAI")
        add_credential(world, "AWS")
        world.limits(max_providers=4)
        add_credential(world, "OPENAI")

    def test_many_at_once_stay_within_the_plan(self, world):
        world.onboard(plan="STARTER")
        providers = ["AWS", "AZURE", "OCI", "OPENAI", "ANTHROPIC", "GCP"]
        race(6, lambda n: add_credential(world, providers[n]))
        assert len({row["provider"] for row in world.rows("customer_cloud_credentials")}) == 3

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"type": "user"}, "JSON key file"),
            ({"type": "service_account", "project_id": "p"}, "lacks private_key, client_email"),
            (
                {
                    "type": "service_account",
                    "project_id": "p",
                    "private_key": "k",
                    "client_email": "e",
                    "token_uri": "http://evil",
                },
                "token_uri must be Google's own",
            ),
            ({}, "must not be empty"),
            ({"k": "x" * 40_000}, "larger than 32 kB"),
        ],
    )
    def test_a_google_service_account_has_its_shape(self, acme, given, told):
        with pytest.raises(ValidationError, match=told) as raised:
            add_credential(acme, "GCP", credential_type="SERVICE_ACCOUNT", credentials=given)
        assert "evil" not in str(raised.value)

    def test_nothing_printed_holds_one(self, acme):
        command = credentials.AddCredential(
            **acme.stamp(),
            customer_id="acme",
            provider="AWS",
            credential_type="KEY",
            credential_name="n",
            credentials={"secret": "s3cr3t"},
        )
        assert "s3cr3t" not in repr(command) + str(command)
        assert json.loads(json.dumps(command.credentials)) == {"secret": "s3cr3t"}


class TestProviderConfigurations:
    def test_the_newest_comes_with_the_run(self, acme):
        configure(acme, source_dataset="old")
        acme.wait(seconds=1)
        config_id = configure(acme)
        acme.request(template="cost_billing", domain="cost")
        [order] = acme.claim()
        assert order.configuration == {
            "source_project_id": "acme-project",
            "source_dataset": "billing_export",
            "notification_emails": ["ops@acmecorp.com"],
        }
        command = provider_configs.RemoveProviderConfig(**acme.stamp(), customer_id="acme", config_id=config_id)
        provider_configs.remove_provider_config(command, acme.platform)
        assert acme.row("customer_provider_configs", config_id=config_id)["deleted_at"] == acme.at
        with pytest.raises(NotFound):
            provider_configs.remove_provider_config(command, acme.platform)

    def test_a_run_without_one_has_none(self, acme):
        acme.request()
        assert acme.claim()[0].configuration == {}


class TestTeam:
    def test_within_the_plan(self, world):
        world.onboard(plan="STARTER")
        first = add_member(world, "one@acme.com")
        add_member(world, "two@acme.com")
        with pytest.raises(Forbidden, match="2 team members"):
            add_member(world, "three@acme.com")
        with pytest.raises(Conflict):
            add_member(world, "TWO@acme.com")
        team.remove_team_member(
            team.RemoveTeamMember(**world.stamp(), customer_id="acme", member_id=first), world.platform
        )
        assert not world.row("customer_team_members", member_id=first)["is_active"]
        add_member(world, "three@acme.com")

    def test_many_at_once_stay_within_the_plan(self, acme):
        race(12, lambda n: add_member(acme, f"p{n}@acme.com"))
        assert len(acme.rows("customer_team_members")) == 6
