"""Rotating keys while the service runs: wrapping keys by wrapping anew, data keys by sealing anew."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from adapters.bootstrap import Service
from adapters.chain.signing import SIGNING_KEY_OF
from adapters.kms import DataKeyGroup, KeyGroup
from adapters.kms.guarded import RECORDED, GuardedVault
from adapters.kms.vault import EnvelopeVault, data_key_of, name_of
from adapters.postgres import decryptions, key_rotation
from adapters.progress import Tell, untold
from application.mapper import UnreadableEvent
from application.ports import Away, KeyDestroyed, KeyWrapper, Purpose, SealedFor
from application.resealing import Done, Reseal, reseal
from domain.envelope import Origin
from domain.refusals import NotFound

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

DESTROY_AFTER: Final = timedelta(hours=1)
"""How long a retired key that nothing needs is kept all the same: a request that sealed under it may still be on its
way, and processes remember keys for five minutes."""
_BATCH: Final = 200
_LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """`unused` are versions under which data keys were wrapped before, and none is now."""

    rewrapped: int
    primary: tuple[str, ...]
    unused: tuple[str, ...]
    others_left: int
    """Data keys that are wrapped otherwise: the wrapping key has changed meanwhile, or they are damaged."""
    damaged: tuple[str, ...]
    """Whose data keys do not open, and what these guard."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation has done, and what is left: retired keys that are not to be destroyed yet."""

    renewed: int
    resealed: int
    destroyed: int
    waiting: int
    passed_over: tuple[str, ...]
    """Customers of whom a secret could not be opened, or something in the log cannot be read."""


def primary_versions(keys: KeyWrapper) -> Mapping[KeyGroup, str]:
    """The versions that wrap now: what is wrapped says so, and no other right is needed to ask. May be `Away`."""
    probes = {KeyGroup.API_KEYS: Purpose.API_KEY, KeyGroup.CREDENTIALS: Purpose.CREDENTIAL}
    return {
        group: keys.wrap(b"which version wraps", SealedFor(":probe", "version", purpose)).version
        for group, purpose in probes.items()
    }


def rewrap(service: Service, *, tell: Tell = untold, longest_pause_s: float = _LONGEST_PAUSE_S) -> Rewrapped:
    """Wrap every data key anew that is not wrapped under the primary version; nothing else changes.

    Safe beside running processes and other rewraps, and begun again it goes on where it was. While the wrapping key or
    the database is away it waits.
    """
    patient = _patient(longest_pause_s)
    store = service.data_keys.datastore
    primary = patient(lambda: primary_versions(service.keys))
    versions = {"api_keys": primary[KeyGroup.API_KEYS], "others": primary[KeyGroup.CREDENTIALS]}
    before = {row["version"]: row["keys"] for row in patient(lambda: key_rotation.by_version(store))}
    total = sum(keys for version, keys in before.items() if version not in primary.values())
    done, last, damaged = 0, None, []
    while page := patient(partial(key_rotation.wrapped_otherwise, store, versions, last, _BATCH)):
        for key in page:
            try:
                done += patient(partial(_rewrap_one, service, key))
            except ValueError:
                damaged.append(f"{key.customer_id} ({key.purpose})")
            tell("Data keys", done, max(total, done))
        last = page[-1]
    after = {row["version"]: row["keys"] for row in patient(lambda: key_rotation.by_version(store))}
    return Rewrapped(
        rewrapped=done,
        primary=tuple(sorted(set(primary.values()))),
        unused=tuple(sorted(before.keys() - after.keys() - {key_rotation.UNKNOWN})),
        others_left=sum(keys for version, keys in after.items() if version not in primary.values()),
        damaged=tuple(damaged),
    )


def _rewrap_one(service: Service, key: key_rotation.Key) -> bool:
    owner, name = SIGNING_KEY_OF.get((key.customer_id, key.purpose)), None
    plain = service.keys.unwrap(key.wrapped, owner or data_key_of(key.customer_id, DataKeyGroup(key.purpose)))
    if owner is None:
        owner, name = data_key_of(key.customer_id, DataKeyGroup(key.purpose)), name_of(plain)
    return key_rotation.keep_rewrapped(service.data_keys.datastore, key, service.keys.wrap(plain, owner), name)


