"""What comes after a customer's erasure is stored: its keys are destroyed, and what is kept of it elsewhere goes."""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from email import message_from_bytes, policy
from pathlib import Path
from typing import Final

from adapters.bootstrap import Service, origin
from adapters.erasure_ledger import Entry, LedgerFile, WarehouseLedger, latest
from adapters.granter import grants_of
from adapters.postgres import erasures, grants
from adapters.postgres.erasures import Erasure
from adapters.postgres.grants import Readers
from application.erasure import Erase, erase
from application.ports import Away
from domain.projection import NOTIFICATIONS, WAREHOUSE

logger = logging.getLogger(__name__)

AGAIN: Final = "applied again from the deletion ledger"

Step = Callable[[Service, Erasure], str | None]
"""One thing to do, which may be done again; answers what it still waits for, None when it is done for good.

Raises `Away` when something does not answer.
"""


def _ledger(service: Service, erasure: Erasure) -> None:
    LedgerFile(service.settings.ledger_file).add(Entry(erasure.customer_id, erasure.erased_at))


def _data_keys(service: Service, erasure: Erasure) -> None:
    service.vault.destroy(erasure.customer_id)


def _records(service: Service, erasure: Erasure) -> str | None:
    # Looked at before: what a projection that is behind writes afterwards is removed the next time.
    behind = _behind(service, NOTIFICATIONS, erasure)
    erasures.remove_records(service.datastore, erasure.customer_id)
    return behind


def _readers(service: Service, erasure: Erasure) -> None:
    # Who could read is named there by e-mail. What a granter says at this moment it takes back by itself.
    nobody = Readers(erasure.customer_id, 0, (), ())
    grants_of(service).tell(nobody.customer_id, nobody.active, nobody.revoked)
    grants.applied(service.datastore, nobody)


def _mail(service: Service, erasure: Erasure) -> None:
    if service.settings.smtp_url is None:
        remove_mails(service.settings.data_dir / "outbox", erasure.customer_id)


def _warehouse_ledger(service: Service, erasure: Erasure) -> None:
    _in_warehouse(service).add(Entry(erasure.customer_id, erasure.erased_at))


def _dataset(service: Service, erasure: Erasure) -> str | None:
    waits = _behind(service, WAREHOUSE, erasure)
    if waits is None and _now(service) < erasure.quiet_at:
        waits = f"a worker may go on until {erasure.quiet_at:%H:%M:%S} UTC."
    service.warehouse.delete_customer(erasure.customer_id)
    return waits


STEPS: Final[Mapping[str, Step]] = {
    "ledger": _ledger,
    "data_keys": _data_keys,
    "records": _records,
    "mail": _mail,
    "warehouse_ledger": _warehouse_ledger,
    "readers": _readers,
    "dataset": _dataset,
}
"""In the order in which they are done. None waits for another: the keys are destroyed whatever else is away."""


IN_WAREHOUSE: Final = frozenset({"warehouse_ledger", "readers", "dataset"})
AT_ONCE: Final = ("data_keys", "records")
"""What whoever erases does by itself. The projector does the rest: it is at its machine that the files are."""


def finish(service: Service, erasure: Erasure, steps: Collection[str] = STEPS.keys()) -> Erasure:
    """Do those of these steps that are not done; how far the erasure has come then.

    What does not answer is said in its `problem`, and is tried again by whoever leads the projector's eraser. Raises
    `Away` when the database does not answer.
    """
    away = False
    problems: list[str] = []
    waits: list[str] = []
    for name, step in STEPS.items():
        if name not in steps or name in erasure.done:
            continue
        if away and name in IN_WAREHOUSE:
            continue  # it would be waited for once more
        try:
            waiting = step(service, erasure)
        except (Away, OSError, ValueError) as error:
            # Others have to be done all the same.
            logger.warning("erasure of %s: the step %s waits: %s", erasure.customer_id, name, error)
            problems.append(f"{name}: {error}")
            away = away or (name in IN_WAREHOUSE and isinstance(error, Away))
            continue
        if waiting is None:
            erasures.note_done(service.datastore, erasure.customer_id, name)
        else:
            waits.append(f"{name}: {waiting}")
    said = " ".join([*problems, *waits]) or None
    found = erasures.note_try(service.datastore, erasure.customer_id, said, every=tuple(STEPS))
    if found.completed_at is not None and erasure.completed_at is None:
        logger.info("the erasure of %s is complete", erasure.customer_id)
    return found


def begin(service: Service, customer_id: str) -> Erasure:
    """What is done at once for a customer that was just erased; how far its erasure has come then."""
    found = erasures.find(service.datastore, customer_id)
    if found is None:
        raise LookupError(f"the erasure of {customer_id} was not noted")
    return finish(service, found, AT_ONCE)


def finish_all(service: Service) -> list[Erasure]:
    """`finish` for every erasure that is not complete; how far each has come."""
    return [finish(service, erasure) for erasure in erasures.unfinished(service.datastore)]


def ledger(service: Service, *, in_warehouse: bool = True) -> Mapping[str, datetime]:
    """Who was erased, as the file and BigQuery say together.

    While BigQuery is away, or where it refuses, the file alone says so: a warning is logged.
    """
    entries = [Entry(*item) for item in LedgerFile(service.settings.ledger_file).read().items()]
    if not in_warehouse:
        return latest(entries)
    try:
        entries += [Entry(*item) for item in _in_warehouse(service).read().items()]
    except (Away, PermissionError) as error:
        logger.warning("the deletion ledger in BigQuery cannot be read, the file alone counts: %s", error)
    return latest(entries)


def apply_ledger(service: Service, actor: str, *, in_warehouse: bool = True) -> list[str]:
    """Erase again whoever the ledger names and the log does not know as erased; who that was.

    So it is with a database that was restored from a backup older than the erasure. A customer that was onboarded after
    the erasure is another one, and stays. `in_warehouse` says whether there is a BigQuery to be asked.
    """
    known = ledger(service, in_warehouse=in_warehouse)
    with service.datastore.reading() as cursor:
        back = list(erasures.reborn(cursor, known))
    for customer_id in back:
        logger.warning("%s was erased on %s and is here again: erasing", customer_id, known[customer_id].date())
        command = Erase(at=service.now(), by=origin(actor), customer_id=customer_id, reason=AGAIN)
        erase(command, service.platform)
        begin(service, customer_id)
    return back


def remove_mails(outbox: Path, customer_id: str) -> int:
    """Delete the mails in a local outbox that name the customer; how many those were."""
    named = re.compile(rf"(?<![A-Za-z0-9_]){re.escape(customer_id)}(?![A-Za-z0-9_])")
    found = [path for path in sorted(outbox.glob("*.eml")) if named.search(_text(path))]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def _text(path: Path) -> str:
    mail = message_from_bytes(path.read_bytes(), policy=policy.default)
    body = mail.get_body(("plain",))
    return f"{mail['Subject']}\n{body.get_content() if body else ''}"


def _behind(service: Service, projection: str, erasure: Erasure) -> str | None:
    last = erasures.last_position(service.datastore, erasure.customer_id)
    if service.checkpoints.position(projection) >= last:
        return None
    return f"the projection {projection} is behind, and may still write of the customer."


def _in_warehouse(service: Service) -> WarehouseLedger:
    return WarehouseLedger(service.warehouse, service.settings.project, service.settings.customers_dataset_id)


def _now(service: Service) -> datetime:
    """The database's clock, by which it was noted."""
    with service.store.transaction() as session:
        return session.now()
