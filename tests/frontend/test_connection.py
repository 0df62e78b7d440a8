"""``frontend.connection``: every way that one connection can go, and its one log line."""

import contextlib
import math
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import pytest
import trio
from trio.socket import SocketType
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.backend.pool import Backends
from snimux.config.model import Limits
from snimux.frontend.connection import Service, serve
from snimux.frontend.events import Observer
from snimux.frontend.limits import LocalLimits
from snimux.frontend.outcome import Outcome
from snimux.frontend.source_limits import Entry, SourceLimits
from snimux.log import Field, logfmt
from snimux.net.sockets import endpoint, tune
from snimux.proto.client_hello import TLS, alert
from snimux.proto.http_head import HTTP, farewell
from snimux.proto.proxy_header import Endpoint, build
from snimux.proto.proxy_header import Version as ProxyVersion
from snimux.proto.reason import Reason
from snimux.proto.verdict import START
from snimux.relay import portable
from snimux.relay.interface import End, Relay, Tally
from snimux.routing.access import Access, Admission
from snimux.routing.address import TcpAddress, UnixAddress
from snimux.routing.decide import EntryPoint
from snimux.routing.networks import Networks, parse_network
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from snimux.service.generation import Current
from tests.hellos import load
from tests.support.generations import configured, in_effect
from tests.support.observers import keeping
from tests.support.sockets import (
    fin,
    open_descriptors,
    read,
    read_to_end,
    reset,
    send_all,
    tcp_pair,
    unix_pair,
)

HELLO = next(hello.data for hello in load() if hello.slug == "chromium")
NAMELESS = next(hello.data for hello in load() if hello.slug == "openssl-no-name")
NAME = "secure.ciso.com"
GET = b"GET /a?secret HTTP/1.1\r\nHost: Secure.ciso.com:80\r\n\r\n"


@dataclass
class Run:
    """One client that is being served, and the backend that its route leads to."""

    client: SocketType
    source: Endpoint | None
    own: Endpoint | None
    listener: SocketType
    outcomes: list[Outcome] = field(default_factory=list)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)

    async def accept(self) -> SocketType:
        backend, _ = await self.listener.accept()
        return backend

    async def outcome(self) -> Outcome:
        await self.done.wait()
        (outcome,) = self.outcomes
        return outcome

    async def fields(self) -> dict[str, Field]:
        return (await self.outcome()).fields()


class Counting(SourceLimits):
    """Counts clients as it is told to."""

    def __init__(self, enter: Callable[[Endpoint | None, Reason | None], Entry | None]) -> None:
        self.enter = enter

    def count(self, source: Endpoint | None, refused: Reason | None) -> Entry | None:
        return self.enter(source, refused)


@dataclass
class Counted:
    """How many clients of each source are in, and all that were told to it."""

    refuse: Reason | None = None
    is_silent: bool = False
    inside: Counter[str] = field(default_factory=Counter)
    told: list[tuple[str, Reason | None]] = field(default_factory=list)

    def enter(self, source: Endpoint | None, refused: Reason | None) -> Entry | None:
        host = source[0] if source else "unix"
        self.told.append((host, refused))
        if self.is_silent:
            return None
        self.inside[host] += 1
        return Entry(partial(self.inside.subtract, [host]), refused or self.refuse)


@contextlib.asynccontextmanager
async def serving(
    *,
    pattern: str = NAME,
    proxy: ProxyVersion | Literal["auto"] | None = None,
    is_proved: bool = False,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    relay: Relay = portable.relay,
    down: bool = False,
    unix: bool = False,
    refused: Reason | None = None,
    http: bool = False,
    http_side: bool = True,
    access: Access | None = None,
    transparent: bool = False,
    admission: Admission | None = None,
    enter: Callable[[Endpoint | None, Reason | None], Entry | None] | None = None,
    watcher: Observer | None = None,
) -> AsyncIterator[Run]:
    near, client = await (unix_pair() if unix else tcp_pair())
    source = None if unix else endpoint(client.getsockname())
    own = None if unix else endpoint(client.getpeername())
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    if not down:
        listener.listen(1)
    address = TcpAddress("127.0.0.1", listener.getsockname()[1])
    backend = Backend((address,), proxy, transparent=transparent)
    route = Route(parse_pattern(pattern), targets(tls=backend))
    if http:
        nowhere = Backend((TcpAddress("127.0.0.1", 1),), "v2")
        route = Route(
            parse_pattern(pattern), targets(tls=nowhere, http=backend if http_side else None)
        )
    route = replace(route, access=access)
    run = Run(client, source, own, listener)
    pool = Backends()
    pool.prove(address, is_proved)
    config = configured([route], limits=limits)
    current = Current(in_effect(config, https_port=8443))
    if refused is not None:
        enter = Counted(refused).enter
    counts = Counting(enter) if enter else SourceLimits(LocalLimits(9), current)
    events = keeping(run.outcomes, *[watcher] if watcher else [])
    entry = EntryPoint(HTTP if http else TLS, admission=admission)
    service = Service(entry, current, relay, pool, counts, events)

    async def work() -> None:
        with run.scope:
            await serve(near, source, service)
        assert near.fileno() == -1
        run.done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        with client, listener:
            yield run
        run.scope.cancel()


