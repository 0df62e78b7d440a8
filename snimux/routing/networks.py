"""A set of IP networks, and whether an address is in it: allow, deny and who is trusted.

Knows no socket: an address is text. What is looked up are ranges, merged and sorted, so that a
list of 10,000 networks costs one search by halves.

Source: RFC 4632 section 3.1 (CIDR), RFC 4291 sections 2.3 (IPv6) and 2.5.5.2 (IPv4 in IPv6).
"""

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX = "unix"
"""Stands in a list for whoever comes by a UNIX socket, and so has no address; as in nginx."""

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class NetworkError(ValueError):
    """A network that is none; the message says why, and how to write it."""


def parse_network(text: str) -> Network:
    """A network as typed: ``192.0.2.0/24``, ``2001:db8::/32``, or one address.

    IPv4 that is mapped into IPv6 is IPv4.

    Raises:
        NetworkError: it is none, or has bits set behind its prefix.
    """
    address, slash, length = text.partition("/")
    if slash and not re.fullmatch(r"[0-9]{1,3}", length):
        raise NetworkError("behind the / goes the length of the prefix, as in 192.0.2.0/24")
    if "%" in text:
        raise NetworkError("a network has no zone; leave out the % and what is behind it")
    try:
        ip = ipaddress.ip_address(address)
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        if slash and _is_ip(address):
            raise NetworkError("the prefix is longer than the address") from None
        raise NetworkError(_why_none(text)) from None
    if network.network_address != ip:
        raise NetworkError(
            f"has bits set behind the prefix; write {network} for the network, or {ip} for this "
            "address"
        )
    return _unmapped(network)


def _why_none(text: str) -> str:
    if text.lower() in ("*", "all", "any", "everybody", "everyone"):
        return "no IP network; everybody is 0.0.0.0/0, ::/0 and unix"
    if text.lower() == "localhost":
        return "no IP network, but a name; this machine is 127.0.0.0/8 and ::1"
    if text.lower() == UNIX:
        return f"no IP network; who comes by a UNIX socket is {UNIX}, in small letters"
    why = "no IP network, such as 192.0.2.0/24 or 2001:db8::/32"
    if _is_ip(text.rpartition(":")[0].strip("[]")):
        return f"{why}; leave out the port"
    return f"{why}; names are not looked up" if re.search(r"[g-z].*\.|\..*[g-z]", text) else why


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _unmapped(network: Network) -> Network:
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        low = int(network.network_address) & 0xFFFF_FFFF
        return ipaddress.IPv4Network((low, network.prefixlen - 96))
    return network


@dataclass(frozen=True, slots=True)
class Networks:
    """Networks, and whether those who come by a UNIX socket are among them."""

    listed: tuple[Network, ...] = ()
    unix: bool = False
    _bounds: dict[int, list[int]] = field(init=False, repr=False, compare=False)
    """By IP version, where ranges begin and where they end, by turns, in order."""

    def __post_init__(self) -> None:
        """Merge the networks into ranges."""
        bounds = {version: _merged(self.listed, version) for version in (4, 6)}
        object.__setattr__(self, "_bounds", bounds)

    def __contains__(self, host: str | None) -> bool:
        """Return whether an IP address in text is in one of the networks; None is a UNIX socket."""
        if host is None:
            return self.unix
        ip = ipaddress.ip_address(host)
        if isinstance(ip, ipaddress.IPv6Address):
            ip = ip.ipv4_mapped or ip
        return bool(bisect_right(self._bounds[ip.version], int(ip)) % 2)

    @property
    def words(self) -> list[str]:
        """The networks as they can be written; an address alone without its prefix."""
        words = [str(x).removesuffix(f"/{x.max_prefixlen}") for x in self.listed]
        return [*words, UNIX] if self.unix else words

    def __str__(self) -> str:
        return ", ".join(self.words)


def parse_networks(words: Sequence[str]) -> Networks:
    """The networks that were written so.

    Raises:
        NetworkError: one is none.
    """
    return Networks(tuple(parse_network(x) for x in words if x != UNIX), UNIX in words)


def _merged(networks: Iterable[Network], version: int) -> list[int]:
    bounds: list[int] = []
    ranges = [
        (int(network.network_address), int(network.broadcast_address) + 1)
        for network in networks
        if network.version == version
    ]
    for start, end in sorted(ranges):
        if bounds and start <= bounds[-1]:
            bounds[-1] = max(bounds[-1], end)
        else:
            bounds += (start, end)
    return bounds
