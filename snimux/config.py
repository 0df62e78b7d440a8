"""Flags and TOML text -> one frozen ``Config``, or every problem with them at once.

Flags and file say the same things in the same words: a flag ``--hello-timeout`` is the key
``hello_timeout``. Flags win: a setting or a pattern given by flag replaces the file's.

Reads no file, opens no socket and looks up no name: text comes in, a value goes out.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

from snimux import hostname
from snimux.address import (
    AddressError,
    AdminAddress,
    FdAddress,
    ListenAddress,
    TcpAddress,
    parse_admin,
    parse_dial,
    parse_listen,
)
from snimux.client_hello import DEFAULT_MAX_HELLO, TLS
from snimux.http_head import HTTP
from snimux.overlap import is_covered, is_own, is_same, overlaps
from snimux.proxy_header import Version
from snimux.routes import Backend, Pattern, PatternError, Route, parse_pattern
from snimux.settings import SETTINGS, Setting, choice, shown

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; ``problems`` has one line for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a connection may cost; times in seconds, ``math.inf`` where off."""

    hello_timeout: float = 5.0
    max_hello: int = DEFAULT_MAX_HELLO
    dial_timeout: float = 5.0
    idle_timeout: float = 3600.0
    max_connections: int | None = None
    """None: as many as the descriptor limit allows."""
    max_connections_per_source: int | None = None
    """None: no limit."""
    drain: float = 30.0


@dataclass(frozen=True, slots=True)
class Activated:
    """A listening socket that was handed over, as by systemd's socket activation."""

    descriptor: FdAddress
    protocol: str
    """What is to be served on it."""
    address: ListenAddress
    """Where it listens."""


@dataclass(frozen=True, slots=True)
class Config:
    """All that snimux is told."""

    listen: tuple[ListenAddress, ...]
    routes: tuple[Route, ...]
    limits: Limits
    relay: str
    log_format: str
    log_level: str
    http: tuple[ListenAddress, ...] = ()
    """Where to listen for plain HTTP."""
    caddys: tuple[AdminAddress, ...] = ()
    """Where to ask for further routes; the first has a name that several have."""
    workers: int | None = 1
    """None: as many as there are processors for this process."""
    without_proxy: frozenset[AdminAddress] = frozenset()
    """The Caddys of those whose sites are sent no PROXY protocol header in any case."""
    handed_over: tuple[ListenAddress, ...] = ()
    """Where what was handed over listens; ``listen`` and ``http`` have the descriptors."""
    is_http_said: bool = field(default=False, compare=False)
    """Whether ``http`` is what was told, off included, and not what follows from the rest."""


_DEFAULT_LISTEN = f":{TLS.default_port}"
_DEFAULT_HTTP = f":{HTTP.default_port}"
_OFF = "off"
_FILE_KEYS = (
    "listen", "http", "route", "default", "caddy", *(setting.key for setting in SETTINGS)
)  # fmt: skip
_NO_LIMITS = ("relay", "log_format", "log_level", "workers")
_ROUTE_KEYS = ("hosts", "to", "proxy", "http", "http_proxy")
_CADDY_KEYS = ("admin", "proxy")
_PROXIES = ("v1", "v2", "auto", _OFF)
_CADDY_PROXIES = ("auto", _OFF)


