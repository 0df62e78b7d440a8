"""Derive what a Caddy serves, and where, from the JSON of its running configuration.

Caddy derives much that the JSON does not say: which servers speak TLS, and on which ports; the
server for redirects on the HTTP port. The same is derived here, by the same rules. What no route
can be made of is told, with the reason.

Takes any JSON value whatever, and raises nothing. Knows no socket, no file and no clock: ``admin``
gets the JSON.

Source: Caddy 2.6.2 and 2.11.7, modules/caddyhttp/autohttps.go (automaticHTTPSPhase1), app.go
(Start, for what makes a listener speak TLS) and listeners.go (ParseNetworkAddress).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from snimux.proto import hostname
from snimux.providers.base import Site, Unrouted
from snimux.providers.caddy.sites import Sites, TlsServer
from snimux.providers.merge import places
from snimux.routing.address import AddressError, DialAddress, TcpAddress, parse_dial
from snimux.routing.served import ProxyProtocol, Served
from snimux.text import brief

_HTTP_PORT, _HTTPS_PORT = 80, 443  # Caddy's, where its configuration names none

# Addresses of a site in plain. No real one has more; thousands of servers would cost their square.
_MOST = 16

_LONGEST_NAME = 80  # characters, in a line

# Hosts that stand for every interface of a kind, and where such a listener is dialled.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def read(config: object) -> Sites:
    """Read the JSON value of Caddy's ``/config/``; of what has not the shape, nothing is read."""
    apps = _mapping(_mapping(config).get("apps"))
    http, tls = _mapping(apps.get("http")), _mapping(apps.get("tls"))
    ports = _Ports(
        _port(http.get("http_port"), _HTTP_PORT), _port(http.get("https_port"), _HTTPS_PORT)
    )
    servers = [
        _server(_mapping(raw), ports) for _, raw in sorted(_mapping(http.get("servers")).items())
    ]
    # A name on several ports is looked for on the HTTPS port first, as clients do.
    servers.sort(key=lambda server: not any(x.has(ports.https) for x in server.listen))
    return _Reader(servers, ports, tls).read()


@dataclass(frozen=True, slots=True)
class _Ports:
    http: int
    https: int


