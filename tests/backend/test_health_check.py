"""``health_check``: who is checked, how, how often; and what a check takes for an answer."""

import contextlib
import io
import json
import resource
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snimux.backend.health_check import Checker, CheckSpec, checks_for
from snimux.backend.pool import Backends
from snimux.backend.probe import LOCAL_HEADER
from snimux.config.model import BackendDefaults
from snimux.frontend.access_log import AccessLog
from snimux.frontend.events import Events
from snimux.log import Log
from snimux.routing.address import DialAddress, TcpAddress, UnixAddress
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from tests.support.generations import Effects
from tests.support.sockets import open_descriptors

A, B, C = (TcpAddress("127.0.0.1", port) for port in (1, 2, 3))


def route(pattern: str, *addresses: DialAddress, **how: Any) -> Route:
    http = how.pop("http", None)
    return Route(
        parse_pattern(pattern),
        targets(tls=Backend(addresses, **how) if addresses else None, http=http),
    )


def test_what_there_is_to_check() -> None:
    off, tcp, tls = (BackendDefaults(check=check) for check in ("off", "tcp", "tls"))
    routes = [
        route("*.a.test", A),
        route("a.test/acme-tls/1", A, B),
        route("a.test", A, proxy="v2", http=Backend((C,), "v1")),
        route("b.test", A, UnixAddress("/run/x")),
    ]
    by_name = CheckSpec("a.test", "v2")
    assert checks_for(routes, off) == {}
    assert checks_for(routes, tcp) == dict.fromkeys((A, B, C, UnixAddress("/run/x")), CheckSpec())
    assert checks_for(routes, tls) == {
        A: by_name, B: CheckSpec(), C: CheckSpec(), UnixAddress("/run/x"): CheckSpec("b.test"),
    }  # fmt: skip
    own = [
        replace(routes[2], targets={**routes[2].targets, "tls": Backend((A,), check="tls")}),
        route("c.test", B, check="off"),
    ]
    assert checks_for(own, off) == {A: CheckSpec("a.test")}
    assert checks_for(own, tcp) == {A: CheckSpec("a.test"), C: CheckSpec()}


