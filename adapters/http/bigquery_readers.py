"""Who else may read a customer's data in BigQuery."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Body
from pydantic import BaseModel, Field

from adapters.http.api import Parts
from adapters.http.auth import Configurer
from adapters.http.idempotency import RequestName
from adapters.http.paging import Page, PageAsked
from adapters.http.routing import WITH_BODY, customer_router
from adapters.postgres import grants
from adapters.postgres.grants import Known
from adapters.postgres.reads.listing import Where, newest_first, one
from application.readers import GrantReader, NewReader, RevokeReader, grant_reader, revoke_reader
from projections.tables import CUSTOMER_BIGQUERY_READERS

router = customer_router("/customers/{customer_id}/bigquery-readers", "BigQuery readers")

EXAMPLE: Final = {"principal": "group:analysts@acmecorp.com"}


class State(StrEnum):
    PENDING = "PENDING"
    ACTIVE = "ACTIVE"


class ReaderView(BaseModel):
    grant_id: str
    customer_id: str
    principal: str
    state: State = Field(description="PENDING until BigQuery knows of it.")
    problem: str | None = Field(description="What keeps BigQuery from knowing of it; it is tried again and again.")
    created_at: datetime


def _view(row: Mapping[str, Any], known: Known) -> ReaderView:
    return ReaderView(
        grant_id=row["grant_id"],
        customer_id=row["customer_id"],
        principal=row["principal"],
        state=State.ACTIVE if row["grant_id"] in known.grant_ids else State.PENDING,
        problem=known.problem,
        created_at=row["created_at"],
    )


@router.get("", summary="List BigQuery readers")
def list_readers(caller: Configurer, paging: PageAsked) -> Page[ReaderView]:
    """Who may read the customer's dataset in BigQuery, newest first, and whether BigQuery knows."""
    where = [Where("customer_id", "=", caller.customer_id)]
    rows = newest_first(caller.reads, CUSTOMER_BIGQUERY_READERS, where, after=paging.after, limit=paging.more)
    known = grants.known(caller.reads, caller.customer_id)
    return paging.page(rows, partial(_view, known=known), ("created_at", "grant_id"))


@router.post("", summary="Grant a BigQuery reader", responses=WITH_BODY)
def post_reader(
    api: Parts, caller: Configurer, name: RequestName, body: Annotated[NewReader, Body(examples=[EXAMPLE])]
) -> ReaderView:
    """Let a Google account, a group or a service account read the customer's dataset; at most twenty can.

    BigQuery learns of it within seconds: `state` says when it has.
    """
    command = GrantReader(**caller.stamp, principal=body.principal, grant_id=name.new_id())
    grant_id = grant_reader(command, api.service.platform)
    row = one(caller.reads, CUSTOMER_BIGQUERY_READERS, caller.customer_id, grant_id)
    return _view(row, grants.known(caller.reads, caller.customer_id))


@router.delete("/{grant_id}", summary="Revoke a BigQuery reader", status_code=204)
def delete_reader(api: Parts, caller: Configurer, grant_id: str) -> None:
    """The grant is taken back within seconds, as soon as BigQuery answers."""
    revoke_reader(RevokeReader(**caller.stamp, grant_id=grant_id), api.service.platform)
