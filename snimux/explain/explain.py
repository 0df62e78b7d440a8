"""Explain why a client goes where it goes: the decision for one hello or request, by steps.

What is asked, and the routes as they are -> a value. Takes the candidates from the very table by
which connections go. Asks nobody: what the Caddys serve is given; which backends answer, and how
they are spoken to, others know.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum

from snimux.backend.balance import by_source
from snimux.config.model import Config
from snimux.explain.foresee import End, Ending, endings, entries_for, foresee, host_of, port_of
from snimux.explain.input import Case
from snimux.proto import hostname
from snimux.proto.protocols import PROTOCOLS
from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello
from snimux.providers.base import Snapshot
from snimux.providers.merge import Plan, title
from snimux.routing.access import Access
from snimux.routing.address import DialAddress, ProviderAddress
from snimux.routing.decide import EntryPoint
from snimux.routing.routes import Backend, Balance, Pattern, Route, RouteTable

# Names that are like the one that has no route: more would not be read.
_MOST_LIKE_IT = 3


class Result(StrEnum):
    """The result for a pattern."""

    TAKEN = "taken"
    NO_ROUTE = "no-route"
    BEATEN = "beaten"
    NOT_OFFERED = "not-offered"
    """Its route is for an ALPN protocol that the client does not offer."""
    OTHER_PROTOCOL = "other-protocol"
    """Its route is for plain HTTP alone, or for TLS alone."""
    OTHER_LISTENER = "other-listener"
    """Its route is for another listener."""


@dataclass(frozen=True, slots=True)
class Step:
    """A pattern that matches the name, and why it is the one or is not."""

    pattern: Pattern
    result: Result
    why: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """An ending, and the steps to it."""

    case: Case
    source: str | None
    """The client's address, if it was said."""
    ending: Ending
    steps: tuple[Step, ...] = ()
    """Patterns in the order in which they count; behind the one that is taken, those of routes."""
    origin: str = ""
    """Where the route is from."""
    addresses: tuple[DialAddress, ...] = ()
    """Where it is dialled: in that order by ``balance`` "first" and "ip_hash"."""
    balance: Balance = "first"
    also: tuple[ProviderAddress, ...] = ()
    """Caddys that serve the route's pattern, too, and do not have it."""
    hints: tuple[str, ...] = ()

    @property
    def hello(self) -> Hello | None:
        """The hello of the client, if it can be understood."""
        verdict = self.case.verdict
        return verdict if isinstance(verdict, Hello) else None

    @property
    def is_served(self) -> bool:
        """True if the client gets what it came for, or is sent to where that is."""
        return self.ending.end in (End.RELAYED, End.REDIRECTED)


def explain(
    case: Case,
    config: Config,
    plan: Plan,
    sites: Mapping[ProviderAddress, Snapshot],
    *,
    source: str | None = None,
) -> Explanation:
    """Explain what happens to a client.

    Args:
        case: what it says.
        config: what snimux was told.
        plan: the routes of that, with those of the Caddys.
        sites: what each Caddy that answered serves.
        source: the client's IP address, or "unix"; None where that is not known, and everybody is
            let in.
    """
    table = RouteTable(plan.routes)
    ending = foresee(case, config, table, source=source)
    hello, route = case.verdict, ending.route
    hints = [*_hints_at_port(case, config), *_hints_at_source(case, config, route, source)]
    hints += _hints_at_listeners(ending, endings(case, config, table, source))
    if not isinstance(hello, Hello) or ending.entry is None or ending.is_at_listener:
        return Explanation(case, source, ending, hints=tuple(hints))
    if ending.reason is Reason.NO_ROUTE:
        hints += _hints_at_routes(hello, plan, sites)
    return Explanation(
        case,
        source,
        ending,
        tuple(_steps(hello, ending.entry, table, plan.routes)),
        _origin(route, config, plan, sites) if route else "",
        *_dialled(ending.to, config, source),
        tuple(_also(route, plan, sites)) if route else (),
        tuple(hints),
    )


def _dialled(
    to: Backend | None, config: Config, source: str | None
) -> tuple[tuple[DialAddress, ...], Balance]:
    """The addresses that may be dialled, as far as known in order, and how one is chosen."""
    if to is None:
        return (), "first"
    balance = to.balance or config.backends.balance
    host = host_of(source)
    addresses = to.addresses if source is None else to.addresses_for(host)
    if balance == "ip_hash" and host is not None:
        weights = to.weights or (1,) * len(to.addresses)
        places = by_source(host, list(map(str, to.addresses)), weights)
        addresses = tuple(x for x in (to.addresses[place] for place in places) if x in addresses)
    return addresses, balance


# --- the patterns


def _steps(
    hello: Hello, entry: EntryPoint, table: RouteTable, routes: Iterable[Route]
) -> Iterator[Step]:
    """Yield the patterns in order; behind the one that is taken, those that have a route."""
    candidates = table.candidates(entry.protocol, hello, entry.name)
    fitting = list(dict.fromkeys(route.pattern for route in candidates))
    hosts = list(hostname.patterns_matching(hello.name))
    unfit: dict[str, dict[Pattern, Route]] = {host: {} for host in hosts}
    for route in routes:
        if route.pattern.host in unfit and route.pattern not in fitting:
            unfit[route.pattern.host][route.pattern] = route
    is_taken = False
    for host in hosts:
        offered, plain = [Pattern(host, x) for x in hello.alpn], Pattern(host)
        own = {x: replace(x, listener=entry.name) for x in (*offered, plain)}
        ranked = [pattern for x in offered for pattern in (own[x], x)]
        for pattern in dict.fromkeys([*ranked, *unfit[host], own[plain], plain]):
            if pattern in unfit[host]:
                yield _unfit(unfit[host][pattern], entry)
            elif pattern in fitting:
                is_first = pattern == fitting[0]
                is_taken = is_taken or is_first
                why = "" if is_first else _why_beaten(pattern, fitting[0])
                yield Step(pattern, Result.TAKEN if is_first else Result.BEATEN, why)
            elif not is_taken and pattern.listener is None:
                yield Step(pattern, Result.NO_ROUTE)


