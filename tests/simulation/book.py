"""What must be true of runs, units and places, written down a second time: dictionaries, and the rules in words."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from domain.plans import LIMITS, Plan

LEASE = timedelta(seconds=60)
HANDED = timedelta(seconds=10)
BEGUN_BEFORE = timedelta(seconds=2)
ATTEMPTS = 3
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "SKIPPED")


@dataclass
class Run:
    """One run. `spent` counts its attempts that were begun and came to nothing, `idle` those that never began."""

    run_id: str
    customer_id: str
    trigger: str
    scheduled_for: datetime
    config_id: str | None = None
    counted_on: date | None = None
    not_before: datetime | None = None
    state: str = "PENDING"
    attempt: int = 0
    spent: int = 0
    idle: int = 0
    worker: str | None = None
    begun: bool = False
    held_until: datetime | None = None
    stop_asked: bool = False
    offer: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def takes_place(self) -> bool:
        """The platform's own check of a new customer takes none."""
        return self.trigger != "onboarding"

    @property
    def pipeline(self) -> str | None:
        """The schedule whose runs go one after another; runs asked for by hand hold nobody up."""
        return self.config_id if self.trigger == "scheduled" else None


@dataclass
class Account:
    """One customer's subscription. `day` is the newest UTC day that anything was counted on: days never go back."""

    plan: Plan
    day: date
    overrides: dict[str, int] = field(default_factory=dict)
    suspended: bool = False
    succeeded: dict[date, int] = field(default_factory=dict)
    failed: dict[date, int] = field(default_factory=dict)

    @property
    def per_day(self) -> int:
        return self.overrides.get("max_pipelines_per_day", LIMITS[self.plan].max_pipelines_per_day)

    @property
    def per_month(self) -> int:
        return self.overrides.get("max_pipelines_per_month", LIMITS[self.plan].max_pipelines_per_month)

    @property
    def places(self) -> int:
        return self.overrides.get("max_concurrent_pipelines", LIMITS[self.plan].max_concurrent_pipelines)

    def counted(self, at: datetime) -> None:
        """Something was counted at this instant."""
        self.day = max(self.day, at.astimezone(UTC).date())


@dataclass
class Offer:
    """A worker's word that it would take so many runs at once. It counts while the worker is on the line."""

    worker: str
    free: int
    until: datetime
    on_the_line: bool = True


