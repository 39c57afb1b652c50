"""What was: a stream folded at any version or instant, or a whole customer at any instant."""

from functools import partial
from typing import Annotated

from fastapi import Path, Query

from adapters.event_views import reader
from adapters.http.api import Api, Parts
from adapters.http.auth import AdminCaller
from adapters.http.paging import Instant, PageAsked, Paging, cursor
from adapters.http.routing import admin_router, refusals
from adapters.replayed import CustomerAt, Past, StreamView
from application.command import as_uuid
from application.mapper import UnreadableEvent
from application.replay import Until
from domain.identity import CUSTOMER_ID
from domain.refusals import Conflict, Invalid, NotFound

router = admin_router("/admin/streams", "Audit trail")


@router.get("/{stream_id}", summary="Look at what was", responses=refusals(404, 409))
async def get_stream(
    *,
    api: Parts,
    caller: AdminCaller,  # noqa: ARG001 - any operator
    paging: PageAsked,
    stream_id: Annotated[str, Path(description="A stream_id, such as a run's run_id; or a customer_id.")],
    version: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="After so many events of the stream.")] = None,
    at: Annotated[
        Instant | None, Query(description="After its last event before the first one that is later than this.")
    ] = None,
) -> StreamView | CustomerAt:
    """The events of the stream folded again, up to a version or an instant, or all of them. Nothing is changed by it.

    For a customer_id: the customer with its subscription, its usage and its runs at that instant; `limit` and `cursor`
    page through those that had not ended. 409 names the event that cannot be read: the stream can be looked at as it
    was before that one.
    """
    # Long streams are folded for seconds: not in the threads of short requests.
    return await api.slowly(partial(_answer, api, paging, stream_id, Until(version, at)))


def _answer(api: Api, paging: Paging, stream_id: str, until: Until) -> StreamView | CustomerAt:
    if until.version is not None and until.at is not None:
        raise Invalid("version, at: only one of them can be given")
    past = Past(api.service.datastore, reader(api.service.vault))
    known = as_uuid(stream_id)
    try:
        if known is not None:
            return past.stream(known, until)
        if until.version is not None:
            raise Invalid("version: counts the events of one stream; a customer can be seen `at` an instant")
        if not CUSTOMER_ID.fullmatch(stream_id):
            raise NotFound("There was no such stream.")
        found, following = past.customer(
            stream_id, until.at, api.now(), limit=paging.limit, before=paging.before_position
        )
    except UnreadableEvent as error:
        raise Conflict(f"Position {error.position}: {error}") from error
    if following is not None:
        found.runs.next_cursor = cursor([str(following)])
    return found