@dataclass
class Server:
    """On loopback; does with each connection as it is told, and keeps what came first."""

    listener: trio.SocketListener
    answers: str = "tls"
    """"tls", "late", "silence", "noise" or "required": TLS behind a PROXY header alone."""
    came: list[bytes] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    @property
    def address(self) -> TcpAddress:
        return TcpAddress(*self.listener.socket.getsockname()[:2])

    async def serve(self, stream: trio.SocketStream) -> None:
        self.at.append(trio.current_time())
        with contextlib.suppress(trio.BrokenResourceError):
            first = await stream.receive_some(8)
            self.came.append(bytes(first))
            match self.answers:
                case "silence":
                    await trio.sleep_forever()
                case "late":
                    await trio.sleep(2)
                    await stream.send_all(b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03")
                case "noise":
                    await stream.send_all(b"220 mail.example ESMTP\r\n")
                case "required" if not LOCAL_HEADER.startswith(first) and first[:5] != b"PROXY":
                    pass
                case _:
                    await stream.send_all(b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03")
        await stream.aclose()


@dataclass
class Run:
    backends: Backends
    checker: Checker
    server: Server
    stream: io.StringIO

    def check(self, routes: list[Route]) -> None:
        self.checker.reconcile(Effects(checks=checks_for(routes, self.backends.defaults)))

    @property
    def said(self) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [(line["state"], line["detail"]) for line in lines]


@contextlib.asynccontextmanager
async def running(answers: str = "tls", **said: Any) -> AsyncIterator[Run]:
    """Checks every ten seconds, of nothing yet; two passes, or three that fail, tell."""
    stream = io.StringIO()
    log = Log(stream, form="json")
    backends = Backends(Events(log, AccessLog(log)), BackendDefaults(**said))
    checker = Checker(
        backends,
        check_timeout=5,
        uniform=lambda low, high: (low + high) / 2,
    )
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server(listener, answers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        await nursery.start(checker.run)
        yield Run(backends, checker, server, stream)
        nursery.cancel_scope.cancel()


async def test_a_server_that_accepts_and_answers_no_hello_is_down(
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running("silence", check="tls") as run:
        run.check([route("a.test", run.server.address)])
        await trio.sleep(24)
        assert run.said == []
        await trio.sleep(14)
        assert run.said == [("down", "check: no answer: it was silent")]
        assert run.backends.down == {run.server.address}
        run.server.answers = "tls"
        await trio.sleep(30)
        assert run.said[1:] == [("up", "check: a ServerHello")]
        assert not run.backends.down


async def test_checks_come_on_time_and_no_more_often(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running(check="tls", check_every=3.0) as run:
        run.check([route("a.test", run.server.address)])
        await trio.sleep(10)
        run.check([route("a.test", run.server.address), route("*", A, check="off")])
        assert run.server.at == pytest.approx([0, 3, 6, 9], abs=0.1)
        await trio.sleep(3)
        assert len(run.server.at) == 5
        run.check([])
        await trio.sleep(30)
        assert len(run.server.at) == 5
        assert run.said == []


async def test_what_is_no_server_hello_fails(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running("noise", check="tls", fall=1) as run:
        run.check([route("a.test", run.server.address)])
        await trio.sleep(1)
        assert run.said == [("down", "check: no answer, but b'220 mail.example'")]
        # asked another way it may be up, and is thought so as long as it is asked no more
        run.check([])
        assert run.said[1:] == [("up", "no longer checked")]
        run.check([route("a.test", run.server.address, check="tcp")])
        await trio.sleep(1)
        assert len(run.said) == 2
        assert run.server.came[-1] == b""


async def test_those_that_say_nothing_hold_up_nobody_else(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with contextlib.AsyncExitStack() as stack:
        run = await stack.enter_async_context(running(check="tls"))
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(40)]
        routes = [route("a.test", TcpAddress(*sock.getsockname())) for sock in silent]
        run.check([*routes, route("b.test", run.server.address)])
        await trio.sleep(65)
        # after the first time, when they were not known
        began = run.server.at[0]
        assert began < 6
        on_time = [began + 10 * count for count in range(6)]
        assert run.server.at[:6] == pytest.approx(on_time, abs=0.2)
        # their turns come, 8 at a time, each 5 seconds
        await trio.sleep(30)
        assert len(run.said) == 40
        assert len(run.backends.down) == 40


async def test_who_answers_late_passes_nevertheless(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running("late", check="tls", fall=1) as run:
        run.check([route("a.test", run.server.address)])
        await trio.sleep(30)
        assert run.said == []
        # asked again at once when it was found to take long, and no more after that
        assert run.server.at == pytest.approx([0, 1, 13, 25], abs=0.2)
        run.server.answers = "tls"
        await trio.sleep(30)
        assert run.said == []


async def test_nobody_there_is_down_and_then_up(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = TcpAddress(*sock.getsockname())
        async with running(check="tcp", fall=2, rise=2) as run:
            run.check([route("a.test", address)])
            await trio.sleep(15)
            assert run.said == [("down", f"check: {address}: Connection refused")]
            sock.listen()
            await trio.sleep(25)
            assert run.said[1:] == [("up", "check: connected")]


@pytest.mark.parametrize(
    ("proxy", "first"), [("v1", b"PROXY UN"), ("v2", LOCAL_HEADER[:8]), ("auto", LOCAL_HEADER[:8])]
)
async def test_who_requires_a_header_gets_one(
    autojump_clock: MockClock, proxy: Any, first: bytes
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with running("required", check="tls", fall=1, rise=1) as run:
        run.backends.prove(run.server.address, True)
        run.check([route("a.test", run.server.address, proxy=proxy)])
        await trio.sleep(1)
        assert (run.said, run.server.came) == ([], [first])
        run.backends.prove(run.server.address, False)
        await trio.sleep(10)
        assert bool(run.said) == (proxy == "auto")


async def test_what_this_machine_lacks_says_nothing(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with running(fall=1) as run:
        for check in ("tcp", "tls"):
            how = CheckSpec("a.test" if check == "tls" else None)
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() // 2, hard))
            try:
                passed, _ = await run.checker._ask(run.server.address, how)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert passed is None
