"""One connection's life: peek, choose, dial, relay, one log line.

Knows no listener and no other connection. Whatever goes wrong here ends here.
"""

import contextlib
import socket
import typing
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from snimux.backend.pool import Backends
from snimux.config.model import Limits
from snimux.frontend.outcome import Outcome, host_of, shown
from snimux.log import Log, notify
from snimux.net.dial import NotDialled
from snimux.net.sockets import endpoint, tune
from snimux.proto import proxy_header
from snimux.proto.proxy_header import Endpoint, Header, Version
from snimux.proto.reason import Reason
from snimux.proto.verdict import START, Foreign, Hello, Malformed, NeedMore, Protocol, Verdict
from snimux.relay.interface import Relay
from snimux.routing.access import Admission
from snimux.routing.address import DialAddress
from snimux.routing.routes import NO_SOURCE, Backend, LiveTable, Route, RouteTable

V = TypeVar("V")

_READ_SIZE = 16 * 1024

# After a refusal the client gets this long (seconds) to read it and to close. Closing at once
# would answer what it still sends with a reset, and the reset overtakes the alert.
_LINGER = 2.0
# It may send so many bytes meanwhile; more is left to fill the kernel's buffers, and ends in a
# reset when the time is over, or it could keep this process busy.
_LINGER_BYTES = 4 * 1024 * 1024
_LINGER_READ_SIZE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """What ``leave`` undoes when a connection has ended; and why it is refused, if it is."""

    leave: Callable[[], None]
    refused: Reason | None = None


def _enter(source: Endpoint | None, refused: Reason | None) -> Entry | None:
    return _ENTERED if refused is None else Entry(_do_nothing, refused)


def _do_nothing() -> None:
    pass


_ENTERED = Entry(_do_nothing)


class Watcher(typing.Protocol):
    """Is told of connections while they go on."""

    def began(self, outcome: Outcome) -> None:
        """A connection was accepted."""

    def finished(self, outcome: Outcome) -> None:
        """A connection has ended."""


@dataclass(frozen=True, slots=True)
class Service:
    """What the connections of a listener share; ``report`` is told how each ended, once."""

    protocol: Protocol
    table: RouteTable | LiveTable
    limits: Limits
    relay: Relay
    report: Callable[[Outcome], None]
    https_port: int = 443
    """Where clients find TLS; for redirects."""
    shown_as: str | None = None
    """The protocol's name in the log; None: no name."""
    proved: Set[DialAddress] = frozenset()
    """The addresses that are sent a PROXY protocol header where that is automatic."""
    look_again: Callable[[], Awaitable[None]] | None = None
    """Awaited where a hello has no route: there may be one by then."""
    backends: Backends = field(default_factory=Backends)
    """What connects to backends."""
    admission: Admission | None = None
    """Whom the listener lets in; None: everybody."""
    enter: Callable[[Endpoint | None, Reason | None], Entry | None] = _enter
    """Told of each client, and why it is refused, if it is; None: it is not worth a word."""
    watcher: Watcher | None = None
    """Told of each connection while it goes on, too."""
    noted: int = 0
    """Of what a client sent that is refused, so many bytes are noted."""

    def denies(self, outcome: Outcome) -> bool:
        """Whether a client is refused, whatever its hello will be.

        Balancers look whether this is alive by a header that names no client, and close. That is no
        intruder's doing; so what comes next is waited for.
        """
        if self.admission is None:
            return False
        access = self.admission.access
        waits = access.acme_exempt or outcome.is_senders
        return not waits and not access.admits(host_of(outcome.source))

    def find(self, hello: Hello) -> Route | None:
        """The route of a hello, or None."""
        if hello.request is not None:
            return self.table.find_plain(hello.name)
        return self.table.find(hello.name, hello.alpn)

    def proxy(self, to: Backend, address: DialAddress) -> Version | None:
        """The version of the PROXY protocol header that an address of a backend is sent, if any."""
        if to.proxy != "auto":
            return to.proxy
        return "v2" if address in self.proved else None


@dataclass(frozen=True, slots=True)
class _Refusal:
    reason: Reason | None
    detail: str
    farewell: bytes
    ended: str = "refused"