def _unfit(route: Route, entry: EntryPoint) -> Step:
    pattern = route.pattern
    if pattern.listener not in (None, entry.name):
        why = f"for clients that come to {pattern.listener}"
        return Step(pattern, Result.OTHER_LISTENER, why)
    if entry.protocol.name not in route.targets and not route.refuses:
        names = " and ".join(PROTOCOLS[name].label for name in route.targets)
        return Step(pattern, Result.OTHER_PROTOCOL, f"for {names} alone")
    alpn = (pattern.alpn or b"").decode("latin-1")
    return Step(pattern, Result.NOT_OFFERED, f"the client does not offer {alpn}")


def _why_beaten(pattern: Pattern, by: Pattern) -> str:
    if pattern.host != by.host:
        return f"{by.host} is more specific"
    if pattern.alpn == by.alpn:
        return f"{by} is for this listener"
    if pattern.alpn is None:
        return f"{by} has a protocol that the client offers"
    return f"the client prefers {(by.alpn or b'').decode('latin-1')}"


def _origin(
    route: Route, config: Config, plan: Plan, sites: Mapping[ProviderAddress, Snapshot]
) -> str:
    written = config.written.get(route.pattern)
    if written is not None:
        return written
    provider = plan.has[str(route.pattern)]
    return sites[provider].written.get(route.pattern) or title(provider)


def _also(
    route: Route, plan: Plan, sites: Mapping[ProviderAddress, Snapshot]
) -> Iterator[ProviderAddress]:
    pattern = str(route.pattern)
    for address, served in sites.items():
        patterns = (*(x.host for x in served.sites), *(str(x.pattern) for x in served.routes))
        if address != plan.has.get(pattern) and pattern in patterns:
            yield address


# --- the hints


def _hints_at_port(case: Case, config: Config) -> Iterator[str]:
    entries = [x for x in config.entrypoints if x.protocol is case.protocol]
    ports = [port_of(x) for x in entries]
    if case.port is not None and ports and all(ports) and case.port not in ports:
        where = ", ".join(str(x.address) for x in entries)
        yield f"port {case.port} is none at which snimux listens for that ({where})"


def _hints_at_listeners(ending: Ending, endings: Iterable[Ending]) -> Iterator[str]:
    """Yield at which other listeners that could be meant the client goes elsewhere."""
    gist = (ending.end, ending.to, ending.route and ending.route.pattern)
    for other in endings:
        entry, route = other.entry, other.route and other.route.pattern
        if entry is None or other.is_at_listener or (other.end, other.to, route) == gist:
            continue
        to = other.to or (other.location and f"redirected to {other.location}") or "refused"
        by = f", by {route}" if route else ""
        name = f"{entry.name}: --listener {entry.name}" if entry.name else entry.address
        yield f"at another listener it is {to}{by} ({name})"


def _hints_at_source(
    case: Case, config: Config, route: Route | None, source: str | None
) -> Iterator[str]:
    """Yield what depends on who the client is."""
    listeners = [(x.address, x.admission) for x in entries_for(case, config)]
    lists = [(f"those of {x}", admission.access) for x, admission in listeners if admission]
    if route is not None and route.access is not None:
        above = f" above {route.pattern}" if route.access_from else ""
        lists.append((f"those of the route {route.access_of}{above}", route.access))
    for whose, access in lists:
        if access == Access():
            continue
        if source is None:
            yield f"allow and deny, {whose}, look at the client's address: give --from IP"
        elif not access.admits(host_of(source)):
            exempt = ", but for validations by ACME" if access.acme_exempt else ""
            yield f"allow and deny, {whose}, do not let {source} in{exempt}"
    for listener, admission in listeners:
        if admission and source is not None and admission.believes(host_of(source)):
            yield (
                f"at {listener} connections from {source} begin with a PROXY protocol header "
                "(proxy_from): --from is then for the client that it names"
            )


def _hints_at_routes(
    hello: Hello, plan: Plan, sites: Mapping[ProviderAddress, Snapshot]
) -> Iterator[str]:
    """Yield what looks as if it should have taken a name."""
    name = hello.name
    if not plan.routes:
        yield "there are no routes at all: give --config FILE, --route HOST=ADDR or --caddy ADDR"
        return
    if name is None:
        yield "without a name only * matches: --default ADDR"
        return
    hosts = {route.pattern.host for route in plan.routes if route.pattern.alpn is None}
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
    for unrouted in (*plan.loops, *plan.refused):
        if unrouted.what in matching:
            yield f"{unrouted.what} is left out: {unrouted.why}"
    for address, served in sites.items():
        for unrouted in served.unrouted:
            if unrouted.host in matching:
                yield f"{title(address)} serves {unrouted.what}, left out: {unrouted.why}"
