"""What Stripe tells is taken in, and has its effects on the customer that it is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import EmailStr, Field, SecretStr

from application.command import Command, Line, Request, new_id
from application.customers import NewCustomer, join, random_key_part, sealed_key
from application.pipelines import upcoming
from application.platform import Platform, Transaction
from application.ports import Vault
from application.streams import Stream
from domain.billing import BillingAccount, Terms, note
from domain.billing_events import (
    AccountOpened,
    BillingEvent,
    Cause,
    CheckoutReported,
    EventNoted,
    Report,
    Trouble,
)
from domain.customer import Status
from domain.customer_events import ApiKeyIssued
from domain.plans import Plan
from domain.subscription import Status as SubscriptionStatus

Account = Stream[BillingAccount, BillingEvent]

_REASONS: Final = {
    Cause.PAYMENT_FAILED: "Billing: a payment failed, and the days of grace are over.",
    Cause.ENDED: "Billing: the subscription at Stripe has ended.",
    Cause.PAUSED: "Billing: the subscription at Stripe is paused.",
}
_PAID: Final = "Billing: paid."
_PRICED: Final = "Billing: the price that is paid at Stripe."


class Contact(Request):
    """Whom a checkout makes a customer. It goes into no billing event, only into the customer's own, sealed."""

    company_name: Line
    admin_email: EmailStr


class HearStripe(Command):
    """Take in what an event of Stripe's said about one of its customers. `contact` comes with a checkout."""

    stripe_customer_id: str
    live: bool
    report: Report
    contact: Contact | None = Field(default=None, repr=False)
    key_part: SecretStr = Field(default_factory=random_key_part)
    api_key_id: str = Field(default_factory=new_id)


class NoteStripe(Command):
    """Record an event of Stripe's that nothing follows from."""

    noted: EventNoted


class EndAccess(Command):
    """Do what has come due: access ends, an operator has onboarded who pays, or who paid was erased."""

    limit: int = Field(default=100, ge=1, le=1000)
    besides: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a transaction has in hand."""

    tx: Transaction
    terms: Terms
    at: datetime


def note_stripe(command: NoteStripe, platform: Platform) -> None:
    """Record the event, once."""
    noted = command.noted

    def work(tx: Transaction) -> None:
        tx.session.lock_billing(noted.event_id)
        [stream] = tx.billing_accounts([noted.event_id], live=noted.live)
        if not stream.exists:
            stream.append(note(noted))

    platform.transact(command, work)


def hear_stripe(command: HearStripe, platform: Platform, vault: Vault, terms: Terms) -> None:
    """Take in a report and do what follows from all that were taken in, in one transaction.

    The same reports have the same effects in every order, each once. A checkout that was paid makes its customer; it
    becomes the account's own only where that is certain, and an operator has to look where it is not. Raises `Away`
    when database or keys are away.
    """
    issued: ApiKeyIssued | None = None
    report = command.report
    named = report.names if isinstance(report, CheckoutReported) and report.paid and command.contact else None
    if named and platform.transact(command, lambda tx: _makes_customer(tx, command, named)):
        # Looked at first: nobody else's keys are touched for the sake of a checkout.
        vault.prepare(named)
        issued = sealed_key(named, command.api_key_id, command.key_part, command, vault)

    def work(tx: Transaction) -> None:
        tx.session.lock_billing(command.stripe_customer_id)
        [account] = tx.billing_accounts([command.stripe_customer_id], live=command.live)
        if not account.exists:
            account.append([AccountOpened(stripe_customer_id=command.stripe_customer_id, live=command.live)])
        account.append(_state(account).hear(report))
        [noted] = tx.billing_accounts([report.event_id], live=command.live)
        if noted.state is not None:
            noted.append(noted.state.taken_in())
        heard = _Heard(tx, terms, command.at)
        candidates = _candidates(tx, _state(account))
        tx.lock([*candidates, *([report.names] if isinstance(report, CheckoutReported) and report.names else [])])
        linked = isinstance(report, CheckoutReported) and _link_checkout(heard, account, command, report, issued)
        _settle(heard, account, just_linked=linked or _link_onboarded(heard, account, candidates))

    platform.transact(command, work)


def end_access(command: EndAccess, platform: Platform, terms: Terms) -> Sequence[str]:
    """Do what is due at `command.at`, which is the database's clock; returns the accounts that were looked at.

    Any number of processes may do so: an account that another one has in hand is left to it. Accounts that cannot be
    read are passed over.
    """

    def work(tx: Transaction) -> Sequence[str]:
        due = tx.session.due_billing(command.at, command.limit, command.besides)
        heard = _Heard(tx, terms, command.at)
        accounts: list[tuple[Account, Sequence[str]]] = []
        for live in (False, True):
            names = [d.stripe_customer_id for d in due if d.live is live]
            accounts += [
                (account, _candidates(tx, account.state))
                for account in tx.billing_accounts(names, live=live)
                if account.unreadable is None and account.state is not None
            ]
        # All at once: two passes must not wait for each other's customers.
        tx.lock(customer_id for _, candidates in accounts for customer_id in candidates)
        for account, candidates in accounts:
            if all(tx.customer(c).unreadable is None and tx.subscription(c).unreadable is None for c in candidates):
                _settle(heard, account, just_linked=_link_onboarded(heard, account, candidates))
        return [d.stripe_customer_id for d in due]

    return platform.transact(command, work, of_many=True)


def _state(account: Account) -> BillingAccount:
    assert account.state is not None, "the account was opened"  # noqa: S101 - both callers see to it
    return account.state


def _makes_customer(tx: Transaction, command: HearStripe, customer_id: str) -> bool:
    """Whether the checkout names a customer that there is not, for an account that is nobody's."""
    [account] = tx.billing_accounts([command.stripe_customer_id], live=command.live)
    linked = account.state.linked if account.exists and account.state else None
    return linked is None and not tx.customer(customer_id).exists


