"""API keys as people see them, over HTTP and at the command line."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, Field

from adapters.postgres.key_uses import Use
from domain.scopes import Scope


class ApiKeyView(BaseModel):
    """What is known of a key: never the key, and never its hash."""

    api_key_id: str
    customer_id: str
    name: str = Field(description="Empty where none was given.")
    scopes: list[Scope] | None = Field(description="What it may be used for, null for everything.")
    last4: str
    is_active: bool = Field(description="False once revoked; an expired key shows by its expires_at.")
    created_at: datetime
    expires_at: datetime
    days_left: int = Field(description="Days until it ends, a begun one counted; 0 for a key that does not work.")
    last_used_at: datetime | None = Field(description="To the minute or so; null for a key that was never used.")
    last_used_from: str | None = Field(description="The address from which it was used then.")
    revoked_at: datetime | None
    revoked_reason: str | None


def key_view(row: Mapping[str, Any], use: Use | None, now: datetime) -> ApiKeyView:
    """A key's row for people, with its last use if there was one."""
    left = math.ceil((row["expires_at"] - now) / timedelta(days=1)) if row["is_active"] else 0
    return ApiKeyView.model_validate(
        {
            **row,
            "name": row["name"] or "",
            "days_left": max(left, 0),
            "last_used_at": use.at if use else None,
            "last_used_from": use.source if use else None,
        }
    )
