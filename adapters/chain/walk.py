"""Walking the log from its first event to its last, beside its seals and signed heads."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final, NamedTuple

from adapters.chain.findings import Finding, Findings, Kind
from adapters.chain.stretch import Stretch, Suspect, explain, short_of
from adapters.postgres.seals import Seal, Stored
from adapters.progress import Tell
from application.chain import START, link

_TELL_EVERY: Final = 5_000
_MOST_SUSPECTS: Final = 20_000


class Signed(NamedTuple):
    """What a genuine head says: the log up to this position hashed to this."""

    position: int
    hash: str
    sealed_at: datetime

    def __str__(self) -> str:
        return f"the head that was signed at position {self.position} on {self.sealed_at:%Y-%m-%d %H:%M:%S} UTC"


class Walk:
    """One pass over the log. Memory holds a page of it, however long it is.

    Two hashes are carried along where they differ: from what the last seal says, and from what the events before it
    come to. So one change is found once, and not again under every seal after it.
    """

    def __init__(self, heads: Iterable[Signed], findings: Findings) -> None:
        self.events = 0
        self.position = 0
        self.seals = 0
        self.sealed_position = 0
        self.unsealed = 0
        self.unsigned = 0
        self.signed: Signed | None = None
        """The newest head that agrees."""
        self._findings = findings
        self._heads = sorted(heads)
        self._next_head = 0
        self._disagreeing: list[tuple[Signed | None, list[Signed]]] = []
        self._agreed = True
        self._from_seal = self._from_events = START
        self._without_loose: bytes | None = None
        self._suspects: list[Suspect] = []
        self._loose: list[Stretch] = []
        self._doubt: tuple[Seal, bytes] | None = None

    @property
    def hash(self) -> bytes:
        """The hash over the log so far."""
        return self._from_events

    def over(self, log: Callable[[], Iterator[Stored]], seals: Iterable[Seal], end: int, tell: Tell) -> None:
        """Compare the events of the `log` up to position `end` with the seals and the heads; findings are added.

        The log is read once, and a second time where an event is missing, to see whether it stands elsewhere.
        """
        events = _told(log(), "Checking the chain", end, tell)
        following = next(events, None)
        for seal in seals:
            stretch = Stretch(seal, self.sealed_position)
            while following is not None and following.position <= seal.last_position:
                self._step(following, stretch)
                following = next(events, None)
            self._close(stretch)
        while following is not None:
            self._step(following, None)
            self.unsealed += 1
            following = next(events, None)
        tell("Checking the chain", end, end)
        self._finish(_places(self._suspects, lambda: _told(log(), "Looking for moved events", end, tell)))

    def _step(self, event: Stored, stretch: Stretch | None) -> None:
        seen = event.digest()
        if stretch is not None and stretch.tick(event, short_of(seen)):
            if self._without_loose is None:
                self._without_loose = self._from_seal
        elif self._without_loose is not None:
            self._without_loose = link(self._without_loose, event.position, seen)
        same = self._from_events == self._from_seal
        self._from_seal = link(self._from_seal, event.position, seen)
        self._from_events = self._from_seal if same else link(self._from_events, event.position, seen)
        self.events += 1
        self.unsigned += 1
        self.position = event.position
        self._meet_heads(event.position, stretch.seal if stretch else None)

    def _meet_heads(self, position: int, seal: Seal | None) -> None:
        while self._next_head < len(self._heads) and self._heads[self._next_head].position <= position:
            head = self._heads[self._next_head]
            self._next_head += 1
            hashes = {self._from_seal, self._from_events} if head.position == self.position else set()
            if seal is not None and head.position == seal.last_position:
                # The seal is what was signed; what is wrong under it is found there.
                hashes.add(seal.hash)
            self._judge(head, agrees=bytes.fromhex(head.hash) in hashes)

    def _judge(self, head: Signed, *, agrees: bool) -> None:
        if agrees:
            self.signed, self.unsigned = head, 0
        elif self._agreed:
            self._disagreeing.append((self.signed, [head]))
        else:
            self._disagreeing[-1][1].append(head)
        self._agreed = agrees

    def _close(self, stretch: Stretch) -> None:
        """Judge a stretch by whether its events lead from the seal before to its own."""
        stretch.close()
        seal = stretch.seal
        from_seal, from_events = self._from_seal == seal.hash, self._from_events == seal.hash
        without_loose = self._without_loose == seal.hash
        led = from_seal or from_events or without_loose
        self._settle_doubt(from_seal=from_seal, from_events=from_events)
        if not stretch.credible or (led and stretch.suspects):
            self._found(Kind.SEAL_CHANGED, seal.last_position, f"{_name(seal)} does not list what it was made over.")
        elif stretch.suspects:
            self._suspects += stretch.suspects[: max(0, _MOST_SUSPECTS - len(self._suspects))]
        elif not led and not stretch.loose:
            self._doubt = (seal, self._from_events)
        if stretch.loose and (from_seal or from_events):
            self._found(
                Kind.SEAL_REMOVED,
                stretch.loose_end,
                f"The seal over {_span(stretch)} is gone; they are what was sealed.",
            )
        elif stretch.loose:
            self._suspects += stretch.loose
            if not without_loose:
                self._loose.append(stretch)
        self._meet_heads(seal.last_position, seal)
        self._from_events = seal.hash if led else self._from_events
        self._from_seal, self._without_loose = seal.hash, None
        self.seals += 1
        self.sealed_position = max(self.sealed_position, seal.last_position)

    def _settle_doubt(self, *, from_seal: bool = False, from_events: bool = False) -> None:
        """A seal did not follow from its events though it lists them: the next one tells which of them was changed."""
        if self._doubt is None:
            return
        (seal, came_to), self._doubt = self._doubt, None
        at = bisect_left(self._heads, seal.last_position, key=lambda head: head.position)
        signed = {head.hash for head in self._heads[at : at + 2] if head.position == seal.last_position}
        if not from_events and (from_seal or seal.hash.hex() in signed) and came_to.hex() not in signed:
            sentence = f"What lies before {_name(seal)} was rewritten, with its seals: they do not lead to this one."
            self._found(Kind.REWRITTEN, seal.last_position, sentence)
        else:
            sentence = f"The hash of {_name(seal)} is not the one that the events lead to."
            self._found(Kind.SEAL_CHANGED, seal.last_position, sentence)

    def _finish(self, places: dict[bytes, int]) -> None:
        self._settle_doubt()
        explained = list(explain(self._suspects, places, self.position))
        moved = {finding.position for finding in explained if finding.kind is Kind.MOVED}
        unclear: set[int] = set()
        for stretch in self._loose:
            unclear.update(s.position for s in stretch.loose)
            if stretch.loose_events > sum(s.position in moved for s in stretch.loose):
                sentence = f"No seal covers {_span(stretch)}: they were inserted, or their seal was removed."
                self._found(Kind.SEAL_REMOVED, stretch.loose_end, sentence)
        for finding in explained:
            if not (finding.kind is Kind.INSERTED and finding.position in unclear):
                self._findings.add(finding)
        for head in self._heads[self._next_head :]:
            self._judge(head, agrees=False)
        self._judge_heads()

    def _judge_heads(self) -> None:
        beyond = [s for _, heads in self._disagreeing for s in heads if s.position > self.position]
        reach = max([self.sealed_position, *(head.position for head in beyond)])
        if reach > self.position:
            witness = str(beyond[-1]) if beyond else "a seal"
            sentence = f"The log ends at position {self.position}, but {witness} reaches position {reach}: "
            self._found(Kind.TRUNCATED, self.position, sentence + "what came after the end is gone.")
        for before, heads in self._disagreeing:
            inside = [head for head in heads if head.position <= self.position]
            if inside:
                self._found(Kind.REWRITTEN, inside[0].position, _rewritten(before, inside))
        last = max((head.position for head in self._heads if head.position <= self.position), default=0)
        if last > self.sealed_position:
            sentence = f"The seals over positions {self.sealed_position + 1} to {last} are gone, which were signed."
            self._found(Kind.SEAL_REMOVED, last, sentence)

    def _found(self, kind: Kind, position: int, sentence: str) -> None:
        self._findings.add(Finding(kind=kind, position=position, sentence=sentence))


def _places(suspects: list[Suspect], log: Callable[[], Iterator[Stored]]) -> dict[bytes, int]:
    """Where the events stand now that a seal saw at these positions; those that stand nowhere are left out."""
    wanted = {suspect.wanted for suspect in suspects if suspect.wanted is not None}
    if not wanted:
        return {}
    return {short: event.position for event in log() if (short := short_of(event.digest())) in wanted}


def _told(events: Iterator[Stored], stage: str, end: int, tell: Tell) -> Iterator[Stored]:
    for number, event in enumerate(events):
        if number % _TELL_EVERY == 0:
            tell(stage, event.position, end)
        yield event


def _rewritten(before: Signed | None, heads: list[Signed]) -> str:
    since = f"after {before}, which agrees" if before else "from its beginning"
    more = f" So do {len(heads) - 1} more, up to position {heads[-1].position}." if len(heads) > 1 else ""
    sentence = f"The log is not what was signed: {heads[0]} disagrees. It was rewritten {since}."
    return sentence + more


def _name(seal: Seal) -> str:
    return f"the seal over positions {seal.first_position} to {seal.last_position}"


def _span(stretch: Stretch) -> str:
    first, events = stretch.loose[0].position, stretch.loose_events
    return f"{events} event{'s' * (events != 1)} from position {first} to {stretch.loose_end}"
