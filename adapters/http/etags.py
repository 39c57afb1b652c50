"""ETag and If-Match on a customer and its subscription: nobody overwrites what somebody else changed meanwhile."""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, TypeVar

from fastapi import Depends, Header

from adapters.http.api import at_once
from adapters.http.errors import PreconditionFailed
from application.command import Command
from application.platform import Platform, Transaction

Result = TypeVar("Result")

_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')


def etag(*editable: object) -> str:
    """The tag of a customer: a digest of what an edit can change, in the order of `_seen`."""
    digest = hashlib.sha256("\x1f".join(str(value) for value in editable).encode()).hexdigest()
    return f'"{digest[:32]}"'


def _seen(tx: Transaction, customer_id: str) -> str:
    customer = tx.customer(customer_id).must("No such customer.")
    subscription = tx.subscription(customer_id).must("No such customer.")
    limits = subscription.limits
    return etag(
        customer.company_name,
        customer.admin_email,
        customer.status,
        subscription.plan,
        subscription.status,
        limits.max_team_members,
        limits.max_providers,
        limits.max_pipelines_per_day,
        limits.max_pipelines_per_month,
        limits.max_concurrent_pipelines,
    )


class IfMatch:
    """What the caller says it saw. The check is made in the transaction that makes the change."""

    def __init__(
        self,
        if_match: Annotated[
            str | None,
            Header(description="The ETag that you read: the change is made only if it still fits (412 otherwise)."),
        ] = None,
    ) -> None:
        self._text = if_match

    def on(self, platform: Platform, customer_id: str) -> Platform:
        """The platform, for as long as the customer is what the caller saw."""
        if self._text is None or self._text.strip() == "*":
            return platform
        # If-Match compares strongly: a weak tag never matches.
        tags = [f'"{tag}"' for weak, tag in _TAG.findall(self._text) if not weak]
        return _Guarded(platform, customer_id, tags)


class _Guarded(Platform):
    """A platform that first compares what is there with what the caller saw."""

    def __init__(self, platform: Platform, customer_id: str, tags: Sequence[str]) -> None:
        self._platform = platform
        self._customer_id = customer_id
        self._tags = tags

    def transact(self, command: Command, work: Callable[[Transaction], Result], *, of_many: bool = False) -> Result:
        return self._platform.transact(command, self._checked(work), of_many=of_many)

    def once(
        self,
        command: Command,
        work: Callable[[Transaction], Any],
        again: Callable[[Transaction], Any] = lambda _: None,
    ) -> Any:  # noqa: ANN401 - what `work` answers
        """What was carried out before was checked then: its own change does not stand in its way."""
        return self._platform.once(command, self._checked(work), again)

    def _checked(self, work: Callable[[Transaction], Result]) -> Callable[[Transaction], Result]:
        def checked(tx: Transaction) -> Result:
            tx.lock([self._customer_id])
            if _seen(tx, self._customer_id) not in self._tags:
                raise PreconditionFailed("The customer was changed meanwhile. Read it again, then decide again.")
            return work(tx)

        return checked


Match = Annotated[IfMatch, Depends(at_once(IfMatch))]
