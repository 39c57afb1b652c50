"""The application: every route, its errors and its documentation."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from adapters.bootstrap import Service, utc_now
from adapters.http import (
    admin,
    admin_billing,
    admin_decryptions,
    admin_erasure,
    admin_events,
    admin_notifications,
    admin_projections,
    admin_rebuild,
    admin_streams,
    admin_verify,
    api_keys,
    backfills,
    bigquery_readers,
    credentials,
    customers,
    errors,
    events,
    health,
    leaks,
    notifications,
    onboarding,
    pipelines,
    provider_configs,
    required_scopes,
    reveal,
    runs,
    scheduler,
    schedules,
    stripe_webhook,
    team,
    usage,
    webhook_endpoints,
)
from adapters.http.api import Api
from adapters.http.edge import Edge
from adapters.http.figures import Figures
from adapters.http.health import ServiceFigures
from adapters.http.key_cache import ASK_S, KeyCache
from adapters.http.throttle import Throttle
from adapters.postgres.channels import DATA_KEYS, ENDED, KEYS
from adapters.postgres.listener import Listener

ROUTERS: Final = (
    onboarding.router,
    customers.router,
    api_keys.router,
    leaks.router,
    credentials.router,
    provider_configs.router,
    team.router,
    usage.router,
    events.router,
    webhook_endpoints.router,
    bigquery_readers.router,
    notifications.router,
    runs.history,
    pipelines.router,
    schedules.router,
    backfills.router,
    pipelines.templates,
    runs.router,
    scheduler.router,
    admin.router,
    admin_decryptions.router,
    admin_billing.router,
    admin_erasure.router,
    admin_events.router,
    admin_notifications.router,
    admin_streams.router,
    admin_projections.router,
    admin_rebuild.router,
    admin_verify.router,
    stripe_webhook.router,
    health.router,
    reveal.router,
)

_DESCRIPTION: Final = """
Control plane of a multi-tenant data-pipeline platform: customers, keys, plans, schedules, runs and their usage.

A customer sends `X-API-Key`, an operator `X-Admin-Key`. Lists answer `{"items": [...], "next_cursor": ...}` and take
`limit` and `cursor`. Every error has one body, as application/problem+json. Commands take an `Idempotency-Key`.
Instants are RFC 3339 in UTC; days and months are UTC.
"""
_ASSETS: Final = "/docs/assets"
_DOCS_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)


def create_app(
    service: Service,
    *,
    now: Callable[[], datetime] = utc_now,
    keys: KeyCache | None = None,
    throttle: Throttle | None = None,
) -> FastAPI:
    """The HTTP interface of a service. It listens to the database as long as it is served; it does not close it.

    `keys` takes the place of the usual cache of what API keys prove, `throttle` that of the limits in the database.
    """
    figures = Figures()
    limits = throttle or Throttle.shared(service.dsn, service.settings, figures)
    api = Api(service, now, limits, keys=keys or KeyCache(), figures=figures)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        api.outcomes.attach(asyncio.get_running_loop())
        service.store.on_rekeyed.append(api.keys.forget)
        handlers = {ENDED: api.outcomes.announce, KEYS: api.keys.announce, DATA_KEYS: service.forget}
        listener = Listener(service.dsn, handlers, heard=api.keys.hear, ask_s=ASK_S)
        listener.start()
        uses = threading.Thread(target=api.key_uses.run, args=(service.datastore, api.stopping), name="key uses")
        uses.start()
        try:
            yield
        finally:
            api.stopping.set()
            await asyncio.to_thread(listener.stop)
            service.store.on_rekeyed.remove(api.keys.forget)
            await asyncio.to_thread(uses.join)
            await asyncio.to_thread(api.slow.shutdown, cancel_futures=True)
            await asyncio.to_thread(limits.close)

    app = FastAPI(
        title="Convergence",
        version="1.0",
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.api = api
    api.figures.registry.register(ServiceFigures(api))
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/docs", _docs, include_in_schema=False)
    app.mount(_ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
    errors.install(app, now)
    app.add_middleware(Edge, figures=api.figures, https=service.settings.production)
    if proxies := service.settings.trusted_proxies:
        # Only they say who called: anybody else would choose under which address it is counted.
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(network) for network in proxies])
    app.openapi = lambda: _documented(app)  # type: ignore[method-assign]
    return app


async def _docs() -> HTMLResponse:
    """The interactive documentation, without a word from other hosts."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Convergence",
        swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{_ASSETS}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _DOCS_POLICY
    return page


def _documented(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        problem = errors.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        if errors.Problem.__name__ in schemas:
            raise ValueError("A view has the name of the errors' body, which would hide it in the document.")
        schemas |= problem.pop("$defs", {})
        schemas["Problem"] = problem
        required_scopes.describe(document, (route for router in ROUTERS for route in router.routes))
        app.openapi_schema = document
    return app.openapi_schema