async def serve(
    client: socket.socket, source: Endpoint | None, service: Service, log: Log | None = None
) -> None:
    """Serve one client until its connection has ended.

    Args:
        client: the accepted socket, non-blocking.
        source: who connected; None on a UNIX socket.
        service: what to serve it with.
        log: told what ``service.report`` and ``service.watcher`` raise.

    Resource handling: closes ``client``, whatever happens. Raises nothing but ``trio.Cancelled``.
    """
    started = trio.current_time()
    outcome = Outcome(source, service.shown_as, started=started)
    watcher = service.watcher
    if watcher is not None and not notify(log, watcher.began, outcome):
        watcher = None  # of whose end it would know no beginning
    try:
        with client:
            await _serve(client, outcome, service, started + service.limits.hello_timeout)
    except* Exception as group:  # not expected; but one connection must not end the others
        outcome.ended, outcome.detail = "failed", repr(group.exceptions)
    finally:
        outcome.ended = outcome.ended or "shutdown"  # cancelled
        outcome.seconds = trio.current_time() - started
        if not outcome.is_silent:
            notify(log, service.report, outcome)
        if watcher is not None:
            notify(log, watcher.finished, outcome)


async def _serve(
    client: socket.socket, outcome: Outcome, service: Service, deadline: float
) -> None:
    """Learn who the client is, count it among those of its source, and serve or refuse it."""
    received = bytearray()
    entry: Entry | None = _ENTERED
    refusal = None
    if service.admission is not None and service.admission.believes(host_of(outcome.source)):
        refusal = await _read_proxy_header(client, received, outcome, deadline)
    if refusal is None:
        refused = Reason.ACCESS_DENIED if service.denies(outcome) else None
        entry = service.enter(outcome.source, refused)
    if entry is None:
        outcome.is_silent = True
        return
    try:
        if entry.refused is not None:
            refusal = _refuse(service, entry.refused)
        if refusal is None:
            refusal = await _pass_on(client, received, outcome, service, deadline)
        if refusal is not None:
            outcome.ended = refusal.ended
            outcome.reason, outcome.detail = refusal.reason, refusal.detail
            outcome.received = bytes(received[: service.noted])
            await _say_farewell(client, refusal.farewell)
    finally:
        entry.leave()


async def _read_proxy_header(
    client: socket.socket, received: bytearray, outcome: Outcome, deadline: float
) -> _Refusal | None:
    """Read who the client is, or say why that cannot be known; what came behind stays there."""
    verdict: Header | Malformed | _Refusal
    verdict = await _read(client, received, _peek_header, deadline)
    match verdict:
        case Header(None, None, size):
            outcome.is_senders = True
        case Header(source, destination, size):
            outcome.via = shown(outcome.source)
            outcome.source, outcome.destination = source, destination
        case Malformed(reason, detail, farewell):
            return _Refusal(reason, detail, farewell)
        case _Refusal():
            return verdict
    del received[:size]
    return None


def _peek_header(received: bytearray, since: NeedMore) -> NeedMore | Malformed | Header:
    return proxy_header.peek(received)


async def _pass_on(
    client: socket.socket,
    received: bytearray,
    outcome: Outcome,
    service: Service,
    deadline: float,
) -> _Refusal | None:
    """Read the hello, dial its backend and relay; or say why not."""
    hello = await _read_hello(client, received, service, deadline)
    if isinstance(hello, _Refusal):
        return hello
    outcome.hello = hello
    outcome.hello_seconds = trio.current_time() - outcome.started
    host, behind = host_of(outcome.source), len(received) - hello.size
    listener = service.admission
    if listener is not None and not listener.access.admits_for(host, hello, behind):
        return _refuse(service, Reason.ACCESS_DENIED, hello=hello)
    route = service.find(hello)
    if route is None and service.look_again is not None and hello.name is not None:
        await service.look_again()
        route = service.find(hello)
    if route is None:
        return _refuse(service, Reason.NO_ROUTE, hello=hello)
    outcome.route = route
    if route.access is not None and not route.access.admits_for(host, hello, behind):
        return _refuse(service, Reason.ACCESS_DENIED, hello=hello)
    to = route.backend if hello.request is None else route.http
    if to is None:
        return _redirect(service, hello)
    outcome.to = to
    if to.transparent and not to.addresses_for(host):
        return _refuse(service, Reason.NO_SOURCE, NO_SOURCE, hello)
    dialling = trio.current_time()
    dialled = await service.backends.reach(
        to,
        client,
        outcome.source,
        dial_timeout=service.limits.dial_timeout,
        tally=outcome.tally,
    )
    outcome.waited = dialled.waited
    if isinstance(dialled, NotDialled):
        down = Reason.OUT_OF_RESOURCES if dialled.exhausted else Reason.BACKEND_DOWN
        return _refuse(service, down, dialled.detail, hello)
    try:
        with dialled.socket as backend:
            tune(backend)
            outcome.backend = str(dialled.address)
            outcome.dial_seconds = trio.current_time() - dialling
            header = _proxy_header(client, outcome, service.proxy(to, dialled.address))
            outcome.header_size = len(header)
            received[:0] = header
            outcome.ended = await service.relay(
                client,
                backend,
                outcome.tally,
                head=received,
                idle_timeout=service.limits.idle_timeout,
            )
    finally:
        service.backends.leave(dialled.address)
    return None


