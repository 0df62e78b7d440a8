"""Decide what becomes of a client by its hello: the one text, for connections and ``explain``.

Who decides before there is a hello asks ``Admission.denies``. Where no route is found the caller
may have routes looked for and decide anew: nothing here waits for anything.
"""

from dataclasses import dataclass

from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello, Protocol
from snimux.routing.access import Admission
from snimux.routing.address import ListenAddress
from snimux.routing.routes import NO_SOURCE, Backend, Route, RouteTable


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """A place where clients come in, and what holds for all who come there."""

    protocol: Protocol
    address: ListenAddress | None = None
    """As it is configured; None where that is not said."""
    admission: Admission | None = None
    """Whom it lets in; None: everybody."""
    name: str | None = None
    """By which routes say that they are for it alone."""


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
    entry: EntryPoint,
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
        entry: where it came in.
        table: where its route is looked up.
        behind: how many bytes have come behind the hello.
        https_port: where clients find TLS.
        checks_host: False where nobody knows who the client is, and it is let in everywhere.
    """
    protocol, admission = entry.protocol, entry.admission
    if checks_host and admission and not admission.access.admits_for(host, hello, behind):
        return _refuse(protocol, hello, Reason.ACCESS_DENIED)
    # ``table.find``, but for a call: each connection comes here.
    route = next(table.candidates(protocol, hello, entry.name), None)
    if route is None:
        return _refuse(protocol, hello, Reason.NO_ROUTE)
    if checks_host and route.access and not route.access.admits_for(host, hello, behind):
        return _refuse(protocol, hello, Reason.ACCESS_DENIED, route)
    to = route.targets.get(protocol.name)
    if to is None and route.refuses:
        return _refuse(protocol, hello, Reason.ROUTE_REFUSES, route)
    if to is None:
        redirect = protocol.redirect and protocol.redirect(hello, https_port)
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
