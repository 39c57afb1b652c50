"""Addresses that may be posted to: those of the public internet, looked up once and then used as they are."""

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import urlsplit

from domain.refusals import Invalid

Resolve = Callable[[str, int], Sequence[str]]
"""The addresses of a host, in the order in which they are to be tried. Raises `OSError`."""
Allow = Callable[[str], bool]

_UNICAST: Final = IPv6Network("2000::/3")
"""All that is assigned for global use. Mapped, compatible and translated (NAT64) addresses lie outside."""
_CARRYING: Final = (IPv6Network("2001::/32"), IPv6Network("2002::/16"))
"""Teredo and 6to4: they carry an IPv4 address along, to which they may lead."""
_MOST_TRIED: Final = 4
_INSIDE: Final = (".localhost", ".local", ".internal")
_ANYCAST_RELAY: Final = IPv4Network("192.88.99.0/24")


class PrivateAddress(Exception):  # noqa: N818 - it says what was found
    """The host has an address that is not one of the public internet."""


def is_public(address: str) -> bool:
    """Whether the address is an ordinary one of the public internet.

    Loopback, private, shared, link-local (where clouds keep their metadata), multicast, reserved and documentation
    addresses are not, nor is an IPv6 address that stands for an IPv4 one.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if not parsed.is_global or parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified:
        return False
    match parsed:
        case IPv4Address():
            return parsed not in _ANYCAST_RELAY
        case IPv6Address():
            return parsed.scope_id is None and parsed in _UNICAST and not any(parsed in net for net in _CARRYING)


def any_address(_: str) -> bool:
    """Every address may be posted to: for a laptop, where receivers are on the same machine."""
    return True


def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses that the system knows of the host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def checked(host: str, port: int, resolve: Resolve, allow: Allow) -> Sequence[str]:
    """The addresses to connect to, one after another, which are not looked up again.

    Raises `PrivateAddress` when any address of the host is not allowed: one that has both kinds is up to something.
    Raises `OSError` when it has none.
    """
    found = resolve(host, port)
    if not found:
        raise OSError("no address")
    if not all(allow(address) for address in found):
        raise PrivateAddress
    return found[:_MOST_TRIED]


def host_must_be_public(url: str, *, anywhere: bool) -> None:
    """Refuse with `Invalid` what can be seen to lead inside without looking anything up; `anywhere` lets all pass."""
    if anywhere:
        return
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".").lower()
    if parts.scheme != "https":
        raise Invalid("url: must begin with https")
    if host == "localhost" or host.endswith(_INSIDE) or (_is_literal(host) and not is_public(host)):
        raise Invalid("url: must lead to a public address")


def _is_literal(host: str) -> bool:
    # The system's resolver takes 127.1 and 2130706433 for addresses: no public host is named so.
    return ":" in host or host.rpartition(".")[2].isdigit() or host.startswith("0x")
