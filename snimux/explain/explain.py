"""Why a client goes where it goes: the decision for one hello or request, step by step.

What is asked, and the routes as they are -> a value. Takes the candidates from the very table by
which connections go. Asks nobody: what the Caddys serve is given; which backends answer, and how
they are spoken to, others know.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from snimux.backend.balance import by_source
from snimux.config.model import Config, https_port
from snimux.config.source import LISTEN_KEYS
from snimux.explain.input import Case
from snimux.explain.refusal import Farewell, read
from snimux.proto import hostname
from snimux.proto.client_hello import TLS
from snimux.proto.protocols import PROTOCOLS
from snimux.proto.reason import Reason
from snimux.proto.verdict import Foreign, Hello, Malformed, NeedMore, Protocol
from snimux.providers.base import Snapshot
from snimux.providers.merge import Plan, title
from snimux.routing.access import Access
from snimux.routing.address import AdminAddress, DialAddress, TcpAddress
from snimux.routing.decide import Decision, EntryPoint, Redirection, Refusal, Relaying, decide
from snimux.routing.networks import UNIX
from snimux.routing.routes import Backend, Balance, Pattern, Route, RouteTable

# Names that are like the one that has no route: more would not be read.
_MOST_LIKE_IT = 3


class Result(StrEnum):
    """What became of a pattern."""

    TAKEN = "taken"
    NO_ROUTE = "no-route"
    BEATEN = "beaten"
    NOT_OFFERED = "not-offered"
    """Its route is for an ALPN protocol that the client does not offer."""
    OTHER_PROTOCOL = "other-protocol"
    """Its route is for plain HTTP alone, or for TLS alone."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A pattern that matches the name, and why it is the one or is not."""

    pattern: Pattern
    result: Result
    why: str = ""


class End(StrEnum):
    """How it ends for the client."""

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


@dataclass(frozen=True, slots=True)
class Explanation:
    """An ending, and the steps to it."""

    case: Case
    source: str | None
    """The client's address, if it was said."""
    decision: Ending
    tried: tuple[Tried, ...] = ()
    """Patterns in the order in which they count; behind the one that is taken, those of routes."""
    origin: str = ""
    """Where the route is from."""
    addresses: tuple[DialAddress, ...] = ()
    """Where it is dialled: in that order by ``balance`` "first" and "ip_hash"."""
    balance: Balance = "first"
    also: tuple[AdminAddress, ...] = ()
    """Caddys that serve the route's pattern, too, and do not have it."""
    hints: tuple[str, ...] = ()

    @property
    def hello(self) -> Hello | None:
        """What the client says, if that can be understood."""
        verdict = self.case.verdict
        return verdict if isinstance(verdict, Hello) else None

    @property
    def is_served(self) -> bool:
        """Whether the client gets what it came for, or is told where that is."""
        return self.decision.end in (End.RELAYED, End.REDIRECTED)


def explain(
    case: Case,
    config: Config,
    found: Plan,
    sites: Mapping[AdminAddress, Snapshot],
    *,
    source: str | None = None,
) -> Explanation:
    """Explain what happens to a client.

    Args:
        case: what it says.
        config: what snimux was told.
        found: the routes of that, with those of the Caddys.
        sites: what each Caddy that answered serves.
        source: the client's IP address, or "unix"; None where that is not known, and everybody is
            let in.
    """
    table = RouteTable(found.routes)
    decision = foresee(case, config, table, source=source)
    hello, route = case.verdict, decision.route
    hints = [*_hints_at_port(case, config), *_hints_at_source(case, config, route, source)]
    is_at_door = decision.reason is Reason.ACCESS_DENIED and route is None
    if not isinstance(hello, Hello) or decision.end is End.NOT_LISTENED or is_at_door:
        return Explanation(case, source, decision, hints=tuple(hints))
    if decision.reason is Reason.NO_ROUTE:
        hints += _hints_at_routes(hello, found, sites)
    return Explanation(
        case,
        source,
        decision,
        tuple(_tried(hello, case.protocol, table, found.routes)),
        _origin(route, config, found) if route else "",
        *_dialled(decision.to, config, source),
        tuple(_also(route, found, sites)) if route else (),
        tuple(hints),
    )