@dataclass(frozen=True, slots=True)
class _Network:
    """One of Caddy's network addresses; ports are 0 where there is none."""

    text: str
    network: str
    host: str
    first: int
    last: int

    def has(self, port: int) -> bool:
        return self.first <= port <= self.last

    @property
    def is_tcp(self) -> bool:
        return self.network in ("tcp", "tcp4", "tcp6")

    def dialled(self, port: int) -> DialAddress:
        """Return where to dial it; raise ValueError with the reason why it cannot be."""
        if "{" in self.text:
            raise AddressError("has a placeholder, which only Caddy can resolve")
        if self.network == "unix":
            if not self.host.isprintable():
                raise AddressError("has a character that cannot be printed")
            # Behind the bar are the permissions of the socket's file.
            return parse_dial(f"unix/{self.host.partition('|')[0]}")
        if not self.is_tcp:
            raise AddressError(f"{brief(self.network, _LONGEST_NAME)}/ cannot be dialled")
        if not port:
            raise AddressError("has no port that is known")
        wild = self.host if self.host or self.network != "tcp6" else "::"
        host = _LOOPBACK.get(wild, self.host)
        return parse_dial(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def _network(text: str) -> _Network:
    network, slash, rest = text.partition("/")
    network = network.strip().lower() if slash else "tcp"
    if network.startswith(("unix", "fd")):
        return _Network(text, network, rest, 0, 0)
    host, _, port = (rest if slash else text).rpartition(":")
    first, _, last = port.partition("-")
    numbers = [int(x) if re.fullmatch("[0-9]{1,5}", x) else 0 for x in (first, last or first)]
    return _Network(text, network, host.removeprefix("[").removesuffix("]"), *numbers)


@dataclass(frozen=True, slots=True)
class _Server:
    """One of Caddy's HTTP servers, as automatic HTTPS leaves it."""

    listen: tuple[_Network, ...]
    hosts: tuple[str, ...]
    """Patterns as they are written, of routes and connection policies."""
    has_catch_all: bool
    is_tls: bool
    """On all ports but the HTTP port."""
    redirects: bool
    """Has a server for redirects on the HTTP port of each of its hosts."""
    proxy_protocol: ProxyProtocol | None
    http3: bool
    strict_sni_host: bool

    @property
    def plain_wrapper(self) -> ProxyProtocol | None:
        """Return the wrapper where there is no handshake that it could be behind."""
        wrapper = self.proxy_protocol
        return wrapper and replace(wrapper, before_tls=True)

    def tls_ports(self, ports: _Ports) -> list[tuple[_Network, int]]:
        """Return where TLS is spoken, with the port (0 without ports)."""
        # Never on the HTTP port, whatever the policies say; of a range one port is enough.
        firsts = [(where, where.first + (where.first == ports.http)) for where in self.listen]
        return [(where, port) for where, port in firsts if self.is_tls and where.has(port)]

    def plain_ports(self, ports: _Ports) -> list[tuple[_Network, int]]:
        """Return where plain HTTP is spoken, with the port (0 without ports)."""
        on_http = [(where, ports.http) for where in self.listen if where.has(ports.http)]
        return on_http or [(where, where.first) for where in self.listen if not self.is_tls]


def _dialled(
    places: Iterable[tuple[_Network, int]], wrapper: ProxyProtocol | None
) -> tuple[tuple[Served, ...], list[str]]:
    """Return where places with their ports can be dialled, and why others cannot."""
    listeners, faults = [], []
    for where, port in places:
        try:
            listeners.append(Served(where.dialled(port), wrapper))
        except ValueError as error:
            faults.append(f"the listener {brief(where.text, _LONGEST_NAME)}: {error}")
    return _once(listeners), faults


def _server(raw: Mapping[str, Any], ports: _Ports) -> _Server:
    listen = tuple(_network(text) for text in _strings(raw.get("listen")) if text)
    automatic = _mapping(raw.get("automatic_https"))
    policies = raw.get("tls_connection_policies")
    matches = [
        _mapping(match)
        for route in _list(raw.get("routes"))
        for match in _list(_mapping(route).get("match")) or [{}]
    ]
    hosts = [host for match in matches for host in _strings(match.get("host"))]
    skipped = set(_strings(automatic.get("skip")))
    is_automatic = automatic.get("disable") is not True and not all(
        where.has(ports.http) for where in listen
    )
    # Caddy speaks TLS where a server has a connection policy. Automatic HTTPS gives one to a server
    # for which none is said (null; [] is none, said): if a host of it may have a certificate, or if
    # it is on the HTTPS port alone. It leaves those alone that are on the HTTP port alone.
    qualify = [host for host in hosts if host not in skipped]
    only_https = all(where.has(ports.https) for where in listen)
    is_tls = bool(_list(policies)) or (
        is_automatic and policies is None and (bool(qualify) or only_https)
    )
    sni = [
        host
        for policy in _list(policies)
        for host in _strings(_mapping(_mapping(policy).get("match")).get("sni"))
    ]
    return _Server(
        listen,
        tuple(dict.fromkeys([*hosts, *(sni if is_tls else ())])),
        has_catch_all=any(not _strings(match.get("host")) for match in matches),
        is_tls=is_tls,
        redirects=is_tls and is_automatic and automatic.get("disable_redirects") is not True,
        proxy_protocol=_proxy_protocol(_list(raw.get("listener_wrappers"))),
        http3=_has_http3(raw),
        strict_sni_host=_is_strict(raw),
    )


def _has_http3(raw: Mapping[str, Any]) -> bool:
    of_all = raw.get("protocols") or ["h1", "h2", "h3"]
    of_each = _list(raw.get("listen_protocols")) or [None]
    return any("h3" in _strings(own if own is not None else of_all) for own in of_each)


def _is_strict(raw: Mapping[str, Any]) -> bool:
    strict = raw.get("strict_sni_host")
    policies = map(_mapping, _list(raw.get("tls_connection_policies")))
    return strict is True or (
        strict is None and any(policy.get("client_authentication") for policy in policies)
    )


def _tls_server(server: _Server, ports: _Ports) -> TlsServer:
    places = server.tls_ports(ports)
    hidden = (ports.http, ports.https, _HTTP_PORT, _HTTPS_PORT)
    shown = [
        port for where, port in places if where.is_tcp and 0 < port < 65536 and port not in hidden
    ]
    return TlsServer(
        _dialled(places, server.proxy_protocol)[0],
        shown[0] if shown and server.redirects else None,
        server.http3 and any(where.is_tcp for where, _ in places),
        server.strict_sni_host,
    )


def _proxy_protocol(wrappers: Sequence[object]) -> ProxyProtocol | None:
    before_tls = any(_mapping(wrapper).get("wrapper") == "tls" for wrapper in wrappers)
    for wrapper in map(_mapping, wrappers):
        if wrapper.get("wrapper") == "tls":
            before_tls = False
        if wrapper.get("wrapper") == "proxy_protocol":
            policy = wrapper.get("fallback_policy")
            return ProxyProtocol(
                tuple(_strings(wrapper.get("allow"))),
                tuple(_strings(wrapper.get("deny"))),
                policy.upper() if isinstance(policy, str) and policy else "IGNORE",
                before_tls,
            )
    return None


@dataclass(slots=True)
class _Reader:
    """A pass through the servers, HTTPS port first, and what it has seen until now."""

    servers: Sequence[_Server]
    ports: _Ports
    tls: Mapping[str, Any]
    sites: dict[str, Site] = field(default_factory=dict)
    unrouted: dict[Unrouted, None] = field(default_factory=dict)
    plain: dict[str, tuple[Served, ...]] = field(default_factory=dict)
    """By pattern: where it is served in plain by routes of its own."""
    public_names: tuple[str, ...] = ()
    """Those of Encrypted Client Hello that have no site yet."""
    any_plain: dict[Served, None] = field(default_factory=dict)
    """Where any name is: each HTTP server of a Caddy answers all its ACME challenges."""
    on_http: dict[str, dict[DialAddress, Served]] = field(default_factory=dict)
    """By host as it is written: who listens on the HTTP port; the first of each address."""
    redirects_of: dict[str, list[Served]] = field(default_factory=dict)
    """By host as it is written: where the redirects are."""

    def read(self) -> Sites:
        public_names = self.public_names = self.ech_public_names()
        for server in self.servers:
            self.read_plain(server)
        for server in self.servers:
            self.any_plain |= dict.fromkeys(self.redirects(server))
        for server in self.servers:
            self.read_tls(server)
        for host, listeners in self.plain.items():
            self.sites.setdefault(host, Site(host, (), listeners))
        return Sites(
            tuple(self.sites.values()),
            tuple(self.unrouted),
            public_names,
            tuple(_tls_server(server, self.ports) for server in self.servers if server.is_tls),
            self.on_demand(),
        )

    def read_plain(self, server: _Server) -> None:
        listeners, _ = _dialled(server.plain_ports(self.ports), server.plain_wrapper)
        for where in server.listen:
            if where.is_tcp and where.has(self.ports.http):
                on_http, _ = _dialled([(where, self.ports.http)], server.plain_wrapper)
                for listener in on_http:
                    self.on_http.setdefault(where.host, {}).setdefault(listener.address, listener)
        for host in self.patterns(server.hosts) if listeners else ():
            self.plain.setdefault(host, listeners)
        # Another port in plain is somebody's own affair: challenges and visitors come to this one.
        self.any_plain |= dict.fromkeys(
            listener
            for listener in listeners
            if not isinstance(listener.address, TcpAddress)
            or listener.address.port == self.ports.http
        )

    def read_tls(self, server: _Server) -> None:
        listeners, faults = _dialled(server.tls_ports(self.ports), server.proxy_protocol)
        if not listeners:
            for host in (server.hosts or ("a catch-all",)) if faults else ():
                self.unrouted.setdefault(Unrouted(brief(host, _LONGEST_NAME), faults[0]))
            return
        where, addresses = places(listeners), tuple(x.address for x in listeners)
        if server.has_catch_all:
            kind = "on-demand TLS" if self.on_demand() else "a catch-all"
            why = f"serves whatever name comes ({kind})"
            self.unrouted.setdefault(Unrouted(where, why, at=addresses))
        automated = _strings(_mapping(self.tls.get("certificates")).get("automate"))
        redirects = self.redirects(server) or tuple(islice(self.any_plain, _MOST))
        for host in self.patterns([*server.hosts, *(automated if server.has_catch_all else ())]):
            first = self.sites.get(host)
            if first is None:
                self.sites[host] = Site(host, listeners, self.http(host) or redirects)
            elif first.https != listeners:
                why = f"another site of the name, on {places(first.https)}, has the route"
                self.unrouted.setdefault(Unrouted(f"{host} on {where}", why, host, addresses))
        # Whichever server it is, all know the keys; so it is the first.
        public_names, self.public_names = self.public_names, ()
        for host in self.patterns(public_names):
            self.sites.setdefault(host, Site(host, listeners, self.http(host) or redirects))

    def http(self, host: str) -> tuple[Served, ...]:
        """Return where a pattern is served in plain by routes of its own."""
        if host.startswith("*"):
            return self.plain.get(host, ())
        patterns = hostname.patterns_matching(host)
        return next((self.plain[p] for p in patterns if p in self.plain), ())

    def redirects(self, server: _Server) -> tuple[Served, ...]:
        """Return where automatic HTTPS serves a server's redirects: its hosts, on the HTTP port.

        A server that listens there already gets them; on Linux that is also one that listens on
        every interface where this one has an address, or the other way round.
        """
        # On a UNIX socket they are behind the TLS, as all is there.
        own = [where for where in server.listen if where.is_tcp] if server.redirects else []
        redirects: dict[DialAddress, Served] = {}
        for where in own:
            if where.host not in self.redirects_of:
                hosts = [where.host, ""] if where.host else list(self.on_http)
                near = (x for host in hosts for x in self.on_http.get(host, {}).values())
                own_server, _ = _dialled([(where, self.ports.http)], None)
                self.redirects_of[where.host] = [*islice(near, _MOST - 1), *own_server]
            for listener in self.redirects_of[where.host]:
                redirects.setdefault(listener.address, listener)
        return tuple(redirects.values())

    def patterns(self, hosts: Iterable[str]) -> Iterator[str]:
        """Return the canonical spelling of those that a route can have; note the others."""
        for host in hosts:
            try:
                yield _pattern(host)
            except hostname.HostnameError as error:
                what = brief(host, _LONGEST_NAME) if host else "a site without a name"
                self.unrouted.setdefault(Unrouted(what, str(error)))

    def on_demand(self) -> bool:
        policies = _list(_mapping(self.tls.get("automation")).get("policies"))
        return any(_mapping(policy).get("on_demand") is True for policy in policies)

    def ech_public_names(self) -> tuple[str, ...]:
        hello = _mapping(self.tls.get("encrypted_client_hello"))
        configs = map(_mapping, _list(hello.get("configs")))
        names = [config.get("public_name") for config in configs]
        return tuple(dict.fromkeys(name for name in names if isinstance(name, str)))


def _pattern(host: str) -> str:
    if not host:  # Caddy 2.11.7 serves nobody by it, unlike a site that names no host at all
        raise hostname.HostnameError("its name is empty, and no client asks for that")
    if "{" in host:
        raise hostname.HostnameError("has a placeholder, which only Caddy can resolve")
    if host.startswith("**") or host == "*" or "*" in host.removeprefix("*."):
        raise hostname.HostnameError("a * that is not one label at the front")
    try:
        return hostname.pattern_from_user(host)
    except hostname.HostnameError as error:
        is_ip = "IP address" in str(error)
        why = "an IP address, for which clients send no name" if is_ip else str(error)
        raise hostname.HostnameError(why) from None


def _once(listeners: Iterable[Served]) -> tuple[Served, ...]:
    return tuple(dict.fromkeys(listeners))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _strings(value: object) -> list[str]:
    return [item for item in _list(value) if isinstance(item, str)]


def _port(value: object, default: int) -> int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 < value < 65536 else default  # type: ignore[operator, return-value]