def _candidates(tx: Transaction, state: BillingAccount) -> Sequence[str]:
    """Whose the account is, or else may be, because they name it."""
    return tx.session.onboarded_with(state.stripe_customer_id) if state.linked is None else [state.linked]


def _link_checkout(
    heard: _Heard, account: Account, command: HearStripe, report: CheckoutReported, issued: ApiKeyIssued | None
) -> bool:
    """Whether a paid checkout made a customer just now, or found the one that it was for."""
    state = _state(account)
    if not report.paid:
        return False
    if state.linked is not None:
        if report.names != state.linked:
            account.append(state.stumble(Trouble.OTHER_CHECKOUT, report.session_id))
        return False
    trouble = _join_or_find(heard, account, command, report, issued)
    if trouble is not None:
        account.append(state.stumble(trouble, report.session_id))
        return False
    account.append(state.link(report.names or "", report.session_id))
    return True


def _join_or_find(
    heard: _Heard, account: Account, command: HearStripe, report: CheckoutReported, issued: ApiKeyIssued | None
) -> Trouble | None:
    """What keeps the checkout from being its customer's.

    One that exists is found only where the platform itself put its name there: a visitor can name anybody.
    """
    if report.names is None:
        return Trouble.BAD_CUSTOMER_ID
    state, known = _state(account), heard.tx.customer(report.names).state
    if known is None:
        if command.contact is None or issued is None:
            return Trouble.NO_CONTACT
        new = NewCustomer(
            customer_id=report.names,
            company_name=command.contact.company_name,
            admin_email=command.contact.admin_email,
            subscription_plan=state.plan(heard.terms) or Plan.STARTER,
            stripe_customer_id=state.stripe_customer_id,
        )
        join(heard.tx, new, issued, command.at)
        # What follows changes rows of the customer, which have to be there before.
        heard.tx.flush()
        return None
    free = known.stripe_customer_id in {None, state.stripe_customer_id}
    if not (report.vouched and free and known.customer_id == report.names) or known.status is Status.ERASED:
        return Trouble.CUSTOMER_TAKEN
    return None


def _link_onboarded(heard: _Heard, account: Account, candidates: Sequence[str]) -> bool:
    """Whether one of those who name this customer of Stripe's was linked just now: anybody may name any.

    Only an operator's word counts.
    """
    state = _state(account)
    if state.linked is not None:
        return False
    for customer_id, customer in heard.tx.customers(candidates).items():
        known, began = customer.state, customer.began
        if known is None or began is None or began.kind != "admin":
            continue
        if known.stripe_customer_id == state.stripe_customer_id and known.status is not Status.ERASED:
            account.append(state.link(customer_id, "onboarding"))
            return True
    return False


def _settle(heard: _Heard, account: Account, *, just_linked: bool) -> None:
    """Bring the customer's plan and access to what its account comes to. Nothing is done about one that was erased."""
    state = _state(account)
    if state.linked is None:
        account.append(state.assess(heard.terms))
        return
    known, subscription = heard.tx.customer(state.linked).state, heard.tx.subscription(state.linked)
    paying = subscription.state
    if known is None or paying is None:
        return
    if known.status is Status.ERASED:
        account.append(state.close())
        return
    before = state.assessed.plan if state.assessed else None
    account.append(state.assess(heard.terms))
    assessed = _state(account).assessed
    paid_by = assessed.subscription_id if assessed else None
    heard.tx.customer(state.linked).append(known.link_stripe(state.stripe_customer_id, paid_by))
    plan = state.plan(heard.terms)
    # An operator may have given another plan: that lasts until Stripe tells of another price.
    if plan and (just_linked or plan != before) and paying.status is not SubscriptionStatus.CANCELLED:
        subscription.append(paying.change_plan(plan, _PRICED, heard.at))
    _settle_access(heard, account, state.linked)


def _settle_access(heard: _Heard, account: Account, customer_id: str) -> None:
    tx, state, at = heard.tx, _state(account), heard.at
    customer, subscription = tx.customer(customer_id), tx.subscription(customer_id)
    known, paying = customer.must("No such customer."), subscription.must("No such customer.")
    cause = state.assessed.cause if state.assessed else None
    if state.is_over(at):
        if state.suspension is None and known.status is Status.ACTIVE and cause is not None:
            customer.append(known.suspend(_REASONS[cause]))
            subscription.append(paying.pause(_REASONS[cause]))
            account.append(state.suspended(customer.must("").suspensions))
    elif state.suspension is not None:
        # Whoever suspended it since then had another reason, which money does not remove.
        mine = known.status is Status.SUSPENDED and known.suspensions == state.suspension
        if mine:
            customer.append(known.reactivate(_PAID, upcoming(known, at)))
            subscription.append(paying.resume(_PAID))
        account.append(state.restored(reactivated=mine))
