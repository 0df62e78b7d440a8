"""Know which backends understand the PROXY protocol, for ``proxy = "auto"``.

Each address is asked by a probe: before it is sent the first connection, then every ten seconds,
and at once when a connection to it failed or its Caddy's configuration changed. It is sent a
header only while the probe has proved that it understands one. What the configuration says is not
believed, but compared, and a difference is worth a line in the log.

Source: the wrapper's policies in Caddy 2.11.7, modules/caddyhttp/proxyprotocol.
"""

import contextlib
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Protocol

import trio

from snimux.backend.limiter import Lane, Lanes
from snimux.backend.pool import Backends
from snimux.backend.probe import ProbeResult, Unreached, ask_both, by_http, by_tls
from snimux.log import Field, Level, Log
from snimux.net.loop import NOWHERE, Own
from snimux.proto.http_head import HTTP
from snimux.routing.address import DialAddress, UnixAddress
from snimux.routing.routes import Backend, Route
from snimux.routing.served import Served
from snimux.runtime.keyed_tasks import KeyedTasks

# Seconds between two questions to a backend. A connection that fails asks at once; so this is for
# one that was exchanged for another in the meantime, while nobody came.
_EVERY = 10.0
# The same while it is down: it may start at any moment. And the least, however many connections
# fail: clients can make them do.
_SOON = 1.0

# Seconds that the backends have to answer before the first connection is accepted.
_FIRST_ANSWERS = 1.0

# Addresses that are asked at a time, and as many that take long: each takes two descriptors.
_AT_A_TIME = 8


class Support(Enum):
    """The support of an address for the header."""

    UNKNOWN = auto()
    REFUSED = auto()
    """With a header it answers nothing."""
    UNDERSTOOD = auto()
    """It serves with a header and without."""
    REQUIRED = auto()
    """It serves with a header, and not without."""

    @property
    def is_proved(self) -> bool:
        """Return whether it understands a header."""
        return self in (Support.UNDERSTOOD, Support.REQUIRED)


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """The way to probe an address, and what a configuration says of it."""

    is_http: bool
    name: str | None
    """One that is served there; None where only patterns are known."""
    listener: Served | None = None
    """None: no Caddy that is asked for its configuration has it."""

    async def ask(self, address: DialAddress, own: Own = NOWHERE) -> ProbeResult:
        """Ask the address once, with a header and without, unless it leads to what is own."""
        question = by_http(self.name or "localhost") if self.is_http else by_tls(self.name)
        return await ask_both(address, question, own=own)


def probes_for(
    routes: Iterable[Route], listeners: Mapping[DialAddress, Served]
) -> dict[DialAddress, ProbeSpec]:
    """Return how to probe the addresses of some routes' backends that are "auto".

    Args:
        routes: of which the first with an exact name gives the name to ask for.
        listeners: what is known of addresses from the Caddys' configurations.
    """
    specs: dict[DialAddress, ProbeSpec] = {}
    for route in routes:
        host = route.pattern.host
        name = None if "*" in host else host
        for protocol, backend in route.targets.items():
            for address in backend.addresses if backend.proxy == "auto" else ():
                if address not in specs or (name and not specs[address].name):
                    is_http = protocol == HTTP.name
                    specs[address] = ProbeSpec(is_http, name, listeners.get(address))
    return specs


def concluded(before: Support | None, result: ProbeResult) -> Support:
    """Return the support after a probe.

    A backend that is gone may come back as another: nothing is known of it, unless it was one that
    serves nobody without a header. One that has no time to answer is still what it was.
    """
    if result.requires:
        return Support.REQUIRED
    if result.understands:
        return Support.UNDERSTOOD
    if result.refuses:
        return Support.REFUSED
    if before is not None and (before is Support.REQUIRED or result.is_nothing):
        return before
    return Support.UNKNOWN


async def ask_all(specs: Mapping[DialAddress, ProbeSpec]) -> dict[DialAddress, ProbeResult]:
    """Ask each address once."""
    results: dict[DialAddress, ProbeResult] = {}
    limiter = trio.CapacityLimiter(_AT_A_TIME)

    async def ask(address: DialAddress) -> None:
        async with limiter:
            results[address] = await specs[address].ask(address)

    async with trio.open_nursery() as nursery:
        for address in specs:
            nursery.start_soon(ask, address)
    return results


class ProbesInEffect(Protocol):
    """The part of what is in effect that a prober reads."""

    @property
    def probes(self) -> Mapping[DialAddress, ProbeSpec]:
        """The way to probe each address."""