def rotate(
    service: Service,
    stamp: Callable[[], Mapping[str, Any]],
    *,
    made_before: datetime | None = None,
    customer_id: str | None = None,
    destroy_after: timedelta = DESTROY_AFTER,
    tell: Tell = untold,
    longest_pause_s: float = _LONGEST_PAUSE_S,
) -> Rotated:
    """Renew data keys that were `made_before` this, seal anew what older ones have sealed, and destroy those.

    Without `made_before` it finishes what earlier rotations have left. `stamp` gives `at` and `by` of each command:
    there is one for each customer. Keys under which something in the log is sealed stay for as long as the customer
    does. Safe beside running processes; while the wrapping key or the database is away it waits. A customer that was
    erased meanwhile is passed over.
    """
    patient = _patient(longest_pause_s)
    store = service.data_keys.datastore
    envelope = EnvelopeVault(service.keys, service.data_keys)
    record = partial(decryptions.record, store)
    by: Origin = stamp()["by"]
    vault = GuardedVault(envelope, RECORDED, record, actor=by.actor)
    renewed = resealed = destroyed = 0
    passed_over: list[str] = []
    if made_before is not None:
        due = patient(partial(key_rotation.to_renew, store, made_before, customer_id))
        for number, (customer, purposes) in enumerate(due, 1):
            for group in patient(partial(_groups, service, customer, purposes)):
                renewed += patient(partial(_renew, envelope, customer, group))
            tell("Data keys", number, len(due))
    customers = patient(partial(key_rotation.unfinished, store, customer_id))
    for number, customer in enumerate(customers, 1):
        try:
            done = patient(partial(_reseal, service, stamp, customer, vault))
        except (UnreadableEvent, NotFound) as error:
            logger.warning("the secrets of %s are not sealed anew: %s", customer, error)
            passed_over.append(customer)
        else:
            resealed += done.resealed
            if done.closed:
                logger.warning("secrets of %s do not open: %s", customer, ", ".join(done.closed))
                passed_over.append(customer)
        destroyed += patient(partial(key_rotation.destroy_retired, store, customer, destroy_after))
        tell("Customers", number, len(customers))
    waiting = patient(lambda: key_rotation.waiting(store))
    return Rotated(renewed, resealed, destroyed, waiting, tuple(passed_over))


def _groups(service: Service, customer_id: str, purposes: list[str]) -> list[DataKeyGroup]:
    """The first rotation gives personal data of customers from before these had keys of their own their first."""
    groups = {DataKeyGroup(purpose) for purpose in purposes}
    if service.data_keys.get(customer_id, DataKeyGroup.PERSONAL) is None:
        groups.add(DataKeyGroup.PERSONAL)
    return sorted(groups)


def _renew(envelope: EnvelopeVault, customer_id: str, group: DataKeyGroup) -> bool:
    """Whether the customer still has keys, and another one now."""
    try:
        envelope.renew(customer_id, group)
    except KeyDestroyed:
        return False
    return True


def _reseal(service: Service, stamp: Callable[[], Mapping[str, Any]], customer_id: str, vault: GuardedVault) -> Done:
    secrets = key_rotation.stale(service.data_keys.datastore, customer_id)
    if not secrets:
        return Done(0, ())
    # A process that rotates the same customer at this moment has made another key: theirs are sealed anew by it.
    return reseal(Reseal(**stamp(), customer_id=customer_id), secrets, service.platform, vault)


def status(service: Service) -> dict[str, Any]:
    """Data keys by wrapping version and by what they guard, and how many secrets are to be sealed anew."""
    store = service.data_keys.datastore
    return {
        "primary_versions": sorted(set(primary_versions(service.keys).values())),
        "wrapped_under": key_rotation.by_version(store),
        "data_keys": key_rotation.by_group(store),
        "to_reseal": key_rotation.to_reseal(store),
    }


def _patient(longest_pause_s: float) -> Callable[[Callable[[], Result]], Result]:
    """Calls again for as long as a backend is away."""

    def told(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("the rotation waits: %s", error)

    return Retrying(
        retry=retry_if_exception_type(Away),
        wait=wait_exponential_jitter(multiplier=0.2, max=longest_pause_s),
        before_sleep=told,
    )
