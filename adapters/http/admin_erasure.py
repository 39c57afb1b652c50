"""Erasing a customer, and how far that has come."""

from datetime import datetime
from typing import Annotated, Self

from fastapi import Body, Depends
from pydantic import BaseModel, Field

from adapters.erasure import STEPS, begin
from adapters.http.api import Parts
from adapters.http.auth import AdminCaller, Caller
from adapters.http.idempotency import RequestName
from adapters.http.routing import WITH_BODY, admin_router, refusals
from adapters.postgres import erasures
from adapters.postgres.erasures import Erasure
from adapters.postgres.reads import profiles
from application.command import Line, Request
from application.erasure import Erase, erase
from domain.identity import CUSTOMER_ID
from domain.refusals import Invalid, NotFound

router = admin_router("/admin/customers", "Administration")


class ErasureRequest(Request):
    """The customer's id once more, so that no slip erases anybody, and why."""

    confirm: Annotated[str, Field(max_length=50)]
    reason: Line


class ErasureView(BaseModel):
    """How far an erasure has come. It is complete once every step is done."""

    customer_id: str
    erased_at: datetime | None = Field(description="Null for a customer that was not erased.")
    complete: bool
    completed_at: datetime | None
    steps: dict[str, datetime | None] = Field(description="When each step was done; null for what is still to be done.")
    problem: str | None = Field(description="What the steps that are not done wait for.")

    @classmethod
    def of(cls, customer_id: str, erasure: Erasure | None) -> Self:
        """The erasure, with all of its steps."""
        done = erasure.done if erasure else {}
        return cls(
            customer_id=customer_id,
            erased_at=erasure.erased_at if erasure else None,
            complete=erasure is not None and erasure.completed_at is not None,
            completed_at=erasure.completed_at if erasure else None,
            steps={name: datetime.fromisoformat(done[name]) if name in done else None for name in STEPS},
            problem=erasure.problem if erasure else None,
        )


def _operator(api: Parts, caller: AdminCaller, customer_id: str) -> Caller:
    """An operator, on a customer that exists or was erased."""
    datastore = api.service.datastore
    known = CUSTOMER_ID.fullmatch(customer_id) and (
        profiles.exists(datastore, customer_id) or erasures.find(datastore, customer_id)
    )
    if not known:
        raise NotFound("No such customer.")
    return caller


Operator = Annotated[Caller, Depends(_operator)]


@router.post("/{customer_id}/erase", summary="Erase a customer", responses=WITH_BODY | refusals(404))
def post_erase(
    api: Parts,
    caller: Operator,
    name: RequestName,  # noqa: ARG001 - erasing twice is erasing once
    customer_id: str,
    body: Annotated[ErasureRequest, Body(examples=[{"confirm": "acme_corp", "reason": "Asked to on 17 November."}])],
) -> ErasureView:
    """For ever: its runs end, its data keys are destroyed, and with them every name, e-mail and secret in the log.

    Its rows and its dataset go too; what remains are events without names. The id stays taken. Once this is answered it
    is stored, and the projector finishes what is left. 422 when `confirm` is not the customer's id.
    """
    if body.confirm != customer_id:
        raise Invalid("confirm must be the customer's id: nothing was erased.")
    command = Erase(at=caller.at, by=caller.by, customer_id=customer_id, reason=body.reason)
    erase(command, api.service.platform)
    return ErasureView.of(customer_id, begin(api.service, customer_id))


@router.get("/{customer_id}/erasure", summary="Look at an erasure", responses=refusals(404))
def get_erasure(
    api: Parts,
    caller: Operator,  # noqa: ARG001 - any operator
    customer_id: str,
) -> ErasureView:
    """How far the erasure of the customer has come."""
    return ErasureView.of(customer_id, erasures.find(api.service.datastore, customer_id))