@dataclass
class Noted(Observer):
    """What an observer has heard, and how much was known of each connection then."""

    told: list[tuple[str, Outcome]] = field(default_factory=list)
    latest: Outcome | None = None
    """Of the connection that began last, what is known now."""

    def accepted(self, outcome: Outcome) -> None:
        self.latest = outcome
        self.told.append(("accepted", replace(outcome)))

    def ended(self, outcome: Outcome) -> None:
        self.told.append(("ended", replace(outcome)))


async def test_an_observer_hears_when_it_begins_and_ends_and_can_look_meanwhile(
    mock_clock: MockClock,
) -> None:
    noted = Noted()
    async with serving(watcher=noted) as run:
        began = trio.current_time()
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(2)
        await send_all(run.client, HELLO)
        with await run.accept() as backend:
            await read(backend, len(HELLO))
            assert noted.latest is not None
            later = replace(noted.latest)
            fin(backend)
            fin(run.client)
            outcome = await run.outcome()
    (first, at_first), (last, in_the_end) = noted.told
    assert (first, last) == ("accepted", "ended")
    assert (at_first.started, at_first.hello) == (began, None)
    assert later.hello is not None
    assert (later.hello_seconds, later.dial_seconds) == (2, 0)
    assert later.backend == outcome.backend is not None
    assert later.tally is outcome.tally
    assert in_the_end.ended == "eof"


async def test_an_observer_hears_of_who_is_refused_too_and_of_who_is_worth_no_line() -> None:
    noted = Noted()
    async with serving(down=True, watcher=noted) as run:
        await send_all(run.client, HELLO)
        await read_to_end(run.client)
        await run.outcome()
    async with serving(enter=lambda source, refused: None, watcher=noted) as run:
        await read_to_end(run.client)
        await run.done.wait()
        assert run.outcomes == []
    assert [what for what, _ in noted.told] == ["accepted", "ended"] * 2
    assert [at.is_silent for _, at in noted.told] == [False, False, False, True]


@pytest.mark.parametrize("behind", [b"", b"0-RTT data behind the hello" * 3])
async def test_a_hello_is_passed_on_whole_and_the_answer_comes_back(behind: bytes) -> None:
    async with serving() as run:
        await send_all(run.client, HELLO + behind)
        with await run.accept() as backend:
            assert await read(backend, len(HELLO + behind)) == HELLO + behind
            await send_all(backend, b"ServerHello")
            assert await read(run.client, 11) == b"ServerHello"
            fin(run.client)
            assert await read_to_end(backend) == (b"", False)
            await send_all(backend, b"the rest")
            fin(backend)
            assert await read_to_end(run.client) == (b"the rest", False)
        fields = await run.fields()
    assert run.source is not None
    assert fields == {
        "client": f"127.0.0.1:{run.source[1]}",
        "via": None,
        "protocol": None,
        "name": NAME,
        "alpn": "h2,http/1.1",
        "ech": "offered",
        "route": NAME,
        "backend": fields["backend"],
        "waited": None,
        "up": len(HELLO + behind),
        "down": len(b"ServerHello" + b"the rest"),
        "seconds": fields["seconds"],
        "ended": "eof",
        "reason": None,
        "detail": None,
    }


async def test_a_hello_may_come_byte_by_byte_and_is_sent_on_in_one_write() -> None:
    async with serving() as run:
        for octet in HELLO:
            await run.client.send(bytes([octet]))
        with await run.accept() as backend:
            await wait_all_tasks_blocked(0.02)
            assert await backend.recv(65536) == HELLO


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("unix", [False, True])
async def test_the_proxy_header_comes_in_the_same_write(version: ProxyVersion, unix: bool) -> None:
    async with serving(proxy=version, unix=unix) as run:
        await send_all(run.client, HELLO)
        with await run.accept() as backend:
            header = build(version, run.source, run.own)
            await wait_all_tasks_blocked(0.02)
            assert await backend.recv(65536) == header + HELLO
            reset(run.client) if not unix else run.client.close()
        fields = await run.fields()
    assert fields["up"] == len(HELLO)
    assert (fields["client"] == "unix") is unix


