"""Customers come, are changed, suspended and brought back."""

import hashlib
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pydantic import EmailStr, Field, SecretStr

from application.command import Command, Line, Request, new_id
from application.pipelines import upcoming
from application.platform import Platform, Transaction
from application.ports import Purpose, SealedFor, Vault, Warehouse
from domain import identity
from domain.customer import KEY_LIFE, Customer, Status
from domain.customer_events import ApiKeyIssued, Onboarded
from domain.pipeline_run import Priority
from domain.plans import Plan
from domain.refusals import Conflict
from domain.run_events import RunScheduled, Trigger
from domain.subscription import open_subscription

_ALPHANUMERIC = string.ascii_letters + string.digits


def random_key_part() -> SecretStr:
    """16 letters and digits, 95 bits, from the operating system's generator."""
    return SecretStr("".join(secrets.choice(_ALPHANUMERIC) for _ in range(16)))


class NewCustomer(Request):
    """Who wants to join, and with which plan."""

    customer_id: str
    company_name: Line
    admin_email: EmailStr
    subscription_plan: Plan = Plan.STARTER
    stripe_customer_id: Line | None = None


class Onboard(NewCustomer, Command):
    """`known_as` says what the caller proved to be to a customer that exists already."""

    known_as: Literal["nobody", "owner", "admin"] = "nobody"
    key_part: SecretStr = Field(default_factory=random_key_part)
    api_key_id: str = Field(default_factory=new_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new API key, in clear this once: None when it was issued before, to whoever asks the same again."""

    api_key_id: str
    api_key: SecretStr | None
    expires_at: datetime
    customer_id: str
    plan: Plan
    company_name: str
    new_customer: bool
    replaced: Mapping[str, datetime] = field(default_factory=dict)
    """The ids of the keys that it replaces, each with the instant until which it works."""


def sealed_key(
    customer_id: str,
    api_key_id: str,
    key_part: SecretStr,
    command: Command,
    vault: Vault,
    *,
    name: str = "",
    scopes: Sequence[str] | None = None,
) -> ApiKeyIssued:
    """The event that issues the key `{customer_id}_api_{key_part}`; the vault must have been prepared."""
    key = f"{customer_id}_api_{key_part.get_secret_value()}".encode()
    return ApiKeyIssued(
        api_key_id=api_key_id,
        key_hash=hashlib.sha256(key).hexdigest(),
        sealed_key=vault.seal(key, SealedFor(customer_id, api_key_id, Purpose.API_KEY)),
        last4=key[-4:].decode(),
        expires_at=command.at + KEY_LIFE,
        name=name,
        scopes=None if scopes is None else tuple(sorted(set(scopes))),
    )


def onboard(command: Onboard, platform: Platform, vault: Vault) -> Issued:
    """Make a customer with its subscription and its first key, in one transaction.

    For a customer that exists: its owner and the admin get a new key (and the admin may change the plan this way),
    anyone else is refused with `Conflict`. Sent again by whoever named it, it answers without the key. Raises `Away`
    when database or keys are away.
    """
    customer_id = command.customer_id
    # Looked at first: the keys of a customer that exists are none of a stranger's business.
    platform.transact(command, lambda tx: _refuse_stranger(tx, command))
    vault.prepare(customer_id)
    issued = sealed_key(customer_id, command.api_key_id, command.key_part, command, vault)

    def answer(plan: Plan, company_name: str, *, new: bool) -> Issued:
        return Issued(
            api_key_id=command.api_key_id,
            api_key=SecretStr(f"{customer_id}_api_{command.key_part.get_secret_value()}"),
            expires_at=issued.expires_at,
            customer_id=customer_id,
            plan=plan,
            company_name=company_name,
            new_customer=new,
        )

    def work(tx: Transaction) -> Issued:
        customer, subscription = tx.held_account(customer_id)
        if customer.state is None:
            join(tx, command, issued, command.at)
            return answer(command.subscription_plan, command.company_name, new=True)
        _refuse_takeover(customer.state, command)
        if command.api_key_id in customer.state.api_keys:
            raise Conflict("This API key was issued before, and is shown only once.")
        current = subscription.must("No such subscription.")
        if command.known_as == "admin" and "subscription_plan" in command.model_fields_set:
            subscription.append(current.change_plan(command.subscription_plan, "onboarded again", command.at))
        customer.append(customer.state.issue_key(issued, command.at, replace_oldest=True))
        return answer(subscription.must("").plan, customer.state.company_name, new=False)

    return platform.once(command, work, lambda tx: issued_before(tx, customer_id, command.api_key_id, command.at))


def join(tx: Transaction, new: NewCustomer, issued: ApiKeyIssued, at: datetime) -> None:
    """Make a customer that does not exist: with its first key, which its welcome mail leads to, and a subscription."""
    onboarded = Onboarded(
        customer_id=new.customer_id,
        company_name=new.company_name,
        admin_email=new.admin_email,
        plan=new.subscription_plan,
        stripe_customer_id=new.stripe_customer_id,
    )
    tx.customer(new.customer_id).append([onboarded, issued])
    tx.subscription(new.customer_id).append([open_subscription(new.customer_id, new.subscription_plan, at)])


def issued_before(tx: Transaction, customer_id: str, api_key_id: str, at: datetime) -> Issued:
    """What is left to say of a key at `at` to whoever asked for it and asks again: all but the key."""
    state = tx.customer(customer_id).must("No such customer.")
    key = state.api_keys.get(api_key_id)
    return Issued(
        api_key_id=api_key_id,
        api_key=None,
        expires_at=key.expires_at if key else at,
        customer_id=customer_id,
        plan=tx.subscription(customer_id).must("No such customer.").plan,
        company_name=state.company_name,
        new_customer=False,
        replaced=replaced_by(state, api_key_id, at),
    )


def replaced_by(customer: Customer, api_key_id: str, at: datetime) -> Mapping[str, datetime]:
    """The other keys of the same name that work at `at`, each with its end."""
    key = customer.api_keys.get(api_key_id)
    others = customer.keys_named(key.name, at) if key else []
    return {other: customer.api_keys[other].expires_at for other in others if other != api_key_id}


def _refuse_stranger(tx: Transaction, command: Onboard) -> None:
    known = tx.customer(command.customer_id).state
    # No keys are made for whoever was erased, not even for one who asks again.
    if not tx.repeated or (known is not None and known.status is Status.ERASED):
        _refuse_takeover(known, command)


def _refuse_takeover(known: Customer | None, command: Onboard) -> None:
    if known is not None and (
        command.known_as == "nobody"
        or known.customer_id != command.customer_id
        # An id stays taken for ever, and nobody is told whose it was.
        or known.status is Status.ERASED
    ):
        raise Conflict(
            "This customer_id is taken. Its owner can onboard it again with X-API-Key, an operator with X-Admin-Key."
        )


class Provision(Command):
    """Give the customer its dataset, its tables, and the platform's own check of them."""

    customer_id: str
    dryrun_provider: str = "gcp"
    dryrun_domain: str = "example"
    dryrun_template: str = "dryrun"
    dryrun_pipeline_id: str = "gcp-example-dryrun"


def provision(command: Provision, platform: Platform, warehouse: Warehouse) -> tuple[str, ...]:
    """Make dataset and tables where they are missing, record it, and queue the dryrun; returns the tables' names.

    Idempotent, so that whoever comes next finishes what a crash left half-done. Raises `Away` with BigQuery.
    """
    tables = tuple(warehouse.ensure_customer(command.customer_id))
    run_id = identity.onboarding_run_id(command.customer_id)

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        customer.append(customer.must("No such customer.").provisioned_with(tables))
        run = tx.run(run_id, command.customer_id)
        if not run.exists:
            run.append(
                [
                    RunScheduled(
                        customer_id=command.customer_id,
                        provider=command.dryrun_provider,
                        domain=command.dryrun_domain,
                        template=command.dryrun_template,
                        pipeline_id=command.dryrun_pipeline_id,
                        trigger_type=Trigger.ONBOARDING,
                        trigger_by="service",
                        run_date=command.at.astimezone(UTC).date(),
                        scheduled_for=command.at,
                        priority=Priority.ONBOARDING,
                    )
                ]
            )

    platform.transact(command, work)
    return tables


class ChangeContact(Command):
    customer_id: str
    company_name: Line | None = None
    admin_email: EmailStr | None = None


def change_contact(command: ChangeContact, platform: Platform) -> None:
    """Another company name or admin e-mail."""

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        customer.append(state.change_contact(command.company_name, command.admin_email))

    platform.once(command, work)


class Suspend(Command):
    customer_id: str
    reason: Line


def suspend(command: Suspend, platform: Platform) -> None:
    """The customer's keys, schedules and waiting runs stop at once; runs that started end by themselves."""

    def work(tx: Transaction) -> None:
        customer, subscription = tx.held_account(command.customer_id)
        customer.append(customer.must("No such customer.").suspend(command.reason))
        subscription.append(subscription.must("No such customer.").pause(command.reason))

    platform.once(command, work)


class Reactivate(Command):
    customer_id: str
    reason: Line


def reactivate(command: Reactivate, platform: Platform) -> None:
    """The customer goes on; its pipelines run at their next slot, and what was missed stays missed."""

    def work(tx: Transaction) -> None:
        customer, subscription = tx.held_account(command.customer_id)
        state = customer.must("No such customer.")
        customer.append(state.reactivate(command.reason, upcoming(state, command.at)))
        subscription.append(subscription.must("No such customer.").resume(command.reason))

    platform.once(command, work)
