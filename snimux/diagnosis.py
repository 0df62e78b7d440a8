"""What was found out about a host, judged: each thing green, yellow or red, and what mends it.

Red: some requests fail, or go to the wrong server. Yellow: it works, but not as it should, or not
for long. Every finding says what it means, and has the very lines that mend it.

Facts come in, findings go out; nothing here looks at anything.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from enum import StrEnum

from snimux import hostname
from snimux.address import DialAddress, FileAddress, ListenAddress, TcpAddress, UnixAddress
from snimux.advice import PROXY, QUIET, STRICT, Place, is_everywhere, places
from snimux.caddy import Listener, ProxyProtocol, Sites, TlsServer
from snimux.config import is_own
from snimux.facts import (
    Caddy,
    Certificate,
    Contact,
    Down,
    Facts,
    NoHandshake,
    Port,
    Process,
    Unread,
)
from snimux.routes import Backend, RouteTable

# Caddy renews when a third of the lifetime is left, and looks every ten minutes; certbot does when
# a third of 90 days is left. What has less was due for some time.
_DUE = 0.3

_LISTED = 6  # of names, in a line

_SEND = 'snimux --proxy-protocol auto  # or proxy = "auto" in the file'
_SEE = ("sudo snimux doctor  # to see whose",)
_HIDDEN = "It logs 127.0.0.1 as the client of every request."


class Colour(StrEnum):
    """How bad it is."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and how it is.

    Args:
        check: which kind of thing; a word that stays the same.
        colour: how it is.
        about: the address, name or Caddyfile that it is about.
        title: one line: what is so.
        meaning: what comes of it.
        remedy: lines for a Caddyfile, or commands; comments say where they go.
    """

    check: str
    colour: Colour
    about: str
    title: str
    meaning: str = ""
    remedy: tuple[str, ...] = ()


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Judge all that was found out; what is worst comes first. Raises nothing."""
    found = [
        *_shared_ports(facts),
        *_own_ports(facts),
        *_http3_ports(facts),
        *_caddys(facts),
        *_claims(facts),
        *_loops(facts),
        *_servers(facts),
        *_open_ports(facts),
        *_proxies(facts),
        *_contacts(facts),
        *_coalescing(facts),
    ]
    worst_first = (Colour.RED, Colour.YELLOW, Colour.GREEN)
    return tuple(
        sorted(dict.fromkeys(found), key=lambda finding: worst_first.index(finding.colour))
    )


# --- who listens where


def _shared_ports(facts: Facts) -> Iterator[Finding]:
    for port in facts.ports:
        if len(port.holders) > 1 and port.kind == "tcp" and _concerns(facts, port):
            yield (_shared_admin if _is_admin(facts, port) else _shared_port)(facts, port)


def _shared_admin(facts: Facts, port: Port) -> Finding:
    return Finding(
        "admin-shared",
        Colour.RED,
        str(port.address),
        f"{len(port.holders)} processes have one admin address, {port.address}: {_all(port)}",
        "Each question, and each `caddy reload`, reaches one of them at random.",
        _for_each(facts, port, lambda place: f"admin {place.admin}"),
    )


def _shared_port(facts: Facts, port: Port) -> Finding:
    def line(place: Place) -> str:
        is_plain = _is_plain(facts, port)
        return f"http_port {place.http}" if is_plain else f"https_port {place.https}"

    return Finding(
        "port-shared",
        Colour.RED,
        str(port.address),
        f"{len(port.holders)} processes share port {_number(port)}: {_all(port)}",
        "Connections are dealt out among them at random (SO_REUSEPORT), so requests reach the "
        "wrong one, and fail. Nothing says so.",
        _for_each(facts, port, line),
    )


def _concerns(facts: Facts, port: Port) -> bool:
    own = {caddy.process for caddy in facts.caddys if caddy.process}
    return (
        bool(own & set(port.holders))
        or any(_meets(own, port) for own in facts.listen)
        or _is_admin(facts, port)
    )


