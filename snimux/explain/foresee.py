"""Foresee how it ends for a client, and at which of the listeners that it may come to.

The decision is that of ``routing.decide``, by which connections go.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from snimux.config.model import Config, https_port
from snimux.config.source import LISTEN_KEYS
from snimux.explain.input import Case
from snimux.explain.refusal import Farewell, read
from snimux.proto.client_hello import TLS
from snimux.proto.reason import Reason
from snimux.proto.verdict import Foreign, Hello, Malformed, NeedMore
from snimux.routing.address import TcpAddress
from snimux.routing.decide import EntryPoint, Redirection, Refusal, Relaying, decide
from snimux.routing.networks import UNIX
from snimux.routing.routes import Backend, Route, RouteTable


class End(StrEnum):
    """An end for the client."""

    RELAYED = "relayed"
    REDIRECTED = "redirected"
    REFUSED = "refused"
    NOT_LISTENED = "not-listened"
    """snimux is not there for that."""


@dataclass(frozen=True, slots=True)
class Ending:
    """An end, and why: ``to`` where relayed, ``location`` where redirected."""

    end: End
    route: Route | None = None
    to: Backend | None = None
    location: str = ""
    reason: Reason | None = None
    detail: str = ""
    farewell: Farewell | None = None
    """What snimux itself tells the client, if it does."""
    entry: EntryPoint | None = None
    """Where the client comes in."""

    @property
    def is_at_listener(self) -> bool:
        """Say whether the listener refuses, before a route is looked up."""
        return self.reason is Reason.ACCESS_DENIED and self.route is None


def foresee(case: Case, config: Config, table: RouteTable, *, source: str | None = None) -> Ending:
    """Return how it ends for a client, by the decision that a connection makes.

    Where several listeners could be meant, it is the first that lets the client in.
    """
    possible = endings(case, config, table, source)
    if not possible:
        label, flag = case.protocol.label, LISTEN_KEYS[case.protocol.name]
        words = f"snimux does not listen for {label}: see --{flag}"
        return Ending(End.NOT_LISTENED, detail=words)
    return next((x for x in possible if not x.is_at_listener), possible[0])


def endings(case: Case, config: Config, table: RouteTable, source: str | None) -> list[Ending]:
    """Return how it ends at each listener that could be meant."""
    port = https_port(config, _ports(config))
    entries = entries_for(case, config)
    return [replace(_ending_at(x, case, table, source, port), entry=x) for x in entries]


def _ending_at(
    entry: EntryPoint, case: Case, table: RouteTable, source: str | None, https_port: int
) -> Ending:
    host, admission = host_of(source), entry.admission
    if source is not None and admission is not None and admission.denies(host):
        # That is known before the client says anything.
        farewell = case.protocol.farewell(Reason.ACCESS_DENIED, None)
        return _refused(Reason.ACCESS_DENIED, "", farewell)
    match case.verdict:
        case Malformed(reason, detail, farewell):
            return _refused(reason, detail, farewell)
        case Foreign(reason):
            return _refused(reason, "", b"")
        case NeedMore(farewell=farewell):
            reason = Reason.HELLO_CUT_SHORT if case.size else Reason.NO_BYTES
            return _refused(reason, f"{case.size or 0} bytes came", farewell)
        case Hello() as hello:
            behind = (case.size or hello.size) - hello.size
            checks_host = source is not None
            decision = decide(
                hello, host, entry, table,
                behind=behind, https_port=https_port, checks_host=checks_host,
            )  # fmt: skip
    match decision:
        case Relaying(route, to):
            return Ending(End.RELAYED, route, to)
        case Redirection(location, farewell, route):
            return Ending(End.REDIRECTED, route, location=location, farewell=read(farewell))
        case Refusal(reason, detail, farewell, refused):
            return _refused(reason, detail, farewell, refused)


def entries_for(case: Case, config: Config) -> Sequence[EntryPoint]:
    """Return where a client may come in; by its listener or its port if that is said."""
    entries = [x for x in config.entrypoints if x.protocol is case.protocol]
    if case.listener is not None:
        return [x for x in entries if x.name == case.listener]
    return [x for x in entries if port_of(x) == case.port] or entries


def port_of(entry: EntryPoint) -> int:
    """Return the port of an entry point; 0 is any, and what is no port may be any."""
    return entry.address.port if isinstance(entry.address, TcpAddress) else 0


def host_of(source: str | None) -> str | None:
    """Return a client's address as lists have it."""
    return None if source == UNIX else source


def _refused(reason: Reason, detail: str, farewell: bytes, route: Route | None = None) -> Ending:
    return Ending(End.REFUSED, route, reason=reason, detail=detail, farewell=read(farewell))


def _ports(config: Config) -> list[int]:
    return [port for x in config.entrypoints if x.protocol is TLS and (port := port_of(x))]
