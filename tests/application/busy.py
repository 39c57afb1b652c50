"""A busy history: everything that customers, operators, schedulers and workers do, in an order that a seed decides."""

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from uuid import UUID

from adapters.postgres.checkpoints import PostgresCheckpoints
from application import (
    api_keys,
    credentials,
    customers,
    pipelines,
    provider_configs,
    readers,
    resealing,
    schedules,
    subscriptions,
    team,
    webhooks,
)
from application.backfill import Backfill, backfill
from application.erasure import Erase, erase
from application.ports import Expectation, Purpose, RunOrder, RunReport, StepReport
from application.projections import SkipEvent, skip_event
from domain.plans import Plan
from domain.projection import NOTIFICATIONS
from domain.refusals import QuotaExceeded, Refusal
from projections.follow import Problem, ProblemKind
from tests.application.payer import Payer
from tests.application.world import World

CUSTOMERS = ("alpha", "beta", "gamma")


class Tables:
    """A warehouse in which every customer's tables are there."""

    def ensure_customer(self, customer_id: str) -> list[str]:
        return ["x_meta_pipeline_runs", "x_meta_step_logs", "x_meta_dq_results"]


class Busy:
    """Does one thing after another; what is refused is refused."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.chance = random.Random(seed)  # noqa: S311 - no secret
        self.held: list[tuple[str, RunOrder]] = []
        self.guests: list[str] = []
        self.seed = seed
        self.invited = 0
        self.deeds: list[Callable[[str], object]] = [
            *[self.request] * 6,
            *[self.claim] * 6,
            *[self.report] * 9,
            *[self.trigger] * 3,
            *[self.wait] * 3,
            self.cancel,
            self.retry,
            self.pipeline,
            self.change,
            self.backfill,
            self.pause,
            self.resume,
            self.take_over,
            self.suspend,
            self.reactivate,
            self.plan,
            self.limits,
            self.reset,
            self.recount,
            self.key,
            self.credential,
            self.provider,
            self.member,
            self.contact,
            self.provision,
            self.remove,
            self.come_and_go,
        ]

    def begin(self) -> "Busy":
        for customer_id in CUSTOMERS:
            self.world.onboard(customer_id, self.chance.choice(list(Plan)), company_name=f"{customer_id} “GmbH” \\ ü")
            self.world.pipeline(customer_id, "*/30 * * * *", timezone="Asia/Kathmandu", overlap="skip")
            self.world.pipeline(customer_id, "5 4 * * *", timezone="America/New_York", catch_up="all")
            self.world.pipeline(customer_id, "15 * * * *", overlap="cancel_running", jitter_seconds=90)
        return self

    def step(self) -> None:
        """One deed, whatever comes of it."""
        deed = self.chance.choice(self.deeds)
        try:
            deed(self.chance.choice(CUSTOMERS))
        except Refusal:
            return

    def _some(self, table: str, column: str, customer_id: str) -> str:
        found = sorted(row[column] for row in self.world.rows(table, customer_id=customer_id))
        return self.chance.choice(found) if found else "none"

    def request(self, customer_id: str) -> None:
        self.world.request(
            customer_id, parameters={"days": self.chance.choice([1, 2.5, 'ü\\"', None, [1, {"x": 1e300}]])}
        )

    def claim(self, _: str) -> None:
        worker = self.chance.choice(["w1", "w2"])
        self.held += [(worker, order) for order in self.world.claim(worker, limit=self.chance.randint(1, 4))]

    def report(self, _: str) -> None:
        """Also of runs that were taken over since."""
        self.chance.shuffle(self.held)
        for _ in range(min(len(self.held), 2)):
            worker, order = self.held.pop()
            step = self.stepped()
            outcome = self.chance.choice(
                [
                    {"report": RunReport(succeeded=True, rows=5)},
                    {"report": RunReport(succeeded=True, rows=0), "steps": (step, step)},
                    {"report": RunReport(succeeded=False, error="bad SQL")},
                    {"report": RunReport(succeeded=False, error="503"), "retry_after": timedelta(0)},
                    {"handed_back": "shutdown"},
                    {"cancelled": True},
                    {"steps": (step,)},
                ]
            )
            self.world.report([order], worker, **outcome)

    def stepped(self) -> StepReport:
        return StepReport(
            index=self.chance.randint(0, 2),
            name="check",
            type="data_quality",
            status="COMPLETED",
            started_at=self.world.at,
            ended_at=self.world.at + timedelta(seconds=1.5),
            rows=3,
            target_table="t",
            expectations=(Expectation("rows", passed=self.chance.random() < 0.5, severity="warn", observed="0 rows"),),
            metadata={"bytes": 10**12},
        )

    def trigger(self, _: str) -> None:
        self.world.trigger(batch=self.chance.choice([1, 2, 500]))

    def wait(self, _: str) -> None:
        self.world.wait(seconds=self.chance.choice([0.000001, 30, 3600, 3 * 3600, 20 * 3600, -60]))

    def cancel(self, customer_id: str) -> None:
        self.world.cancel(self._some("scheduled_pipeline_runs", "run_id", customer_id), customer_id)

    def retry(self, customer_id: str) -> None:
        self.world.retry(self._some("scheduled_pipeline_runs", "run_id", customer_id), customer_id)

    def pipeline(self, customer_id: str) -> None:
        self.world.pipeline(
            customer_id, self.chance.choice(["0 * * * *", "@daily"]), catch_up="none", parameters={"days": 2}
        )

    def change(self, customer_id: str) -> None:
        config_id = self._some("customer_pipeline_configs", "config_id", customer_id)
        changes = [
            {"is_active": False},
            {"is_active": True},
            {"schedule_cron": "*/20 * * * *"},
            {"timezone": "Asia/Tokyo"},
        ]
        self.world.change(config_id, customer_id, **self.chance.choice(changes))

    def backfill(self, customer_id: str) -> None:
        command = Backfill(
            **self.world.stamp(),
            customer_id=customer_id,
            config_id=self._some("customer_pipeline_configs", "config_id", customer_id),
            first=self.world.at.date() - timedelta(days=self.chance.randint(2, 9)),
            last=self.world.at.date() - timedelta(days=1),
            backfill_id=str(UUID(int=self.chance.randint(1, 9))),
        )
        backfill(command, self.world.platform, self.world.catalogue)

    def pause(self, customer_id: str) -> None:
        command = schedules.PauseSchedules(**self.world.stamp(), customer_id=customer_id, reason="moving")
        schedules.pause_schedules(command, self.world.platform)

    def resume(self, _: str) -> None:
        for customer_id in CUSTOMERS:
            command = schedules.ResumeSchedules(**self.world.stamp(), customer_id=customer_id, reason="moved")
            schedules.resume_schedules(command, self.world.platform)

    def take_over(self, _: str) -> None:
        self.world.execute(
            "UPDATE run_leases SET expires_at = clock_timestamp() - interval '1 ms' WHERE random() < 0.5"
        )
        self.world.take_over()

    def suspend(self, customer_id: str) -> None:
        self.world.suspend(customer_id)

    def reactivate(self, _: str) -> None:
        for customer_id in CUSTOMERS:
            self.world.reactivate(customer_id)

    def plan(self, customer_id: str) -> None:
        plan = self.chance.choice(list(Plan))
        command = subscriptions.ChangePlan(**self.world.stamp(), customer_id=customer_id, plan=plan, reason="why not")
        subscriptions.change_plan(command, self.world.platform)

    def limits(self, customer_id: str) -> None:
        self.world.limits(customer_id, max_pipelines_per_day=self.chance.choice([None, 0, 3, 500]))

    def reset(self, customer_id: str) -> None:
        command = subscriptions.ResetUsage(**self.world.stamp(), customer_id=customer_id, reason="r", monthly=True)
        subscriptions.reset_usage(command, self.world.platform)

    def recount(self, customer_id: str) -> None:
        command = subscriptions.RecountUsage(**self.world.stamp(), customer_id=customer_id, reason="r")
        subscriptions.recount_usage(command, self.world.platform)

    def key(self, customer_id: str) -> None:
        self.world.onboard(customer_id, known_as="admin", plan=self.chance.choice(list(Plan)))
        command = api_keys.RevokeApiKey(
            **self.world.stamp(),
            customer_id=customer_id,
            api_key_id=self._some("customer_api_keys", "api_key_id", customer_id),
        )
        api_keys.revoke_api_key(command, self.world.platform)

    def credential(self, customer_id: str) -> None:
        command = credentials.AddCredential(
            **self.world.stamp(),
            customer_id=customer_id,
            provider=self.chance.choice(list(credentials.Provider)),
            credential_type="KEY",
            credential_name="reader",
            credentials={"type": "service_account", "secret": "s"},
        )
        credentials.add_credential(command, self.world.platform, self.world.vault)

    def provider(self, customer_id: str) -> None:
        command = provider_configs.ConfigureProvider(
            **self.world.stamp(),
            customer_id=customer_id,
            provider="GCP",
            domain="cost",
            source_project_id="some-project",
            source_dataset="billing",
            notification_emails=("ops@example.com",),
        )
        provider_configs.configure_provider(command, self.world.platform)

    def member(self, customer_id: str) -> None:
        email = f"p{self.chance.randint(0, 99)}@example.com"
        command = team.AddTeamMember(**self.world.stamp(), customer_id=customer_id, email=email, name="Ann O'Ü")
        team.add_team_member(command, self.world.platform)

    def webhook(self, customer_id: str) -> None:
        command = webhooks.AddWebhookEndpoint(
            **self.world.stamp(), customer_id=customer_id, url=f"https://hooks.example.com/{self.chance.randint(0, 99)}"
        )
        webhooks.add_webhook_endpoint(command, self.world.platform, self.world.vault)

    def reader(self, customer_id: str) -> None:
        principal = f"user:reader{self.chance.randint(0, 9_999)}@example.com"
        command = readers.GrantReader(**self.world.stamp(), customer_id=customer_id, principal=principal)
        readers.grant_reader(command, self.world.platform)

    def contact(self, customer_id: str) -> None:
        number = self.chance.randint(0, 99)
        changed = {
            "company_name": f"Renamed {number}",
            "admin_email": f"admin{number}@acmecorp.com" if number % 2 else None,
        }
        command = customers.ChangeContact(**self.world.stamp(), customer_id=customer_id, **changed)
        customers.change_contact(command, self.world.platform)

    def provision(self, customer_id: str) -> None:
        command = customers.Provision(**self.world.stamp(), customer_id=customer_id)
        customers.provision(command, self.world.platform, Tables())

    def remove(self, customer_id: str, what: str | None = None) -> None:
        """Something is taken away again."""
        stamp, platform = self.world.stamp, self.world.platform
        match what or self.chance.choice(["credential", "provider", "member", "pipeline"]):
            case "credential":
                gone = self._some("customer_cloud_credentials", "credential_id", customer_id)
                command = credentials.RevokeCredential(**stamp(), customer_id=customer_id, credential_id=gone)
                credentials.revoke_credential(command, platform)
            case "provider":
                gone = self._some("customer_provider_configs", "config_id", customer_id)
                removal = provider_configs.RemoveProviderConfig(**stamp(), customer_id=customer_id, config_id=gone)
                provider_configs.remove_provider_config(removal, platform)
            case "member":
                gone = self._some("customer_team_members", "member_id", customer_id)
                leaving = team.RemoveTeamMember(**stamp(), customer_id=customer_id, member_id=gone)
                team.remove_team_member(leaving, platform)
            case "webhook":
                gone = self._some("customer_webhook_endpoints", "endpoint_id", customer_id)
                silence = webhooks.RemoveWebhookEndpoint(**stamp(), customer_id=customer_id, endpoint_id=gone)
                webhooks.remove_webhook_endpoint(silence, platform)
            case "reader":
                gone = self._some("customer_bigquery_readers", "grant_id", customer_id)
                revocation = readers.RevokeReader(**stamp(), customer_id=customer_id, grant_id=gone)
                readers.revoke_reader(revocation, platform)
            case _:
                gone = self._some("customer_pipeline_configs", "config_id", customer_id)
                ending = pipelines.RemovePipeline(**stamp(), customer_id=customer_id, config_id=gone)
                pipelines.remove_pipeline(ending, platform)

    def come_and_go(self, _: str) -> None:
        """Customers who stay for a while: one comes, or the one who is there longest is erased."""
        if self.chance.random() < 0.5 and self.guests:
            self.erase(self.guests.pop(0))
        else:
            self.guests.append(self.come())

    def come(self) -> str:
        """A customer who has something in every table; its id."""
        self.invited += 1
        guest = f"guest_{self.seed}_{self.invited}"
        self.world.onboard(guest, self.chance.choice(list(Plan)))
        self.credential(guest)
        self.member(guest)
        self.provider(guest)
        self.webhook(guest)
        self.reader(guest)
        self.world.pipeline(guest, "0 * * * *")
        run_id = self.world.request(guest)
        if self.chance.random() < 0.5:
            self.world.report(self.world.claim(run_id=run_id))
        return guest

    def reseal(self, customer_id: str) -> None:
        """Whatever the customer has sealed is sealed again."""
        sealed = [
            resealing.Sealed(row[record], purpose, bytes(row[column]))
            for table, record, purpose, column in (
                ("customer_api_keys", "api_key_id", Purpose.API_KEY, "encrypted_api_key"),
                ("customer_cloud_credentials", "credential_id", Purpose.CREDENTIAL, "encrypted_credentials"),
                ("customer_webhook_endpoints", "endpoint_id", Purpose.WEBHOOK, "encrypted_secret"),
            )
            for row in self.world.rows(table, customer_id=customer_id)
        ]
        command = resealing.Reseal(**self.world.stamp(), customer_id=customer_id)
        resealing.reseal(command, sealed, self.world.platform, self.world.vault)

    def erase(self, customer_id: str) -> None:
        """Whatever the customer has goes, runs that others hold included."""
        erase(Erase(**self.world.stamp(), customer_id=customer_id, reason="asked for it"), self.world.platform)

    def rarities(self) -> None:
        """What chance may have left out, done by a customer of its own."""
        self.world.onboard("delta", "SCALE")
        for add, what in (
            (self.credential, "credential"),
            (self.provider, "provider"),
            (self.member, "member"),
            (self.webhook, "webhook"),
            (self.reader, "reader"),
            (self.pipeline, "pipeline"),
        ):
            add("delta")
            self.remove("delta", what)
        waiting = self.world.request("delta")
        self.world.suspend("delta")
        self.world.claim(run_id=waiting)
        self.world.reactivate("delta")
        self.contact("delta")
        self.provision("delta")
        self.key("delta")
        self.schedule("delta")
        orders = self.world.claim(run_id=self.world.request("delta"))
        self.world.report(orders, report=RunReport(succeeded=False, error="bad SQL"))
        for outcome in ({"handed_back": "shutdown"}, {"steps": (self.stepped(),)}):
            self.world.report(self.world.claim(run_id=self.world.request("delta")), **outcome)
        run_id = self.world.request("delta")
        self.world.claim(run_id=run_id)
        self.world.cancel(run_id, "delta")
        self.reset("delta")
        self.world.limits("delta", max_pipelines_per_day=0)
        with suppress(QuotaExceeded):  # which is recorded
            self.world.request("delta")
        guest = self.come()
        self.reseal(guest)
        self.erase(guest)
        self.pay()
        self.skip()

    def pay(self) -> None:
        """Stripe tells of two who pay: one does not any more, and the other is erased and told of again."""
        payer = Payer(self.world)
        payer.tell(
            payer.checkout(names="paying"), payer.subscription("e1", 0, "past_due"), payer.invoice("e2", 0, "open")
        )
        payer.tell(payer.subscription("e3", 1, price="price_new"))
        self.world.wait(days=8)
        payer.end()
        payer.tell(
            payer.checkout(names="gone"), payer.subscription("e1"), payer.checkout("e2", names=None), cus="cus_2"
        )
        self.erase("gone")
        payer.tell(payer.subscription("e3", 1, price="price_s"), cus="cus_2")
        payer.end()

    def skip(self) -> None:
        """A projection stands stopped at the first event, and an operator has it pass over that."""
        problem = Problem(kind=ProblemKind.EVENT, text="It cannot be read.", position=1)
        PostgresCheckpoints(self.world.datastore).stand(NOTIFICATIONS, problem)
        command = SkipEvent(**self.world.stamp(), projection=NOTIFICATIONS, position=1, reason="Sent by hand.")
        skip_event(command, self.world.platform)
        PostgresCheckpoints(self.world.datastore).go_on(NOTIFICATIONS)

    def schedule(self, customer_id: str) -> None:
        """A pipeline that is changed, rests with all others, has a slot that ends the run before, and is filled in."""
        config_id = self.world.pipeline(customer_id, "0 * * * *", overlap="cancel_running", jitter_seconds=90)
        self.world.change(config_id, customer_id, schedule_cron="*/30 * * * *")
        self.pause(customer_id)
        command = schedules.ResumeSchedules(**self.world.stamp(), customer_id=customer_id, reason="moved")
        schedules.resume_schedules(command, self.world.platform)
        for _ in range(2):
            self.world.wait(minutes=30)
            self.world.trigger()
        day = self.world.at.date() - timedelta(days=1)
        asked = {"customer_id": customer_id, "config_id": config_id, "first": day, "last": day}
        backfill(Backfill(**self.world.stamp(), **asked), self.world.platform, self.world.catalogue)
