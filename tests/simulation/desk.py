"""What customers and operators do with runs and accounts, on the database and in the book, which must agree."""

from datetime import datetime

from application import customers, runs, subscriptions
from domain.pipeline_run import PipelineRun
from domain.plans import Plan
from domain.refusals import Conflict, Forbidden, QuotaExceeded
from tests.application.busy import Tables
from tests.simulation.book import ENDED, Account, Run
from tests.simulation.life import Answer, Life


class Desk:
    """Whoever calls the service. `at` is what the caller's clock shows."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def onboard(self, customer_id: str, plan: Plan) -> None:
        command = customers.Onboard(
            **self._life.stamp("admin", self._life.now),
            customer_id=customer_id,
            company_name=customer_id,
            admin_email="admin@example.com",
            subscription_plan=plan,
        )
        customers.onboard(command, self._life.platform, self._life.world.vault)
        self._life.book.accounts[customer_id] = Account(plan, self._life.now.date())

    def provision(self, customer_id: str) -> None:
        """Queues the platform's own check."""
        command = customers.Provision(**self._life.stamp("service", self._life.now), customer_id=customer_id)
        answer = self._life.attempt(lambda: customers.provision(command, self._life.platform, Tables()))
        known = any(
            run.trigger == "onboarding" for run in self._life.book.of(customer_id, "PENDING", "RUNNING", *ENDED)
        )
        if answer.happened and not known:
            [row] = self._life.world.rows("scheduled_pipeline_runs", customer_id=customer_id, trigger_type="onboarding")
            self._life.book.runs[row["run_id"]] = Run(row["run_id"], customer_id, "onboarding", self._life.now)

    def request(self, customer_id: str, at: datetime, run_id: str | None = None) -> Answer:
        """A run by hand; the same `run_id` again is the same run."""
        wanted = run_id or self._life.new_id()
        command = runs.RequestRun(
            **self._life.stamp(f"customer:{customer_id}", at),
            customer_id=customer_id,
            provider="gcp",
            domain="example",
            template="dryrun",
            run_id=wanted,
        )
        answer = self._life.attempt(
            lambda: self._life.use.request(command, self._life.platform, self._life.world.catalogue)
        )
        self._admitted(answer, Run(wanted, customer_id, "manual", at), at)
        return answer

    def retry(self, customer_id: str, run_id: str, at: datetime) -> Answer:
        command = runs.RetryRun(
            **self._life.stamp(f"customer:{customer_id}", at),
            customer_id=customer_id,
            run_id=run_id,
            new_run_id=self._life.new_id(),
        )
        old = self._life.book.runs[run_id]
        life = self._life
        answer = life.attempt(lambda: runs.retry_run(command, life.platform, life.world.catalogue))
        if isinstance(answer.value, PipelineRun):  # the answer to its first look was lost: it went no further
            return Answer(happened=False, heard=False)
        if answer.happened and old.state not in {"FAILED", "CANCELLED", "SKIPPED"}:
            assert isinstance(answer.refusal, Conflict), f"{old} was tried again"
        else:
            self._admitted(answer, Run(command.new_run_id, customer_id, "retry", at, old.config_id), at)
        return answer

    def _admitted(self, answer: Answer, run: Run, at: datetime) -> None:
        """A caller who wants to start at once was let in, if and only if there was room."""
        if not answer.happened or run.run_id in self._life.book.runs:
            return
        account = self._life.book.accounts[run.customer_id]
        room = (
            self._life.book.room(run.customer_id, at) and len(self._life.book.running(run.customer_id)) < account.places
        )
        if answer.refusal is None:
            assert room, f"{run} was let in and there was no room"
            self._life.book.admit(run, at)
            self._handed_over(run)
        else:
            assert not room, f"{run} was refused and there was room: {answer.refusal}"
            assert isinstance(answer.refusal, Forbidden if account.suspended else QuotaExceeded), answer.refusal

    def _handed_over(self, run: Run) -> None:
        """It is an idle worker's at once, if and only if there is one."""
        book, now = self._life.book, self._life.now
        held = self._life.world.leased(run.run_id)
        offers = book.open_offers(now)
        assert bool(held) == bool(offers), f"{run} went to {held}, and there were {offers}"
        if held is not None:
            given = str(held["handed_to"])
            assert given in offers, f"{run} was handed to {given}, and there were {offers}"
            book.hand_over(run, given, now)

    def cancel(self, customer_id: str, run_id: str, at: datetime) -> Answer:
        command = runs.CancelRun(**self._life.stamp("admin", at), customer_id=customer_id, run_id=run_id)
        answer = self._life.attempt(lambda: runs.cancel_run(command, self._life.platform))
        run = self._life.book.runs[run_id]
        if answer.happened:
            assert isinstance(answer.refusal, Conflict) == run.ended, f"{run} was cancelled: {answer}"
            if run.state == "PENDING":
                self._life.book.never_run(run, "CANCELLED", at)
            elif run.state == "RUNNING":
                run.stop_asked = True
        return answer

    def suspend(self, customer_id: str, at: datetime) -> None:
        command = customers.Suspend(**self._life.stamp("admin", at), customer_id=customer_id, reason="unpaid")
        if self._life.attempt(lambda: customers.suspend(command, self._life.platform)).happened:
            self._life.book.accounts[customer_id].suspended = True
            self._life.timetable.rest(customer_id)

    def reactivate(self, customer_id: str, at: datetime) -> None:
        command = customers.Reactivate(**self._life.stamp("admin", at), customer_id=customer_id, reason="paid")
        account = self._life.book.accounts[customer_id]
        if (
            self._life.attempt(lambda: customers.reactivate(command, self._life.platform)).happened
            and account.suspended
        ):
            account.suspended = False
            self._life.timetable.wake(customer_id, at)

    def change_plan(self, customer_id: str, plan: Plan, at: datetime) -> None:
        command = subscriptions.ChangePlan(
            **self._life.stamp("admin", at), customer_id=customer_id, plan=plan, reason="t"
        )
        account = self._life.book.accounts[customer_id]
        if (
            self._life.attempt(lambda: subscriptions.change_plan(command, self._life.platform)).happened
            and account.plan != plan
        ):
            account.plan = plan
            account.counted(at)

    def override(self, customer_id: str, at: datetime, **limits: int | None) -> None:
        command = subscriptions.OverrideLimits(
            **self._life.stamp("admin", at), customer_id=customer_id, reason="test", **limits
        )
        account = self._life.book.accounts[customer_id]
        if self._life.attempt(lambda: subscriptions.override_limits(command, self._life.platform)).happened:
            overrides = {k: v for k, v in {**account.overrides, **limits}.items() if v is not None}
            if overrides != account.overrides:
                account.overrides = overrides
                account.counted(at)

    def recount(self, customer_id: str, at: datetime) -> None:
        """There is never anything to give back."""
        command = subscriptions.RecountUsage(**self._life.stamp("admin", at), customer_id=customer_id, reason="test")
        if self._life.attempt(lambda: subscriptions.recount_usage(command, self._life.platform)).happened:
            self._life.book.accounts[customer_id].counted(at)
