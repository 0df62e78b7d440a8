"""Which addresses are each other, stand in each other's way, or have all that comes to another.

By what is written alone: a name is looked up nowhere, and only ``localhost`` is known.
"""

import ipaddress
from collections.abc import Iterable, Sequence

from snimux.address import DialAddress, FileAddress, ListenAddress, TcpAddress

_EVERYWHERE = ("", "0.0.0.0", "::")  # hosts that stand for every interface


def is_own(listen: Iterable[ListenAddress], dial: DialAddress) -> bool:
    """Whether a connection to an address would come to one of those that are listened on."""
    return any(is_same(own, dial) for own in listen)


def is_same(listen: ListenAddress | FileAddress, dial: DialAddress | FileAddress) -> bool:
    """Whether what is dialled at one address is what listens at another."""
    if not (isinstance(listen, TcpAddress) and isinstance(dial, TcpAddress)):
        return listen == dial
    if listen.port != dial.port:
        return False
    if listen.host in _EVERYWHERE:
        return _is_loopback(dial.host)
    both_loopback = _is_loopback(listen.host) and _is_loopback(dial.host)
    return listen.host == dial.host or (both_loopback and "localhost" in (listen.host, dial.host))


def overlaps(one: ListenAddress, other: ListenAddress) -> bool:
    """Whether both cannot be listened on at once."""
    if not (isinstance(one, TcpAddress) and isinstance(other, TcpAddress)):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    wild = one.host in _EVERYWHERE or other.host in _EVERYWHERE
    return one.host == other.host or (wild and bool(_families(one.host) & _families(other.host)))


def is_covered(address: ListenAddress, there: Sequence[ListenAddress]) -> bool:
    """Whether all that comes to an address comes to one of those that are listened on."""
    if not isinstance(address, TcpAddress):
        return address in there
    hosts = {x.host for x in there if isinstance(x, TcpAddress) and x.port == address.port}
    families = [_families(host) for host in hosts if host in _EVERYWHERE]
    return address.host in hosts or _families(address.host) <= set().union(*families)


def _families(host: str) -> set[str]:
    """IP versions of a host; both for one that is to be looked up."""
    try:
        return set(str(ipaddress.ip_address(host).version))
    except ValueError:
        return set("46")


def _is_loopback(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return ip.is_loopback or ip.is_unspecified
