"""What a courier is: it delivers one notification to one receiver, or says why not."""

from datetime import timedelta
from typing import Protocol

from adapters.notifications.deliveries import Claimed


class Failed(Exception):  # noqa: N818 - it says what came of it
    """It did not arrive, and may arrive later. The text is a sentence for operators and the customer.

    `after` is when the receiver asked to come back, if it did.
    """

    def __init__(self, text: str, after: timedelta | None = None) -> None:
        super().__init__(text)
        self.after = after


class Refused(Failed):
    """It will not arrive, however often it is tried."""


class Needless(Failed):
    """There is nobody, or no need, to tell any more."""


class Courier(Protocol):
    """One way to receivers."""

    mailed: bool
    """Whether it is that of mails."""
    at_once: int
    """How many deliveries it makes at the same time; to one endpoint one at a time."""
    each: int
    """How many of them may be one customer's, so that none of them keeps all others waiting."""

    def deliver(self, claimed: Claimed) -> None:
        """Returns once the receiver has taken it. Raises `Failed`, and `Away` when a backend of ours is away."""
