"""Parameters of a template: their types, defaults and bounds, and the check of what a caller sends."""

from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from adapters.pipelines import identifiers


class ParameterType(StrEnum):
    """What a parameter may hold. A `table` is a name or a prefix ending in `*`, and never a value in SQL."""

    STRING = "string"
    INT = "int"
    DATE = "date"
    BOOL = "bool"
    TABLE = "table"


class Parameter(BaseModel):
    """One parameter of a template. `minimum` and `maximum` bound an int, `max_length` a string."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ParameterType
    default: Any = None
    description: str = ""
    minimum: int | None = None
    maximum: int | None = None
    max_length: int = 1024

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        if self.default is not None:
            object.__setattr__(self, "default", self.coerce(self.default))
        return self

    def coerce(self, value: object) -> Any:  # noqa: ANN401 - plain JSON: str, int or bool
        """The value in its plain form (a date as ISO text). Raises `ValueError` with what is expected."""
        match self.type:
            case ParameterType.STRING:
                return self._string(value)
            case ParameterType.INT:
                return self._int(value)
            case ParameterType.DATE:
                return _date(value)
            case ParameterType.BOOL:
                return _bool(value)
            case ParameterType.TABLE:
                return _table(value)

    def _string(self, value: object) -> str:
        if not isinstance(value, str) or len(value) > self.max_length or "\x00" in value:
            raise ValueError(f"takes text of at most {self.max_length} characters")
        return value

    def _int(self, value: object) -> int:
        number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        low = -(2**63) if self.minimum is None else self.minimum
        high = 2**63 - 1 if self.maximum is None else self.maximum
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise ValueError(f"takes a whole number from {low} to {high}")
        return number


def _date(value: object) -> str:
    try:
        parsed = value if type(value) is date else date.fromisoformat(str(value))
    except ValueError:
        raise ValueError("takes a date as YYYY-MM-DD") from None
    return parsed.isoformat()


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    raise ValueError("takes true or false")


def _table(value: object) -> str:
    try:
        return identifiers.table_pattern(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(
            "takes a table name of letters, digits, underscores and hyphens, or a prefix ending in *"
        ) from None


def check(declared: Mapping[str, Parameter], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a run: those given, coerced, and the defaults of the others, as plain JSON values.

    Checking the answer again gives the same. Raises `ValueError` with a sentence that names the parameter at fault and
    never a value; an unknown parameter's name is not repeated either, since it is the caller's text.
    """
    if any(name not in declared for name in given):
        known = ", ".join(sorted(declared)) or "none"
        raise ValueError(f"The request has a parameter that this pipeline does not take. It takes: {known}.")
    values: dict[str, Any] = {}
    for name, parameter in declared.items():
        value = given.get(name)
        if value is None:
            if parameter.default is None:
                raise ValueError(f"The parameter {name} is missing.")
            values[name] = parameter.default
            continue
        try:
            values[name] = parameter.coerce(value)
        except ValueError as error:
            raise ValueError(f"The parameter {name} {error}.") from None
    return values
