"""Ask addresses, over and over, whether they are up, where a route or the settings want it.

"tcp" is a connection, "tls" a hello for a name of the address's routes, which a ServerHello must
answer; what goes before it is what goes before a client's: a PROXY protocol header, without an
address. What follows from the answers is not known here.

Source: HAProxy, Configuration Manual, ``check``, ``inter``, ``check-send-proxy``.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from snimux.backend.limiter import Lane, Lanes
from snimux.backend.pool import Backends
from snimux.backend.probe import LOCAL_HEADER, ServerHello, Unreached, ask, by_tls
from snimux.config.model import BackendDefaults, Config, Limits
from snimux.net.dial import Dialled, dial
from snimux.proto import proxy_header
from snimux.proto.client_hello import TLS
from snimux.proto.proxy_header import Version
from snimux.routing.address import DialAddress
from snimux.routing.routes import Route
from snimux.runtime.keyed_tasks import KeyedTasks

# Addresses that are checked at a time, and as many that take long: each takes a descriptor.
_AT_A_TIME = 8

# Checks of many addresses are spread by this part of the time between them.
_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """The way to check an address: without a name by a connection, with one by a hello for it."""

    name: str | None = None
    proxy: Version | str | None = None


def checks_for(routes: Iterable[Route], defaults: BackendDefaults) -> dict[DialAddress, CheckSpec]:
    """Return which addresses of some routes are to be checked, and how.

    An address that several have is checked by a hello if one of them wants that and has a name to
    ask for: patterns have none, and what is for an ALPN protocol alone may not answer other
    hellos. Plain HTTP is checked by a connection.
    """
    specs: dict[DialAddress, CheckSpec] = {}
    for route in routes:
        pattern = route.pattern
        name = None if "*" in pattern.host or pattern.alpn is not None else pattern.host
        for protocol, backend in route.targets.items():
            check = backend.check or defaults.check
            by_name = name if check == "tls" and protocol == TLS.name else None
            for address in backend.addresses if check != "off" else ():
                if address not in specs or (by_name and not specs[address].name):
                    specs[address] = CheckSpec(by_name, backend.proxy if by_name else None)
    return specs


class ChecksInEffect(Protocol):
    """The part of what is in effect that a checker reads."""

    @property
    def config(self) -> Config:
        """The limits."""

    @property
    def checks(self) -> Mapping[DialAddress, CheckSpec]:
        """The way to check each address."""


class Checker:
    """Checks for as long as it runs."""

    def __init__(
        self,
        backends: Backends,
        *,
        check_timeout: float = Limits().dial_timeout,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Checks nothing yet.

        Args:
            backends: told what came of each check; its defaults say how often.
            check_timeout: seconds for each check at the most.
            uniform: a random number between two.
        """
        self.backends = backends
        self.check_timeout = check_timeout
        self.uniform = uniform
        self.specs: Mapping[DialAddress, CheckSpec] = {}
        self.lanes = Lanes(_AT_A_TIME)
        self.tasks = KeyedTasks(self._check)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check until cancelled.

        Args:
            task_status: started when checks have begun.
        """
        await self.tasks.run(task_status=task_status)

    def reconcile(self, generation: ChecksInEffect) -> None:
        """Check by what is in effect now; what is checked as before goes on."""
        self.check_timeout = generation.config.limits.dial_timeout
        before, self.specs = self.specs, generation.checks
        self.tasks.reconcile(
            self.specs, {x for x, how in self.specs.items() if before.get(x) != how}
        )
        for address in before.keys() - self.specs.keys():
            self.backends.unchecked(address)

    async def _check(self, address: DialAddress) -> None:
        lane, ask_it = Lane(self.lanes), partial(self._ask, address, self.specs[address])
        while True:
            passed, detail = await lane.do(ask_it)
            await trio.lowlevel.checkpoint_if_cancelled()  # an answer to what is asked no more
            if passed is not None:
                self.backends.checked(address, passed, detail)
            every = self.backends.defaults.check_every
            await trio.sleep(self.uniform(every * (1 - _SPREAD), every * (1 + _SPREAD)))

    async def _ask(self, address: DialAddress, how: CheckSpec) -> tuple[bool | None, str]:
        """Return whether an address passes, and what it did; None where that cannot be said."""
        within = min(self.check_timeout, self.backends.defaults.check_every)
        own = self.backends.own_for(address)
        if how.name is None:
            dialled = await dial(address, dial_timeout=within, own=own)
            if isinstance(dialled, Dialled):
                dialled.socket.close()
                return True, "check: connected"
            return None if dialled.exhausted else False, f"check: {dialled.detail}"
        header = self._header(address, how.proxy)
        question = by_tls(how.name)
        answer = await ask(address, question, header, answer_timeout=within, own=own)
        if isinstance(answer, Unreached) and answer.exhausted:
            return None, ""
        return isinstance(answer, ServerHello), f"check: {answer}"

    def _header(self, address: DialAddress, proxy: Version | str | None) -> bytes:
        match proxy:
            case "v1" | "v2":
                return proxy_header.build(proxy, None, None)
            case "auto" if address in self.backends.proved:
                return LOCAL_HEADER
            case _:
                return b""
