"""How many events a projection takes at once: few when few wait, many when it is far behind, and each exactly once."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from domain.envelope import Envelope
from projections.follow import Placed, catch_up


class Numbers:
    """A log of so many events, and a checkpoint on it."""

    def __init__(self, end):
        self.last, self.reached = end, 0

    def read(self, after, limit, skipping=frozenset()):
        there = [n for n in range(after + 1, self.last + 1) if n not in skipping]
        return [Placed(n, envelope(n)) for n in there[:limit]]

    def end(self):
        return self.last

    def position(self, _):
        return self.reached

    def advance(self, _, expected, to):
        assert expected == self.reached
        self.reached = to


def envelope(position):
    values = dict.fromkeys(Envelope.__dataclass_fields__, "")
    return Envelope(
        **{**values, "position": position, "stream_id": UUID(int=1), "at": datetime(2025, 1, 1, tzinfo=UTC)}
    )


@pytest.mark.parametrize(
    ("end", "most", "pages"),
    [
        (0, 40, []),
        (3, 40, [3]),
        (10, 40, [10]),
        (11, 40, [11]),
        (100, 40, [40, 40, 20]),
        (45, 40, [40, 5]),
        (25, 0, [10, 10, 5]),
        (25, 10, [10, 10, 5]),
    ],
)
def test_a_page_holds_what_waits_within_bounds(end, most, pages):
    log, handled = Numbers(end), []
    assert catch_up("p", log, handled.append, log, page=10, most=most) == end
    assert [len(page) for page in handled] == pages
    assert [placed.event for page in handled for placed in page] == list(range(1, end + 1))


def test_events_that_are_passed_over_make_no_page_end_early():
    log, handled = Numbers(100), []
    assert catch_up("p", log, handled.append, log, page=10, most=40, skipping=frozenset(range(5, 50))) == 55
    assert [len(page) for page in handled] == [40, 15]
