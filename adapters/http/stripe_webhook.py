"""What Stripe tells: POST /webhooks/stripe."""

from dataclasses import replace
from typing import Final

from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from adapters.bootstrap import origin
from adapters.http.api import Api, Parts
from adapters.http.idempotency import Route
from adapters.http.keyless import PER_SENDER
from adapters.http.routing import refusals
from adapters.stripe.events import Told, told_by
from adapters.stripe.signature import Forged, NotAnEvent, verified
from application.billing import HearStripe, NoteStripe, hear_stripe, note_stripe
from domain.billing_events import Outcome

router = APIRouter(tags=["Billing"], route_class=Route, dependencies=PER_SENDER)

_UNSET: Final = "Stripe's events are not taken here yet: STRIPE_WEBHOOK_SECRET is not set."
_FORGED: Final = "The Stripe-Signature does not fit the body, or is older than five minutes."
_STRANGE: Final = "The body is signed, and is no event of Stripe's webhooks."
_MODES: Final = {True: "live", False: "test"}


class Received(BaseModel):
    """Stripe need not send the event again."""

    received: bool = True


_EVENT: Final = {
    "type": "object",
    "description": "An event as Stripe sends it, byte by byte what was signed.",
    "examples": [{"id": "evt_1", "object": "event", "type": "invoice.paid", "livemode": False, "data": {"object": {}}}],
}


@router.post(
    "/webhooks/stripe",
    summary="Take in an event of Stripe's",
    responses=refusals(400, 413, 429, 503),
    openapi_extra={
        "parameters": [
            {"name": "Stripe-Signature", "in": "header", "required": True, "schema": {"type": "string"}},
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _EVENT}}},
    },
)
async def post_stripe(request: Request, api: Parts) -> Received:
    """For Stripe alone, which signs what it sends. Events may come in any order and more than once.

    A checkout that was paid makes a customer; subscriptions decide the plan by their price; a failed payment suspends
    after some days of grace, and paying lifts that. Events of types that nothing follows from are recorded and answered
    200. Those of Stripe's other mode (test or live) are refused: Stripe sends them again once STRIPE_LIVE is right.
    """
    secrets = api.service.settings.stripe_secrets
    if not secrets:
        raise HTTPException(503, _UNSET, {"Retry-After": "60"})
    body = await request.body()
    try:
        event = verified(body, request.headers.get("stripe-signature"), secrets)
        told = told_by(event, central_dataset=api.service.settings.customers_dataset_id)
    except Forged:
        raise HTTPException(400, _FORGED) from None
    except NotAnEvent:
        raise HTTPException(400, _STRANGE) from None
    await run_in_threadpool(_take_in, api, told, request.state.request_id)
    return Received()


def _take_in(api: Api, told: Told, request_id: str) -> None:
    """Do what follows from an event. By the database's clock: it decides when access ends."""
    service, settings = api.service, api.service.settings
    stamp = {"at": api.slot_clock(), "by": origin("stripe", request_id=request_id)}
    if told.live is not settings.takes_live:
        note_stripe(NoteStripe(**stamp, noted=replace(told.note, outcome=Outcome.OTHER_MODE)), service.platform)
        ours, theirs = _MODES[settings.takes_live], _MODES[told.live]
        raise HTTPException(
            400, f"This service takes events of Stripe's {ours} mode, and this one is of {theirs} mode."
        )
    if told.report is None:
        note_stripe(NoteStripe(**stamp, noted=told.note), service.platform)
        return
    command = HearStripe(
        **stamp,
        stripe_customer_id=told.stripe_customer_id,
        live=told.live,
        report=told.report,
        contact=told.contact,
    )
    hear_stripe(command, service.platform, service.vault, settings.terms)
