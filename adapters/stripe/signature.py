"""Whether Stripe sent it: the signature over the body as it came, checked before anything is made of it."""

from collections.abc import Sequence
from typing import Any, Final

from stripe import SignatureVerificationError, Webhook

TOLERANCE_S: Final = 300
"""How old a signature may be: whoever recorded a delivery cannot send it again after that."""


class Forged(Exception):  # noqa: N818 - it says what the delivery is
    """No secret of ours signed this body within the last five minutes."""


class NotAnEvent(Exception):  # noqa: N818 - it says what was sent
    """Signed, and no event of the kind that webhooks are sent."""


def verified(body: bytes, header: str | None, secrets: Sequence[str]) -> dict[str, Any]:
    """The event that Stripe signed with one of these secrets.

    Raises `Forged`, which repeats nothing of what was sent, and `NotAnEvent`.
    """
    for secret in secrets:
        try:
            event = Webhook.construct_event(body, header, secret, TOLERANCE_S)
        except (SignatureVerificationError, UnicodeDecodeError):
            continue
        except (ValueError, AttributeError, RecursionError):
            raise NotAnEvent from None
        told: dict[str, Any] = event.to_dict()
        return told
    raise Forged
