"""``net.resolver``: a name is looked up on a schedule, and its last answer is better than none."""

import contextlib
import io
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snimux.log import Log
from snimux.net.dial import Dialled, dial
from snimux.net.resolver import Answer, Resolver
from snimux.routing.address import TcpAddress

GONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@dataclass
class Zone:
    """The names that there are, as the system has them, and when it was asked for each."""

    hosts: dict[str, list[str]] = field(default_factory=dict)
    fault: OSError | UnicodeError = GONE
    takes: float = 0.0
    """Seconds for an answer."""
    asked: list[tuple[str, float]] = field(default_factory=list)

    async def look_up(self, host: bytes, port: int, *how: Any) -> Answer:
        name = host.decode()
        self.asked.append((name, trio.current_time()))
        await trio.sleep(self.takes)
        if name not in self.hosts:
            raise self.fault
        found = []
        for ip in self.hosts[name]:
            family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            sockaddr = (ip, port, 0, 0) if ":" in ip else (ip, port)
            found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr))
        return found


@dataclass
class Run:
    resolver: Resolver
    zone: Zone
    stream: io.StringIO

    async def ask(self, name: str = "pool.test") -> list[str]:
        found = await trio.socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
        return [str(sockaddr[0]) for *_, sockaddr in found]

    @property
    def said(self) -> list[tuple[str, str, str]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [(line["level"], line["name"], line["detail"]) for line in lines]


@contextlib.asynccontextmanager
async def running(**hosts: list[str]) -> AsyncIterator[Run]:
    stream = io.StringIO()
    zone = Zone({name.replace("_", "."): ips for name, ips in hosts.items()})
    resolver = Resolver(Log(stream, form="json"), look_up=zone.look_up)
    async with trio.open_nursery() as nursery:
        await nursery.start(resolver.run)
        yield Run(resolver, zone, stream)
        nursery.cancel_scope.cancel()


async def test_a_name_is_looked_up_once_for_all_who_ask(autojump_clock: MockClock) -> None:
    async with running(pool_test=["192.0.2.1", "192.0.2.2"]) as run:
        run.zone.takes = 1.0
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(run.ask)
        assert await run.ask() == ["192.0.2.1", "192.0.2.2"]
        assert run.zone.asked == [("pool.test", 0.0)]
        # who takes it apart takes only what is his
        found = await trio.socket.getaddrinfo("pool.test", 443, type=socket.SOCK_STREAM)
        found.clear()
        assert len(await run.ask()) == 2


async def test_a_name_that_changes_its_answer_is_another_in_half_a_minute(
    autojump_clock: MockClock,
) -> None:
    async with running(pool_test=["192.0.2.1"]) as run:
        await run.ask()
        run.zone.hosts["pool.test"] = ["192.0.2.9"]
        await trio.sleep(29)
        assert await run.ask() == ["192.0.2.1"]
        await trio.sleep(2)
        assert await run.ask() == ["192.0.2.9"]
        assert [at for _, at in run.zone.asked] == [0, 30]


async def test_where_nobody_answers_it_is_looked_up_at_once_but_once_a_second(
    autojump_clock: MockClock,
) -> None:
    async with running(pool_test=["192.0.2.1"], other_test=["192.0.2.7"]) as run:
        await run.ask()
        await run.ask("other.test")
        run.zone.hosts["pool.test"] = ["192.0.2.9"]
        run.resolver.refresh("unknown.test")
        for _ in range(50):
            await trio.sleep(0.1)
            run.resolver.refresh("pool.test")
        assert await run.ask() == ["192.0.2.9"]
        times = [at for name, at in run.zone.asked if name == "pool.test"]
        assert 4 <= len(times) <= 6
        assert len(run.zone.asked) - len(times) == 1


async def test_the_last_answer_is_kept_while_there_is_none(autojump_clock: MockClock) -> None:
    async with running(pool_test=["192.0.2.1"]) as run:
        await run.ask()
        ips = run.zone.hosts.pop("pool.test")
        await trio.sleep(1)
        for _ in range(4):
            await trio.sleep(30)
            assert await run.ask() == ["192.0.2.1"]
        assert run.said == [
            ("warning", "pool.test", "Name or service not known; the last answer is kept")
        ]
        run.zone.hosts["pool.test"] = ips
        await trio.sleep(30)
        assert run.said[1:] == [("info", "pool.test", "found again")]


@pytest.mark.parametrize("fault", [GONE, OSError(24, "Too many open files"), UnicodeError("long")])
async def test_that_a_name_is_not_there_is_kept_for_a_second(
    autojump_clock: MockClock, fault: OSError | UnicodeError
) -> None:
    async with running() as run:
        run.zone.fault = fault
        for _ in range(3):
            with pytest.raises(socket.gaierror):
                await run.ask()
        assert len(run.zone.asked) == 1
        await trio.sleep(1.1)
        run.zone.hosts["pool.test"] = ["192.0.2.1"]
        assert await run.ask() == ["192.0.2.1"]
        assert run.said == []
        await trio.sleep(20)
        assert len(run.zone.asked) == 2


async def test_a_name_that_nobody_asks_for_is_forgotten(autojump_clock: MockClock) -> None:
    async with running(pool_test=["192.0.2.1"]) as run:
        await run.ask()
        await trio.sleep(300)
        await run.ask()
        await trio.sleep(1000)
        asked = len(run.zone.asked)
        assert asked == pytest.approx(30, abs=1)
        assert not run.resolver.entries
        run.zone.hosts["pool.test"] = ["192.0.2.2"]
        assert await run.ask() == ["192.0.2.2"]


async def test_so_many_names_are_kept_and_others_are_looked_up_each_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snimux.net.resolver._MOST", 2)
    hosts = {f"n{number}_test": [f"192.0.2.{number}"] for number in range(1, 5)}
    async with running(**hosts) as run:
        for _ in range(2):
            for number in range(1, 5):
                assert await run.ask(f"n{number}.test") == [f"192.0.2.{number}"]
        assert len(run.resolver.entries) == 2
        asked = Counter(name for name, _ in run.zone.asked)
        assert asked == {"n1.test": 1, "n2.test": 1, "n3.test": 2, "n4.test": 2}
        with pytest.raises(socket.gaierror, match="not known"):
            await run.ask("gone.test")
        await trio.sleep(1000)
        assert not run.resolver.entries


async def test_of_an_answer_so_many_addresses_are_kept(autojump_clock: MockClock) -> None:
    async with running(pool_test=[f"192.0.2.{last}" for last in range(200)]) as run:
        assert await run.ask() == [f"192.0.2.{last}" for last in range(32)]


async def test_who_gives_up_does_not_stop_the_look_up(autojump_clock: MockClock) -> None:
    async with running(pool_test=["192.0.2.1"]) as run:
        run.zone.takes = 5.0
        with trio.move_on_after(1):
            await run.ask()
        await trio.sleep(4.5)
        assert await run.ask() == ["192.0.2.1"]
        assert trio.current_time() == 5.5


def at_one_port(*hosts: str) -> list[socket.socket]:
    """Sockets that are bound to several addresses of this machine, all to the same port."""
    for _ in range(20):
        found: list[socket.socket] = []
        try:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                found.append(socket.socket(family))
                found[-1].bind((host, found[0].getsockname()[1]))
            return found
        except OSError:  # somebody else has it at one of them
            for sock in found:
                sock.close()
    raise RuntimeError("no port is free at all of them")


async def test_the_addresses_that_are_kept_are_raced(autojump_clock: MockClock) -> None:
    """The first swallows what comes, as a broken IPv6 does; the other has it 250 ms later."""
    autojump_clock.autojump_threshold = 0.1
    broken, good = at_one_port("::1", "127.0.0.1")
    with broken, good:
        broken.listen(0)
        good.listen()
        port = good.getsockname()[1]
        with socket.create_connection(("::1", port)):
            async with running(pool_test=["::1", "127.0.0.1"]) as run:
                for _ in range(2):
                    found = await dial(TcpAddress("pool.test", port), dial_timeout=5)
                    assert isinstance(found, Dialled)
                    with found.socket:
                        assert found.socket.getpeername()[0] == "127.0.0.1"
                assert len(run.zone.asked) == 1
                assert trio.current_time() < 5


async def test_real_names_and_what_was_before() -> None:
    resolver = Resolver(Log(io.StringIO()))
    async with trio.open_nursery() as nursery:
        await nursery.start(resolver.run)
        found = await trio.socket.getaddrinfo("localhost", 443, type=socket.SOCK_STREAM)
        assert {sockaddr[0] for *_, sockaddr in found} <= {"127.0.0.1", "::1"}
        assert len(resolver.entries) == 1
        host, port = await trio.socket.getnameinfo(
            ("127.0.0.1", 443), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        )
        assert (host, port) == ("127.0.0.1", "443")
        nursery.cancel_scope.cancel()
    assert trio.socket.set_custom_hostname_resolver(None) is None