@pytest.mark.parametrize("is_proved", [True, False])
async def test_an_automatic_header_goes_to_addresses_that_are_proved(is_proved: bool) -> None:
    async with serving(proxy="auto", is_proved=is_proved) as run:
        await send_all(run.client, HELLO)
        with await run.accept() as backend:
            header = build("v2", run.source, run.own) if is_proved else b""
            await wait_all_tasks_blocked(0.02)
            assert await backend.recv(65536) == header + HELLO
            reset(run.client)
        outcome = await run.outcome()
        port = run.listener.getsockname()[1]
    assert outcome.to == Backend((TcpAddress("127.0.0.1", port),), "auto")


async def refused(
    data: bytes,
    *,
    close: bool = True,
    name: str | None = None,
    ended: str = "refused",
    **kwargs: object,
) -> tuple[bytes, dict[str, Field]]:
    """What a client that sends some bytes is told, and the log line's fields."""
    before = open_descriptors()
    async with serving(**kwargs) as run:  # type: ignore[arg-type]
        await send_all(run.client, data)
        if close:
            fin(run.client)
        told, was_reset = await read_to_end(run.client)
        assert not was_reset
        run.client.close()
        fields = await run.fields()
    assert open_descriptors() == before
    assert fields["ended"] == ended
    assert fields["name"] == name
    assert (fields["up"], fields["down"]) == (0, 0)
    return told, fields


@pytest.mark.parametrize("close", [True, False])
async def test_refusals_are_said_and_logged(close: bool) -> None:
    told, fields = await refused(HELLO, close=close, pattern="other.example", name=NAME)
    assert (told, fields["reason"]) == (alert(112), "no-route")
    told, fields = await refused(NAMELESS, close=close)
    assert (told, fields["reason"]) == (alert(112), "no-route")
    told, fields = await refused(HELLO, close=close, down=True, name=NAME)
    assert (told, fields["reason"]) == (alert(80), "backend-down")
    assert "Connection refused" in str(fields["detail"])
    told, fields = await refused(b"\x16\x03\x01\0\0", close=close)
    assert (told, fields["reason"], fields["detail"]) == (
        alert(50),
        "malformed-hello",
        "empty record",
    )
    told, fields = await refused(b"\x15\x03\x01\0\2\1\0", close=close)
    assert (told, fields["reason"]) == (alert(10), "unexpected-message")
    told, fields = await refused(b"GET / HTTP/1.1\r\n\r\n", close=close)
    assert (told, fields["reason"]) == (b"", "http")
    told, fields = await refused(b"SSH-2.0-x\r\n", close=close)
    assert (told, fields["reason"]) == (b"", "ssh")
    told, fields = await refused(b"", refused=Reason.TOO_MANY_FROM_SOURCE, close=close)
    assert (told, fields["reason"]) == (alert(49), "too-many-from-source")


async def test_a_client_that_closes_before_its_hello_is_whole() -> None:
    told, fields = await refused(HELLO[:100])
    assert (told, fields["reason"]) == (alert(50), "hello-cut-short")
    assert fields["detail"] == "100 bytes came"
    told, fields = await refused(b"")
    assert (told, fields["reason"]) == (b"", "no-bytes")
    told, fields = await refused(b"GE")
    assert (told, fields["reason"]) == (b"", "hello-cut-short")


async def test_an_alert_is_not_lost_to_what_the_client_still_sends() -> None:
    """Bytes that arrive at a closed socket are answered with a reset, which overtakes the alert."""
    async with serving(pattern="other.example") as run:
        await send_all(run.client, HELLO)
        for _ in range(20):
            await run.client.send(bytes(1000))
            await trio.sleep(0.002)
        fin(run.client)
        assert await read_to_end(run.client) == (alert(112), False)


async def test_a_client_that_never_stops_sending_is_closed_all_the_same() -> None:
    async with serving(pattern="other.example") as run:
        await send_all(run.client, HELLO)
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            while True:
                await run.client.send(bytes(100))
                await trio.sleep(0.01)
        outcome = await run.outcome()
    assert outcome.reason is Reason.NO_ROUTE


async def test_one_deadline_covers_the_whole_hello(mock_clock: MockClock) -> None:
    """It does not start anew with each byte, so dripping them does not help."""
    async with serving(limits=Limits(hello_timeout=5)) as run:
        for octet in HELLO[:4]:
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(1.2)
            await run.client.send(bytes([octet]))
        await wait_all_tasks_blocked(0.01)
        assert not run.done.is_set()
        mock_clock.jump(0.3)
        told, _ = await read_to_end(run.client)
        run.client.close()
        fields = await run.fields()
    assert (told, fields["reason"]) == (alert(50), "hello-timeout")


