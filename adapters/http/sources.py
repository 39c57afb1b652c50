"""Where a request comes from: what is counted as one source."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from starlette.requests import HTTPConnection

_HOST_BITS: Final = 64
"""Of an IPv6 address: whoever has one has all that differ in these."""
_LONGEST: Final = 100


def source_of(request: HTTPConnection) -> str:
    """The source of a request: its IPv4 address, or the /64 network of its IPv6 address."""
    return source(request.client.host if request.client else "")


@lru_cache(maxsize=4096)
def source(host: str) -> str:
    """What counts as one source with this address; a text that is none stands for itself."""
    try:
        address: IPv4Address | IPv6Address = ip_address(_without_port(host))
    except ValueError:
        return host[:_LONGEST]
    if isinstance(address, IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> _HOST_BITS << _HOST_BITS)}/{128 - _HOST_BITS}"


def _without_port(host: str) -> str:
    """Some proxies name the port too: whoever connects anew is no other source."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host
