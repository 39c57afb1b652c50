"""Who calls: proven by a key, and written in the signature of every route."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader, SecurityScopes
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool

from adapters.bootstrap import origin
from adapters.http.api import Api, api_of
from adapters.http.guesses import customer_key, operator_key
from adapters.http.key_cache import Entry
from adapters.http.sources import source_of
from adapters.postgres.event_log import Reads
from adapters.postgres.reads import keys, profiles
from adapters.postgres.tenant import TenantReads
from domain.customer import KEY_WARNING
from domain.envelope import Origin
from domain.identity import CUSTOMER_ID
from domain.refusals import Forbidden, NotFound
from domain.scopes import Scope, allows, must_cover

API_KEY: Final = APIKeyHeader(
    name="X-API-Key",
    scheme_name="CustomerKey",
    description="A customer's key, `{customer_id}_api_{16 letters and digits}`: everything under its own customer_id.",
    auto_error=False,
)
ADMIN_KEY: Final = APIKeyHeader(
    name="X-Admin-Key", scheme_name="AdminKey", description="The operator's key: everything.", auto_error=False
)
ELSEWHERE: Final = "This API key does not belong to that customer."
SUSPENDED: Final = "Account suspended"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the keys of a request prove."""

    kind: Literal["customer", "admin", "nobody"]
    customer_id: str | None = None
    suspended: bool = False
    key: str | None = None
    """Which key it was: a customer's by its api_key_id, `next` for ADMIN_API_KEY_NEXT."""
    scopes: frozenset[str] | None = None
    """What the key may be used for, None for everything."""

    @property
    def actor(self) -> str:
        """Who it was, down to the key, for the record."""
        return self.caller if self.key is None else f"{self.caller}/{self.key}"

    @property
    def caller(self) -> str:
        """Who it was, whichever of its keys was used: a request that is sent again after a key was replaced is one."""
        match self.kind:
            case "customer":
                return f"customer:{self.customer_id}"
            case "admin":
                return "admin"
        return "anyone"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and when."""

    identity: Identity
    at: datetime
    by: Origin
    once: bool
    """Whether the request was named, and may be sent again."""

    @property
    def stamp(self) -> dict[str, Any]:
        """What every command begins with."""
        return {"at": self.at, "by": self.by, "once": self.once}


@dataclass(frozen=True, slots=True)
class Acting:
    """A caller who may act for the customer that the address names."""

    identity: Identity
    at: datetime
    by: Origin
    once: bool
    customer_id: str
    reads: Reads
    """Where the customer's own rows are read, and nobody else's can be."""

    @property
    def stamp(self) -> dict[str, Any]:
        """What every command about the customer begins with."""
        return {"at": self.at, "by": self.by, "once": self.once, "customer_id": self.customer_id}


def unauthorized() -> HTTPException:
    """One answer to every key that is missing, malformed, unknown, expired or revoked."""
    return HTTPException(401, "A valid API key is needed.", {"WWW-Authenticate": 'ApiKey realm="convergence"'})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _operator(key: str, current: SecretStr, following: SecretStr | None) -> Identity | None:
    given = _digest(key)
    # Both are compared, whatever the first comparison says.
    is_current = hmac.compare_digest(given, _digest(current.get_secret_value()))
    is_next = following is not None and hmac.compare_digest(given, _digest(following.get_secret_value()))
    if is_current:
        return Identity("admin")
    return Identity("admin", key="next") if is_next else None


def _look_up(api: Api, digest: bytes) -> Entry:
    since = api.keys.changes
    entry = Entry(keys.holder(api.service.datastore, digest.hex()), since)
    api.keys.keep(digest, entry)
    return entry


async def _customer(request: Request, api: Api, key: str) -> Identity:
    """The holder of a key that works: one that was looked up a moment ago costs neither a thread nor the database.

    Every key that does not work takes the same steps: one digest, at most one look into the database, the same answer.
    Raises `Away` where the database is away, whatever is remembered (see `KeyCache`).
    """
    digest = _digest(key)
    guesses, attempt = api.throttle.guesses, customer_key(source_of(request), key, digest)
    found = api.keys.find(digest)
    if found is None:
        guesses.admit(attempt)
        found = await run_in_threadpool(_look_up, api, digest)
    holder, now = found.holder, api.now()
    if holder is None or now >= holder.expires_at:
        await guesses.failed(attempt)
        raise unauthorized()
    guesses.succeeded(attempt)
    await api.throttle.rates.of_customer(request, holder.customer_id)
    api.key_uses.note(holder, now, request.client.host if request.client else None)
    if holder.expires_at - now <= KEY_WARNING:
        request.state.key_expires_at = holder.expires_at
    suspended = holder.status != "ACTIVE"
    return Identity("customer", holder.customer_id, suspended=suspended, key=holder.api_key_id, scopes=holder.scopes)


async def identify(request: Request) -> Identity:
    """What the keys of the request prove, looked up once; raises 401 for a key that proves nothing."""
    known: Identity | None = getattr(request.state, "identity", None)
    if known is not None:
        return known
    api = api_of(request)
    settings = api.service.settings
    admin_key, api_key = request.headers.get("x-admin-key"), request.headers.get("x-api-key")
    if admin_key is not None:
        attempt = operator_key(source_of(request), admin_key)
        api.throttle.guesses.admit(attempt)
        known = _operator(admin_key, settings.admin_api_key, settings.admin_api_key_next)
        if known is None:
            await api.throttle.guesses.failed(attempt)
            raise unauthorized()
        api.throttle.guesses.succeeded(attempt)
    elif api_key is not None:
        known = await _customer(request, api, api_key)
    else:
        await api.throttle.rates.of_source(request)
        known = Identity("nobody")
    request.state.identity = known
    return known


def _caller(request: Request, identity: Identity) -> Caller:
    by, once = _asked(request, identity)
    return Caller(identity, api_of(request).now(), by, once)


def _asked(request: Request, identity: Identity) -> tuple[Origin, bool]:
    """Who asks; and whether under a name, which then names its commands too."""
    command_id: str | None = getattr(request.state, "command_id", None)
    by = origin(identity.actor, request_id=request.state.request_id, command_id=command_id)
    return by, command_id is not None


async def _admin(request: Request) -> Caller:
    if request.headers.get("x-admin-key") is None:
        raise unauthorized()
    return _caller(request, await identify(request))


def must_allow(identity: Identity, scopes: Sequence[str] | None) -> None:
    """Raises `Forbidden` unless whoever it is may act, and with that key to that extent; None stands for everything."""
    if identity.suspended:
        raise Forbidden(SUSPENDED)
    if scopes is None:
        must_cover(identity.scopes, None)
    elif missing := [scope for scope in scopes if not allows(identity.scopes, scope)]:
        raise Forbidden(f"This API key lacks the scope {' '.join(missing)}.")


async def _known(request: Request, wanted: SecurityScopes) -> Caller:
    identity = await identify(request)
    if identity.kind == "nobody":
        raise unauthorized()
    request.state.customer_id = identity.customer_id
    must_allow(identity, wanted.scopes)
    return _caller(request, identity)


async def _acting(request: Request, customer_id: str, wanted: SecurityScopes) -> Acting:
    """The owner of `customer_id`, or an operator. To anybody else it is as if the customer did not exist."""
    identity = await identify(request)
    if identity.kind == "nobody":
        raise unauthorized()
    if identity.kind == "admin":
        await _must_exist(request, customer_id)
    elif identity.customer_id != customer_id:
        raise Forbidden(ELSEWHERE)
    request.state.customer_id = customer_id
    must_allow(identity, wanted.scopes)
    by, once = _asked(request, identity)
    api = api_of(request)
    return Acting(identity, api.now(), by, once, customer_id, TenantReads(api.service.datastore, customer_id))


async def _admin_acting(request: Request, customer_id: str) -> Acting:
    """An operator, on a customer that exists."""
    await _admin(request)
    return await _acting(request, customer_id, SecurityScopes())


async def _must_exist(request: Request, customer_id: str) -> None:
    datastore = api_of(request).service.datastore
    if not CUSTOMER_ID.fullmatch(customer_id) or not await run_in_threadpool(profiles.exists, datastore, customer_id):
        raise NotFound("No such customer.")


async def may_onboard(request: Request, customer_id: str) -> Caller:
    """Whoever may onboard that id: its owner, an operator, and anybody at all where onboarding is open."""
    identity = await identify(request)
    if identity.kind == "nobody" and not api_of(request).service.settings.onboarding_is_open:
        raise unauthorized()
    if identity.kind == "customer":
        if identity.customer_id != customer_id:
            raise Forbidden(ELSEWHERE)
        request.state.customer_id = customer_id
        # It is given a key for everything.
        must_allow(identity, None)
    return _caller(request, identity)


async def _anyone(request: Request) -> Caller:
    return _caller(request, Identity("nobody"))


CustomerCaller = Annotated[Acting, Depends(_acting)]
"""The customer named in the address, with any of its keys, or an operator acting for it. So are the following."""
RunsReader = Annotated[Acting, Security(_acting, scopes=[Scope.RUNS_READ])]
RunsWriter = Annotated[Acting, Security(_acting, scopes=[Scope.RUNS_WRITE])]
Configurer = Annotated[Acting, Security(_acting, scopes=[Scope.CONFIG_WRITE])]
CredentialsKeeper = Annotated[Acting, Security(_acting, scopes=[Scope.CREDENTIALS_WRITE])]
UsageReader = Annotated[Acting, Security(_acting, scopes=[Scope.USAGE_READ])]
KnownCaller = Annotated[Caller, Depends(_known)]
"""Any customer, or an operator. So are the following."""
KnownRunsReader = Annotated[Caller, Security(_known, scopes=[Scope.RUNS_READ])]
KnownRunsWriter = Annotated[Caller, Security(_known, scopes=[Scope.RUNS_WRITE])]
Anyone = Annotated[Caller, Depends(_anyone)]
"""Anybody at all: no key is looked at."""
AdminCaller = Annotated[Caller, Depends(_admin)]
"""An operator."""
AdminActing = Annotated[Acting, Depends(_admin_acting)]
"""An operator, on the customer named in the address."""

BY_CUSTOMER: Final = [Security(API_KEY), Security(ADMIN_KEY)]
BY_ADMIN: Final = [Security(ADMIN_KEY)]
"""For `dependencies=` of a router: lists the keys in the OpenAPI document."""