def foresee(case: Case, config: Config, table: RouteTable, *, source: str | None = None) -> Ending:
    """Return how it ends for a client, by the decision that a connection makes.

    Where several listeners could be meant, it is one that lets the client in.
    """
    protocol = case.protocol
    entries = _entries(case, config)
    if not entries:
        flag = LISTEN_KEYS[protocol.name]
        words = f"snimux does not listen for {protocol.label}: see --{flag}"
        return Ending(End.NOT_LISTENED, detail=words)
    admissions = [entry.admission for entry in entries]
    if source is not None and all(x and x.denies(_host(source)) for x in admissions):
        # That is known before the client says anything.
        return _refused(Reason.ACCESS_DENIED, "", protocol.farewell(Reason.ACCESS_DENIED, None))
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
            port = https_port(config, _ports(config))
            decisions = [
                decide(
                    hello, _host(source), entry, table,
                    behind=behind, https_port=port, checks_host=source is not None,
                )
                for entry in entries
            ]  # fmt: skip
            return _ending(next((x for x in decisions if not _is_at_listener(x)), decisions[0]))


def _is_at_listener(decision: Decision) -> bool:
    """Return whether a listener refuses, before a route is looked up."""
    is_denied = isinstance(decision, Refusal) and decision.reason is Reason.ACCESS_DENIED
    return is_denied and decision.route is None


def _ending(decision: Decision) -> Ending:
    match decision:
        case Relaying(route, to):
            return Ending(End.RELAYED, route, to)
        case Redirection(location, farewell, route):
            return Ending(End.REDIRECTED, route, location=location, farewell=read(farewell))
        case Refusal(reason, detail, farewell, refused):
            return _refused(reason, detail, farewell, refused)


def _entries(case: Case, config: Config) -> Sequence[EntryPoint]:
    """Return where a client may come in; at its port if that is said."""
    entries = [x for x in config.entrypoints if x.protocol is case.protocol]
    return [x for x in entries if _port(x) == case.port] or entries


def _port(entry: EntryPoint) -> int:
    """Return the port of an entry point; 0 is any, and what is no port may be any."""
    return entry.address.port if isinstance(entry.address, TcpAddress) else 0


def _host(source: str | None) -> str | None:
    """Return a client's address as lists have it."""
    return None if source == UNIX else source


def _refused(reason: Reason, detail: str, farewell: bytes, route: Route | None = None) -> Ending:
    return Ending(End.REFUSED, route, reason=reason, detail=detail, farewell=read(farewell))


def _dialled(
    to: Backend | None, config: Config, source: str | None
) -> tuple[tuple[DialAddress, ...], Balance]:
    """The addresses that may be dialled, as far as known in order, and how one is chosen."""
    if to is None:
        return (), "first"
    balance = to.balance or config.backends.balance
    host = _host(source)
    addresses = to.addresses if source is None else to.addresses_for(host)
    if balance == "ip_hash" and host is not None:
        weights = to.weights or (1,) * len(to.addresses)
        places = by_source(host, list(map(str, to.addresses)), weights)
        addresses = tuple(x for x in (to.addresses[place] for place in places) if x in addresses)
    return addresses, balance


def _ports(config: Config) -> list[int]:
    return [port for x in config.entrypoints if x.protocol is TLS and (port := _port(x))]


# --- the patterns


def _tried(
    hello: Hello, protocol: Protocol, table: RouteTable, routes: Iterable[Route]
) -> Iterator[Tried]:
    """Yield the patterns in order; behind the one that is taken, those that have a route."""
    fitting = list(dict.fromkeys(x.pattern for x in table.candidates(protocol, hello)))
    hosts = list(hostname.patterns_matching(hello.name))
    unfit: dict[str, dict[Pattern, Route]] = {host: {} for host in hosts}
    for route in routes:
        if route.pattern.host in unfit and route.pattern not in fitting:
            unfit[route.pattern.host][route.pattern] = route
    is_taken = False
    for host in hosts:
        offered = [Pattern(host, x) for x in hello.alpn]
        for pattern in dict.fromkeys([*offered, *unfit[host], Pattern(host)]):
            if pattern in unfit[host]:
                yield _unfit(unfit[host][pattern], protocol)
            elif pattern in fitting:
                is_first = pattern == fitting[0]
                is_taken = is_taken or is_first
                why = "" if is_first else _why_beaten(pattern, fitting[0])
                yield Tried(pattern, Result.TAKEN if is_first else Result.BEATEN, why)
            elif not is_taken:
                yield Tried(pattern, Result.NO_ROUTE)


