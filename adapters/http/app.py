"""The application: every route, its errors and its documentation."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from adapters.bootstrap import Service, utc_now
from adapters.http import (
    admin,
    admin_events,
    admin_projections,
    admin_rebuild,
    admin_streams,
    admin_verify,
    api_keys,
    backfills,
    credentials,
    customers,
    errors,
    events,
    health,
    onboarding,
    pipelines,
    provider_configs,
    reveal,
    runs,
    scheduler,
    schedules,
    team,
    usage,
)
from adapters.http.api import Api
from adapters.http.edge import Edge
from adapters.http.health import ServiceFigures
from adapters.postgres.channels import ENDED
from adapters.postgres.listener import Listener

ROUTERS: Final = (
    onboarding.router,
    customers.router,
    api_keys.router,
    credentials.router,
    provider_configs.router,
    team.router,
    usage.router,
    events.router,
    runs.history,
    pipelines.router,
    schedules.router,
    backfills.router,
    pipelines.templates,
    runs.router,
    scheduler.router,
    admin.router,
    admin_events.router,
    admin_streams.router,
    admin_projections.router,
    admin_rebuild.router,
    admin_verify.router,
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


def create_app(service: Service, *, now: Callable[[], datetime] = utc_now) -> FastAPI:
    """The HTTP interface of a service. It listens to the database as long as it is served; it does not close it."""
    api = Api(service, now)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        api.outcomes.attach(asyncio.get_running_loop())
        listener = Listener(service.dsn, {ENDED: api.outcomes.announce})
        listener.start()
        try:
            yield
        finally:
            api.stopping.set()
            await asyncio.to_thread(listener.stop)
            await asyncio.to_thread(api.slow.shutdown, cancel_futures=True)

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
        schemas |= problem.pop("$defs", {})
        schemas["Problem"] = problem
        app.openapi_schema = document
    return app.openapi_schema
