"""Decide what becomes of a client by its hello: the one text, for connections and ``explain``.

Who decides before there is a hello asks ``Admission.denies``. Where no route is found the caller
may have routes looked for and decide anew: nothing here waits for anything.
"""

from dataclasses import dataclass

from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello, Protocol
from snimux.routing.access import Admission
from snimux.routing.routes import NO_SOURCE, Backend, Route, RouteTable


@dataclass(frozen=True, slots=True)
class Relaying:
    """The client is relayed to a backend."""

    route: Route
    to: Backend


@dataclass(frozen=True, slots=True)
class Redirection:
    """The client is sent to where the same is served by TLS; ``farewell`` says so."""

    location: str
    farewell: bytes
    route: Route


@dataclass(frozen=True, slots=True)
class Refusal:
    """The client is refused; ``farewell`` is what it is sent."""

    reason: Reason
    detail: str
    farewell: bytes
    route: Route | None = None


Decision = Relaying | Redirection | Refusal


def decide(
    hello: Hello,
    host: str | None,
    protocol: Protocol,
    admission: Admission | None,
    table: RouteTable,
    *,
    behind: int = 0,
    https_port: int = 443,
    checks_host: bool = True,
) -> Decision:
    """Return what becomes of a client.

    Args:
        hello: what it asks for.
        host: its IP address in text; None for a UNIX socket.
        protocol: the listener's.
        admission: the listener's; None lets everybody in.
        table: where its route is looked up.
        behind: how many bytes have come behind the hello.
        https_port: where clients find TLS.
        checks_host: False where nobody knows who the client is, and it is let in everywhere.
    """
    if checks_host and admission and not admission.access.admits_for(host, hello, behind):
        return _refuse(protocol, hello, Reason.ACCESS_DENIED)
    is_plain = hello.request is not None
    route = table.find_plain(hello.name) if is_plain else table.find(hello.name, hello.alpn)
    if route is None:
        return _refuse(protocol, hello, Reason.NO_ROUTE)
    if checks_host and route.access and not route.access.admits_for(host, hello, behind):
        return _refuse(protocol, hello, Reason.ACCESS_DENIED, route)
    to = route.http if is_plain else route.backend
    if to is None:
        redirect = protocol.redirect(hello, https_port)
        if redirect is None:
            return _refuse(protocol, hello, Reason.NO_HTTP, route)
        return Redirection(redirect.location, redirect.farewell, route)
    if checks_host and to.transparent and not to.addresses_for(host):
        return _refuse(protocol, hello, Reason.NO_SOURCE, route, NO_SOURCE)
    return Relaying(route, to)


def _refuse(
    protocol: Protocol, hello: Hello, reason: Reason, route: Route | None = None, detail: str = ""
) -> Refusal:
    return Refusal(reason, detail, protocol.farewell(reason, hello), route)