def _unfit(route: Route, protocol: Protocol) -> Tried:
    pattern = route.pattern
    if protocol.name not in route.targets:
        names = " and ".join(PROTOCOLS[name].label for name in route.targets)
        return Tried(pattern, Result.OTHER_PROTOCOL, f"for {names} alone")
    alpn = (pattern.alpn or b"").decode("latin-1")
    return Tried(pattern, Result.NOT_OFFERED, f"the client does not offer {alpn}")


def _why_beaten(pattern: Pattern, by: Pattern) -> str:
    if pattern.host != by.host:
        return f"{by.host} is more specific"
    if pattern.alpn is None:
        return f"{by} has a protocol that the client offers"
    return f"the client prefers {(by.alpn or b'').decode('latin-1')}"


def _origin(route: Route, config: Config, found: Plan) -> str:
    written = config.written.get(route.pattern)
    if written is not None:
        return written
    return title(found.has[str(route.pattern)])


def _also(
    route: Route, found: Plan, sites: Mapping[AdminAddress, Snapshot]
) -> Iterator[AdminAddress]:
    pattern = str(route.pattern)
    for address, served in sites.items():
        patterns = (*(x.host for x in served.sites), *(str(x.pattern) for x in served.routes))
        if address != found.has.get(pattern) and pattern in patterns:
            yield address


# --- the hints


def _hints_at_port(case: Case, config: Config) -> Iterator[str]:
    entries = [x for x in config.entrypoints if x.protocol is case.protocol]
    ports = [_port(x) for x in entries]
    if case.port is not None and ports and all(ports) and case.port not in ports:
        where = ", ".join(str(x.address) for x in entries)
        yield f"port {case.port} is none at which snimux listens for that ({where})"


def _hints_at_source(
    case: Case, config: Config, route: Route | None, source: str | None
) -> Iterator[str]:
    """What depends on who the client is."""
    listeners = [(x.address, x.admission) for x in _entries(case, config)]
    lists = [(f"those of {x}", admission.access) for x, admission in listeners if admission]
    if route is not None and route.access is not None:
        above = f" above {route.pattern}" if route.access_from else ""
        lists.append((f"those of the route {route.access_of}{above}", route.access))
    for whose, access in lists:
        if access == Access():
            continue
        if source is None:
            yield f"allow and deny, {whose}, look at the client's address: give --from IP"
        elif not access.admits(_host(source)):
            exempt = ", but for validations by ACME" if access.acme_exempt else ""
            yield f"allow and deny, {whose}, do not let {source} in{exempt}"
    for listener, admission in listeners:
        if admission and source is not None and admission.believes(_host(source)):
            yield (
                f"at {listener} connections from {source} begin with a PROXY protocol header "
                "(proxy_from): --from is then for the client that it names"
            )


def _hints_at_routes(
    hello: Hello, found: Plan, sites: Mapping[AdminAddress, Snapshot]
) -> Iterator[str]:
    """What there is that looks as if it should have taken a name."""
    name = hello.name
    if not found.routes:
        yield "there are no routes at all: give --config FILE, --route HOST=ADDR or --caddy ADDR"
        return
    if name is None:
        yield "without a name only * matches: --default ADDR"
        return
    hosts = {route.pattern.host for route in found.routes if route.pattern.alpn is None}
    for pattern in (f"*.{name}", f"**.{name}"):
        if pattern in hosts:
            yield f"{pattern} is for names below {name}, not for {name} itself"
    _, _, above = name.partition(".")
    while above:
        _, _, above = above.partition(".")
        if f"*.{above}" in hosts:
            yield f"*.{above} is for one more label; **.{above} would take {name}"
    alike = get_close_matches(name, sorted(x for x in hosts if "*" not in x), _MOST_LIKE_IT)
    if alike:
        yield f"there is a route for {', '.join(alike)}"
    matching = set(hostname.patterns_matching(name))
    for unrouted in (*found.loops, *found.refused):
        if unrouted.what in matching:
            yield f"{unrouted.what} is left out: {unrouted.why}"
    for address, served in sites.items():
        for unrouted in served.unrouted:
            if unrouted.host in matching:
                yield f"{title(address)} serves {unrouted.what}, left out: {unrouted.why}"