async def test_a_late_hello_is_told_by_an_alert(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with serving() as run:
        await send_all(run.client, HELLO[:100])
        assert await read_to_end(run.client) == (alert(50), False)
        run.client.close()
        fields = await run.fields()
    assert fields["reason"] == "hello-timeout"


async def test_a_client_that_says_nothing_is_closed(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with serving() as run:
        assert await read_to_end(run.client) == (b"", False)
        run.client.close()
        assert (await run.fields())["reason"] == "no-bytes"


async def test_the_bound_on_a_hello_is_the_limit_given() -> None:
    told, fields = await refused(HELLO, limits=Limits(max_hello=512))
    assert (told, fields["reason"]) == (alert(50), "hello-too-large")


async def test_the_idle_limit_is_the_limit_given(mock_clock: MockClock) -> None:
    async with serving(limits=Limits(idle_timeout=60)) as run:
        await send_all(run.client, HELLO)
        with await run.accept() as backend:
            assert await read(backend, len(HELLO)) == HELLO
            await wait_all_tasks_blocked(0.01)
            mock_clock.jump(61)
            assert (await run.fields())["ended"] == "idle"


async def test_a_client_that_resets_midway_through_its_hello() -> None:
    async with serving() as run:
        await send_all(run.client, HELLO[:50])
        await wait_all_tasks_blocked(0.01)
        reset(run.client)
        outcome = await run.outcome()
    assert outcome.reason is Reason.HELLO_CUT_SHORT


@pytest.mark.parametrize("stage", ["hello", "relay", "farewell"])
async def test_cancelled_at_any_stage_it_is_logged_and_closed(stage: str) -> None:
    before = open_descriptors()
    pattern = "other.example" if stage == "farewell" else NAME
    async with serving(pattern=pattern) as run:
        await send_all(run.client, HELLO if stage != "hello" else HELLO[:9])
        backend = await run.accept() if stage == "relay" else None
        await wait_all_tasks_blocked(0.02)
        run.scope.cancel()
        fields = await run.fields()
        if backend is not None:
            assert await read_to_end(backend) == (HELLO, False)
            backend.close()
    assert open_descriptors() == before
    assert fields["ended"] == ("refused" if stage == "farewell" else "shutdown")
    assert fields["up"] == (len(HELLO) if stage == "relay" else 0)


async def test_an_error_that_nobody_expected_ends_only_its_connection() -> None:
    async def broken(
        client: socket.socket,
        backend: socket.socket,
        tally: Tally,
        *,
        head: bytearray,
        idle_timeout: float,
    ) -> End:
        raise ValueError("boom\nboom")

    async with serving(relay=broken) as run:
        await send_all(run.client, HELLO)
        outcome = await run.outcome()
    assert (outcome.ended, outcome.detail) == ("failed", r"(ValueError('boom\nboom'),)")


# Who is let in.

HERE = Networks((parse_network("127.0.0.0/8"),))
ACME_HELLO = next(hello.data for hello in load() if hello.slug == "openssl-acme-tls-1")
ACME_GET = GET.replace(b"/a?secret", b"/.well-known/acme-challenge/x")
ACME_GET = ACME_GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("access", [Access(deny=HERE), Access(allow=Networks())])
async def test_a_listener_refuses_before_the_hello_is_read(access: Access) -> None:
    admission = Admission(access)
    for data in (HELLO, b""):
        told, fields = await refused(data, admission=admission)
        assert (told, fields["reason"]) == (alert(49), "access-denied")
        told, fields = await told_by_http(data, admission=admission)
        assert told.startswith(b"HTTP/1.1 403 ")
        assert fields["reason"] == "access-denied"


@pytest.mark.parametrize("access", [Access(deny=HERE), Access(allow=Networks())])
async def test_a_route_refuses_once_it_is_known(access: Access) -> None:
    told, fields = await refused(HELLO, access=access, name=NAME)
    assert (told, fields["reason"], fields["route"]) == (alert(49), "access-denied", NAME)
    for http_side in (True, False):
        told, fields = await told_by_http(GET, access=access, name=NAME, http_side=http_side)
        assert told.startswith(b"HTTP/1.1 403 ")
    told, fields = await refused(HELLO, access=access, name=NAME, pattern="other.example")
    assert (told, fields["reason"]) == (alert(112), "no-route")


async def test_who_is_allowed_is_served_and_a_unix_client_where_unix_is() -> None:
    for unix, allow in ((False, HERE), (True, Networks(unix=True))):
        access = Access(allow=allow)
        async with serving(access=access, admission=Admission(access), unix=unix) as run:
            await send_all(run.client, HELLO)
            with await run.accept() as backend:
                assert await read(backend, len(HELLO)) == HELLO
                run.client.close()
    told, _ = await refused(HELLO, admission=Admission(Access(allow=HERE)), unix=True)
    assert told == alert(49)


async def test_validations_pass_lists_that_exempt_them_and_nothing_else_does() -> None:
    exempt, strict = Access(deny=HERE, acme_exempt=True), Access(deny=HERE)
    for http, data, other in ((False, ACME_HELLO, HELLO), (True, ACME_GET, GET)):
        async with serving(access=exempt, admission=Admission(exempt), http=http) as run:
            await send_all(run.client, data)
            with await run.accept() as backend:
                assert await read(backend, len(data)) == data
                run.client.close()
        for access, admission in ((exempt, strict), (strict, exempt)):
            _, fields = await refused(
                data, access=access, admission=Admission(admission), http=http,
                name=None if admission is strict else NAME,
            )  # fmt: skip
            assert fields["reason"] == "access-denied"
        for lists in ({"access": exempt}, {"admission": Admission(exempt)}):
            for refused_data in (other, data + other) if http else (other,):
                told, fields = await refused(refused_data, http=http, name=NAME, **lists)
                assert fields["reason"] == "access-denied"
                assert told == alert(49) or told.startswith(b"HTTP/1.1 403 ")


async def test_who_has_no_address_of_the_backend_s_family_cannot_be_shown_to_it() -> None:
    v6 = Admission(proxy_from=Networks(HERE.listed, unix=True))
    for unix, header in ((True, b""), (False, build("v2", ("2001:db8::7", 1), ("2001:db8::1", 2)))):
        admission = v6 if header else None
        told, fields = await refused(
            header + HELLO, transparent=True, unix=unix, admission=admission, name=NAME
        )
        assert (told, fields["reason"]) == (alert(80), "no-source")


# Behind a balancer.

CLIENT, FRONT = ("192.0.2.7", 49152), ("198.51.100.1", 443)
CLIENT6, FRONT6 = ("2001:db8::7", 49152), ("2001:db8::1", 443)
BALANCER = Admission(proxy_from=HERE)
UNKNOWN = {"v1": build("v1", None, None), "v2": build("v2", None, None)}


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("ends", [(CLIENT, FRONT), (CLIENT6, FRONT6)])
@pytest.mark.parametrize("pieces", ["whole", "apart", "bytes"])
async def test_the_client_is_who_the_balancer_says(
    version: ProxyVersion, ends: tuple[Endpoint, Endpoint], pieces: str
) -> None:
    header, behind = build(version, *ends), b"0-RTT"
    sent = {
        "whole": [header + HELLO + behind],
        "apart": [header, HELLO + behind],
        "bytes": [bytes([octet]) for octet in header + HELLO + behind],
    }[pieces]
    async with serving(admission=BALANCER, proxy="v2") as run:
        for piece in sent:
            await send_all(run.client, piece)
            if pieces == "apart":
                await wait_all_tasks_blocked(0.01)
        with await run.accept() as backend:
            told = build("v2", *ends) + HELLO + behind
            assert await read(backend, len(told)) == told
            reset(run.client)
        fields = await run.fields()
    assert run.source is not None
    assert fields["client"] == ("[2001:db8::7]:49152" if ends[0] is CLIENT6 else "192.0.2.7:49152")
    assert (fields["via"], fields["name"]) == (f"127.0.0.1:{run.source[1]}", NAME)
    assert fields["up"] == len(HELLO + behind)


async def test_a_balancer_of_plain_http_or_on_a_unix_socket_is_believed_too() -> None:
    header = build("v2", CLIENT, FRONT)
    for http, unix, data in ((True, False, GET), (False, True, HELLO)):
        admission = Admission(proxy_from=Networks(HERE.listed, unix=True))
        async with serving(admission=admission, http=http, unix=unix) as run:
            await send_all(run.client, header + data)
            with await run.accept() as backend:
                assert await read(backend, len(data)) == data
                run.client.close()
            fields = await run.fields()
        assert fields["client"] == "192.0.2.7:49152"
        assert str(fields["via"]).startswith("unix" if unix else "127.0.0.1:")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HELLO, "bad-proxy-header"),
        (GET, "bad-proxy-header"),
        (b"PROXY TCP4 x\r\n" + HELLO, "bad-proxy-header"),
        (build("v2", CLIENT, FRONT)[:-1], "hello-cut-short"),
        (b"PROXY TCP4", "hello-cut-short"),
        (b"", "no-bytes"),
        # balancers look in these ways whether this is alive
        (UNKNOWN["v1"], "no-bytes"),
        (UNKNOWN["v2"], "no-bytes"),
        (build("v1", CLIENT, FRONT), "no-bytes"),
    ],
)
async def test_a_balancer_that_does_not_say_who_the_client_is(data: bytes, reason: str) -> None:
    """It is told nothing: the client would not understand, and the balancer does not read."""
    for http in (False, True):
        told, fields = await refused(data, admission=BALANCER, http=http)
        assert (told, fields["reason"]) == (b"", reason)


