"""Where a customer's source data lies, and whom to tell when a run of it fails."""

from typing import Annotated

from pydantic import EmailStr, Field, StringConstraints

from application.command import Command, Identifier, Request, new_id
from application.credentials import Provider
from application.platform import Platform, Transaction
from domain.customer_events import ProviderConfigured

Project = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9:.-]{2,61}[a-z0-9]$")]
Dataset = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,1024}$", max_length=300)]


class NewProviderConfig(Request):
    """The source of one provider and domain. The newest configuration of a provider and domain is in force."""

    provider: Provider
    domain: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{1,49}$")]
    source_project_id: Project
    source_dataset: Dataset
    notification_emails: Annotated[tuple[EmailStr, ...], Field(max_length=20)] = ()


class ConfigureProvider(NewProviderConfig, Command):
    customer_id: str
    config_id: Identifier = Field(default_factory=new_id)


def configure_provider(command: ConfigureProvider, platform: Platform) -> str:
    """Store the configuration; returns its id. Asking again with the same config_id finds the same configuration."""
    configured = ProviderConfigured(
        config_id=command.config_id,
        provider=command.provider,
        domain=command.domain.upper(),
        source_project_id=command.source_project_id,
        source_dataset=command.source_dataset,
        notification_emails=command.notification_emails,
    )

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        if command.config_id not in state.provider_configs:
            customer.append(state.configure_provider(configured))

    platform.once(command, work)
    return command.config_id


class RemoveProviderConfig(Command):
    customer_id: str
    config_id: str


def remove_provider_config(command: RemoveProviderConfig, platform: Platform) -> None:
    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        customer.append(customer.must("No such customer.").remove_provider_config(command.config_id))

    platform.once(command, work)
