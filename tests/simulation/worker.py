"""Workers that do what workers do, and everything they should not."""

import random
from datetime import datetime, timedelta

from tests.simulation.crew import Crew, Word
from tests.simulation.life import Life
from tests.simulation.process import Process

HOW = ("succeeded", "succeeded", "succeeded", "succeeded", "failed", "retry", "retry", "handed_back")


class Worker:
    """One worker process. `hands` is what it believes to hold, which need not be so."""

    def __init__(self, name: str, life: Life, chance: random.Random) -> None:
        self.name = name
        self._life, self._chance = life, chance
        self._crew = Crew(life)
        self._process = Process(name, life.now, chance)
        self._away_until = life.now
        self._told: list[Word] = []
        self._offer: str | None = None
        self.hands: dict[tuple[str, int], str] = {}

    @property
    def _clock(self) -> datetime:
        return self._process.clock(self._life.now)

    def turn(self) -> str:
        """One thing that it does, and what came of it."""
        return "hears and sees nothing" if self._life.now < self._away_until else self._acts(self._chance.random())

    def _acts(self, lot: float) -> str:
        if lot < 0.03:
            return self.die()
        if lot < 0.08:
            self._away_until = self._life.now + timedelta(seconds=self._chance.choice((30, 61, 90, 300, 4000)))
            return f"is stopped until {self._away_until:%H:%M:%S}"
        if lot < 0.12 and self._told:
            return self._report([self._chance.choice(self._told)], again="again ")
        if lot < 0.36:
            return self.offer() if self._offer is None or lot < 0.2 else self.take_up(self._offer)
        if not self.hands or lot < 0.5:
            return self.claim()
        return self.beat() if lot < 0.68 else self.work()

    def die(self) -> str:
        self.hands.clear()
        if self._offer is not None:
            self._crew.die(self._offer)
            self._offer = None
        return "dies, and comes back with empty hands"

    def claim(self) -> str:
        orders = self._crew.claim(self.name, self._chance.choice((1, 1, 2, 3, 10)), self._clock)
        lot = self._chance.random()
        if orders and lot < 0.08:
            return f"dies with {len(orders)} runs that it never began"
        if orders and lot < 0.16:
            # Stopped between its claim and its first heartbeat: it finds out only when it goes on.
            self._life.clock.set(self._life.now + timedelta(seconds=self._chance.choice((20, 59, 61, 200))))
            self._crew.take_over()
        keys = [(order.run_id, order.attempt) for order in orders]
        begun = {(held.run_id, held.attempt) for held in self._crew.renew(self.name, keys)} if keys else set()
        self.hands |= {(o.run_id, o.attempt): o.customer_id for o in orders if (o.run_id, o.attempt) in begun}
        return f"claims {[(run_id[:8], attempt) for run_id, attempt in keys]}, begins {len(begun)}"

    def offer(self) -> str:
        """To be handed runs, or no more."""
        if self._offer is not None and self._chance.random() < 0.2:
            self._crew.withdraw(self._offer)
            return "withdraws its offer"
        self._offer = self._offer or self._life.new_id()
        free, seconds = self._chance.choice((1, 2, 5)), self._chance.choice((10, 60, 600, 90_000))
        self._crew.offer(self.name, self._offer, free, seconds)
        return f"offers to take {free} for {seconds} s"

    def take_up(self, offer_id: str) -> str:
        orders = self._crew.take_up(self.name, offer_id)
        self.hands |= {(order.run_id, order.attempt): order.customer_id for order in orders}
        return f"takes up {[(order.run_id[:8], order.attempt) for order in orders]}"

    def beat(self) -> str:
        """A heartbeat: what is lost is dropped, what is to stop is stopped."""
        held = {(lease.run_id, lease.attempt): lease for lease in self._crew.renew(self.name, list(self.hands))}
        lost = [key for key in self.hands if key not in held]
        for key in lost:
            del self.hands[key]
        stopping = [key for key, lease in held.items() if lease.stop_asked]
        told = self._report([Word(*self._named(key), how="cancelled") for key in stopping]) if stopping else ""
        return f"renews {len(held)}, lost {len(lost)} {told}"

    def work(self) -> str:
        keys = self._chance.sample(sorted(self.hands), self._chance.randint(1, min(3, len(self.hands))))
        words = []
        for key in keys:
            if self._chance.random() < 0.2:
                words.append(Word(*self._named(key), how="step"))
            after = timedelta(seconds=self._chance.choice((0, 3, 40, 300)))
            words.append(Word(*self._named(key), how=self._chance.choice(HOW), after=after))
        return self._report(words)

    def let_go(self) -> str:
        """Bring everything in hand to its end."""
        if not self.hands or self._life.now < self._away_until:
            return "has nothing in hand"
        self.beat()
        words = [Word(*self._named(key), how="succeeded") for key in sorted(self.hands)]
        return self._report(words) if words else "has lost everything"

    def _named(self, key: tuple[str, int]) -> tuple[str, str, int]:
        run_id, attempt = key
        return run_id, self.hands[key], attempt

    def _report(self, words: list[Word], again: str = "") -> str:
        answer = self._crew.report(self.name, words, self._clock)
        if answer.heard:
            for word in words:
                if word.how != "step":
                    self.hands.pop((word.run_id, word.attempt), None)
            self._told = [*self._told, *words][-20:]
        said = [(word.run_id[:8], word.attempt, word.how) for word in words]
        return f"tells {again}{said}, refused {len(answer.value or ())}"