async def test_behind_its_header_hellos_are_refused_as_ever() -> None:
    header = build("v1", CLIENT, FRONT)
    for data, told, reason in (
        (HELLO[:100], alert(50), "hello-cut-short"),
        (b"SSH-2.0-x", b"", "ssh"),
        (header, b"", "proxy-protocol"),
    ):
        heard, fields = await refused(header + data, admission=BALANCER)
        assert (heard, fields["reason"]) == (told, reason)


async def test_who_is_not_trusted_is_served_without_a_header_and_refused_with_one() -> None:
    elsewhere = Admission(proxy_from=Networks((parse_network("192.0.2.0/24"),), unix=True))
    async with serving(admission=elsewhere) as run:
        await send_all(run.client, HELLO)
        with await run.accept() as backend:
            assert await read(backend, len(HELLO)) == HELLO
            reset(run.client)
        assert (await run.fields())["via"] is None
    for version in ("v1", "v2"):
        data = build(version, CLIENT, FRONT) + HELLO
        told, fields = await refused(data, admission=elsewhere)
        assert (told, fields["reason"]) == (b"", "proxy-protocol")


@pytest.mark.parametrize("first", [b"", b"PROXY TCP4 ", build("v2", CLIENT, FRONT)])
async def test_one_deadline_covers_the_header_and_the_hello(
    first: bytes, mock_clock: MockClock
) -> None:
    async with serving(admission=BALANCER, limits=Limits(hello_timeout=5)) as run:
        await wait_all_tasks_blocked(0.01)
        mock_clock.jump(4)
        await send_all(run.client, first)
        await wait_all_tasks_blocked(0.01)
        assert not run.outcomes
        mock_clock.jump(1.1)
        told, _ = await read_to_end(run.client)
        run.client.close()
        assert told == b""
        reason = "hello-timeout" if first.startswith(b"PROXY") else "no-bytes"
        assert (await run.fields())["reason"] == reason