def _is_admin(facts: Facts, port: Port) -> bool:
    admins = [caddy.admin for caddy in facts.caddys if not isinstance(caddy.admin, FileAddress)]
    return any(admin is not None and is_own([port.address], admin) for admin in admins)


def _is_plain(facts: Facts, port: Port) -> bool:
    """Whether plain HTTP is what such a port is for: HTTPS has a UDP port beside it by default."""
    if _number(port) in (80, 443):
        return _number(port) == 80
    return not any(other.kind == "udp" and _number(other) == _number(port) for other in facts.ports)


def _for_each(facts: Facts, port: Port, line: Callable[[Place], str]) -> tuple[str, ...]:
    """A line for the Caddyfile of each Caddy that holds a port."""
    if None in port.holders:
        return _SEE
    return tuple(
        text
        for place in places(facts)
        if place.caddy.process and place.caddy.process in port.holders
        for text in _in_options(place.caddy, (line(place),))
    )


def _own_ports(facts: Facts) -> Iterator[Finding]:
    for own in facts.listen:
        held = [port for port in facts.ports if port.kind == "tcp" and _meets(own, port)]
        # Those that are shared have been told of.
        holders = {holder for port in held if len(port.holders) == 1 for holder in port.holders}
        for holder in holders:
            yield _own_port(facts, own, holder)
        if not held:
            yield Finding("own-port", Colour.GREEN, str(own), f"{own} is free for snimux")


def _own_port(facts: Facts, own: ListenAddress, holder: Process | None) -> Finding:
    if holder is None:
        return Finding(
            "own-port",
            Colour.YELLOW,
            str(own),
            f"{own} is held by a process that cannot be seen",
            "It is snimux, or snimux cannot have the port.",
            _SEE,
        )
    if holder.is_snimux:
        return Finding("own-port", Colour.GREEN, str(own), f"snimux listens on {own}")
    if not holder.is_caddy:
        title = f"{own} is held by {holder}"
        lines = (f"kill {holder.pid}  # or snimux --listen with another port",)
        return Finding("own-port", Colour.RED, str(own), title, "snimux cannot have it.", lines)
    return _taken(facts, own, next((x for x in facts.caddys if x.process == holder), None), holder)


def _taken(
    facts: Facts, own: ListenAddress, caddy: Caddy | None, holder: Process | None
) -> Finding:
    """A Caddy has a port that is snimux's."""
    place = next((place for place in places(facts) if place.caddy == caddy), None)
    lines: tuple[str, ...] = ()
    if place and caddy:
        is_plain = own in facts.http
        line = f"http_port {place.http}" if is_plain else f"https_port {place.https}"
        lines = _in_options(caddy, (line, "default_bind 127.0.0.1"))
    return Finding(
        "caddy-on-public-port",
        Colour.RED,
        str(own),
        f"{caddy or holder} listens on {own} itself",
        "snimux is to have that port, and send on to the Caddy on a private one.",
        lines,
    )


def _http3_ports(facts: Facts) -> Iterator[Finding]:
    for own in facts.tls:
        for port in facts.ports:
            if port.kind != "udp" or not _meets(own, port):
                continue
            yield Finding(
                "udp-port",
                Colour.YELLOW,
                f"udp/{port.address}",
                f"UDP port {_number(port)} is held by {_all(port)}",
                "Browsers that try HTTP/3 go past snimux, and reach this server whatever the name.",
                _SEE
                if None in port.holders
                else tuple(
                    line
                    for caddy in facts.caddys
                    if caddy.process and caddy.process in port.holders
                    for line in _in_options(caddy, QUIET)
                ),
            )