async def _read_hello(
    client: socket.socket, received: bytearray, service: Service, deadline: float
) -> Hello | _Refusal:
    """Read until the hello is whole; ``received`` then holds it, and what came behind it."""

    def peek(received: bytearray, since: NeedMore) -> Verdict:
        return service.protocol.peek(received, since, service.limits.max_hello)

    verdict: Hello | Malformed | Foreign | _Refusal
    verdict = await _read(client, received, peek, deadline)
    match verdict:
        case Hello() | _Refusal():
            return verdict
        case Malformed(reason, detail, farewell):
            return _Refusal(reason, detail, farewell)
        case Foreign(reason):
            return _Refusal(reason, "", b"")


async def _read(
    client: socket.socket,
    received: bytearray,
    peek: Callable[[bytearray, NeedMore], V | NeedMore],
    deadline: float,
) -> V | _Refusal:
    """Read until there is a verdict, by what is there already if it will do."""
    verdict: V | NeedMore = peek(received, START) if received else START
    late = False
    while isinstance(verdict, NeedMore):
        try:
            data = client.recv(_READ_SIZE)
        except BlockingIOError:
            if late:
                break  # and nothing came that was not read
            with trio.move_on_at(deadline) as waiting:
                await trio.lowlevel.wait_readable(client)
            late = waiting.cancelled_caught
            continue
        except OSError:
            break
        if not data:
            break
        received += data
        verdict = peek(received, verdict)
    if not isinstance(verdict, NeedMore):
        return verdict
    reason = Reason.HELLO_TIMEOUT if late else Reason.HELLO_CUT_SHORT
    detail = f"{len(received)} bytes came"
    return _Refusal(reason if received else Reason.NO_BYTES, detail, verdict.farewell)


def _refuse(
    service: Service, reason: Reason, detail: str = "", hello: Hello | None = None
) -> _Refusal:
    return _Refusal(reason, detail, service.protocol.farewell(reason, hello))


def _redirect(service: Service, hello: Hello) -> _Refusal:
    """To where the same is served by TLS; a refusal for what is not to be asked there."""
    redirect = service.protocol.redirect(hello, service.https_port)
    if redirect is None:
        return _refuse(service, Reason.NO_HTTP, hello=hello)
    # A query may hold what is no log's business.
    location = redirect.location.partition("?")[0]
    return _Refusal(None, location, redirect.farewell, "redirected")


def _proxy_header(client: socket.socket, outcome: Outcome, version: Version | None) -> bytes:
    if version is None:
        return b""
    if outcome.destination is not None:
        return proxy_header.build(version, outcome.source, outcome.destination)
    destination = None
    with contextlib.suppress(OSError):  # reset meanwhile: reading will tell
        destination = endpoint(client.getsockname())
    return proxy_header.build(version, outcome.source, destination)


async def _say_farewell(client: socket.socket, farewell: bytes) -> None:
    """Send the farewell, then FIN, then wait for the client to close, for ``_LINGER`` at most."""
    with trio.move_on_after(_LINGER), contextlib.suppress(OSError):
        while farewell:  # once, mostly: but a redirect is as long as what was asked for
            try:
                farewell = farewell[client.send(farewell) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(client)
        client.shutdown(socket.SHUT_WR)
        left = _LINGER_BYTES
        while left > 0:
            await trio.lowlevel.wait_readable(client)
            with contextlib.suppress(BlockingIOError):
                data = client.recv(_LINGER_READ_SIZE)
                if not data:
                    return
                left -= len(data)
        await trio.sleep_forever()