@pytest.mark.parametrize("exempt", [False, True])
async def test_lists_are_for_the_client_and_not_for_the_balancer(exempt: bool) -> None:
    office = Networks((parse_network("192.0.2.0/24"),))
    other = build("v2", ("192.0.3.1", 1), FRONT)
    for access in (Access(allow=office), Access(deny=Networks((parse_network("192.0.3.1"),)))):
        admission = Admission(replace(access, acme_exempt=exempt), HERE)
        async with serving(admission=admission, access=access) as run:
            await send_all(run.client, build("v2", CLIENT, FRONT) + HELLO)
            with await run.accept() as backend:
                assert await read(backend, len(HELLO)) == HELLO
                reset(run.client)
        told, fields = await refused(
            other + HELLO, admission=admission, name=NAME if exempt else None
        )
        assert (told, fields["reason"], fields["client"]) == (
            alert(49), "access-denied", "192.0.3.1:1",
        )  # fmt: skip
        told, fields = await refused(other + HELLO, admission=BALANCER, access=access, name=NAME)
        assert (told, fields["reason"]) == (alert(49), "access-denied")


@pytest.mark.parametrize("header", UNKNOWN.values())
async def test_who_is_unknown_is_judged_as_the_balancer_that_connects(header: bytes) -> None:
    """Its checks, which close then, are no intruder's doing."""
    office = Networks((parse_network("192.0.2.0/24"),))
    closed = Admission(Access(allow=office), HERE)
    told, fields = await refused(header, admission=closed)
    assert (told, fields["reason"]) == (b"", "no-bytes")
    told, fields = await refused(header + HELLO, admission=closed, name=NAME)
    assert (told, fields["reason"]) == (alert(49), "access-denied")
    both = Admission(Access(allow=Networks((*office.listed, *HERE.listed))), HERE)
    async with serving(admission=both, proxy="v1") as run:
        await send_all(run.client, header + HELLO)
        with await run.accept() as backend:
            own = build("v1", run.source, run.own)
            assert await read(backend, len(own + HELLO)) == own + HELLO
            reset(run.client)
        assert (await run.fields())["via"] is None


@pytest.mark.parametrize("stage", ["header", "hello", "relay", "farewell", "refused"])
async def test_a_client_is_counted_once_and_uncounted_once_whenever_it_is_cancelled(
    stage: str,
) -> None:
    before = open_descriptors()
    counted = Counted(Reason.TOO_MANY_FROM_SOURCE if stage == "refused" else None)
    pattern = "other.example" if stage == "farewell" else NAME
    sizes = {"header": 9, "hello": 9 + len(build("v1", CLIENT, FRONT))}
    data = (build("v1", CLIENT, FRONT) + HELLO)[: sizes.get(stage)]
    async with serving(admission=BALANCER, pattern=pattern, enter=counted.enter) as run:
        await send_all(run.client, data)
        backend = await run.accept() if stage == "relay" else None
        await wait_all_tasks_blocked(0.02)
        assert counted.inside == ({} if stage == "header" else {"192.0.2.7": 1})
        run.scope.cancel()
        await run.done.wait()
        if backend is not None:
            backend.close()
    assert counted.told == ([] if stage == "header" else [("192.0.2.7", None)])
    assert counted.inside.total() == 0
    assert len(run.outcomes) == 1
    assert open_descriptors() == before