def _open_ports(facts: Facts) -> Iterator[Finding]:
    for caddy in facts.caddys:
        open_ports = sorted(
            {
                str(_number(port))
                for port in facts.ports
                if port.kind == "tcp" and is_everywhere(port) and port.holders == (caddy.process,)
                if caddy.process and not any(_meets(own, port) for own in facts.listen)
            }
        )
        if open_ports:
            is_one = len(open_ports) == 1
            yield Finding(
                "port-open",
                Colour.YELLOW,
                str(caddy),
                f"{caddy} listens on every interface: port{'' if is_one else 's'} "
                f"{' and '.join(open_ports)}",
                "The network reaches it past snimux.",
                _in_options(caddy, ("default_bind 127.0.0.1",)),
            )


# --- what each Caddy says


def _caddys(facts: Facts) -> Iterator[Finding]:
    reached = RouteTable(facts.plan.routes)
    for caddy in facts.caddys:
        if caddy.sites is None:
            if not any(_shares_admin(port, caddy) for port in facts.ports):
                yield _silent(facts, caddy)
            continue
        names = [site.host for site in caddy.sites.sites if site.https or site.http]
        count = f"{len(names)} name{'' if len(names) == 1 else 's'}"
        yield Finding("caddy", Colour.GREEN, str(caddy), f"{caddy} answers: {count}")
        yield from _unrouted(caddy, caddy.sites)
        if not caddy.is_listed:
            yield from _unreached(caddy, caddy.sites, reached)


def _shares_admin(port: Port, caddy: Caddy) -> bool:
    return (
        len(port.holders) > 1
        and isinstance(caddy.admin, TcpAddress)
        and is_own([port.address], caddy.admin)
    )


def _silent(facts: Facts, caddy: Caddy) -> Finding:
    place = next(place for place in places(facts) if place.caddy == caddy)
    where = f" at {caddy.admin}" if caddy.admin and caddy.process else ""
    lines = _in_options(caddy, (f"admin {place.admin}",))
    if not caddy.admin:
        lines = ("sudo snimux doctor  # or name its address: snimux doctor --caddy ADDR", *lines)
    if not caddy.process:
        lines = (f"# start it, or leave out --caddy {caddy.admin}",)
    return Finding(
        "admin-down",
        Colour.RED if caddy.is_listed else Colour.YELLOW,
        str(caddy),
        f"{caddy} does not tell{where} what it serves: {caddy.fault}",
        "Its names get no routes, or those that they had.",
        lines,
    )


def _unrouted(caddy: Caddy, sites: Sites) -> Iterator[Finding]:
    for unrouted in sites.unrouted:
        where = "ADDR" if "," in unrouted.what or ":" not in unrouted.what else unrouted.what
        yield Finding(
            "no-route",
            Colour.YELLOW,
            unrouted.what,
            f"{unrouted.what}: {unrouted.why}",
            f"No route is made of that, in {caddy}; where it is served is for you to say.",
            (f"snimux --default {where}  # or --route HOST={where}",),
        )


def _unreached(caddy: Caddy, sites: Sites, reached: RouteTable) -> Iterator[Finding]:
    def is_reached(host: str, listeners: Iterable[Listener]) -> bool:
        route = reached.find(host, ())
        addresses = route.backend.addresses if route and route.backend else ()
        return any(listener.address in addresses for listener in listeners)

    names = [x.host for x in sites.sites if x.https and not is_reached(x.host, x.https)]
    if names:
        yield Finding(
            "no-route",
            Colour.YELLOW,
            str(caddy),
            f"{caddy} has what no route reaches: {_names(names)}",
            "It was found running; snimux was not told of it.",
            (f"snimux --caddy {caddy.admin}  # or in the file: [[caddy]]",),
        )


def _claims(facts: Facts) -> Iterator[Finding]:
    for claim in facts.plan.claims:
        yield Finding(
            "name-claimed",
            Colour.YELLOW,
            claim.host,
            f"{claim.host} is served by two: {claim.has} has it, and {claim.wants} wants it",
            "The one that is listed first gets all its connections.",
            (f"# take {claim.host} out of one of the Caddyfiles, or list the other one first",),
        )


