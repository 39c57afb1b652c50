"""What the use cases need from outside, named by need. Each port has a twin on the laptop and in the cloud."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Protocol, Self


class Away(Exception):  # noqa: N818 - it says where the backend is
    """A backend did not answer, or not in time. Nothing was acknowledged; the same call may work later."""


class Full(Away):
    """The database has no room left: it can be read, nothing is stored until there is room again."""


class KeyDestroyed(ValueError):  # noqa: N818 - it says what became of the key
    """The customer does not have the data key (any more): what was sealed under it is gone.

    So it is after an erasure. The ciphertext alone cannot tell a destroyed key's from one that was moved here from
    another customer: that one is refused in these words too.
    """


class Purpose(StrEnum):
    """What a customer's secret is for. It chooses the wrapping key and is bound into the ciphertext."""

    API_KEY = "api-key"
    CREDENTIAL = "credential"
    PERSONAL = "personal"
    WEBHOOK = "webhook"
    """What signs the notifications that are posted to a customer's endpoint."""
    LOG_HEAD = "log-head"
    """The key that signs what the log was. It is the service's own and no customer's."""


@dataclass(frozen=True, slots=True)
class SealedFor:
    """Whom a ciphertext belongs to: it opens for the same customer, record and purpose only."""

    customer_id: str
    record_id: str
    purpose: Purpose


class NotToBeOpened(Exception):  # noqa: N818 - it says what the secret is not
    """Whoever asks may not open this secret: its process is not one that does, or its run is not its own any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """Who has a customer's secret opened, what for, and in which run or request, as it is recorded."""

    actor: str
    reason: str | None = None
    """`run`, `reveal`, `reseal` …"""
    run_id: str | None = None
    attempt: int | None = None
    request_id: str | None = None


class Wrapped(bytes):
    """A wrapped key, which says under which version of the wrapping key."""

    version: str

    def __new__(cls, ciphertext: bytes, version: str) -> Self:
        made = super().__new__(cls, ciphertext)
        made.version = version
        return made

    def __reduce__(self) -> tuple[type["Wrapped"], tuple[bytes, str]]:
        return Wrapped, (bytes(self), self.version)


class KeyWrapper(Protocol):
    """Wraps small keys (at most 64 KiB) under a key that never leaves its holder.

    The holder's key may have versions: the newest wraps, and all that it still has unwrap. Both methods raise `Away`
    when the holder does not answer, and `ValueError` when the ciphertext was altered or belongs to another owner.
    """

    def wrap(self, plaintext: bytes, owner: SealedFor) -> Wrapped: ...

    def unwrap(self, ciphertext: bytes, owner: SealedFor) -> bytes: ...


class Vault(Protocol):
    """Seals a customer's secrets under that customer's own data keys (AES-256-GCM, bound to owner)."""

    def prepare(self, customer_id: str) -> None:
        """Make the customer's data keys if there are none. Idempotent, also for concurrent callers."""

    def seal(self, plaintext: bytes, owner: SealedFor) -> bytes: ...

    def open(self, ciphertext: bytes, owner: SealedFor, by: Opener | None = None) -> bytes:
        """Decrypt what `seal` returned for the same owner; `by` is recorded before a secret is handed out.

        Raises `KeyDestroyed` when the customer does not have its data key, another `ValueError` for a foreign or
        altered ciphertext, `Away` when the wrapping key is away, `NotToBeOpened` where this process is not to.
        """


@dataclass(frozen=True, slots=True)
class Query:
    """The answer to one SQL statement: column names, and rows as plain Python values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    affected: int | None = None


class Warehouse(Protocol):
    """BigQuery: the central dataset, and one dataset per customer. Every method raises `Away` when it is away."""

    def ensure_central(self) -> None:
        """Make the central dataset and its tables where they are missing; add columns that are new."""

    def ensure_customer(self, customer_id: str) -> Sequence[str]:
        """Make the customer's dataset and x_meta tables where they are missing; the names of its tables.

        Raises `NotFound` for a customer who was erased.
        """

    def delete_customer(self, customer_id: str) -> None:
        """Remove the customer's dataset with every table in it. Idempotent."""

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Query: ...


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail to one or more people, in plain text. Those of one `reference` are recognisably the same mail."""

    to: Sequence[str]
    subject: str
    text: str
    reference: str | None = None


class Mailer(Protocol):
    """Delivers mail, or raises `Away`."""

    def send(self, mail: Mail) -> str:
        """Where it went, in words for a log: never its content."""


@dataclass(frozen=True, slots=True)
class RunOrder:
    """Everything a runner needs to execute one attempt of one run."""

    run_id: str
    customer_id: str
    provider: str
    domain: str
    template: str
    attempt: int
    trigger_type: str
    run_date: date
    parameters: Mapping[str, Any]
    configuration: Mapping[str, Any] = field(default_factory=dict)
    """The customer's provider configuration: source_project_id, source_dataset, notification_emails …"""
    worker_id: str = ""
    """Who has claimed it."""
    last_attempt: bool = False
    """Whether no other attempt follows this one, however it ends. `attempt` does not say so: not all of them count."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """One data-quality check and how it came out."""

    name: str
    passed: bool
    severity: str
    """`warn` or `fail`."""
    observed: str
    """What was seen, in words: `0 rows`, `3 duplicates of (a, b)`. Never customer data."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """How one step of a run came out."""

    index: int
    name: str
    type: str
    status: str
    """`COMPLETED`, `FAILED` or `SKIPPED`."""
    started_at: datetime
    ended_at: datetime
    rows: int = 0
    error: str | None = None
    target_table: str | None = None
    expectations: Sequence[Expectation] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a whole attempt came out. `error` is a person's sentence; `can_pass` says that trying again may help."""

    succeeded: bool
    rows: int = 0
    error: str | None = None
    can_pass: bool = False


class Cancelled(Exception):  # noqa: N818 - an answer, not a fault
    """Raised inside a runner when the run was cancelled or its lease lost: stop, report nothing."""


class RunProgress(Protocol):
    """What a runner tells while it works. Both may raise `Cancelled`."""

    def finished(self, step: StepReport) -> None: ...

    def check(self) -> None:
        """Call between units of work."""


class PipelineRunner(Protocol):
    """Executes the steps of a pipeline template."""

    def run(self, order: RunOrder, progress: RunProgress) -> RunReport:
        """Never raises for a failing step: that is a report. Raises `Cancelled` only."""


class CredentialReader(Protocol):
    """Opens the credentials of the customer whose run is being executed."""

    def credential(self, order: RunOrder, provider: str, project_id: str | None) -> Mapping[str, Any] | None:
        """The newest active credential of that provider (and project, where given), or None.

        Raises `NotToBeOpened` when the run is not held by who claimed it, `Away` as a vault does.
        """


class Template(Protocol):
    """A pipeline that can be run, as the registry knows it."""

    @property
    def id(self) -> str: ...

    def check(self, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters with their types and defaults; raises `ValueError` with a sentence for wrong ones."""


class Catalogue(Protocol):
    """The pipelines that exist."""

    def find(self, provider: str, domain: str, name: str) -> Template | None:
        """By name, without regard to case."""
