"""What encryption costs: a field sealed and opened, an event with personal fields beside one without them."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import uuid4

from adapters.bootstrap import Service, origin
from application.customers import Onboard, onboard
from application.mapper import EventMapper, Recorded, topic_of
from application.ports import Opener, Purpose, SealedFor
from domain.customer_events import TeamMemberAdded
from domain.envelope import Envelope

_EVENTS = 5_000
_BATCH = 500


class Open:
    """A vault that leaves everything as it is: what the rest costs."""

    def prepare(self, customer_id: str) -> None: ...

    def seal(self, plaintext: bytes, owner: SealedFor) -> bytes:
        return plaintext

    def open(self, ciphertext: bytes, owner: SealedFor, by: Opener | None = None) -> bytes:
        return ciphertext


def costs(service: Service) -> dict[str, float]:
    """Microseconds for each field, and for each event with two personal fields: encoded, decoded, appended."""
    at = datetime.now(UTC)
    asked = {"customer_id": "bench", "company_name": "B", "admin_email": "b@example.com", "subscription_plan": "SCALE"}
    onboard(Onboard(at=at, by=origin("admin"), **asked), service.platform, service.vault)
    owner = SealedFor("bench", f"{uuid4()}/1/email", Purpose.PERSONAL)
    sealed = service.vault.seal(b"somebody.or.other@example.com", owner)
    figures = {
        "seal_us": _us(lambda: service.vault.seal(b"somebody.or.other@example.com", owner)),
        "open_us": _us(lambda: service.vault.open(sealed, owner)),
    }
    for name, mapper in (("sealed", EventMapper(service.vault)), ("clear", EventMapper(Open()))):
        event = _recorded(1)
        stored = mapper.to_stored_event(event)
        figures |= {
            f"encode_{name}_us": _us(lambda m=mapper, e=event: m.to_stored_event(e)),
            f"decode_{name}_us": _us(lambda m=mapper, s=stored: m.to_domain_event(s)),
            f"append_{name}_us": _append(service, mapper),
        }
    credential = SealedFor("bench", str(uuid4()), Purpose.WEBHOOK)
    secret = service.vault.seal(b"whsec_", credential)
    figures["recorded_open_us"] = _us(lambda: service.vault.open(secret, credential), calls=50)
    return figures


def _recorded(version: int) -> Recorded:
    event = TeamMemberAdded(member_id=str(uuid4()), email="somebody@example.com", name="Some Body", role="MEMBER")
    by = origin("admin")
    envelope = Envelope(
        stream_id=uuid4(), version=version, topic=topic_of(event), customer_id="bench", at=datetime.now(UTC), by=by
    )
    return Recorded(event, envelope)


def _append(service: Service, mapper: EventMapper) -> float:
    events = [_recorded(1) for _ in range(_EVENTS)]
    begun = time.perf_counter()
    for start in range(0, _EVENTS, _BATCH):
        service.store.recorder.insert_events([mapper.to_stored_event(e) for e in events[start : start + _BATCH]])
    return (time.perf_counter() - begun) / _EVENTS * 1e6


def _us(call: Callable[[], object], calls: int = 2_000) -> float:
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, time.perf_counter() - begun)
    return best / calls * 1e6