def _loops(facts: Facts) -> Iterator[Finding]:
    told = {holder for own in facts.listen for holder in _holders(facts, own)}
    for caddy in facts.caddys:
        listeners = [x for server in _tls(caddy) for x in server.listeners]
        for own in facts.listen if caddy.process not in told or not caddy.process else ():
            if any(is_own([own], listener.address) for listener in listeners):
                yield _taken(facts, own, caddy, None)


def _holders(facts: Facts, own: ListenAddress) -> Iterator[Process | None]:
    for port in facts.ports:
        if port.kind == "tcp" and _meets(own, port):
            yield from port.holders


def _servers(facts: Facts) -> Iterator[Finding]:
    for caddy in facts.caddys:
        ports = sorted({x.redirect_port for x in _tls(caddy) if x.redirect_port})
        for port in ports:
            yield Finding(
                "port-in-redirect",
                Colour.YELLOW,
                str(caddy),
                f"{caddy} puts its private port into redirects: https://HOST:{port}/",
                "Visitors are sent past snimux, to a port that they may not reach.",
                (
                    *_in_options(caddy, (f"https_port {port}",)),
                    f"# and the sites without it: HOST, not HOST:{port}",
                ),
            )
        if any(server.http3 and not _is_public(facts, server.listeners) for server in _tls(caddy)):
            yield Finding(
                "http3",
                Colour.YELLOW,
                str(caddy),
                f"{caddy} offers HTTP/3 on its private port (Alt-Svc)",
                "Browsers try it, past snimux.",
                _in_options(caddy, QUIET),
            )


def _is_public(facts: Facts, listeners: Iterable[Listener]) -> bool:
    return any(is_own(facts.listen, listener.address) for listener in listeners)


# --- what goes from snimux to its backends


def _proxies(facts: Facts) -> Iterator[Finding]:
    known = _listeners(facts)
    for route in facts.plan.routes:
        for address in route.backend.addresses if route.backend else ():
            if address in known and route.backend:
                caddy, listener = known[address]
                yield from _proxy(caddy, address, listener.proxy_protocol, route.backend)


def _listeners(facts: Facts) -> dict[DialAddress, tuple[Caddy, Listener]]:
    """Where Caddys speak TLS, as far as they tell."""
    return {
        listener.address: (caddy, listener)
        for caddy in facts.caddys
        for server in _tls(caddy)
        for listener in server.listeners
    }


def _proxy(
    caddy: Caddy, address: DialAddress, wrapper: ProxyProtocol | None, backend: Backend
) -> Iterator[Finding]:
    is_sent, is_auto = backend.proxy is not None, backend.proxy == "auto"
    effect = _effect(address, wrapper)
    lines = _in_options(caddy, PROXY)
    if is_sent and not is_auto and effect == "none":
        yield Finding(
            "proxy-not-parsed",
            Colour.RED,
            str(address),
            f"{address} is sent the PROXY protocol, and {caddy} does not read it",
            "It takes the header for a broken TLS hello: no request comes through.",
            lines,
        )
    elif is_sent and effect == "reject":
        yield Finding(
            "proxy-not-allowed",
            Colour.YELLOW if is_auto else Colour.RED,
            str(address),
            f"{caddy} refuses the PROXY protocol of processes of this host, on {address}",
            _HIDDEN if is_auto else "No request comes through.",
            lines,
        )
    elif is_sent and effect == "ignore":
        yield Finding(
            "proxy-not-allowed",
            Colour.YELLOW,
            str(address),
            f"{caddy} reads the PROXY protocol on {address}, and believes nobody: no `allow`",
            _HIDDEN,
            lines,
        )
    elif not is_sent and effect in ("use", "require"):
        yield Finding(
            "proxy-not-sent",
            Colour.RED if effect == "require" else Colour.YELLOW,
            str(address),
            f"{caddy} is ready for the PROXY protocol on {address}, and is not sent it",
            "It refuses what comes without it." if effect == "require" else _HIDDEN,
            (_SEND,),
        )
    elif is_sent and effect != "none":
        title = f"{address} is told who the client is"
        yield Finding("proxy", Colour.GREEN, str(address), title)


