"""Cloud credentials: sealed as they come in, opened by nobody but the runs of their customer."""

import json
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, SecretStr, StringConstraints, model_validator

from application.command import Command, Identifier, Line, Request, new_id
from application.platform import Platform, Transaction
from application.ports import Purpose, SealedFor, Vault
from domain.customer_events import CredentialAdded


class Provider(StrEnum):
    GCP = "GCP"
    AWS = "AWS"
    AZURE = "AZURE"
    OCI = "OCI"
    OPENAI = "OPENAI"
    ANTHROPIC = "ANTHROPIC"


_GOOGLE_TOKEN_URIS: Final = frozenset(
    {"https://oauth2.googleapis.com/token", "https://accounts.google.com/o/oauth2/token"}
)
_MAX_BYTES: Final = 32 * 1024


def _sized(credentials: dict[str, Any]) -> dict[str, Any]:
    if not credentials:
        raise ValueError("must not be empty")
    if len(json.dumps(credentials)) > _MAX_BYTES:
        raise ValueError(f"must not be larger than {_MAX_BYTES // 1024} kB")
    return credentials


class NewCredential(Request):
    """A credential as its owner hands it over."""

    provider: Provider
    credential_type: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{1,49}$")]
    credential_name: Line
    credentials: Annotated[dict[str, Any], AfterValidator(_sized)] = Field(repr=False)
    project_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$")] | None = None

    @model_validator(mode="after")
    def _service_account(self) -> "NewCredential":
        """A Google service account must be one, and its tokens must come from Google."""
        if self.provider is Provider.GCP and self.credential_type == "SERVICE_ACCOUNT":
            given = self.credentials
            if given.get("type") != "service_account":
                raise ValueError(
                    'credentials: a GCP SERVICE_ACCOUNT is the JSON key file, whose "type" is "service_account"'
                )
            missing = [k for k in ("project_id", "private_key", "client_email") if not isinstance(given.get(k), str)]
            if missing:
                raise ValueError(f"credentials: the service account's JSON lacks {', '.join(missing)}")
            if given.get("token_uri", "https://oauth2.googleapis.com/token") not in _GOOGLE_TOKEN_URIS:
                raise ValueError("credentials: token_uri must be Google's own, https://oauth2.googleapis.com/token")
        return self


class AddCredential(NewCredential, Command):
    customer_id: str
    credential_id: Identifier = Field(default_factory=new_id)


def add_credential(command: AddCredential, platform: Platform, vault: Vault) -> str:
    """Store a customer's cloud credential, readable by nobody but its own runs; returns its id.

    Asking again with the same credential_id finds the same credential.

    Refused with `Forbidden` when the plan has no room for another provider.
    """
    plaintext = SecretStr(json.dumps(command.credentials, separators=(",", ":"), ensure_ascii=False))
    owner = SealedFor(command.customer_id, command.credential_id, Purpose.CREDENTIAL)
    added = CredentialAdded(
        credential_id=command.credential_id,
        provider=command.provider,
        credential_type=command.credential_type,
        credential_name=command.credential_name,
        sealed=vault.seal(plaintext.get_secret_value().encode(), owner),
        project_id=command.project_id,
    )

    def work(tx: Transaction) -> None:
        customer, subscription = tx.held_account(command.customer_id)
        limits = subscription.must("No such customer.").limits
        state = customer.must("No such customer.")
        if command.credential_id not in state.credentials:
            customer.append(state.add_credential(added, limits.max_providers))

    platform.once(command, work)
    return command.credential_id


class RevokeCredential(Command):
    customer_id: str
    credential_id: str


def revoke_credential(command: RevokeCredential, platform: Platform) -> None:
    """No run opens the credential any more."""

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        customer.append(customer.must("No such customer.").revoke_credential(command.credential_id))

    platform.once(command, work)
