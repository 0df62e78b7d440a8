"""Look names up, and keep what they are: again every half a minute, not for each connection.

Of names beyond ``_MOST`` nothing is kept: each connection has its own look-up.

For as long as it runs it is what trio asks, so that ``open_tcp_stream`` races the IPv6 and IPv4
addresses that are kept here. getaddrinfo tells no time to live; hence the schedule.

Source: RFC 2308 section 5 (that a name is not there is kept, too), RFC 8767 (the last answer is
better than none).
"""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from snimux.log import Log

# Seconds between two look-ups of a name: what a Caddy with dynamic upstreams waits is a minute.
_EVERY = 30.0
# The least between two where somebody doubts the answer, and how long a first failure is kept.
_SOON = 1.0
# A name that nobody asked for in so long (seconds) is looked up no longer.
_FORGET = 600.0
# Names that are kept, and addresses of each: those that run a DNS server, or a Caddy, may make up
# any number. Of others each connection has its own look-up. Later addresses would not be dialled
# before dial_timeout: the next one is tried after a quarter of a second.
_MOST = 10_000
_MOST_ADDRESSES = 32
# Look-ups at a time: each has a thread for as long as the system's resolver takes.
_AT_A_TIME = 8

Answer = list[Any]
"""What getaddrinfo returns."""


@dataclass(slots=True, eq=False)
class _Entry:
    """One question to getaddrinfo, and the state of its answer."""

    used: float
    """When somebody last waited for it, by trio's clock."""
    answer: Answer | None = None
    """The last that was good."""
    fault: OSError | None = None
    """Why the last look-up failed, if it did."""
    ready: trio.Event = field(default_factory=trio.Event)
    """Set when there is one of the two."""
    pause: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    """Who looks it up, between two times."""


class Resolver(trio.abc.HostnameResolver):
    """Answers for names from what it keeps."""

    def __init__(
        self, log: Log, *, look_up: Callable[..., Awaitable[Answer]] | None = None
    ) -> None:
        """Begin without any name.

        Args:
            log: told when a name that was known cannot be looked up any more, and when it can.
            look_up: as getaddrinfo; None for that of the system.
        """
        self.log = log
        self.look_up = look_up or self._look_up
        self.entries: dict[tuple[Any, ...], _Entry] = {}
        self.limiter = trio.CapacityLimiter(_AT_A_TIME)
        self.nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be asked by trio, for ever.

        Args:
            task_status: told when it is.
        """
        async with trio.open_nursery() as self.nursery:
            before = trio.socket.set_custom_hostname_resolver(self)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                trio.socket.set_custom_hostname_resolver(before)

    def refresh(self, name: str) -> None:
        """Look a name up again soon: nobody answers at its addresses."""
        for question, entry in self.entries.items():
            if question[0] in (name, name.encode("ascii")):
                entry.pause.unpark_all()

    async def getaddrinfo(  # noqa: D102 (trio's own)
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> Answer:
        question = (host, port, family, type, proto, flags)
        entry = self.entries.get(question)
        if entry is None:
            assert self.nursery is not None, "asked while it does not run"
            entry = _Entry(trio.current_time())
            if len(self.entries) < _MOST:
                self.entries[question] = entry
                self.nursery.start_soon(self._keep, question, entry)
            else:
                await self._ask(question, entry)
                entry.ready.set()
        entry.used = trio.current_time()
        await entry.ready.wait()
        if entry.answer is not None:
            return list(entry.answer)  # trio puts it in another order
        assert entry.fault is not None
        raise socket.gaierror(*entry.fault.args)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:  # noqa: D102
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags)

    async def _look_up(self, *question: Any) -> Answer:
        return await trio.to_thread.run_sync(
            socket.getaddrinfo, *question, abandon_on_cancel=True, limiter=self.limiter
        )

    async def _keep(self, question: tuple[Any, ...], entry: _Entry) -> None:
        """Look it up for as long as somebody asks; only once if it is not there."""
        while trio.current_time() - entry.used < _FORGET:
            await self._ask(question, entry)
            entry.ready.set()
            await trio.sleep(_SOON)
            if entry.answer is None:
                break
            with trio.move_on_after(_EVERY - _SOON):
                await entry.pause.park()
        del self.entries[question]

    async def _ask(self, question: tuple[Any, ...], entry: _Entry) -> None:
        before = entry.fault
        try:
            answer = await self.look_up(*question)
            entry.answer, entry.fault = answer[:_MOST_ADDRESSES], None
        except UnicodeError as error:  # a name that the system cannot spell
            entry.fault = socket.gaierror(socket.EAI_NONAME, str(error))
        except OSError as error:
            entry.fault = error
        if entry.answer is None or (before is None) == (entry.fault is None):
            return
        name = question[0].decode() if isinstance(question[0], bytes) else str(question[0])
        if entry.fault is None:
            self.log.write("info", "name", {"name": name, "detail": "found again"})
        else:
            detail = f"{entry.fault.strerror}; the last answer is kept"
            self.log.write("warning", "name", {"name": name, "detail": detail})
