"""The page behind the link of a welcome mail: shows a first API key once, to whoever presses its button.

GET never reveals: mail scanners and previews open links. Links that were used, ended or never were look the same.
"""

import base64
import hashlib
from typing import Final

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from adapters.http.api import Parts
from adapters.http.keyless import PER_SOURCE
from adapters.postgres.reads import reveals
from application.ports import Opener, Purpose, SealedFor, Vault

router = APIRouter(prefix="/reveal", tags=["Reveal"], include_in_schema=False, dependencies=PER_SOURCE)

_PAGES: Final = Environment(loader=PackageLoader("adapters.http", "pages"), undefined=StrictUndefined, autoescape=True)
_STYLE: Final = _PAGES.get_template("reveal.css.j2").render()
_PAGE: Final = _PAGES.get_template("reveal.html.j2")
_LONGEST_TOKEN: Final = 200
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Robots-Tag": "noindex",
}


@router.get("/{token}", response_class=HTMLResponse)
def get_reveal(api: Parts, token: str) -> HTMLResponse:
    """A page with a button. Nothing is revealed, and the link stays good."""
    if len(token) > _LONGEST_TOKEN or not reveals.is_valid(api.service.datastore, _hash(token)):
        return _page("gone", 404)
    return _page("ask")


@router.post("/{token}", response_class=HTMLResponse)
def post_reveal(api: Parts, request: Request, token: str) -> HTMLResponse:
    """The key, once; of several callers at the same moment one gets it."""
    if len(token) > _LONGEST_TOKEN:
        return _page("gone", 404)

    def open_sealed(customer_id: str, api_key_id: str, sealed: bytes) -> str:
        by = Opener(actor="anyone", reason="reveal", request_id=request.state.request_id)
        return _opened(api.service.vault, SealedFor(customer_id, api_key_id, Purpose.API_KEY), sealed, by)

    key = reveals.use(api.service.datastore, _hash(token), open_sealed)
    return _page("gone", 404) if key is None else _page("key", api_key=key)


def _opened(vault: Vault, owner: SealedFor, sealed: bytes, by: Opener) -> str:
    try:
        return vault.open(sealed, owner, by).decode()
    except ValueError:
        # The customer was erased meanwhile: there is no key to show, and the link is as good as used.
        raise HTTPException(404, "There is nothing at this address.") from None


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _page(what: str, status: int = 200, *, api_key: str = "") -> HTMLResponse:
    return HTMLResponse(_PAGE.render(what=what, style=_STYLE, api_key=api_key), status, _HEADERS)
