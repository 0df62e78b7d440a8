"""An address at which a provider serves something, and what it expects of connections."""

import ipaddress
from dataclasses import dataclass

from snimux.routing.address import DialAddress


@dataclass(frozen=True, slots=True)
class ProxyProtocol:
    """A listener's wrapper ``proxy_protocol``: whom it believes.

    ``before_tls``, or without TLS: else the header is looked for behind the handshake, where none
    comes.
    """

    allow: tuple[str, ...]
    deny: tuple[str, ...]
    fallback_policy: str
    before_tls: bool

    def believes(self, source: str) -> bool:
        """Return whether the client's address is taken from headers of an IP address."""
        if self.fallback_policy in ("USE", "REQUIRE"):
            return True
        return any(_is_in(source, network) for network in self.allow)


@dataclass(frozen=True, slots=True)
class Served:
    """An address at which a server of Caddy's can be dialled, and its wrapper, if it has one."""

    address: DialAddress
    proxy_protocol: ProxyProtocol | None = None


def _is_in(source: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(source) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