class Prober:
    """Asks for as long as it runs, and lets the pool know who has proved it."""

    def __init__(self, log: Log, backends: Backends | None = None) -> None:
        """Probe nothing yet; the log gets what changes, and backends say what not to ask."""
        self.log = log
        self.backends = backends or Backends()
        self.specs: Mapping[DialAddress, ProbeSpec] = {}
        self.supports: dict[DialAddress, Support] = {}
        self.doubts: dict[DialAddress, trio.Event] = {}
        self.learnt = trio.lowlevel.ParkingLot()
        self.lanes = Lanes(_AT_A_TIME)
        self.tasks = KeyedTasks(self._ask)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask, for ever.

        Args:
            task_status: told once all have answered, or after a second.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.tasks.run)
            with trio.move_on_after(_FIRST_ANSWERS):
                while self.specs.keys() - self.supports.keys():
                    await self.learnt.park()
            task_status.started()

    def reconcile(self, generation: ProbesInEffect) -> None:
        """Probe by what is in effect now; anew where a configuration says something else."""
        before, self.specs = self.specs, generation.probes
        for address in before.keys() - self.specs.keys():
            self._forget(address)
            self.doubts.pop(address, None)
        anew = set()
        for address, new in self.specs.items():
            old = before.get(address)
            if old is None or old.listener != new.listener:
                anew.add(address)
                if new.listener is not None and new.listener.proxy_protocol is None:
                    self._forget(address)  # until it is proved again
        # An answer to what was asked before is not waited for, for it may be old.
        self.tasks.reconcile(self.specs, anew)

    def doubt(self, backend: Backend) -> None:
        """A connection to a backend failed, or may have: ask at once."""
        for address in backend.addresses if backend.proxy == "auto" else ():
            if address in self.doubts:
                self.doubts[address].set()

    def _forget(self, address: DialAddress) -> None:
        self.backends.prove(address, False)
        self.supports.pop(address, None)

    async def _ask(self, address: DialAddress) -> None:
        last: Support | None = None  # said since the configuration says what it says
        lane = Lane(self.lanes)
        while True:
            await trio.lowlevel.checkpoint_if_cancelled()  # ended just as somebody doubted it
            doubt = self.doubts[address] = trio.Event()
            # looked up here: it may be gone by the time that there is room
            own = self.backends.own_for(address)
            result = await lane.do(partial(self.specs[address].ask, address, own))
            await trio.lowlevel.checkpoint_if_cancelled()
            support = concluded(self.supports.get(address), result)
            self._learn(address, support)
            if support is not last:
                said = remark(address, support, result, self.specs[address])
                self.log.write(said.level, "proxy-protocol", said.fields())
            last = support
            await trio.sleep(_SOON)
            if not isinstance(result.without, Unreached):
                with trio.move_on_after(_EVERY - _SOON):
                    await doubt.wait()

    def _learn(self, address: DialAddress, support: Support) -> None:
        self.supports[address] = support
        self.backends.prove(address, support.is_proved)
        self.learnt.unpark_all()


@dataclass(frozen=True, slots=True)
class Remark:
    """A remark on an address: whether it is sent a header, and why."""

    backend: str
    header: str
    detail: str
    level: Level

    def fields(self) -> dict[str, Field]:
        """The fields of the log line."""
        return {"backend": self.backend, "header": self.header, "detail": self.detail}


def remark(address: DialAddress, support: Support, result: ProbeResult, how: ProbeSpec) -> Remark:
    """Return the remark on an address after a probe."""
    wrong = mismatch(address, support, how.listener)
    detail = "; ".join(filter(None, (words(support, result), wrong)))
    header = "v2" if support.is_proved else "none"
    return Remark(str(address), header, detail, "warning" if wrong else "info")


def words(support: Support, result: ProbeResult) -> str:
    """Say what was learnt of an address, and by which answers."""
    match support:
        case Support.REQUIRED:
            return (
                f"understood, and required (with: {result.with_header}; without: {result.without})"
            )
        case Support.UNDERSTOOD:
            return f"understood ({result.with_header})"
        case Support.REFUSED:
            return f"not understood ({result.with_header})"
        case Support.UNKNOWN:
            return f"not known ({result.without})"


def mismatch(address: DialAddress, support: Support, listener: Served | None) -> str:
    """Say what the configuration says otherwise, and what to do; empty if nothing."""
    if listener is None or support is Support.UNKNOWN:
        return ""
    wrapper = listener.proxy_protocol
    if wrapper is None:
        is_other = support.is_proved
        return "but its configuration has no proxy_protocol there" if is_other else ""
    if not support.is_proved and not wrapper.before_tls:
        return "its proxy_protocol is behind tls: in listener_wrappers write it before tls"
    if not support.is_proved:
        return "its proxy_protocol turns snimux away: look at its deny and fallback_policy"
    source = _source(address)
    if source is None or wrapper.believes(source):
        return ""
    mask = 128 if ":" in source else 32
    return f"but it ignores the address: in its proxy_protocol write: allow {source}/{mask}"


def _source(address: DialAddress) -> str | None:
    """The IP address that connections to an address come from; None where it has none."""
    if isinstance(address, UnixAddress) or not address.is_numeric:
        return None
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # Connecting a datagram socket sends nothing: it only looks for the way.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address.host, address.port))
        return str(sock.getsockname()[0])
    return None
