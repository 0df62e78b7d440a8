"""Judge what goes from snimux to its backends: the PROXY protocol, handshakes, certificates."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate

from snimux.doctor.caddyfile import PROXY, STRICT
from snimux.doctor.facts import (
    Caddy,
    Certificate,
    Contact,
    Down,
    Facts,
    NoHandshake,
    Probed,
    Unread,
)
from snimux.doctor.findings import (
    Colour,
    Finding,
    in_options,
    in_servers,
    tls_listeners,
    tls_servers,
)
from snimux.proto import hostname
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.routing.address import DialAddress, TcpAddress, UnixAddress
from snimux.routing.routes import Backend
from snimux.routing.served import ProxyProtocol
from snimux.text import listed

# Caddy renews when a third of the lifetime is left, and looks every ten minutes; certbot does when
# a third of 90 days is left. What has less was due for some time.
_DUE = 0.3

_SEND = 'snimux --proxy-protocol auto  # or proxy = "auto" in the file'
_HEADER_BEFORE_TLS = "It takes the header for a broken TLS hello: no request comes through."
_HEADER_BEFORE_HTTP = "It takes the header for a broken request: each gets 400, or nothing."
_SPARE = "Another address of the name answers."
_HIDDEN = "It logs 127.0.0.1 as the client of every request."


def findings(facts: Facts) -> Iterator[Finding]:
    """Judge what came of handshakes, and whether the PROXY protocol is as it should be."""
    yield from _proxies(facts)
    yield from _contacts(facts)
    yield from _probed(facts)
    yield from _coalescing(facts)


def _proxies(facts: Facts) -> Iterator[Finding]:
    by_address = tls_listeners(facts)
    for route in facts.plan.routes:
        backend = route.targets.get(TLS.name)
        for address in backend.addresses if backend else ():
            if address in by_address and backend:
                caddy, listener = by_address[address]
                yield from _proxy(caddy, address, listener.proxy_protocol, backend)


def _proxy(
    caddy: Caddy, address: DialAddress, wrapper: ProxyProtocol | None, backend: Backend
) -> Iterator[Finding]:
    is_sent, is_auto = backend.proxy is not None, backend.proxy == "auto"
    effect, lines = _effect(address, wrapper), in_servers(caddy, PROXY)
    at = str(address)
    if is_sent and not is_auto and effect == "none":
        title = f"{address} is sent the PROXY protocol, and {caddy} does not read it"
        yield Finding("proxy-not-parsed", Colour.RED, at, title, _HEADER_BEFORE_TLS, lines)
    elif is_sent and effect == "reject":
        title = f"{caddy} refuses the PROXY protocol of processes of this host, on {address}"
        colour = Colour.YELLOW if is_auto else Colour.RED
        meaning = _HIDDEN if is_auto else "No request comes through."
        yield Finding("proxy-not-allowed", colour, at, title, meaning, lines)
    elif is_sent and effect == "ignore":
        believed, remedy = _belief(caddy, _source(address), wrapper.allow if wrapper else ())
        title = f"{caddy} reads the PROXY protocol on {address}, and believes {believed}"
        yield Finding("proxy-not-allowed", Colour.YELLOW, at, title, _HIDDEN, remedy)
    elif not is_sent and effect in ("use", "require"):
        is_needed = effect == "require"
        title = f"{caddy} is ready for the PROXY protocol on {address}, and is not sent it"
        meaning = "It refuses what comes without it." if is_needed else _HIDDEN
        colour = Colour.RED if is_needed else Colour.YELLOW
        yield Finding("proxy-not-sent", colour, at, title, meaning, (_SEND,))
    elif is_sent and effect != "none":
        yield Finding("proxy", Colour.GREEN, at, f"{address} is told who the client is")


def _belief(caddy: Caddy, source: str, allow: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Say whom a Caddy believes instead of a source, and what makes it believe that, too."""
    believed = f"only {listed(allow)}, not snimux at {source}" if allow else "nobody: no `allow`"
    if not TcpAddress(source, 0).is_numeric:
        return believed, in_servers(caddy, PROXY)
    words = "# in proxy_protocol, beside what is there:"
    return believed, in_options(caddy, (words, f"allow {source}/{128 if ':' in source else 32}"))


def _effect(address: DialAddress, wrapper: ProxyProtocol | None) -> str:
    """Return what becomes of a header from this host: use, require, ignore, reject; or none."""
    if wrapper is None or not wrapper.before_tls:
        return "none"
    policy = {"SKIP": "none"}.get(wrapper.fallback_policy, wrapper.fallback_policy.lower())
    # Caddy believes whoever can open the socket.
    if isinstance(address, UnixAddress):
        return "require" if policy == "require" else "use"
    source = _source(address)
    if replace(wrapper, allow=wrapper.deny, fallback_policy="").believes(source):
        return "reject"
    if replace(wrapper, fallback_policy="").believes(source):
        return "use"
    return policy if policy in ("use", "require", "reject", "none") else "ignore"


