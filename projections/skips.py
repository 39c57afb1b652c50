"""Rows of skipped events."""

from collections.abc import Iterator

from domain.envelope import Envelope
from domain.projection import EventSkipped
from projections.rows import Put, RowChange
from projections.tables import PROJECTION_SKIPS


def rows(event: EventSkipped, at: Envelope) -> Iterator[RowChange]:
    """The row of one skipped event."""
    yield Put(
        PROJECTION_SKIPS,
        {
            "projection": event.projection,
            "skipped_position": event.position,
            "topic": event.topic,
            "reason": event.reason,
            "skipped_by": at.by.actor,
            "skipped_at": at.at,
        },
    )