class Book:
    """Every run, every customer's account, and what workers have offered."""

    def __init__(self) -> None:
        self.offers: dict[str, Offer] = {}
        self.runs: dict[str, Run] = {}
        self.accounts: dict[str, Account] = {}

    # what there is

    def of(self, customer_id: str, *states: str) -> list[Run]:
        """The customer's runs in these states, in the order in which they came into being."""
        return [run for run in self.runs.values() if run.customer_id == customer_id and run.state in states]

    def running(self, customer_id: str) -> list[Run]:
        """Those that hold a place."""
        return [run for run in self.of(customer_id, "RUNNING") if run.takes_place]

    def held(self) -> list[Run]:
        return [run for run in self.runs.values() if run.state == "RUNNING"]

    def units(self, customer_id: str, day: date) -> int:
        return sum(1 for run in self.runs.values() if run.customer_id == customer_id and run.counted_on == day)

    def units_of_month(self, customer_id: str, day: date) -> int:
        return sum(
            1
            for run in self.runs.values()
            if run.customer_id == customer_id and run.counted_on and run.counted_on.replace(day=1) == day.replace(day=1)
        )

    def room(self, customer_id: str, at: datetime) -> int:
        """How many more runs may be admitted at this instant."""
        account = self.accounts[customer_id]
        day = max(account.day, at.astimezone(UTC).date())
        left = account.per_day - self.units(customer_id, day), account.per_month - self.units_of_month(customer_id, day)
        return 0 if account.suspended else max(0, min(left))

    def startable(self, run: Run, now: datetime) -> bool:
        """Whether a worker that asks now may have this run."""
        if run.state != "PENDING" or (run.not_before is not None and run.not_before > now):
            return False
        if not run.takes_place:
            return True
        account, others = self.accounts[run.customer_id], self.running(run.customer_id)
        if account.suspended or len(others) >= account.places:
            return False
        if run.trigger == "backfill":
            return sum(other.trigger == "backfill" for other in others) < max(1, account.places // 2)
        return run.pipeline is None or run.pipeline not in {other.pipeline for other in others}

    # what happens

    def admit(self, run: Run, at: datetime) -> None:
        account = self.accounts[run.customer_id]
        account.counted(at)
        run.counted_on = account.day
        self.runs[run.run_id] = run

    def claim(self, run: Run, worker: str, now: datetime) -> None:
        assert self.startable(run, now), f"{run} was given to {worker} and could not start"
        if run.takes_place:
            self.accounts[run.customer_id].counted(now)
        run.state, run.worker, run.attempt, run.begun = "RUNNING", worker, run.attempt + 1, False
        run.held_until, run.offer = now + LEASE, None

    def open_offers(self, now: datetime) -> dict[str, Offer]:
        return {i: o for i, o in self.offers.items() if o.on_the_line and o.free > 0 and o.until > now}

    def hand_over(self, run: Run, offer_id: str, now: datetime) -> None:
        """The run is claimed for whoever made the offer, who has a few seconds to begin it."""
        offer = self.open_offers(now)[offer_id]
        self.claim(run, offer.worker, now)
        run.held_until, run.offer = now + HANDED, offer_id
        offer.free -= 1

    def handed(self, offer_id: str, now: datetime) -> list[Run]:
        """What was handed over and can still be begun."""
        last = now + BEGUN_BEFORE
        return [r for r in self.held() if r.offer == offer_id and not r.begun and r.held_until and r.held_until > last]

    def holds(self, worker: str, run_id: str, attempt: int) -> bool:
        run = self.runs[run_id]
        return (run.state, run.worker, run.attempt) == ("RUNNING", worker, attempt)

    def renew(self, run: Run, now: datetime) -> None:
        run.begun, run.held_until = True, now + LEASE

    def release(self, run: Run, state: str, now: datetime) -> None:
        """The attempt is over, and the run ends or waits again."""
        account = self.accounts[run.customer_id]
        if run.takes_place:
            account.counted(now)
            for outcome, counts in (("COMPLETED", account.succeeded), ("FAILED", account.failed)):
                if state == outcome:
                    counts[account.day] = counts.get(account.day, 0) + 1
        run.state, run.worker, run.held_until = state, None, None

    def requeue(self, run: Run, now: datetime, not_before: datetime, *, spent: bool) -> None:
        self.release(run, "PENDING", now)
        run.not_before = not_before
        run.spent += spent

    def expired(self, run: Run, now: datetime) -> None:
        """Nobody renewed the lease in time."""
        if run.stop_asked:
            self.release(run, "CANCELLED", now)
            if not run.begun and run.attempt == run.idle + 1 and run.counted_on is not None:
                run.counted_on = None
        elif not run.begun:
            self.requeue(run, now, now, spent=False)
            run.idle += 1
        elif run.spent + 1 >= ATTEMPTS:
            self.release(run, "FAILED", now)
        else:
            self.requeue(run, now, now, spent=True)

    def never_run(self, run: Run, state: str, at: datetime) -> None:
        """A run that waits ends. Its unit goes back if no attempt ever began."""
        assert run.state == "PENDING", f"{run} does not wait and cannot become {state}"
        run.state = state
        if run.attempt == run.idle and run.counted_on is not None:
            run.counted_on = None
            self.accounts[run.customer_id].counted(at)

    def lapsed(self, now: datetime) -> list[Run]:
        """The runs whose leases ran out."""
        return [run for run in self.held() if run.held_until is not None and run.held_until < now]
