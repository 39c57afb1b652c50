"""Checking the whole log against its seals, and against the signed heads of the file and of BigQuery."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from adapters.bootstrap import Service
from adapters.chain.findings import MOST, Checked, Finding, Findings, Kind
from adapters.chain.heads import HeadsFile, WarehouseHeads
from adapters.chain.signing import canonical, genuine, own_public_key
from adapters.chain.walk import Signed, Walk
from adapters.postgres import seals
from adapters.postgres.maintenance import maintenance
from adapters.progress import Tell, untold
from application.chain import Head
from application.ports import Away

_LATE: Final = timedelta(minutes=10)
"""How long a head may be missing in one of the two places before that is a finding."""

_Name = tuple[int, str]


def check(
    service: Service,
    *,
    public_keys: Sequence[str] = (),
    heads_file: Path | None = None,
    bigquery: bool = True,
    tell: Tell = untold,
    most: int = MOST,
    late: timedelta = _LATE,
) -> Checked:
    """Read the whole log, and name what is not as it was sealed and signed. Others may append meanwhile.

    Heads count when they are signed with one of `public_keys` (base64), or else with the service's own key. They are
    read from `heads_file`, a copy of it or the settings' own, and from BigQuery unless told otherwise. What somebody
    changed before it was sealed leaves no trace, and a consistent rewrite of log and seals shows in the heads alone.

    Raises `Away` when the database is, or the wrapping key while no public key is given; `ValueError` for a public key
    that is none.
    """
    findings = Findings(most)
    gathered = _Gathered(service, [canonical(key) for key in public_keys], findings)
    if bigquery:
        gathered.read_bigquery()
    gathered.read_file(HeadsFile(heads_file or service.settings.heads_file))
    gathered.compare(late)
    walk = Walk(gathered.signed, findings)
    with maintenance(service.dsn, name="check the chain") as connection:
        # In this order: what a head was signed over is sealed, and what is sealed is in the log.
        sealed = seals.unsealed(service.datastore, most=1)
        end = max(seals.end_of_log(connection), 0)
        walk.over(lambda: seals.events_to(connection, end), seals.seals_to(connection, sealed.position), end, tell)
    return Checked(
        events=walk.events,
        position=end,
        hash=walk.hash.hex(),
        seals=walk.seals,
        sealed_position=walk.sealed_position,
        sealed_at=sealed.at,
        unsealed_events=walk.unsealed,
        heads_in_file=len(gathered.in_file),
        heads_in_bigquery=None if gathered.in_bigquery is None else len(gathered.in_bigquery),
        signed_position=walk.signed.position if walk.signed else 0,
        signed_at=walk.signed.sealed_at if walk.signed else None,
        unsigned_events=walk.unsigned,
        public_keys=tuple(gathered.trusted),
        findings=tuple(sorted(findings.kept, key=lambda finding: finding.position)),
        counts={str(kind): count for kind, count in findings.counts.items()},
        notes=tuple(gathered.notes),
    )


class _Gathered:
    """The genuine heads of both places."""

    def __init__(self, service: Service, public_keys: Sequence[str], findings: Findings) -> None:
        settings = service.settings
        self.signed: set[Signed] = set()
        self.in_file: dict[_Name, Signed] = {}
        self.in_bigquery: dict[_Name, Signed] | None = None
        self.notes: list[str] = []
        self._findings = findings
        self._now = service.now
        self._warehouse = WarehouseHeads(service.warehouse, settings.project, settings.customers_dataset_id)
        self._file_is_there = False
        self._pinned = bool(public_keys)
        self.trusted = list(public_keys) or self._own_key(service)
        self._verified: set[int] = set()
        self._last = {"BigQuery": 0, "the file": 0}

    def _own_key(self, service: Service) -> list[str]:
        try:
            own = own_public_key(service.keys, service.data_keys)
        except ValueError as error:
            self._find(Kind.KEY_MISSING, 0, f"The key that signs heads cannot be opened: {error}")
            return []
        return [own] if own else []

    def read_bigquery(self) -> None:
        try:
            heads = ((f"BigQuery's head at position {head.position}", head) for head in self._warehouse.read())
            self.in_bigquery = dict(self._genuine(heads, "BigQuery"))
        except (Away, PermissionError) as error:
            self._find(Kind.UNCHECKED, 0, f"The heads in BigQuery were not compared: {error}")

    def read_file(self, file: HeadsFile) -> None:
        self._file_is_there = file.path.exists()
        if not self._file_is_there:
            self.notes.append(f"There is no file of signed heads at {file.path}.")
        self.in_file = dict(self._genuine(self._lines(file), "the file"))

    def _lines(self, file: HeadsFile) -> Iterator[tuple[str, Head]]:
        for number, line, head in file.read():
            name = f"line {number} of {file.path}"
            if head is not None:
                yield name, head
            elif line.rstrip().endswith(b"}"):
                self._find(Kind.HEAD_UNREADABLE, 0, f"There is no signed head in {name}.")
            else:
                self.notes.append(f"A crash tore {name}: it holds no head.")

    def _genuine(self, heads: Iterable[tuple[str, Head]], where: str) -> Iterator[tuple[_Name, Signed]]:
        for name, head in heads:
            self._last[where] = max(self._last[where], head.position)
            if not self.trusted:
                # There is no other key to go by than the one that the first head shows.
                self.trusted = [head.public_key]
                self._find(
                    Kind.KEY_MISSING,
                    0,
                    f"The service's own signing key is gone; heads are checked with the one of {name}: "
                    f"{head.public_key}. Give the right one with --public-key.",
                )
            proof = hash(head)
            if proof not in self._verified:
                if not genuine(head):
                    self._find(Kind.HEAD_FORGED, head.position, f"The signature of {name} is wrong: it was forged.")
                    continue
                if head.public_key not in self.trusted:
                    other = f"{name} is signed with another key, {head.public_key}: it was forged"
                    self._find(Kind.HEAD_FORGED, head.position, f"{other}, or the key was not given.")
                    continue
                self._verified.add(proof)
            signed = Signed(head.position, head.hash, head.sealed_at)
            self.signed.add(signed)
            yield (head.position, head.hash), signed

    def compare(self, late: timedelta) -> None:
        """Name the heads that only one place has. The newest ones may be on their way for as long as `late`."""
        if self.in_bigquery is None or not self._file_is_there:
            return
        self._missing(self.in_file, self.in_bigquery, "BigQuery", late)
        self._missing(self.in_bigquery, self.in_file, "the file", late)

    def _missing(self, there: dict[_Name, Signed], others: dict[_Name, Signed], where: str, late: timedelta) -> None:
        now = self._now()
        on_their_way = 0
        for head in sorted(there[name] for name in there.keys() - others.keys()):
            if head.position > self._last[where] and now - head.sealed_at <= late:
                on_their_way += 1
            else:
                sentence = f"{str(head).capitalize()} is not in {where}: it was removed there, or never got there."
                self._find(Kind.HEAD_MISSING, head.position, sentence)
        if on_their_way:
            self.notes.append(f"Not in {where} yet: the newest {on_their_way} of the signed heads.")

    def _find(self, kind: Kind, position: int, sentence: str) -> None:
        self._findings.add(Finding(kind=kind, position=position, sentence=sentence))
