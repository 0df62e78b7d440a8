"""Flags and file together -> a ``Config``, or every problem of both and of the two together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

from snimux.config.from_flags import read_flags
from snimux.config.from_toml import read_toml
from snimux.config.model import BackendDefaults, Config, ConfigError, Limits
from snimux.config.settings import PROVIDERS, SETTINGS
from snimux.config.source import LISTEN_KEYS, NOT_EXEMPT, OFF, ConfigSource, problems_of_listeners
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.protocols import PROTOCOLS
from snimux.routing.access import Access, Admission
from snimux.routing.address import (
    Activated,
    FdAddress,
    ListenAddress,
    ProviderAddress,
    TcpAddress,
    is_covered,
    is_own,
    overlaps,
    parse_listen,
)
from snimux.routing.decide import EntryPoint
from snimux.routing.routes import Pattern, Route

_DEFAULT_LISTEN = f":{TLS.default_port}"
_DEFAULT_HTTP = f":{HTTP.default_port}"
_NO_LIMITS = (
    "relay", "log_format", "log_level", "workers", "watch", "status", "keep_refused"
)  # fmt: skip
_NO_ROUTES = (
    "no routes: give --route HOST=ADDR, --default ADDR, --caddy ADDR, --routes-dir DIR or a "
    "--config FILE that has some; see --help"
)
_FOR_BACKENDS = tuple(x.name for x in fields(BackendDefaults))


def load(
    flags: Mapping[str, Any],
    file_name: str = "",
    toml: str | None = None,
    *,
    activated: Sequence[Activated] = (),
    needs_routes: bool = True,
    has_workers: bool = False,
) -> Config:
    """Read the configuration.

    Args:
        flags: values as typed, by flag name with underscores: ``listen``, ``http`` and ``route``
            are sequences of strings, all others strings; absent, None and empty are not given.
        file_name: what to call the file in messages.
        toml: the file's text; None where there is none.
        activated: sockets that were handed over. They are instead of the default addresses, and of
            whichever given address they cover; other given addresses are listened on besides.
        needs_routes: whether to have neither routes nor providers is a problem.
        has_workers: whether it is for workers, whatever it says: a reload leaves them as they are.

    Raises:
        ConfigError: with every problem of flags, file and the two together.
    """
    from_file = read_toml(toml or "")
    from_file.problems += problems_of_listeners(from_file, from_file.names)
    from_flags = read_flags(flags)
    problems = from_flags.problems + [f"{file_name}: {line}" for line in from_file.problems]
    routes = {**from_file.routes, **from_flags.routes}
    providers = _by_claim([*from_flags.providers, *from_file.providers])
    proxies = {**from_file.proxies, **from_flags.proxies}
    listen = from_file.listen | from_flags.listen
    is_http_said = HTTP.name in listen
    if activated:
        listen = _with_activated(listen, activated, problems)
    else:
        tls = listen.setdefault(TLS.name, [parse_listen(_DEFAULT_LISTEN)])
        listen.setdefault(HTTP.name, _default_http(tls, routes.values(), providers))
    handed_over = tuple(x.address for x in activated)
    rules, own_rules = _rules(from_flags, from_file, activated, problems)
    settings = {x.key: x.parse(x.default) for x in SETTINGS}
    settings |= from_file.settings | from_flags.settings
    has_numbers = has_workers or settings["workers"] != 1
    # Of what is wrong with the whole only the first kind is said, and none where a part is wrong.
    if problems := (
        problems
        or _problems_together(listen, handed_over, routes.values())
        or [_NO_ROUTES] * (needs_routes and not (routes or providers))
        or _problems_of_numbers(from_file.own_rules if has_numbers else ())
        or _problems_of_weights(routes.values(), settings["balance"])
    ):
        raise ConfigError(problems)
    rest, for_backends = ({x: settings.pop(x) for x in y} for y in (_NO_LIMITS, _FOR_BACKENDS))
    return Config(
        _entrypoints(listen, rules, own_rules),
        tuple(routes.values()),
        Limits(**settings),
        providers=providers,
        without_proxy=frozenset(x for x, proxy in proxies.items() if proxy == OFF),
        handed_over=handed_over,
        backends=BackendDefaults(**for_backends),
        admission=_admission(rules),
        is_http_said=is_http_said,
        written=_written(from_flags, from_file, file_name),
        **rest,
    )


def _written(flags: ConfigSource, file: ConfigSource, file_name: str) -> dict[Pattern, str]:
    """Return where each route is written, and what it is instead of."""
    written = {pattern: f"{place} of {file_name}" for pattern, place in file.places.items()}
    for pattern, place in flags.places.items():
        other = written.get(pattern)
        written[pattern] = place if other is None else f"{place}, which wins over {other}"
    return written


def _by_claim(addresses: Iterable[ProviderAddress]) -> tuple[ProviderAddress, ...]:
    """Return providers, each once, in the order in which they have a claim to a name."""
    addresses = dict.fromkeys(addresses)
    return tuple(address for table in PROVIDERS for address in table.of(addresses))


def with_caddys(config: Config, caddys: Iterable[ProviderAddress]) -> Config:
    """Return what a configuration without Caddys would be with some.

    Nobody typed these, so nothing of them is a problem of the configuration.
    """
    caddys, entries = tuple(dict.fromkeys(caddys)), config.entrypoints
    if not config.is_http_said:
        http = _default_http(config.addresses(TLS), config.routes, caddys)
        entries = tuple(x for x in entries if x.protocol is not HTTP)
        entries += tuple(config.entry_at(address, HTTP) for address in http)
    return replace(config, providers=caddys, entrypoints=entries)


_Rules = dict[str, Any]


def _rules(
    from_flags: ConfigSource,
    from_file: ConfigSource,
    activated: Sequence[Activated],
    problems: list[str],
) -> tuple[_Rules, dict[tuple[str, ListenAddress], _Rules]]:
    """Return the rules for all listeners, and what some have besides, a name among it."""
    rules = from_file.rules | from_flags.rules
    own_rules = dict(from_file.own_rules)
    for (_, address), own in from_file.own_rules.items():
        for x in activated:
            if is_covered(x.address, [address]):
                own_rules |= {(protocol, x.descriptor): own for protocol in PROTOCOLS}
            elif is_covered(address, [x.address]):
                problems.append(
                    f"listen: {address} has a name or rules of its own, but all that comes to "
                    f"{x.address} comes to one socket, which was handed over: give them to that "
                    "address"
                )
    everywhere = [rules, *(rules | own for own in own_rules.values())]
    exempt = [x for x in everywhere if x.get("acme_exempt")]
    if exempt and not any("allow" in x or "deny" in x for x in exempt):
        problems.append(NOT_EXEMPT)
    return rules, own_rules


def _entrypoints(
    listen: Mapping[str, Iterable[ListenAddress]],
    rules: _Rules,
    own_rules: Mapping[tuple[str, ListenAddress], _Rules],
) -> tuple[EntryPoint, ...]:
    entries = []
    for name, protocol in PROTOCOLS.items():
        for address in listen.get(name, ()):
            own = own_rules.get((name, address), {})
            entry = EntryPoint(protocol, address, _admission(rules | own), own.get("name"))
            entries.append(entry)
    return tuple(entries)


def _admission(rules: _Rules) -> Admission | None:
    """Return whom rules let in; None: everybody."""
    lists = {key: value for key, value in rules.items() if key not in ("proxy_from", "name")}
    if not rules.keys() & {"allow", "deny", "proxy_from"}:
        return None
    return Admission(Access(**lists), rules.get("proxy_from"))


def _with_activated(
    listen: Mapping[str, Sequence[ListenAddress]],
    activated: Sequence[Activated],
    problems: list[str],
) -> dict[str, list[ListenAddress]]:
    """Return by protocol the sockets that were handed over, and the addresses that they lack.

    What is listed by its number is for the protocol that it is listed for.
    """
    if listen.get(HTTP.name) == [] and any(x.protocol == HTTP.name for x in activated):
        problems.append("http: off, but a socket for plain HTTP was handed over: leave out one")
    listed = {address for addresses in listen.values() for address in addresses}
    united = {}
    for name in PROTOCOLS:
        own = [x for x in activated if x.protocol == name and x.descriptor not in listed]
        covered = [x.address for x in own]
        rest = (x for x in listen.get(name, ()) if not is_covered(x, covered))
        united[name] = [*(x.descriptor for x in own), *rest]
    return united


def _default_http(
    listen: Iterable[ListenAddress], routes: Iterable[Route], providers: Sequence[ProviderAddress]
) -> list[ListenAddress]:
    """Port 80 beside port 443, for routes that have something there, as a provider's may have.

    None where port 80 was given to TLS: what nobody asked for is in nobody's way.
    """
    ports = {address.port for address in listen if isinstance(address, TcpAddress)}
    beside = TLS.default_port in ports and HTTP.default_port not in ports
    if beside and (providers or any(HTTP.name in route.targets for route in routes)):
        return [parse_listen(_DEFAULT_HTTP)]
    return []


def _problems_of_numbers(own_rules: Iterable[tuple[str, ListenAddress]]) -> list[str]:
    """Rules that workers would not find: each of them has a number of its own for a descriptor."""
    return [
        f"listen: {address} has a name or rules of its own, which workers do not know by its "
        "number: give them to the address that it listens on, or the rules to all listeners"
        for _, address in own_rules
        if isinstance(address, FdAddress)
    ]


def _problems_of_weights(routes: Iterable[Route], balance: str) -> list[str]:
    """Weights that nothing heeds."""
    return [
        f"the route of {route.pattern} has weights, which balance = first does not heed; "
        "balance = round_robin, least_conn and ip_hash do"
        for route in routes
        if any(x.weights and (x.balance or balance) == "first" for x in route.backends)
    ]


def _problems_together(
    listen: Mapping[str, Sequence[ListenAddress]],
    handed_over: Sequence[ListenAddress],
    routes: Iterable[Route],
) -> list[str]:
    entries = [(name, address) for name in PROTOCOLS for address in listen.get(name, ())]
    problems = [
        f"{LISTEN_KEYS[name]}: {address} is covered by {other} already, where "
        f"{PROTOCOLS[first].label} is listened for"
        for (first, other), (name, address) in combinations(entries, 2)
        if name != first and overlaps(address, other)
    ]
    own = [*(address for _, address in entries), *handed_over]
    return problems + [
        f"the route of {route.pattern} goes to {address}, where snimux itself listens: "
        "each connection would come back to it without end"
        for route in routes
        for backend in route.backends
        for address in backend.addresses
        if is_own(own, address)
    ]
