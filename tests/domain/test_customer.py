"""What a customer may have: keys, providers, people, pipelines; and what being suspended means."""

from datetime import UTC, datetime, timedelta

import pytest

from domain import customer
from domain.customer import MAX_CREDENTIALS, MAX_KEYS, MAX_PIPELINES, MAX_PROVIDER_CONFIGS, Status
from domain.customer_events import (
    AdminEmailChanged,
    ApiKeyIssued,
    ApiKeyRetired,
    ApiKeyRevoked,
    CompanyRenamed,
    CredentialAdded,
    CredentialRevoked,
    DatasetProvisioned,
    Onboarded,
    Pipeline,
    PipelineChanged,
    PipelineConfigured,
    PipelineRemoved,
    ProviderConfigRemoved,
    ProviderConfigured,
    Reactivated,
    Suspended,
    TeamMemberAdded,
    TeamMemberRemoved,
)
from domain.refusals import Conflict, Forbidden, NotFound
from tests.domain.story import Story

NOON = datetime(2025, 11, 17, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
NIGHTLY = Pipeline(provider="GCP", domain="COST", template="cost_billing", cron="0 2 * * *", timezone="UTC")
TWO = datetime(2025, 11, 18, 2, 0, tzinfo=UTC)


def acme() -> Story:
    return Story(customer.evolve).given(
        Onboarded(customer_id="acme_corp", company_name="ACME", admin_email="a@acme.com", plan="STARTER")
    )


def key(key_id: str, at: datetime = NOON, name: str = "") -> ApiKeyIssued:
    return ApiKeyIssued(
        api_key_id=key_id, key_hash="0" * 64, sealed_key=b"sealed", last4="AbCd", expires_at=at + 90 * DAY, name=name
    )


def credential(name: str, provider: str = "GCP") -> CredentialAdded:
    return CredentialAdded(
        credential_id=name, provider=provider, credential_type="SERVICE_ACCOUNT", credential_name=name, sealed=b"sealed"
    )


def config(name: str, provider: str = "GCP", dataset: str = "billing") -> ProviderConfigured:
    return ProviderConfigured(
        config_id=name, provider=provider, domain="COST", source_project_id="acme-1", source_dataset=dataset
    )


def person(name: str, email: str) -> TeamMemberAdded:
    return TeamMemberAdded(member_id=name, email=email, name=name, role="MEMBER")


def issue(story: Story, name: str, at: datetime = NOON, *, replace_oldest: bool = False) -> Story:
    return story.when(lambda c: c.issue_key(key(name, at), at, replace_oldest=replace_oldest))


class TestKeys:
    def test_the_old_one_works_for_another_day(self):
        story = issue(acme().given(key("k1")), "k2")
        story.then(ApiKeyRetired(api_key_id="k1", expires_at=NOON + DAY), key("k2"))
        assert story.state.active_keys(NOON + DAY - timedelta.resolution) == ["k1", "k2"]
        assert story.state.active_keys(NOON + DAY) == ["k2"]

    def test_one_that_ends_sooner_anyway_is_not_given_more_time(self):
        story = acme().given(key("k1"))
        later = NOON + 90 * DAY - timedelta(hours=1)
        issue(story, "k2", later).then(key("k2", later))

    def test_a_third_is_refused_while_two_are_active(self):
        story = issue(acme().given(key("k1")), "k2")
        with pytest.raises(Conflict, match="2 API keys are active already"):
            story.state.issue_key(key("k3"), NOON, replace_oldest=False)
        issue(story, "k3", NOON + DAY).then_kinds(ApiKeyRetired, ApiKeyIssued)

    def test_or_takes_the_place_of_the_oldest(self):
        story = issue(issue(acme().given(key("k1")), "k2"), "k3", replace_oldest=True)
        story.then(ApiKeyRevoked(api_key_id="k1"), ApiKeyRetired(api_key_id="k2", expires_at=NOON + DAY), key("k3"))
        assert story.state.active_keys(NOON) == ["k2", "k3"]

    def test_expire_to_the_microsecond(self):
        story = acme().given(key("k1"))
        end = NOON + 90 * DAY
        assert story.state.active_keys(end - timedelta.resolution) == ["k1"]
        assert story.state.active_keys(end) == []

    def test_are_revoked_once(self):
        story = acme().given(key("k1")).when(lambda c: c.revoke_key("k1", NOON)).then(ApiKeyRevoked(api_key_id="k1"))
        with pytest.raises(NotFound):
            story.state.revoke_key("k1", NOON)
        assert story.state.active_keys(NOON) == []

    def test_of_other_names_go_on(self):
        story = acme().given(key("k1"), key("c1", name="CI"), key("c2", name="CI"))
        with pytest.raises(Conflict, match="2 API keys of that name are active already"):
            story.state.issue_key(key("c3", name="CI"), NOON, replace_oldest=False)
        story.when(lambda c: c.issue_key(key("d1", name="dashboard"), NOON, replace_oldest=False))
        story.then(key("d1", name="dashboard"))
        issue(story, "k2").then(ApiKeyRetired(api_key_id="k1", expires_at=NOON + DAY), key("k2"))
        assert story.state.keys_named("CI", NOON) == ["c1", "c2"]
        story.given(ApiKeyRetired(api_key_id="c1", expires_at=NOON))
        assert story.state.keys_named("CI", NOON) == ["c2"], "it keeps its name"

    def test_are_so_many_and_no_more_but_an_owner_gets_back_in(self):
        story = acme().given(*(key(f"k{n}", name=f"n{n}") for n in range(MAX_KEYS)))
        with pytest.raises(Conflict, match=f"{MAX_KEYS} API keys are active already"):
            story.state.issue_key(key("more", name="more"), NOON, replace_oldest=False)
        issue(story, "k", replace_oldest=True).then(key("k"))

    def test_that_somebody_found_are_revoked_once(self):
        story = acme().given(key("k1"))
        story.when(lambda c: c.revoke_leaked_key("k1", NOON, "found"))
        story.then(ApiKeyRevoked(api_key_id="k1", reason="found"))
        story.when(lambda c: c.revoke_leaked_key("k1", NOON, "found")).then()

    def test_that_expired_cannot_be_revoked(self):
        with pytest.raises(NotFound):
            acme().given(key("k1")).state.revoke_key("k1", NOON + 90 * DAY)


class TestCredentials:
    def test_providers_count_and_credentials_do_not(self):
        story = acme().given(credential("c1", "GCP"), credential("c2", "GCP"), credential("c3", "AWS"))
        story.when(lambda c: c.add_credential(credential("c4", "GCP"), 2)).then_kinds(CredentialAdded)
        with pytest.raises(Forbidden, match="The plan allows 2 providers, and 2 have credentials already"):
            story.state.add_credential(credential("c5", "AZURE"), 2)

    def test_the_last_one_of_a_provider_makes_room(self):
        story = acme().given(credential("c1", "GCP"), credential("c2", "AWS"))
        story.when(lambda c: c.revoke_credential("c1")).then(CredentialRevoked(credential_id="c1"))
        story.when(lambda c: c.add_credential(credential("c3", "AZURE"), 2)).then_kinds(CredentialAdded)

    def test_there_is_an_end_to_them(self):
        story = acme().given(*(credential(f"c{n}") for n in range(MAX_CREDENTIALS)))
        with pytest.raises(Forbidden, match="100 credentials"):
            story.state.add_credential(credential("more"), 3)

    def test_an_unknown_one_is_not_found(self):
        with pytest.raises(NotFound):
            acme().state.revoke_credential("c1")


class TestProviderConfigurations:
    def test_the_newest_of_a_provider_and_domain_is_in_force(self):
        story = acme().given(config("p1"), config("p2", "AWS"), config("p3", dataset="newer"))
        assert story.state.configuration("GCP", "COST").config_id == "p3"
        story.when(lambda c: c.remove_provider_config("p3")).then(ProviderConfigRemoved(config_id="p3"))
        assert story.state.configuration("GCP", "COST").config_id == "p1"
        assert story.state.configuration("OCI", "COST") is None

    def test_there_is_an_end_to_them(self):
        story = acme().given(*(config(f"p{n}") for n in range(MAX_PROVIDER_CONFIGS)))
        with pytest.raises(Forbidden, match="100 provider configurations"):
            story.state.configure_provider(config("more"))

    def test_an_unknown_one_is_not_found(self):
        with pytest.raises(NotFound):
            acme().state.remove_provider_config("p1")


class TestTeam:
    def test_within_the_plans_limit(self):
        story = acme().given(person("m1", "one@acme.com"), person("m2", "two@acme.com"))
        with pytest.raises(Forbidden, match="The plan allows 2 team members"):
            story.state.add_team_member(person("m3", "three@acme.com"), 2)
        story.when(lambda c: c.remove_team_member("m1")).then(TeamMemberRemoved(member_id="m1"))
        story.when(lambda c: c.add_team_member(person("m3", "three@acme.com"), 2)).then_kinds(TeamMemberAdded)

    def test_nobody_twice_whatever_the_case(self):
        story = acme().given(person("m1", "one@acme.com"))
        with pytest.raises(Conflict):
            story.state.add_team_member(person("m2", "One@ACME.com"), 9)

    def test_an_unknown_one_is_not_found(self):
        with pytest.raises(NotFound):
            acme().state.remove_team_member("m1")


class TestPipelines:
    def test_a_resting_one_has_no_next_slot(self):
        resting = Pipeline(**{**{f: getattr(NIGHTLY, f) for f in NIGHTLY.__dataclass_fields__}, "is_active": False})
        story = acme().when(lambda c: c.configure_pipeline("p1", resting, TWO))
        story.then(PipelineConfigured(config_id="p1", pipeline=resting, next_run_time=None))
        story.when(lambda c: c.change_pipeline("p1", NIGHTLY, TWO))
        story.then(PipelineChanged(config_id="p1", pipeline=NIGHTLY, next_run_time=TWO))
        story.when(lambda c: c.change_pipeline("p1", NIGHTLY, TWO + DAY)).then()

    def test_are_removed_once(self):
        story = acme().given(PipelineConfigured(config_id="p1", pipeline=NIGHTLY, next_run_time=TWO))
        story.when(lambda c: c.remove_pipeline("p1")).then(PipelineRemoved(config_id="p1"))
        for late in (lambda c: c.remove_pipeline("p1"), lambda c: c.change_pipeline("p1", NIGHTLY, TWO)):
            with pytest.raises(NotFound):
                late(story.state)

    def test_there_is_an_end_to_them(self):
        story = acme().given(
            *(PipelineConfigured(config_id=f"p{n}", pipeline=NIGHTLY, next_run_time=TWO) for n in range(MAX_PIPELINES))
        )
        with pytest.raises(Forbidden, match="200 scheduled pipelines"):
            story.state.configure_pipeline("more", NIGHTLY, TWO)


class TestSuspension:
    def test_names_the_pipelines_that_rest_and_when_they_go_on(self):
        story = acme().given(
            PipelineConfigured(config_id="p1", pipeline=NIGHTLY, next_run_time=TWO),
            PipelineConfigured(config_id="p2", pipeline=NIGHTLY, next_run_time=TWO),
            PipelineRemoved(config_id="p2"),
        )
        story.when(lambda c: c.suspend("unpaid")).then(Suspended(reason="unpaid", resting=("p1",)))
        assert story.state.status is Status.SUSPENDED
        story.when(lambda c: c.suspend("unpaid")).then()
        # For a second reason it has to be remembered: whoever removes the first one must not let the customer go on.
        story.when(lambda c: c.suspend("fraud")).then(Suspended(reason="fraud", resting=()))
        story.when(lambda c: c.reactivate("paid", {"p1": TWO + DAY}))
        story.then(Reactivated(reason="paid", next_run_times={"p1": TWO + DAY}))
        story.when(lambda c: c.reactivate("again", {})).then()

    @pytest.mark.parametrize(
        "wish",
        [
            lambda c: c.issue_key(key("k2"), NOON, replace_oldest=True),
            lambda c: c.add_credential(credential("c2"), 9),
            lambda c: c.configure_provider(config("p2")),
            lambda c: c.configure_pipeline("q2", NIGHTLY, TWO),
            lambda c: c.change_pipeline("q1", NIGHTLY, TWO),
            lambda c: c.add_team_member(person("m2", "two@acme.com"), 9),
        ],
    )
    def test_nothing_new_meanwhile(self, wish):
        story = acme().given(PipelineConfigured(config_id="q1", pipeline=NIGHTLY, next_run_time=TWO))
        story.when(lambda c: c.suspend("unpaid"))
        with pytest.raises(Forbidden, match="Account suspended"):
            wish(story.state)

    def test_taking_away_stays_possible(self):
        story = acme().given(key("k1"), credential("c1"), config("p1"), person("m1", "one@acme.com"))
        story.when(lambda c: c.suspend("unpaid"))
        for take_away in (
            lambda c: c.revoke_key("k1", NOON),
            lambda c: c.revoke_credential("c1"),
            lambda c: c.remove_provider_config("p1"),
            lambda c: c.remove_team_member("m1"),
        ):
            assert take_away(story.state)


def test_contact_changes_in_part():
    story = acme().when(lambda c: c.change_contact(None, "b@acme.com"))
    story.then(AdminEmailChanged(admin_email="b@acme.com"))
    story.when(lambda c: c.change_contact("ACME", None)).then()
    story.when(lambda c: c.change_contact("Acme Limited", "c@acme.com"))
    story.then(CompanyRenamed(company_name="Acme Limited"), AdminEmailChanged(admin_email="c@acme.com"))


def test_a_dataset_is_provisioned_once():
    story = acme().when(lambda c: c.provisioned_with(("x_meta_step_logs",))).then_kinds(DatasetProvisioned)
    story.when(lambda c: c.provisioned_with(("x_meta_step_logs",))).then()