@pytest.mark.parametrize("header", [b"", build("v2", CLIENT, FRONT)])
async def test_a_client_is_counted_once_however_it_ends(header: bytes) -> None:
    admission = BALANCER if header else None
    host = "192.0.2.7" if header else "127.0.0.1"
    for data, kwargs in (
        (HELLO, {"pattern": "other.example", "name": NAME}),
        (HELLO, {"down": True, "name": NAME}),
        (HELLO[:9], {}),
        (b"SSH-", {}),
    ):
        counted = Counted()
        await refused(header + data, admission=admission, enter=counted.enter, **kwargs)
        assert counted.told == [(host, None)]
        assert counted.inside.total() == 0


async def test_who_is_denied_is_told_to_the_count() -> None:
    counted = Counted()
    admission = Admission(Access(deny=HERE))
    told, _ = await refused(HELLO, admission=admission, enter=counted.enter)
    assert told == alert(49)
    assert counted.told == [("127.0.0.1", Reason.ACCESS_DENIED)]
    assert counted.inside.total() == 0


async def test_what_is_not_worth_a_word_is_closed_without_one_and_without_a_line() -> None:
    async with serving(enter=Counted(is_silent=True).enter) as run:
        told, _ = await read_to_end(run.client)
        assert told == b""
        await run.done.wait()
    assert run.outcomes == []


# Plain HTTP.


async def test_a_request_and_all_behind_it_goes_to_the_http_side() -> None:
    behind = b"the body" * 9
    async with serving(http=True) as run:
        await send_all(run.client, GET + behind)
        with await run.accept() as backend:
            assert await read(backend, len(GET + behind)) == GET + behind
            await send_all(backend, b"HTTP/1.1 200 OK\r\n")
            assert await read(run.client, 17) == b"HTTP/1.1 200 OK\r\n"
            fin(run.client)
            fin(backend)
        fields = await run.fields()
    assert (fields["protocol"], fields["name"], fields["route"]) == ("http", NAME, NAME)
    assert (fields["ended"], fields["up"], fields["down"]) == ("eof", len(GET + behind), 17)


async def test_a_head_may_come_byte_by_byte_and_is_sent_on_in_one_write() -> None:
    async with serving(http=True) as run:
        for octet in GET:
            await run.client.send(bytes([octet]))
        with await run.accept() as backend:
            await wait_all_tasks_blocked(0.02)
            assert await backend.recv(65536) == GET


async def test_the_http_side_has_a_proxy_header_of_its_own() -> None:
    async with serving(http=True, proxy="v1") as run:
        await send_all(run.client, GET)
        with await run.accept() as backend:
            header = build("v1", run.source, run.own)
            assert await read(backend, len(header + GET)) == header + GET
            reset(run.client)
        assert (await run.fields())["up"] == len(GET)


async def told_by_http(data: bytes, **kwargs: object) -> tuple[bytes, dict[str, Field]]:
    """What an HTTP client that sends some bytes is told, and the log line's fields."""
    told, fields = await refused(data, http=True, **kwargs)  # type: ignore[arg-type]
    assert fields["protocol"] == "http"
    return told, fields


async def test_without_an_http_side_it_is_redirected_and_closed() -> None:
    told, fields = await told_by_http(GET + b"more", http_side=False, ended="redirected", name=NAME)
    assert told.startswith(b"HTTP/1.1 308 ")
    assert b"\r\nLocation: https://secure.ciso.com:8443/a?secret\r\n" in told
    assert fields["reason"] is None
    assert fields["detail"] == "https://secure.ciso.com:8443/a"
    assert (fields["route"], fields["backend"]) == (NAME, None)


async def test_a_redirect_may_be_longer_than_what_the_kernel_takes_at_once() -> None:
    async with serving(http=True, http_side=False, limits=Limits(max_hello=65536)) as run:
        target = b"/" + b"x" * 60_000
        await send_all(run.client, GET.replace(b"/a?secret", target))
        told, was_reset = await read_to_end(run.client)
        run.client.close()
    assert not was_reset
    assert b"8443" + target + b"\r\n" in told


async def test_validation_is_not_redirected() -> None:
    challenge = GET.replace(b"/a?secret", b"/.well-known/acme-challenge/x")
    told, fields = await told_by_http(challenge, http_side=False, name=NAME)
    assert told.startswith(b"HTTP/1.1 404 ")
    assert fields["reason"] == "no-http"


