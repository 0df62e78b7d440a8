"""Which addresses are each other, stand in each other's way, or have all that comes to another.

By what is written alone: a name is looked up nowhere, and only ``localhost`` is known.
"""

import ipaddress
import posixpath
from collections.abc import Iterable, Mapping, Sequence

from snimux.address import DialAddress, FileAddress, ListenAddress, TcpAddress, UnixAddress

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


def reserved_for(reserved: Mapping[DialAddress, str], dial: DialAddress) -> str | None:
    """Return what an address is reserved for, as far as it can be told by what is written, or None.

    All spellings of an address are one, and so are all addresses by which this machine has itself.
    """
    port = _port(dial)
    near = ((each, what) for each, what in reserved.items() if _port(each) == port)
    return next((what for each, what in near if _place(each) == _place(dial)), None)


def _port(address: DialAddress) -> int:
    return address.port if isinstance(address, TcpAddress) else 0


def _place(address: DialAddress) -> tuple[str, int]:
    """A host or path in one spelling, and the port."""
    if isinstance(address, UnixAddress):
        return posixpath.normpath(f"/{address.path.lstrip('/')}"), 0
    host = plain_host(address.host)
    return "" if not host or _is_loopback(host) else host, address.port


def plain_host(host: str) -> str:
    """A host in one spelling: without a dot at its end or a zone; IPv4 in IPv6 is IPv4."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.rstrip(".")
    return str((ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip)


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
