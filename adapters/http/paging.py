"""Lists, page by page: a cursor is where the last page ended, opaque to its caller and checked when it comes back."""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import AfterValidator, BaseModel, Field

from adapters.http.api import at_once
from adapters.postgres.reads.listing import Mark
from domain.refusals import Invalid

Item = TypeVar("Item")

_WRONG_CURSOR: Final = "cursor: is not a next_cursor of this list"
_YEARS: Final = range(1970, 9999)
_POSITION_DIGITS: Final = 18


class Page(BaseModel, Generic[Item]):
    """One page of a list, newest first."""

    items: list[Item]
    next_cursor: str | None = Field(
        default=None, description="Send it as `cursor` for the next page; null on the last one."
    )


class Paging:
    """Which page is asked for."""

    def __init__(
        self,
        limit: Annotated[int, Query(ge=1, le=200, description="Items on a page.")] = 50,
        cursor: Annotated[
            str | None, Query(max_length=300, description="The `next_cursor` of the page before.")
        ] = None,
    ) -> None:
        self.limit = limit
        self._cursor = cursor

    @property
    def more(self) -> int:
        """What to read: one row more than is shown tells whether there is a next page."""
        return self.limit + 1

    @property
    def after(self) -> Mark | None:
        """Where the page before ended; raises `Invalid`."""
        if self._cursor is None:
            return None
        at, key = self._parts(2)
        return Mark(_instant(at), key)

    @property
    def before_day(self) -> date | None:
        """The day on which the page before ended; raises `Invalid`."""
        if self._cursor is None:
            return None
        try:
            return date.fromisoformat(self._parts(1)[0])
        except ValueError:
            raise Invalid(_WRONG_CURSOR) from None

    @property
    def before_position(self) -> int | None:
        """The place in the log at which the page before ended; raises `Invalid`."""
        if self._cursor is None:
            return None
        text = self._parts(1)[0]
        if not text.isdecimal() or len(text) > _POSITION_DIGITS:
            raise Invalid(_WRONG_CURSOR)
        return int(text)

    @property
    def after_name(self) -> str | None:
        """The name with which the page before ended; raises `Invalid`."""
        return None if self._cursor is None else self._parts(1)[0]

    def _parts(self, count: int) -> list[str]:
        text = self._cursor or ""
        try:
            parts = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        except (binascii.Error, ValueError, RecursionError):
            raise Invalid(_WRONG_CURSOR) from None
        if not isinstance(parts, list) or len(parts) != count or not all(_is_plain(part) for part in parts):
            raise Invalid(_WRONG_CURSOR)
        return parts

    def page(
        self,
        rows: list[Mapping[str, Any]] | list[dict[str, Any]],
        item: Callable[[Any], Item],
        place: Iterable[str],
    ) -> "Page[Item]":
        """The page that these rows make; the columns of `place` say where it ends."""
        shown = rows[: self.limit]
        more = len(rows) > self.limit
        end = [_text(shown[-1][column]) for column in place] if more else None
        return Page(items=[item(row) for row in shown], next_cursor=cursor(end) if end else None)


def _is_plain(part: object) -> bool:
    return isinstance(part, str) and len(part) <= 100 and part.isascii() and part.isprintable()


def _text(value: Any) -> str:  # noqa: ANN401 - a column's value
    return value.isoformat() if isinstance(value, date) else str(value)


def cursor(parts: list[str]) -> str:
    """Where a page ended, as its caller gets it."""
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def _instant(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(_WRONG_CURSOR) from None
    if at.tzinfo is None or at.year not in _YEARS:
        raise Invalid(_WRONG_CURSOR)
    return at


def _usual(at: datetime) -> datetime:
    if at.year not in _YEARS:
        raise ValueError(f"must lie in the years {_YEARS.start} to {_YEARS.stop - 1}")
    return at if at.tzinfo else at.replace(tzinfo=UTC)


Instant = Annotated[datetime, AfterValidator(_usual)]
"""A date or an RFC 3339 instant in a query; UTC where it does not say otherwise."""

PageAsked = Annotated[Paging, Depends(at_once(Paging))]
