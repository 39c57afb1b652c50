"""What an examination finds, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """How one check came out. `remedy` says what to do, and is empty where there is nothing to do."""

    check: str
    result: Result
    detail: str
    remedy: str = ""
