"""How often those may call who show no key: for `dependencies=` of routes that look at none."""

from typing import Final

from fastapi import Depends, Request

from adapters.http.api import api_of


async def _as_source(request: Request) -> None:
    await api_of(request).throttle.rates.of_source(request)


async def _as_sender(request: Request) -> None:
    await api_of(request).throttle.rates.of_sender(request)


PER_SOURCE: Final = [Depends(_as_source)]
"""For people without a key; 429 beyond the limit of their address."""
PER_SENDER: Final = [Depends(_as_sender)]
"""For machines that sign what they send; 429 far beyond what any of them sends."""
