"""The mark on event fields that name a person. The store seals them under the customer's data key."""

from typing import Annotated, Final

ERASED: Final = "[erased]"
"""What a personal field of an erased customer reads as."""


class Personal:
    """Marks an event field (`Annotated[str, Personal]`): erasing the customer's key erases what it holds."""


PersonalText = Annotated[str, Personal]
PersonalTexts = Annotated[tuple[str, ...], Personal]