def _effect(address: DialAddress, wrapper: ProxyProtocol | None) -> str:
    """What becomes of a header from this host: use, require, ignore, reject; or none is read."""
    if wrapper is None or not wrapper.before_tls:
        return "none"
    policy = {"SKIP": "none"}.get(wrapper.fallback_policy, wrapper.fallback_policy.lower())
    # Caddy believes whoever can open the socket.
    if isinstance(address, UnixAddress):
        return "require" if policy == "require" else "use"
    source = "127.0.0.1" if address.host == "localhost" else address.host
    if replace(wrapper, allow=wrapper.deny, fallback_policy="").believes(source):
        return "reject"
    if replace(wrapper, fallback_policy="").believes(source):
        return "use"
    return policy if policy in ("use", "require", "reject", "none") else "ignore"


def _contacts(facts: Facts) -> Iterator[Finding]:
    well = {x.name for x in facts.contacts if not isinstance(x.outcome, Down)}
    unread = None
    for contact in facts.contacts:
        to = f"{contact.name} -> {contact.address}"
        match contact.outcome:
            case Down(why):
                is_spare = contact.name in well
                yield Finding(
                    "backend-down",
                    Colour.YELLOW if is_spare else Colour.RED,
                    contact.name,
                    f"{to}: {why}",
                    "Another address of the name answers."
                    if is_spare
                    else "Nobody answers for the name.",
                    (f"# start what is to listen on {contact.address}, or change the route",),
                )
            case NoHandshake() if contact.other_way:
                # Of a Caddy that tells, it has been told.
                if contact.address not in _listeners(facts):
                    yield _other_way(contact)
            case NoHandshake(why):
                yield Finding(
                    "certificate-missing",
                    Colour.RED,
                    contact.name,
                    f"{to}: no TLS handshake: {why}",
                    "A Caddy without a certificate for the name says `internal error`; its log has "
                    "the reason. Anything else may be no TLS server at all.",
                    (f"openssl s_client -connect {contact.address} -servername {contact.name}",),
                )
            case Unread(why):
                unread = why
                yield Finding("backend", Colour.GREEN, contact.name, f"{to}: speaks TLS")
            case Certificate():
                yield _certificate(facts, contact, contact.outcome)
    if unread:
        yield Finding(
            "certificate-unread",
            Colour.YELLOW,
            "certificates",
            f"certificates were not read: {unread}",
            "Whether they are for the right names, and until when, is not known.",
            ("pip install 'snimux[doctor]'",),
        )


def _other_way(contact: Contact) -> Finding:
    """Proved by handshakes with the header and without it."""
    if contact.proxy:
        return Finding(
            "proxy-not-parsed",
            Colour.RED,
            str(contact.address),
            f"{contact.address} is sent the PROXY protocol, and does not read it",
            "It takes the header for a broken TLS hello: no request comes through.",
            ("# leave out --proxy-protocol, or proxy in the file's [[route]]",),
        )
    return Finding(
        "proxy-not-sent",
        Colour.RED,
        str(contact.address),
        f"{contact.address} wants the PROXY protocol, and is not sent it",
        "It refuses what comes without it.",
        (_SEND,),
    )


