"""Comparing rows with the log, as operators ask for it."""

import threading
from functools import partial
from typing import Annotated, Final

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from adapters.http.api import Api, Parts
from adapters.http.auth import AdminCaller
from adapters.http.routing import admin_router, refusals
from adapters.process import Unable
from adapters.verification.report import LIMIT, Difference, Side, SideReport, TableReport
from adapters.verification.verify import Asked, verify_rows
from application.ports import Away
from domain.refusals import Conflict
from projections.targets import Target

router = admin_router("/admin/projections", "Administration")

_ONE: Final = threading.Lock()
_WAIT_S: Final = 10.0
_MOST: Final = 1_000


class VerificationView(BaseModel):
    """What was compared with the log, and every row that differs."""

    model_config = ConfigDict(from_attributes=True)

    position: int = Field(description="Rows were compared with what the events up to this position make of them.")
    customer_id: str | None
    complete: bool = Field(description="Whether everything that was asked for could be compared.")
    found: int = Field(description="How many rows differ, on all sides.")
    sides: dict[Side, SideReport]
    tables: list[TableReport] = Field(description="Each table's rows and SHA-256 by the log, and on each side.")
    differences: list[Difference] = Field(description="The first rows that differ. The log is right.")


@router.get("/verify", summary="Compare rows with the log", responses=refusals(404, 409))
async def get_verify(
    *,
    api: Parts,
    caller: AdminCaller,  # noqa: ARG001 - any operator
    tables: Annotated[list[str], Query(max_length=100, description="Only these tables.")] = [],  # noqa: B006 - never changed
    target: Target = Target.BOTH,
    customer_id: Annotated[str | None, Query(max_length=50, description="Only this customer's rows.")] = None,
    limit: Annotated[int, Query(ge=0, le=_MOST, description="Differences to describe; all are counted.")] = LIMIT,
) -> VerificationView:
    """Read the log and compare it with the rows in PostgreSQL and BigQuery; work goes on meanwhile.

    It takes as long as reading the log takes, or the customer's part of it. 409 while this process does another one,
    and for an event that cannot be read. What differs is mended by `convergence verify --repair`.
    """
    asked = Asked(
        tables=tuple(dict.fromkeys(tables)), target=target, customer_id=customer_id, limit=limit, wait_s=_WAIT_S
    )
    return await api.slowly(partial(_verified, api, asked))


def _verified(api: Api, asked: Asked) -> VerificationView:
    def tell(stage: str, done: int, total: int) -> None:  # noqa: ARG001 - nobody watches
        if api.stopping.is_set():
            raise Away("This process is stopping.")

    if not _ONE.acquire(blocking=False):
        raise Conflict("Another verification is under way in this process.")
    try:
        return VerificationView.model_validate(verify_rows(api.service, asked, tell))
    except Unable as unable:
        raise Conflict(str(unable)) from unable
    finally:
        _ONE.release()
