"""What every command has: frozen values, checked as they come in, with the instant and the one who asks."""

import re
from typing import Annotated
from uuid import UUID, uuid4

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, StringConstraints

from domain.envelope import Origin


def new_id() -> str:
    return str(uuid4())


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _printable(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("must not contain control characters")
    return text


Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(_printable)
]
"""One line of a person's text: 1 to 200 characters, no control characters."""

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]+$", min_length=1, max_length=200)]
"""A machine's name for something: letters, digits and `_ . : / -`."""

Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", min_length=1, max_length=100)]


class Request(BaseModel):
    """What a caller says. Unknown fields are refused; the values never appear in an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Command(Request):
    """A request as the service takes it up: `at` is the instant of asking (aware), `by` who asks.

    `once` says that its sender named it and may send it again: every time under the same `by.command_id`.
    """

    at: AwareDatetime
    by: Origin
    once: bool = False


def as_uuid(text: str) -> UUID | None:
    """The UUID that `text` is the canonical form of, or None."""
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return parsed if str(parsed) == text else None
