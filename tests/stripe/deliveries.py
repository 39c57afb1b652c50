"""Stripe's events as its webhooks are sent them, in several versions of its API, and signed as it signs them."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stripe import WebhookSignature

FIXTURES = Path(__file__).parent / "fixtures"
SECRET = "whsec_4f1dA0c7e93b25d86f10Ab7c3e9d2f64"
"""A secret of the form that Stripe gives; it was never given by it."""
VERSIONS = ("2026-10-28.endive", "2026-06-24.dahlia", "2025-02-24.acacia")
"""The version that the library knows, the one before, and the last with a subscription's period on itself."""


def fixture(version: str, name: str) -> dict[str, Any]:
    """One recorded event of that API version."""
    return json.loads((FIXTURES / f"{version}.{name}.json").read_text())


def event(name: str, version: str = VERSIONS[0], **changes: Any) -> dict[str, Any]:
    """A recorded event with some of it changed: `id`, `created` and the like of the event, all else of its object.

    A mapping changes what it names inside, None included.
    """
    told = fixture(version, name)
    for key, value in changes.items():
        where = told if key in {"id", "created", "type", "livemode"} else told["data"]["object"]
        if isinstance(value, Mapping) and isinstance(where.get(key), dict):
            where[key] = {**where[key], **value}
        else:
            where[key] = value
    return told


def signed(told: Any, secret: str = SECRET, *, age: int = 0) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a delivery, signed `age` seconds ago."""
    body = told if isinstance(told, bytes) else json.dumps(told).encode()
    header = WebhookSignature.generate_signature_header(body.decode("latin-1"), secret, int(time.time()) - age)
    return body, {"Stripe-Signature": header, "Content-Type": "application/json"}