@dataclass(slots=True)
class _Source:
    """What one source (the flags, or a file) says, and what is wrong with it."""

    problems: list[str] = field(default_factory=list)
    listen: list[ListenAddress] = field(default_factory=list)
    http: list[ListenAddress] | None = None
    """None: not given; empty: off."""
    routes: dict[Pattern, Route] = field(default_factory=dict)
    places: dict[Pattern, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    caddys: list[AdminAddress] = field(default_factory=list)
    caddy_proxies: dict[AdminAddress, str] = field(default_factory=dict)
    """What is said of the PROXY protocol for some of them, auto or off."""

    def attempt(self, where: str, parse: Callable[[Any], T], value: object) -> T | None:
        """The parsed value; None where it is wrong, which is noted."""
        try:
            return parse(value)
        except (AddressError, PatternError) as error:
            self.problems.append(f"{where}: {shown(value)}: {error}")
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
        return None

    def attempt_all(self, where: str, parse: Callable[[str], T], values: Iterable[str]) -> list[T]:
        parsed = [self.attempt(where, parse, value) for value in values]
        return [value for value in parsed if value is not None]

    def add_listen(self, where: str, values: Iterable[str]) -> None:
        self.listen += self.listeners(where, values)

    def add_http(self, where: str, values: Sequence[str]) -> None:
        if _OFF in values and len(values) > 1:
            self.problems.append(f"{where}: off goes alone, without an address")
        addresses = [value for value in values if value != _OFF]
        self.http = self.listeners(where, addresses)

    def listeners(self, where: str, values: Iterable[str]) -> list[ListenAddress]:
        """The addresses, which must not overlap."""
        found: list[ListenAddress] = []
        for address in self.attempt_all(where, parse_listen, values):
            for other in found:
                if overlaps(address, other):
                    self.problems.append(f"{where}: {address} is covered by {other} already")
            found.append(address)
        return found

    def backend(self, where: str, to: Iterable[str], proxy: str | None) -> Backend:
        addresses = tuple(self.attempt_all(where, parse_dial, to))
        given = None if proxy == _OFF else proxy
        return Backend(addresses, cast(Version | Literal["auto"] | None, given))

    def add_caddys(self, where: str, values: Iterable[str], proxy: str | None) -> None:
        for address in self.attempt_all(where, parse_admin, values):
            for other in self.caddys:
                if is_same(address, other):
                    again = "" if address == other else f", as {other}"
                    self.problems.append(f"{where}: {address} is given twice{again}")
            self.caddys.append(address)
            if proxy in _CADDY_PROXIES:
                self.caddy_proxies[address] = proxy

    def add_route(
        self,
        where: str,
        hosts: Sequence[str],
        backend: Backend | None,
        http: Backend | None = None,
    ) -> None:
        for pattern in self.attempt_all(where, parse_pattern, hosts):
            if http is not None and pattern.alpn is not None:
                self.problems.append(
                    f"{where}: http: plain HTTP has no ALPN protocol, so it cannot be for "
                    f"{pattern}; give http in a route for {pattern.host}"
                )
            if pattern in self.routes:
                again = " (the default is it, too)" if str(pattern) == hostname.ANY else ""
                first = self.places[pattern]
                self.problems.append(
                    f"{where}: the pattern {pattern}{again} is given twice, first in {first}"
                )
            self.places.setdefault(pattern, where)
            self.routes.setdefault(pattern, Route(pattern, backend, http))


def load(
    flags: Mapping[str, Any],
    file_name: str = "",
    toml: str | None = None,
    *,
    activated: Sequence[Activated] = (),
    needs_routes: bool = True,
) -> Config:
    """Read the configuration.

    Args:
        flags: values as typed, by flag name with underscores: ``listen``, ``http`` and ``route``
            are sequences of strings, all others strings; absent, None and empty are not given.
        file_name: what to call the file in messages.
        toml: the file's text; None where there is none.
        activated: sockets that were handed over. They are instead of the default addresses, and of
            whichever given address they cover; other given addresses are listened on besides.
        needs_routes: whether to have neither routes nor Caddys is a problem.

    Raises:
        ConfigError: with every problem of flags, file and the two together.
    """
    from_file = _read_toml(file_name, toml)
    from_flags = _read_flags(flags)
    problems = from_flags.problems + [f"{file_name}: {line}" for line in from_file.problems]
    default = [] if activated else [parse_listen(_DEFAULT_LISTEN)]
    listen = from_flags.listen or from_file.listen or default
    routes = {**from_file.routes, **from_flags.routes}
    caddys = tuple(dict.fromkeys([*from_flags.caddys, *from_file.caddys]))
    caddy_proxies = {**from_file.caddy_proxies, **from_flags.caddy_proxies}
    given = from_file.http if from_flags.http is None else from_flags.http
    is_http_said = given is not None
    if given is None:
        given = [] if activated else _default_http(listen, routes.values(), caddys)
    elif not given and any(x.protocol == HTTP.name for x in activated):
        problems.append("http: off, but a socket for plain HTTP was handed over: leave out one")
    # Those that are listed by number are what they are listed as.
    unlisted = [x for x in activated if x.descriptor not in (*listen, *given)]
    listen = _with_activated(listen, [x for x in unlisted if x.protocol == TLS.name])
    http = _with_activated(given, [x for x in unlisted if x.protocol == HTTP.name])
    handed_over = tuple(x.address for x in activated)
    if not problems and (needs_routes or routes or caddys):
        problems = _problems_together(listen, http, handed_over, routes.values(), caddys)
    if problems:
        raise ConfigError(problems)
    settings = {x.key: x.parse(x.default) for x in SETTINGS}
    settings |= from_file.settings | from_flags.settings
    rest = {key: settings.pop(key) for key in _NO_LIMITS}
    return Config(
        tuple(listen),
        tuple(routes.values()),
        Limits(**settings),
        http=tuple(http),
        caddys=caddys,
        without_proxy=frozenset(x for x, proxy in caddy_proxies.items() if proxy == _OFF),
        handed_over=handed_over,
        is_http_said=is_http_said,
        **rest,
    )


def with_found(config: Config, caddys: Iterable[AdminAddress]) -> Config:
    """What a configuration without Caddys would be with those that were found.

    Nobody typed these, so nothing of them is a problem of the configuration.
    """
    found, http = tuple(dict.fromkeys(caddys)), config.http
    if not config.is_http_said:
        http = tuple(_default_http(config.listen, config.routes, found))
    return replace(config, caddys=found, http=http)


def _with_activated(
    given: Iterable[ListenAddress], activated: Sequence[Activated]
) -> list[ListenAddress]:
    """Sockets that were handed over, and the addresses given that they do not cover."""
    there = [x.address for x in activated]
    besides = [address for address in given if not is_covered(address, there)]
    return [*(x.descriptor for x in activated), *besides]


def _default_http(
    listen: Iterable[ListenAddress], routes: Iterable[Route], caddys: Sequence[AdminAddress]
) -> list[ListenAddress]:
    """Port 80 beside port 443, for routes that have something to say there, as a Caddy's have."""
    beside = any(isinstance(x, TcpAddress) and x.port == TLS.default_port for x in listen)
    if beside and (caddys or any(route.http for route in routes)):
        return [parse_listen(_DEFAULT_HTTP)]
    return []


def _read_flags(flags: Mapping[str, Any]) -> _Source:
    source = _Source()
    proxy = flags.get("proxy_protocol")
    if proxy is not None:
        proxy = source.attempt("--proxy-protocol", choice(*_PROXIES), proxy)
    source.add_listen("--listen", flags.get("listen") or ())
    if flags.get("http"):
        source.add_http("--http", flags["http"])
    for text in flags.get("route") or ():
        hosts, equals, to = text.partition("=")
        if not (hosts and equals and to):
            source.problems.append(
                f"--route: {shown(text)} is not HOST[,HOST...]=ADDR[,ADDR...], "
                "such as secure.example.com=127.0.0.1:8443"
            )
        else:
            backend = source.backend("--route", _split(to), proxy)
            source.add_route("--route", _split(hosts), backend)
    source.add_caddys("--caddy", flags.get("caddy") or (), proxy)
    default = flags.get("default")
    if default is not None:
        backend = source.backend("--default", _split(default), proxy)
        source.add_route("--default", [hostname.ANY], backend)
    is_heeded = source.places or source.caddy_proxies
    if proxy is not None and not is_heeded and not source.problems:
        others = "; for --caddy it is auto or off" if source.caddys else ""
        source.problems.append(
            f"--proxy-protocol: is for --route and --default, and there is none{others}; "
            'in the file, write proxy = "..." in a [[route]]'
        )
    for setting in SETTINGS:
        text = flags.get(setting.key)
        if text is not None:
            _read_setting(source, setting.flag, setting, _number_or_word(text))
    return source


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _number_or_word(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _read_setting(source: _Source, where: str, setting: Setting, value: object) -> None:
    source.settings[setting.key] = source.attempt(where, setting.parse, value)


def _read_toml(file_name: str, toml: str | None) -> _Source:
    source = _Source()
    try:
        document = tomllib.loads(toml or "")
    except ValueError as error:  # TOMLDecodeError; or a number of thousands of digits
        source.problems.append(f"not TOML: {error}")
        return source
    except RecursionError:
        source.problems.append("not TOML that can be read: nested too deep")
        return source
    _check_keys(source, "", document, _FILE_KEYS)
    if "listen" in document:
        source.add_listen("listen", _strings(source, "listen", document["listen"]))
    if "http" in document:
        source.add_http("http", _strings(source, "http", document["http"]))
    for number, table in enumerate(_tables(source, "route", document), 1):
        _read_route(source, f"route {number}", table)
    for number, table in enumerate(_tables(source, "caddy", document), 1):
        _read_caddy(source, f"caddy {number}", table)
    if "default" in document:
        to = _strings(source, "default", document["default"])
        source.add_route("default", [hostname.ANY], source.backend("default", to, None))
    for setting in SETTINGS:
        if setting.key in document:
            _read_setting(source, setting.key, setting, document[setting.key])
    return source


def _read_route(source: _Source, where: str, table: Mapping[str, object]) -> None:
    _check_keys(source, f"{where}: ", table, _ROUTE_KEYS)
    if "hosts" not in table:
        source.problems.append(f"{where}: hosts is missing")
    if "to" not in table and "http" not in table:
        source.problems.append(f"{where}: to is missing")
    for proxy_key, key in (("proxy", "to"), ("http_proxy", "http")):
        if proxy_key in table and key not in table:
            source.problems.append(f"{where}: {proxy_key}: is for {key}, and there is none")
    hosts = _strings(source, f"{where}: hosts", table.get("hosts", ["absent"]))
    backend = _read_backend(source, where, table, "to", "proxy")
    http = _read_backend(source, where, table, "http", "http_proxy")
    if "hosts" in table:
        source.add_route(where, hosts, backend, http)


def _read_backend(
    source: _Source, where: str, table: Mapping[str, object], key: str, proxy_key: str
) -> Backend | None:
    """The backend that two keys of a route describe; None where it has none."""
    proxy = None
    if proxy_key in table:
        proxy = source.attempt(f"{where}: {proxy_key}", choice(*_PROXIES), table[proxy_key])
    if key not in table:
        return None
    to = _strings(source, f"{where}: {key}", table[key])
    return source.backend(where if key == "to" else f"{where}: {key}", to, proxy)


def _read_caddy(source: _Source, where: str, table: Mapping[str, object]) -> None:
    _check_keys(source, f"{where}: ", table, _CADDY_KEYS)
    admin, proxy = table.get("admin"), None
    if "proxy" in table:
        proxy = source.attempt(f"{where}: proxy", choice(*_CADDY_PROXIES), table["proxy"])
    if isinstance(admin, str):
        source.add_caddys(f"{where}: admin", [admin], proxy)
    elif admin is None:
        source.problems.append(f"{where}: admin is missing")
    else:
        source.problems.append(f"{where}: admin: {shown(admin)} is not a string")


def _check_keys(
    source: _Source, where: str, table: Mapping[str, object], known: Sequence[str]
) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key.lower().replace("-", "_"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            source.problems.append(f"{where}unknown key {shown(key)}; {hint}")


def _tables(
    source: _Source, key: str, document: Mapping[str, object]
) -> list[Mapping[str, object]]:
    value = document.get(key, [])
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    source.problems.append(f"{key}: {key}s are tables, each headed [[{key}]]")
    return []


def _strings(source: _Source, where: str, value: object) -> list[str]:
    """One string or a list of them; anything else is noted, and so is an empty list."""
    values = [value] if isinstance(value, str) else value
    if isinstance(values, list) and values and all(isinstance(item, str) for item in values):
        return values
    source.problems.append(f"{where}: {shown(value)} is not a string or a list of strings")
    return []


def _problems_together(
    listen: Sequence[ListenAddress],
    http: Sequence[ListenAddress],
    handed_over: Sequence[ListenAddress],
    routes: Iterable[Route],
    caddys: Sequence[AdminAddress],
) -> list[str]:
    routes = list(routes)
    if not (routes or caddys):
        return [
            "no routes: give --route HOST=ADDR, --default ADDR, --caddy ADDR or --config FILE; "
            "see --help"
        ]
    problems = [
        f"http: {address} is covered by {other} already, where TLS is listened for"
        for address in http
        for other in listen
        if overlaps(address, other)
    ]
    return problems + [
        f"the route of {route.pattern} goes to {address}, where snimux itself listens: "
        "each connection would come back to it without end"
        for route in routes
        for backend in (route.backend, route.http)
        if backend is not None
        for address in backend.addresses
        if is_own((*listen, *http, *handed_over), address)
    ]