async def test_refusals_of_http_are_responses() -> None:
    told, fields = await told_by_http(GET, pattern="other.example", name=NAME)
    assert (told, fields["reason"]) == (farewell(Reason.NO_ROUTE), "no-route")
    head = GET.replace(b"GET", b"HEAD")
    told, fields = await told_by_http(head, pattern="other.example", name=NAME)
    assert told.endswith(b"\r\n\r\n")
    told, fields = await told_by_http(GET, down=True, name=NAME)
    assert (told, fields["reason"]) == (farewell(Reason.BACKEND_DOWN), "backend-down")
    told, fields = await told_by_http(b"GET / HTTP/1.1\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 400 ")
    assert fields["reason"] == "malformed-hello"
    told, fields = await told_by_http(GET[:-2])
    assert (told, fields["reason"]) == (farewell(Reason.HELLO_TIMEOUT), "hello-cut-short")
    told, fields = await told_by_http(HELLO)
    assert (told, fields["reason"]) == (b"", "tls")
    told, fields = await told_by_http(b"")
    assert (told, fields["reason"]) == (b"", "no-bytes")
    told, fields = await told_by_http(b"", refused=Reason.TOO_MANY_FROM_SOURCE)
    assert told.startswith(b"HTTP/1.1 429 ")


async def test_a_request_without_a_name_goes_to_the_default_alone() -> None:
    for data in (
        GET.replace(b"Secure.ciso.com", b"192.0.2.1"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        async with serving(http=True, pattern="*") as run:
            await send_all(run.client, data)
            with await run.accept() as backend:
                assert await read(backend, len(data)) == data
                reset(run.client)
            assert (await run.fields())["name"] is None
        told, fields = await told_by_http(data)
        assert fields["reason"] == "no-route"
        assert told.startswith(b"HTTP/1.1 404 " if data.startswith(b"GET") else b"\0\0\0\4")


async def test_a_late_head_is_told_and_silence_is_not(autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    for data, told, reason in (
        (GET[:20], farewell(Reason.HELLO_TIMEOUT), "hello-timeout"),
        (b"", b"", "no-bytes"),
    ):
        async with serving(http=True) as run:
            await send_all(run.client, data)
            assert await read_to_end(run.client) == (told, False)
            run.client.close()
            assert (await run.fields())["reason"] == reason


async def test_a_route_for_an_alpn_protocol_is_none_for_http() -> None:
    _, fields = await told_by_http(GET, pattern=f"{NAME}/h2", name=NAME)
    assert fields["reason"] == "no-route"


async def test_small_writes_are_not_delayed_and_dead_peers_are_noticed() -> None:
    seen: list[bool] = []

    async def look(
        client: socket.socket,
        backend: socket.socket,
        tally: Tally,
        *,
        head: bytearray,
        idle_timeout: float,
    ) -> End:
        assert idle_timeout == math.inf
        seen.append(is_tuned(backend))
        return End.EOF

    async with serving(relay=look, limits=Limits(idle_timeout=math.inf)) as run:
        await send_all(run.client, HELLO)
        await run.done.wait()
    assert seen == [True]


def is_tuned(sock: socket.socket) -> bool:
    return bool(
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    )


def test_what_a_listener_is_tuned_to_its_sockets_are_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tune(listener)
        with socket.create_connection(listener.getsockname()):
            with listener.accept()[0] as client:
                assert is_tuned(client)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (("192.0.2.1", 5), ("192.0.2.1", 5)),
        (("2001:db8::1", 5, 0, 0), ("2001:db8::1", 5)),
        (("fe80::1%eth0", 5, 0, 2), ("fe80::1", 5)),
        (("::ffff:192.0.2.1", 5, 0, 0), ("192.0.2.1", 5)),
        ("", None),
        (b"", None),
    ],
)
def test_socket_addresses_become_endpoints(name: object, expected: Endpoint | None) -> None:
    assert endpoint(name) == expected


def test_what_clients_send_cannot_break_the_log_line() -> None:
    hello = TLS.peek(HELLO.replace(b"\x08http/1.1", b'\x08h p="\n\x80\xff'), START, 16384)
    outcome = Outcome(("2001:db8::1", 5), hello=hello)  # type: ignore[arg-type]
    line = logfmt(outcome.fields())
    assert line.startswith(
        r'client=[2001:db8::1]:5 name=secure.ciso.com alpn="h2,h p=\"\n\\x80\\xff"'
    )
    assert line.isprintable()


@pytest.mark.parametrize(
    "pattern",
    ["other.example", NAME],  # which is down
)
async def test_what_a_refused_client_sent_is_in_its_outcome(pattern: str) -> None:
    outcomes: list[Outcome] = []
    nobody = Backend((UnixAddress("/nobody/listens/here"),), "v2")
    current = Current(in_effect(configured([Route(parse_pattern(pattern), targets(tls=nobody))])))
    counts = SourceLimits(LocalLimits(9), current)
    service = Service(
        EntryPoint(TLS), current, portable.relay, Backends(), counts, keeping(outcomes)
    )
    near, client = await unix_pair()
    with client:
        await send_all(client, HELLO + b"behind")
        fin(client)
        await serve(near, None, service)
    (outcome,) = outcomes
    assert outcome.ended == "refused"
    assert outcome.received == HELLO + b"behind"
