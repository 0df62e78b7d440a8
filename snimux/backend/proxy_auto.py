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
from snimux.backend.probe import Found, Unreached, ask_both, by_http, by_tls
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


class Standing(Enum):
    """What is known of an address."""

    UNKNOWN = auto()
    REFUSED = auto()
    """With a header it answers nothing."""
    UNDERSTOOD = auto()
    """It serves with a header and without."""
    REQUIRED = auto()
    """It serves with a header, and not without."""

    @property
    def is_proved(self) -> bool:
        """Whether it understands a header."""
        return self in (Standing.UNDERSTOOD, Standing.REQUIRED)


@dataclass(frozen=True, slots=True)
class Asked:
    """How to ask an address, and what a configuration says of it."""

    is_http: bool
    name: str | None
    """One that is served there; None where only patterns are known."""
    listener: Served | None = None
    """None: no Caddy that is asked for its configuration has it."""

    async def ask(self, address: DialAddress, own: Own = NOWHERE) -> Found:
        """Ask the address once, with a header and without, unless it leads to what is own."""
        question = by_http(self.name or "localhost") if self.is_http else by_tls(self.name)
        return await ask_both(address, question, own=own)


def asked(
    routes: Iterable[Route], listeners: Mapping[DialAddress, Served]
) -> dict[DialAddress, Asked]:
    """What there is to ask for some routes: the addresses of their backends that are "auto".

    Args:
        routes: of which the first with an exact name gives the name to ask for.
        listeners: what is known of addresses from the Caddys' configurations.
    """
    found: dict[DialAddress, Asked] = {}
    for route in routes:
        host = route.pattern.host
        name = None if "*" in host else host
        for protocol, backend in route.targets.items():
            for address in backend.addresses if backend.proxy == "auto" else ():
                if address not in found or (name and not found[address].name):
                    is_http = protocol == HTTP.name
                    found[address] = Asked(is_http, name, listeners.get(address))
    return found


def concluded(before: Standing | None, found: Found) -> Standing:
    """What is known after an answer.

    A backend that is gone may come back as another: nothing is known of it, unless it was one that
    serves nobody without a header. One that has no time to answer is still what it was.
    """
    if found.requires:
        return Standing.REQUIRED
    if found.understands:
        return Standing.UNDERSTOOD
    if found.refuses:
        return Standing.REFUSED
    if before is not None and (before is Standing.REQUIRED or found.is_nothing):
        return before
    return Standing.UNKNOWN


async def ask_all(all_asked: Mapping[DialAddress, Asked]) -> dict[DialAddress, Found]:
    """Ask each address once."""
    found: dict[DialAddress, Found] = {}
    limiter = trio.CapacityLimiter(_AT_A_TIME)

    async def ask(address: DialAddress) -> None:
        async with limiter:
            found[address] = await all_asked[address].ask(address)

    async with trio.open_nursery() as nursery:
        for address in all_asked:
            nursery.start_soon(ask, address)
    return found


class ProbesInEffect(Protocol):
    """What a prober reads of what is in effect."""

    @property
    def probes(self) -> Mapping[DialAddress, Asked]:
        """How to probe which addresses."""


class Prober:
    """Asks for as long as it runs, and lets the pool know who has proved it."""

    def __init__(self, log: Log, backends: Backends | None = None) -> None:
        """Of nothing yet; the log is told of what changes, and backends say what not to ask."""
        self.log = log
        self.backends = backends or Backends()
        self.asked: Mapping[DialAddress, Asked] = {}
        self.standings: dict[DialAddress, Standing] = {}
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
                while self.asked.keys() - self.standings.keys():
                    await self.learnt.park()
            task_status.started()

    def reconcile(self, generation: ProbesInEffect) -> None:
        """Probe by what is in effect now; anew where a configuration says something else."""
        before, self.asked = self.asked, generation.probes
        for address in before.keys() - self.asked.keys():
            self._forget(address)
            self.doubts.pop(address, None)
        anew = set()
        for address, new in self.asked.items():
            old = before.get(address)
            if old is None or old.listener != new.listener:
                anew.add(address)
                if new.listener is not None and new.listener.proxy_protocol is None:
                    self._forget(address)  # until it is proved again
        # An answer to what was asked before is not waited for, for it may be old.
        self.tasks.reconcile(self.asked, anew)

    def doubt(self, backend: Backend) -> None:
        """A connection to a backend failed, or may have: ask at once."""
        for address in backend.addresses if backend.proxy == "auto" else ():
            if address in self.doubts:
                self.doubts[address].set()

    def _forget(self, address: DialAddress) -> None:
        self.backends.prove(address, False)
        self.standings.pop(address, None)

    async def _ask(self, address: DialAddress) -> None:
        last: Standing | None = None  # said since the configuration says what it says
        lane = Lane(self.lanes)
        while True:
            doubt = self.doubts[address] = trio.Event()
            # looked up here: it may be gone by the time that there is room
            own = self.backends.own_for(address)
            found = await lane.do(partial(self.asked[address].ask, address, own))
            await trio.lowlevel.checkpoint_if_cancelled()
            standing = concluded(self.standings.get(address), found)
            self._learn(address, standing)
            if standing is not last:
                said = remark(address, standing, found, self.asked[address])
                self.log.write(said.level, "proxy-protocol", said.fields())
            last = standing
            await trio.sleep(_SOON)
            if not isinstance(found.without, Unreached):
                with trio.move_on_after(_EVERY - _SOON):
                    await doubt.wait()

    def _learn(self, address: DialAddress, standing: Standing) -> None:
        self.standings[address] = standing
        self.backends.prove(address, standing.is_proved)
        self.learnt.unpark_all()


@dataclass(frozen=True, slots=True)
class Remark:
    """What there is to say of an address: whether it is sent a header, and why."""

    backend: str
    header: str
    detail: str
    level: Level

    def fields(self) -> dict[str, Field]:
        """The fields of the log line."""
        return {"backend": self.backend, "header": self.header, "detail": self.detail}


def remark(address: DialAddress, standing: Standing, found: Found, how: Asked) -> Remark:
    """What to say of an address after an answer."""
    wrong = mismatch(address, standing, how.listener)
    detail = "; ".join(filter(None, (words(standing, found), wrong)))
    header = "v2" if standing.is_proved else "none"
    return Remark(str(address), header, detail, "warning" if wrong else "info")


def words(standing: Standing, found: Found) -> str:
    """What was learnt of an address, and by which answers."""
    match standing:
        case Standing.REQUIRED:
            return f"understood, and required (with: {found.with_header}; without: {found.without})"
        case Standing.UNDERSTOOD:
            return f"understood ({found.with_header})"
        case Standing.REFUSED:
            return f"not understood ({found.with_header})"
        case Standing.UNKNOWN:
            return f"not known ({found.without})"


def mismatch(address: DialAddress, standing: Standing, listener: Served | None) -> str:
    """What the configuration says otherwise, and what to do; empty if nothing."""
    if listener is None or standing is Standing.UNKNOWN:
        return ""
    wrapper = listener.proxy_protocol
    if wrapper is None:
        is_other = standing.is_proved
        return "but its configuration has no proxy_protocol there" if is_other else ""
    if not standing.is_proved and not wrapper.before_tls:
        return "its proxy_protocol is behind tls: in listener_wrappers write it before tls"
    if not standing.is_proved:
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