def _source(address: DialAddress) -> str:
    """Return where connections of this host to an address of its own come from."""
    if isinstance(address, UnixAddress):
        return "127.0.0.1"
    return "127.0.0.1" if address.host == "localhost" else address.host


def _contacts(facts: Facts) -> Iterator[Finding]:
    well = {x.name for x in facts.contacts if not isinstance(x.outcome, Down)}
    unread: tuple[str, str] | None = None
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
                    _SPARE if is_spare else "Nobody answers for the name.",
                    (f"# start what is to listen on {contact.address}, or change the route",),
                )
            case NoHandshake() if contact.other_way:
                # Of a Caddy that tells, it has been told.
                if contact.address not in tls_listeners(facts):
                    yield _other_way(contact, _HEADER_BEFORE_TLS)
            case NoHandshake(why):
                yield Finding(
                    "certificate-missing",
                    Colour.RED,
                    contact.name,
                    f"{to}: no TLS handshake: {why}",
                    "A Caddy without a certificate for the name says `internal error`; its log has "
                    "the reason. Anything else may be no TLS server at all.",
                    (_openssl(contact),),
                )
            case Unread(why, remedy):
                unread = why, remedy or _openssl(contact)
                yield Finding("backend", Colour.GREEN, contact.name, f"{to}: speaks TLS")
            case Certificate():
                yield _certificate(facts, contact, contact.outcome)
    if unread:
        yield Finding(
            "certificate-unread",
            Colour.YELLOW,
            "certificates",
            f"certificates were not read: {unread[0]}",
            "Whether they are for the right names, and until when, is not known.",
            unread[1:],
        )


def _openssl(contact: Contact) -> str:
    address = contact.address
    to = ["-connect", str(address)]
    if isinstance(address, UnixAddress):
        to = ["-unix", address.path]
    return shlex.join(["openssl", "s_client", *to, "-servername", contact.name])


def _other_way(contact: Contact | Probed, mistaken: str) -> Finding:
    """Proved by requests with the header and without it."""
    if contact.proxy:
        return Finding(
            "proxy-not-parsed",
            Colour.RED,
            str(contact.address),
            f"{contact.address} is sent the PROXY protocol, and does not read it",
            mistaken,
            ("# leave out --proxy-protocol, or proxy and http_proxy in the file's [[route]]",),
        )
    return Finding(
        "proxy-not-sent",
        Colour.RED,
        str(contact.address),
        f"{contact.address} wants the PROXY protocol, and is not sent it",
        "It refuses what comes without it.",
        (_SEND,),
    )


def _probed(facts: Facts) -> Iterator[Finding]:
    """Judge what answers in plain HTTP, and for patterns that are no names."""
    for probed in facts.probed:
        to = f"{probed.pattern}{' (plain HTTP)' if probed.is_http else ''} -> {probed.address}"
        if probed.down is not None:
            is_spare = _is_spare(facts, probed)
            yield Finding(
                "backend-down",
                Colour.YELLOW if is_spare else Colour.RED,
                probed.pattern,
                f"{to}: {probed.down}",
                _SPARE if is_spare else "Nobody answers for the name.",
                (f"# start what is to listen on {probed.address}, or change the route",),
            )
        elif not probed.other_way:
            yield Finding("backend", Colour.GREEN, probed.pattern, f"{to}: something listens")
        # Of a Caddy that tells, it has been told for TLS.
        elif probed.is_http or probed.address not in tls_listeners(facts):
            yield _other_way(probed, _HEADER_BEFORE_HTTP if probed.is_http else _HEADER_BEFORE_TLS)


def _is_spare(facts: Facts, down: Probed) -> bool:
    """Return whether each route that goes there has another address that answers."""
    up = {x.address for x in facts.contacts if not isinstance(x.outcome, Down)}
    up |= {x.address for x in facts.probed if x.down is None}
    protocol = HTTP if down.is_http else TLS
    sides = [route.targets.get(protocol.name) for route in facts.plan.routes]
    return all(up & set(x.addresses) for x in sides if x and down.address in x.addresses)


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
            f"{to}: the certificate is for {listed(shown.names) or 'no name'}",
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
        for server in tls_servers(caddy)
        for listener in server.listeners
    }
    for address in dict.fromkeys(contact.address for contact in facts.contacts):
        shown = [x.outcome for x in facts.contacts if x.address == address]
        certificates = [x for x in shown if isinstance(x, Certificate)]
        names = [
            name
            for name, addresses in at.items()
            if address not in addresses and any(_is_for(x, name) for x in certificates)
        ]
        caddy, is_strict = strict.get(address, (None, False))
        if names and not is_strict:
            yield Finding(
                "certificates-overlap",
                Colour.YELLOW,
                str(address),
                f"{address} has a certificate that is good for another server's names, too: "
                f"{listed(names)}",
                "Browsers may ask for them over a connection that is there already (HTTP/2 "
                "coalescing), and the wrong server answers.",
                in_servers(caddy, STRICT)
                if caddy
                else ("# make it answer 421 to a Host that is not the connection's server name",),
            )