def _certificate(facts: Facts, contact: Contact, shown: Certificate) -> Finding:
    to = f"{contact.name} -> {contact.address}"
    until = _date(shown.not_after)
    left, lifetime = shown.not_after - facts.now, shown.not_after - shown.not_before
    log = "# the log of its server says why it is not renewed: grep -i 'renew\\|obtain\\|acme'"
    if not _is_for(shown, contact.name):
        return Finding(
            "certificate-wrong-name",
            Colour.RED,
            contact.name,
            f"{to}: the certificate is for {_names(shown.names) or 'no name'}",
            "Clients refuse it. It is another server's, or that server's default.",
            (f"# is {contact.name} served there? If not: snimux --route {contact.name}=ADDR",),
        )
    if facts.now < shown.not_before or left <= 0:
        when = f"ended {until}" if left <= 0 else f"begins {_date(shown.not_before)}"
        title = f"{to}: the certificate {when}"
        meaning = "Clients refuse it."
        return Finding("certificate-expired", Colour.RED, contact.name, title, meaning, (log,))
    if left < lifetime * _DUE:
        title = f"{to}: the certificate ends {until}"
        meaning = "It should have been renewed by now."
        return Finding("certificate-expiring", Colour.YELLOW, contact.name, title, meaning, (log,))
    return Finding("certificate", Colour.GREEN, contact.name, f"{to}: certificate until {until}")


def _date(seconds: float) -> str:
    try:
        return formatdate(seconds, usegmt=True)
    except (OverflowError, ValueError, OSError):
        return "at no time that has a name"


def _is_for(shown: Certificate, name: str) -> bool:
    one_label_more = [x for x in hostname.patterns_matching(name) if not x.startswith("**")]
    return any(pattern in shown.names for pattern in one_label_more if pattern != hostname.ANY)


def _coalescing(facts: Facts) -> Iterator[Finding]:
    """A browser may ask for a name over a connection to another whose certificate has it, too."""
    at: dict[str, set[DialAddress]] = {}
    for contact in facts.contacts:
        at.setdefault(contact.name, set()).add(contact.address)
    strict = {
        listener.address: (caddy, server.strict_sni_host)
        for caddy in facts.caddys
        for server in _tls(caddy)
        for listener in server.listeners
    }
    for address in dict.fromkeys(contact.address for contact in facts.contacts):
        shown = [x.outcome for x in facts.contacts if x.address == address]
        certificates = [x for x in shown if isinstance(x, Certificate)]
        others = [
            name
            for name, addresses in at.items()
            if address not in addresses and any(_is_for(x, name) for x in certificates)
        ]
        caddy, is_strict = strict.get(address, (None, False))
        if others and not is_strict:
            yield Finding(
                "certificates-overlap",
                Colour.YELLOW,
                str(address),
                f"{address} has a certificate that is good for another server's names, too: "
                f"{_names(others)}",
                "Browsers may ask for them over a connection that is there already (HTTP/2 "
                "coalescing), and the wrong server answers.",
                _in_options(caddy, STRICT)
                if caddy
                else ("# make it answer 421 to a Host that is not the connection's server name",),
            )


# --- words


def _tls(caddy: Caddy) -> tuple[TlsServer, ...]:
    return caddy.sites.servers if caddy.sites else ()


def _meets(own: ListenAddress, port: Port) -> bool:
    """Whether a port is, or covers, or is covered by, where snimux is to listen."""
    held = port.address
    if not (isinstance(own, TcpAddress) and isinstance(held, TcpAddress)):
        return own == held
    is_wide = is_everywhere(port) or own.host in ("", "0.0.0.0", "::")
    return own.port == held.port != 0 and (is_wide or is_own([own], held))


def _number(port: Port) -> int | None:
    return port.address.port if isinstance(port.address, TcpAddress) else None


def _all(port: Port) -> str:
    return " and ".join(str(x) if x else "a process that cannot be seen" for x in port.holders)


def _in_options(caddy: Caddy, lines: Iterable[str]) -> tuple[str, ...]:
    """Lines for the block of global options of a Caddy, with a comment that says so."""
    config = caddy.process.config if caddy.process else None
    where = config or f"the Caddyfile of {caddy}"
    return (f"# {where}, in the global options:", *lines)


def _names(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    more = len(names) - _LISTED
    return ", ".join([*names[:_LISTED], *([f"and {more} more"] if more > 0 else [])])
