"""One connection's life: peek, choose, dial, relay, one log line.

Knows no listener and no other connection. Whatever goes wrong here ends here.
"""

import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from snimux.backend.pool import Backends
from snimux.frontend.events import Current, Observer
from snimux.frontend.outcome import Outcome, host_of, shown
from snimux.frontend.source_limits import UNCOUNTED, Entry, SourceLimits
from snimux.net.dial import NotDialled
from snimux.net.sockets import endpoint, tune
from snimux.proto import proxy_header
from snimux.proto.client_hello import TLS
from snimux.proto.proxy_header import Endpoint, Header, Version
from snimux.proto.reason import Reason
from snimux.proto.verdict import START, Foreign, Hello, Malformed, NeedMore, Protocol, Verdict
from snimux.relay.interface import Relay
from snimux.routing.access import Admission
from snimux.routing.decide import Decision, EntryPoint, Redirection, Refusal, Relaying, decide

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
class Service:
    """All that the connections of a listener share."""

    entry: EntryPoint
    current: Current
    """What is in effect: read anew for each step, so that it may change between two."""
    relay: Relay
    pool: Backends
    """Connects to backends."""
    limits: SourceLimits
    """Counts each client among those of its source."""
    events: Observer
    """Hears of each connection when it begins, and when it has ended; raises nothing."""
    refresh: Callable[[], Awaitable[None]] | None = None
    """Awaited where a hello has no route: there may be one by then."""


async def serve(client: socket.socket, source: Endpoint | None, service: Service) -> None:
    """Serve one client until its connection has ended.

    Args:
        client: the accepted socket, non-blocking.
        source: who connected; None on a UNIX socket.
        service: what to serve it with.

    Resource handling: closes ``client``, whatever happens. Raises nothing but ``trio.Cancelled``.
    """
    started = trio.current_time()
    outcome = Outcome(source, _label(service.entry.protocol), started=started)
    service.events.accepted(outcome)
    try:
        with client:
            limits = service.current.value.config.limits
            await _serve(client, outcome, service, started + limits.hello_timeout)
    except* Exception as group:  # not expected; but one connection must not end the others
        outcome.ended, outcome.detail = "failed", repr(group.exceptions)
    finally:
        outcome.ended = outcome.ended or "shutdown"  # cancelled
        outcome.seconds = trio.current_time() - started
        service.events.ended(outcome)


async def _serve(
    client: socket.socket, outcome: Outcome, service: Service, deadline: float
) -> None:
    """Learn who the client is, count it among those of its source, and serve or refuse it."""
    received = bytearray()
    entry: Entry | None = UNCOUNTED
    refusal: Refusal | Redirection | None = None
    admission = service.entry.admission
    if admission is not None and admission.believes(host_of(outcome.source)):
        refusal = await _read_proxy_header(client, received, outcome, deadline)
    if refusal is None:
        refused = Reason.ACCESS_DENIED if _is_denied(outcome, admission) else None
        entry = service.limits.count(outcome.source, refused)
    if entry is None:
        outcome.is_silent = True
        return
    try:
        if entry.refused is not None:
            refusal = _refuse(service, entry.refused)
        if refusal is None:
            refusal = await _pass_on(client, received, outcome, service, deadline)
        if refusal is not None:
            if isinstance(refusal, Refusal):
                outcome.ended, outcome.reason = "refused", refusal.reason
                outcome.detail = refusal.detail
            else:  # a query may hold what is no log's business
                outcome.ended, outcome.detail = "redirected", refusal.location.partition("?")[0]
            outcome.received = received
            await _say_farewell(client, refusal.farewell)
    finally:
        entry.leave()


def _is_denied(outcome: Outcome, admission: Admission | None) -> bool:
    """Return whether a client is refused before its hello.

    Balancers look whether this is alive by a header that names no client, and close. That is no
    intruder's doing; so what comes next is waited for.
    """
    if admission is None or outcome.is_senders:
        return False
    return admission.denies(host_of(outcome.source))


async def _read_proxy_header(
    client: socket.socket, received: bytearray, outcome: Outcome, deadline: float
) -> Refusal | None:
    """Read who the client is, or say why that cannot be known; what came behind stays there."""
    verdict: Header | Malformed | Refusal
    verdict = await _read(client, received, _peek_header, deadline)
    match verdict:
        case Header(None, None, size):
            outcome.is_senders = True
        case Header(source, destination, size):
            outcome.via = shown(outcome.source)
            outcome.source, outcome.destination = source, destination
        case Malformed(reason, detail, farewell):
            return Refusal(reason, detail, farewell)
        case Refusal():
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
) -> Refusal | Redirection | None:
    """Read the hello, dial its backend and relay; or say why not."""
    hello = await _read_hello(client, received, service, deadline)
    if isinstance(hello, Refusal):
        return hello
    outcome.hello = hello
    outcome.hello_seconds = trio.current_time() - outcome.started
    host, behind = host_of(outcome.source), len(received) - hello.size
    decision = await _decide(service, hello, host, behind)
    outcome.route = decision.route
    if not isinstance(decision, Relaying):
        return decision
    to = outcome.to = decision.to
    dialling = trio.current_time()
    limits = service.current.value.config.limits
    dialled = await service.pool.reach(
        to,
        client,
        outcome.source,
        dial_timeout=limits.dial_timeout,
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
            version = service.pool.header_version(to, dialled.address)
            header = _proxy_header(client, outcome, version)
            outcome.header_size = len(header)
            received[:0] = header
            outcome.ended = await service.relay(
                client,
                backend,
                outcome.tally,
                head=received,
                idle_timeout=limits.idle_timeout,
            )
    finally:
        service.pool.leave(dialled.address)
    return None


async def _decide(service: Service, hello: Hello, host: str | None, behind: int) -> Decision:
    """Decide by what is in effect; where there is no route, once more when that was refreshed."""
    for refresh in (service.refresh, None):
        now = service.current.value
        decision = decide(
            hello, host, service.entry, now.table, behind=behind, https_port=now.https_port
        )
        is_lost = isinstance(decision, Refusal) and decision.reason is Reason.NO_ROUTE
        if not is_lost or refresh is None or hello.name is None:
            break
        await refresh()
    return decision


async def _read_hello(
    client: socket.socket, received: bytearray, service: Service, deadline: float
) -> Hello | Refusal:
    """Read until the hello is whole; ``received`` then holds it, and what came behind it."""
    limits = service.current.value.config.limits

    def peek(received: bytearray, since: NeedMore) -> Verdict:
        return service.entry.protocol.peek(received, since, limits.max_hello)

    verdict: Hello | Malformed | Foreign | Refusal
    verdict = await _read(client, received, peek, deadline)
    match verdict:
        case Hello() | Refusal():
            return verdict
        case Malformed(reason, detail, farewell):
            return Refusal(reason, detail, farewell)
        case Foreign(reason):
            return Refusal(reason, "", b"")


async def _read(
    client: socket.socket,
    received: bytearray,
    peek: Callable[[bytearray, NeedMore], V | NeedMore],
    deadline: float,
) -> V | Refusal:
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
    return Refusal(reason if received else Reason.NO_BYTES, detail, verdict.farewell)


def _label(protocol: Protocol) -> str | None:
    """Return the protocol's name for the log, or None for TLS, which has none there."""
    return None if protocol is TLS else protocol.name


def _refuse(
    service: Service, reason: Reason, detail: str = "", hello: Hello | None = None
) -> Refusal:
    return Refusal(reason, detail, service.entry.protocol.farewell(reason, hello))


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
