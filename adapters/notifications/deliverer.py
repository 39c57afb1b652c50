"""The deliverer: claims deliveries that are due, has couriers make them, and settles what came of it."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Final

from adapters.bootstrap import Service, utc_now
from adapters.notifications import deliveries
from adapters.notifications.courier import Courier, Failed, Needless, Refused
from adapters.notifications.deliveries import LEASE, Claimed
from adapters.notifications.expiring import add_expiring_keys
from adapters.notifications.letters import Letters
from adapters.notifications.webhooks import Webhooks
from adapters.postgres.event_log import Datastore
from application.ports import Away
from domain.notification import ATTEMPTS, DeliveryState, wait_after

logger = logging.getLogger(__name__)

_LONGEST_SLEEP_S: Final = 5.0
_NAP_S: Final = 0.5
_AWAY_S: Final = 2.0
_LONGEST_RETRY_AFTER: Final = timedelta(hours=24)
_HOUSEKEEPING_S: Final = 600.0
_JITTER: Final = 0.2
_REST: Final = 4
"""How many times as long as a failed attempt took its endpoint rests: it has a fifth of one thread at most."""

Wait = Callable[[int], timedelta]


def couriers(service: Service) -> list[Courier]:
    """Every way to receivers."""
    return [Letters(service), Webhooks(service)]


def jittered(attempts: int) -> timedelta:
    """How long to wait after so many attempts, up to a fifth longer, so that what failed together comes apart."""
    return wait_after(attempts) * random.uniform(1, 1 + _JITTER)  # noqa: S311 - it guards no secret


class Deliverer(threading.Thread):
    """Delivers for one courier until `stop` is set; any number of processes may do so at the same time.

    Each delivery is made at least once: one whose process dies is made again when its claim ends. A receiver that is
    slow holds up its own deliveries, and no more of the others than the threads it occupies: one for each endpoint, a
    quarter of all for each customer's. One that fails slowly rests for a while before anything else is posted there.
    """

    def __init__(
        self,
        datastore: Datastore,
        courier: Courier,
        stop: threading.Event,
        *,
        lease: timedelta = LEASE,
        wait: Wait = jittered,
        rest: float = _REST,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(name=f"deliver {'mail' if courier.mailed else 'webhooks'}")
        self._datastore = datastore
        self._courier = courier
        self._stop_asked = stop
        self._lease = lease
        self._wait = wait
        self._rest = rest
        self._now = now
        self._lock = threading.Lock()
        self._in_hand: list[Claimed] = []
        self._resting: dict[str, float] = {}
        self._housekeeping_at = 0.0
        self.wake = threading.Event()

    def run(self) -> None:
        """Deliver what is due and wait for more; returns when all that was begun has been settled."""
        with ThreadPoolExecutor(self._courier.at_once, thread_name_prefix=self.name) as threads:
            while not self._stop_asked.is_set():
                # Cleared before looking, so that what comes while we look wakes us again.
                self.wake.clear()
                try:
                    while not self._stop_asked.is_set() and (claimed := self._next()) is not None:
                        with self._lock:
                            self._in_hand.append(claimed)
                        threads.submit(self._deliver, claimed)
                    # Last, so that what fails here is not in the way of deliveries.
                    self._keep_house()
                    self._sleep()
                except Away as away:
                    logger.warning("deliveries wait: %s", away)
                    self._stop_asked.wait(_AWAY_S)
                except Exception:
                    logger.exception("deliveries failed and will be tried again")
                    self._stop_asked.wait(_AWAY_S)

    def _keep_house(self) -> None:
        if not self._courier.mailed or time.monotonic() < self._housekeeping_at:
            return
        self._housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
        add_expiring_keys(self._datastore, self._now())
        deliveries.purge(self._datastore, self._now())

    def _next(self) -> Claimed | None:
        with self._lock:
            if len(self._in_hand) >= self._courier.at_once:
                return None
            now = time.monotonic()
            self._resting = {receiver: until for receiver, until in self._resting.items() if until > now}
            busy = {*self._resting, *(claimed.receiver for claimed in self._in_hand)}
            have = Counter(claimed.customer_id for claimed in self._in_hand)
        full = [customer_id for customer_id, number in have.items() if number >= self._courier.each]
        return deliveries.claim(self._datastore, mailed=self._courier.mailed, busy=busy, full=full, lease=self._lease)

    def _give_back(self, claimed: Claimed, rest_s: float) -> None:
        with self._lock:
            self._in_hand.remove(claimed)
            if rest_s:
                self._resting[claimed.receiver] = time.monotonic() + rest_s
        self.wake.set()

    def _sleep(self) -> None:
        due_in = deliveries.next_due(self._datastore, mailed=self._courier.mailed)
        if due_in is None:
            due_in = _LONGEST_SLEEP_S
        # What is due and was not claimed waits for its endpoint or customer, of whom one delivery's end wakes us.
        until = time.monotonic() + (min(due_in, _LONGEST_SLEEP_S) if due_in > 0 else _NAP_S)
        while (left := until - time.monotonic()) > 0 and not self._stop_asked.is_set():
            if self.wake.wait(min(left, _NAP_S)):
                return

    def _deliver(self, claimed: Claimed) -> None:
        begun, rest_s = time.monotonic(), 0.0
        try:
            outcome = self._attempt(claimed)
            if outcome[0] in {DeliveryState.PENDING, DeliveryState.DEAD}:
                rest_s = self._rest * (time.monotonic() - begun)
            self._settle(claimed, *outcome)
        except Away as away:
            # The claim ends by itself, and the delivery is made again.
            logger.warning("what came of notification %s could not be stored: %s", claimed.notification_id, away)
        except Exception:
            logger.exception("what came of notification %s could not be stored", claimed.notification_id)
        finally:
            self._give_back(claimed, rest_s)

    def _attempt(self, claimed: Claimed) -> tuple[DeliveryState, str | None, timedelta | None]:
        """What an attempt comes to: the state, a sentence, and how long to wait before the next one."""
        try:
            self._courier.deliver(claimed)
        except Needless as needless:
            return DeliveryState.DROPPED, str(needless), None
        except Refused as refused:
            return DeliveryState.DEAD, str(refused), None
        except Failed as failed:
            text, after = str(failed), failed.after
        except Away as away:
            text, after = str(away), None
        except Exception as error:
            logger.exception("notification %s cannot be delivered", claimed.notification_id)
            text, after = f"A fault of the service ({type(error).__name__}).", None
        else:
            return DeliveryState.DELIVERED, None, None
        if claimed.attempts >= ATTEMPTS:
            return DeliveryState.DEAD, text, None
        asked = min(after or timedelta(), _LONGEST_RETRY_AFTER)
        return DeliveryState.PENDING, text, max(asked, self._wait(claimed.attempts))

    def _settle(self, claimed: Claimed, state: DeliveryState, text: str | None, wait: timedelta | None) -> None:
        what = f"notification {claimed.notification_id} ({claimed.kind}) of {claimed.customer_id}"
        receiver = "mail" if self._courier.mailed else f"endpoint {claimed.receiver}"
        if not deliveries.settle(self._datastore, claimed, state, text, wait):
            logger.warning("%s by %s took longer than its claim: it may arrive twice", what, receiver)
        elif state is DeliveryState.DEAD:
            logger.error("%s by %s is given up after %d attempts: %s", what, receiver, claimed.attempts, text)
        elif state is DeliveryState.PENDING:
            logger.warning("%s by %s, attempt %d: %s", what, receiver, claimed.attempts, text)
        else:
            logger.info("%s by %s: %s", what, receiver, state.lower())
