"""Who calls: proven by a key, and written in the signature of every route."""

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader, SecurityScopes
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool

from adapters.bootstrap import origin
from adapters.http.api import Api, api_of
from adapters.postgres.event_log import Datastore
from adapters.postgres.reads import keys, profiles
from domain.envelope import Origin
from domain.identity import CUSTOMER_ID
from domain.refusals import Forbidden, NotFound
from domain.scopes import Scope, allows

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
    reads: Datastore
    """Where the customer's own rows are read."""

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


def _look_up(api: Api, key: str) -> Identity:
    found = keys.holder(api.service.datastore, _digest(key).hex(), api.now())
    if found is None:
        raise unauthorized()
    suspended = found.status != "ACTIVE"
    return Identity("customer", found.customer_id, suspended=suspended, key=found.api_key_id, scopes=found.scopes)


async def identify(request: Request) -> Identity:
    """What the keys of the request prove, looked up once; raises 401 for a key that proves nothing."""
    known: Identity | None = getattr(request.state, "identity", None)
    if known is not None:
        return known
    api = api_of(request)
    settings = api.service.settings
    admin_key, api_key = request.headers.get("x-admin-key"), request.headers.get("x-api-key")
    if admin_key is not None:
        known = _operator(admin_key, settings.admin_api_key, settings.admin_api_key_next)
        if known is None:
            raise unauthorized()
    elif api_key is not None:
        known = await run_in_threadpool(_look_up, api, api_key)
    else:
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


def _must_allow(identity: Identity, wanted: SecurityScopes) -> None:
    missing = [scope for scope in wanted.scopes if not allows(identity.scopes, scope)]
    if missing:
        raise Forbidden(f"This API key lacks the scope {' '.join(missing)}.")


async def _known(request: Request, wanted: SecurityScopes) -> Caller:
    identity = await identify(request)
    if identity.kind == "nobody":
        raise unauthorized()
    request.state.customer_id = identity.customer_id
    if identity.suspended:
        raise Forbidden(SUSPENDED)
    _must_allow(identity, wanted)
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
    if identity.suspended:
        raise Forbidden(SUSPENDED)
    _must_allow(identity, wanted)
    by, once = _asked(request, identity)
    api = api_of(request)
    return Acting(identity, api.now(), by, once, customer_id, api.service.datastore)


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
        if identity.suspended:
            raise Forbidden(SUSPENDED)
    return _caller(request, identity)


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
AdminCaller = Annotated[Caller, Depends(_admin)]
"""An operator."""
AdminActing = Annotated[Acting, Depends(_admin_acting)]
"""An operator, on the customer named in the address."""

BY_CUSTOMER: Final = [Security(API_KEY), Security(ADMIN_KEY)]
BY_ADMIN: Final = [Security(ADMIN_KEY)]
"""For `dependencies=` of a router: lists the keys in the OpenAPI document."""
