"""``backend.pool``: who is tried first, who is waited for and how long, what is remembered."""

import contextlib
import io
import json
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
from trio.socket import SocketType
from trio.testing import MockClock

from snimux.backend.pool import Backends
from snimux.backend.proxy_auto import Prober
from snimux.config.model import BackendDefaults
from snimux.frontend.access_log import AccessLog
from snimux.frontend.events import Events, Observer
from snimux.frontend.recheck import Recheck
from snimux.log import Log
from snimux.net.dial import Dialled, NotDialled, dial
from snimux.net.loop import Own
from snimux.net.resolver import Resolver
from snimux.relay.interface import Tally
from snimux.routing.address import DialAddress, TcpAddress
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from tests.support.generations import Effects, configured
from tests.support.sockets import fin, open_descriptors, reset, send_all, tcp_pair


@dataclass
class Place:
    """An address on loopback where somebody listens, or nobody does."""

    sock: socket.socket
    address: TcpAddress

    def listen(self, backlog: int = 100) -> None:
        self.sock.listen(backlog)


@contextlib.contextmanager
def places(count: int, *, listening: bool = True) -> Iterator[list[Place]]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            found.append(Place(sock, TcpAddress(*sock.getsockname())))
            if listening:
                found[-1].listen()
        yield found


@dataclass
class Run:
    """Backends that dial what is silent, and clients to connect for."""

    backends: Backends
    stream: io.StringIO
    clients: list[SocketType] = field(default_factory=list)

    async def reach(
        self,
        *addresses: DialAddress,
        source: str = "192.0.2.1",
        dial_timeout: float = 5,
        tally: Tally | None = None,
        **how: Any,
    ) -> Dialled | NotDialled:
        """What comes of a connection to a backend; a socket stays open until the test is over."""
        near, client = await tcp_pair()
        self.clients.append(client)
        with near:
            to = Backend(addresses, **how)
            found = await self.backends.reach(
                to, near, (source, 1), dial_timeout=dial_timeout, tally=tally
            )
        if isinstance(found, Dialled):
            self.clients.append(trio.socket.from_stdlib_socket(found.socket))
        return found

    async def reached(self, *addresses: DialAddress, **how: Any) -> DialAddress:
        found = await self.reach(*addresses, **how)
        assert isinstance(found, Dialled), found
        return found.address

    async def failed(self, *addresses: DialAddress, **how: Any) -> NotDialled:
        found = await self.reach(*addresses, **how)
        assert isinstance(found, NotDialled), found
        return found

    def reconcile(self, backends: Set[Backend]) -> None:
        config = configured(backends=self.backends.defaults)
        self.backends.reconcile(Effects(backends, config=config))

    def said(self) -> list[tuple[str, str]]:
        """Which addresses the log has so far, and what they are."""
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        assert {line["event"] for line in lines} <= {"backend"}
        assert all(line["level"] == ("info", "warning")[line["state"] == "down"] for line in lines)
        return [(line["backend"], line["state"]) for line in lines]


@contextlib.asynccontextmanager
async def running(**said: Any) -> AsyncIterator[Run]:
    stream = io.StringIO()
    log = Log(stream, form="json")
    observer = said.pop("observer", Observer())
    backends = Backends(
        Events(log, AccessLog(log), observer),
        BackendDefaults(**said),
        uniform=lambda low, high: high,
    )
    run = Run(backends, stream)
    async with trio.open_nursery() as nursery:
        await nursery.start(backends.run)
        yield run
        nursery.cancel_scope.cancel()
    for sock in run.clients:
        sock.close()


@pytest.fixture
def autojump_clock(autojump_clock: MockClock) -> MockClock:
    """It jumps when nothing has happened for a moment: on a busy machine a connection takes one."""
    autojump_clock.autojump_threshold = 0.02
    return autojump_clock


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DialAddress, float]]:
    """Every address that is dialled from now on, and when."""
    found: list[tuple[DialAddress, float]] = []

    async def noting(address: DialAddress, **how: Any) -> Dialled | NotDialled:
        found.append((address, trio.current_time()))
        return await dial(address, **how)

    monkeypatch.setattr("snimux.backend.pool.dial", noting)
    return found


async def test_the_first_that_answers_is_taken_and_what_does_not_is_tried_last(
    mock_clock: MockClock,
    dials: list[tuple[DialAddress, float]],
) -> None:
    with places(2) as (first, second), places(1, listening=False) as (down,):
        async with running() as run:
            assert await run.reached(first.address, second.address) == first.address
            assert await run.reached(down.address, second.address) == second.address
            del dials[:]
            assert await run.reached(down.address, second.address) == second.address
            assert [address for address, _ in dials] == [second.address]
            assert run.said() == [(str(down.address), "down")]


class Failures(Observer):
    """Keeps the addresses that did not answer, and raises then if it is to."""

    def __init__(self, *, raises: bool = False) -> None:
        self.of_clients: list[DialAddress] = []
        self.all: list[DialAddress] = []
        self.raises = raises

    def dial_failed(self, address: DialAddress, is_for_client: bool) -> None:
        self.all.append(address)
        if is_for_client:
            self.of_clients.append(address)
        if self.raises:
            raise RuntimeError("not expected")


async def test_each_failure_of_an_address_is_heard_once(autojump_clock: MockClock) -> None:
    failures = Failures()
    with places(1, listening=False) as (down,), places(1) as (up,):
        async with running(observer=failures) as run:
            await run.reached(down.address, up.address)
            await run.failed(down.address, wait=0.0)
            assert failures.of_clients == [down.address] * 2
            await trio.sleep(100)  # what is dialled for no client is none of its failures
            assert failures.of_clients == [down.address] * 2
            assert failures.all.count(down.address) > 4


async def test_all_are_tried_where_all_are_down_and_every_fault_is_told(
    mock_clock: MockClock,
) -> None:
    with places(3, listening=False) as found, places(1) as (up,):
        addresses = [place.address for place in found]
        async with running(wait=0.0) as run:
            await run.failed(*addresses)
            failed = await run.failed(*addresses)
            assert failed.detail == "; ".join(f"{x}: Connection refused" for x in addresses)
            assert (failed.exhausted, failed.waited) == (False, None)
            assert await run.reached(*addresses, up.address) == up.address
            found[1].listen()
            assert await run.reached(*addresses) == addresses[1]
            assert run.said()[3:] == [(str(addresses[1]), "up")]


async def test_each_address_has_its_own_deadline(autojump_clock: MockClock) -> None:
    """A full accept queue swallows connections, as a black hole on the way does."""
    autojump_clock.autojump_threshold = 0.2
    with places(2, listening=False) as full, places(1) as (good,):
        with contextlib.ExitStack() as stack:
            for place in full:
                place.listen(0)
                stack.enter_context(socket.create_connection(place.sock.getsockname()))
            async with running() as run:
                started = trio.current_time()
                assert await run.reached(*(x.address for x in full), good.address) == good.address
                assert 10 <= trio.current_time() - started < 11
                assert [state for _, state in run.said()] == ["down"] * 2


async def test_what_is_down_is_dialled_later_and_later_until_it_answers(
    autojump_clock: MockClock, dials: list[tuple[DialAddress, float]]
) -> None:
    with places(1, listening=False) as (place,), places(1) as (other,):
        async with running() as run:
            await run.reached(place.address, other.address)
            began = trio.current_time()
            await trio.sleep(100)
            times = [at - began for address, at in dials if address == place.address]
            assert times == pytest.approx([0, 1, 3, 7, 15, 31, 61, 91])
            place.listen()
            await trio.sleep(30)
            assert run.said() == [(str(place.address), "down"), (str(place.address), "up")]
            assert await run.reached(place.address, other.address) == place.address
            del dials[:]
            await trio.sleep(100)
            assert not dials


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> set[DialAddress]:
    """Addresses that swallow whatever is sent to them; a hundred at first."""
    found: set[DialAddress] = {TcpAddress("192.0.2.1", port) for port in range(1, 101)}

    async def swallowed(address: DialAddress, **how: Any) -> Dialled | NotDialled:
        if address not in found:
            return await dial(address, **how)
        await trio.sleep(how["dial_timeout"])
        return NotDialled(f"{address}: no answer", False)

    monkeypatch.setattr("snimux.backend.pool.dial", swallowed)
    return found


async def test_those_that_do_not_answer_hold_up_nobody_else(
    autojump_clock: MockClock, silent: set[DialAddress]
) -> None:
    with places(1, listening=False) as (place,):
        async with running(wait=0) as run:
            async with trio.open_nursery() as nursery:
                for address in silent:
                    nursery.start_soon(run.failed, address)
            await trio.sleep(60)
            await run.failed(place.address)
            place.listen()
            await trio.sleep(1.5)
            assert run.said()[-1] == (str(place.address), "up")


async def test_who_comes_does_not_wait_for_those_nobody_waits_for(
    autojump_clock: MockClock, silent: set[DialAddress]
) -> None:
    """Not even where its own address took so long that it is in their queue."""
    with places(1) as (place,):
        silent.add(place.address)
        async with running(wait=0) as run:
            async with trio.open_nursery() as nursery:
                for address in silent:
                    nursery.start_soon(run.failed, address)
            await trio.sleep(60)

            async def mend() -> None:
                await trio.sleep(5.5)
                silent.remove(place.address)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(mend)
                began = trio.current_time()
                # its own dial, and the one that was under way when it was mended
                assert await run.reached(place.address, wait=600) == place.address
                assert trio.current_time() - began < 5 + 5 + 1


async def test_a_backend_that_restarts_is_waited_for(autojump_clock: MockClock) -> None:
    with places(2, listening=False) as (down, place):
        async with running() as run, trio.open_nursery() as nursery:
            found: list[Dialled | NotDialled] = []

            async def wait() -> None:
                found.append(await run.reach(down.address, place.address))

            nursery.start_soon(wait)
            await trio.sleep(2)
            nursery.start_soon(wait)
            await trio.sleep(1)
            assert not found
            place.listen()
            await trio.sleep(0.3)
            assert [isinstance(x, Dialled) and x.address for x in found] == [place.address] * 2
            assert sorted(x.waited or 0 for x in found) == pytest.approx([1, 3], abs=0.25)
            assert run.said()[2:] == [(str(place.address), "up")]


async def test_the_wait_ends_and_who_comes_later_is_told_at_once(
    autojump_clock: MockClock,
) -> None:
    with places(1, listening=False) as (place,):
        async with running(wait=5.0) as run:
            failed = await run.failed(place.address)
            assert failed == NotDialled(f"{place.address}: Connection refused", False, 5.0)
            began = trio.current_time()
            assert (await run.failed(place.address)).waited is None
            assert trio.current_time() == began
            # but a route may have more patience
            assert (await run.failed(place.address, wait=7.5)).waited == 7.5
            await trio.sleep(1)
            place.listen()
            assert await run.reached(place.address) == place.address
            # and once it was up all is as it was
            place.sock.close()
            assert (await run.failed(place.address)).waited == 5.0


async def test_the_wait_ends_too_where_an_address_answers_others(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose queue is always full does: some of those who dial it get in."""
    address = TcpAddress("127.0.0.1", 1)

    async def never(address: DialAddress, dial_timeout: float, **_: Any) -> NotDialled:
        await trio.sleep(dial_timeout)
        return NotDialled("no answer", False)

    monkeypatch.setattr("snimux.backend.pool.dial", never)
    async with running(wait=5.0) as run, trio.open_nursery() as nursery:

        async def others() -> None:
            while True:
                await run.failed(address, wait=0.0, dial_timeout=0.3)
                run.backends.checked(address, True, "somebody got in")

        nursery.start_soon(others)
        with trio.fail_after(20):
            failed = await run.failed(address, dial_timeout=2)
        assert failed.waited == pytest.approx(6, abs=2)
        nursery.cancel_scope.cancel()


async def test_who_wants_no_wait_has_none(autojump_clock: MockClock) -> None:
    with places(1, listening=False) as (place,):
        async with running(wait=5.0) as run:
            assert (await run.failed(place.address, wait=0.0)).waited is None
        near, client = await tcp_pair()
        with near, client:  # nor where nobody would dial
            to = Backend((place.address,))
            found = await Backends().reach(to, near, None, dial_timeout=5)
        assert (isinstance(found, NotDialled), found.waited) == (True, None)


async def test_one_dials_for_all_that_wait(
    autojump_clock: MockClock, dials: list[tuple[DialAddress, float]]
) -> None:
    with places(1, listening=False) as (place,):
        async with running() as run, trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(run.reach, place.address)
            await trio.sleep(1)
            assert 50 + 4 <= len(dials) <= 50 + 8
            place.listen()
        # each dialled again but once
        assert len(dials) <= 50 + 9 + 50
        assert run.backends.states[place.address].connections == 50


@dataclass
class Many:
    """Connections that wait for an address, and are answered when they are told to be."""

    run: Run
    address: TcpAddress
    tallies: list[Tally] = field(default_factory=list)
    """Of all, in their order."""
    found: dict[int, Dialled | NotDialled] = field(default_factory=dict)
    """What came of each by now."""

    async def one(self, dial_timeout: float) -> None:
        number = len(self.tallies)
        self.tallies.append(Tally())
        self.found[number] = await self.run.reach(
            self.address, dial_timeout=dial_timeout, tally=self.tallies[number]
        )

    def answer(self) -> None:
        """Answer all that are connected."""
        for number in self.found:
            self.tallies[number].answered = self.tallies[number].answered or trio.current_time()


@contextlib.asynccontextmanager
async def many(
    count: int, place: Place, *, dial_timeout: float = 5, **said: Any
) -> AsyncIterator[Many]:
    """So many, begun one after another, that have waited for less than a second."""
    async with running(**said) as run, trio.open_nursery() as nursery:
        waiting = Many(run, place.address)
        for number in range(count):
            nursery.start_soon(waiting.one, dial_timeout)
            while len(run.backends.state(place.address).waiters) <= number:
                await trio.lowlevel.checkpoint()
        yield waiting
        nursery.cancel_scope.cancel()


async def test_those_that_wait_are_sent_as_fast_as_they_are_answered(
    autojump_clock: MockClock,
) -> None:
    with places(1, listening=False) as (place,):
        async with many(100, place) as waiting:
            place.listen()
            await trio.sleep(0.8)
            sent = [len(waiting.found)]
            while len(waiting.found) < 100:
                assert sorted(waiting.found) == list(range(sent[-1]))  # who came first
                waiting.answer()
                await trio.sleep(0.25)
                sent.append(len(waiting.found))
            # the first were answered all equally late, so none is late
            assert sent == [10, 30, 70, 100]
            assert not waiting.run.backends.states[place.address].waiters


async def test_a_turn_is_waited_for_longer_than_a_backend_but_not_for_ever(
    autojump_clock: MockClock,
) -> None:
    with places(1, listening=False) as (place,):
        async with many(60, place, wait=3.0, dial_timeout=4) as waiting:
            began = trio.current_time()
            await trio.sleep(2.5)
            place.listen()
            # each second ten get their turns, since those before are not answered
            await trio.sleep_until(began + 6.4)
            assert len(waiting.found) in (40, 50)
            await trio.sleep_until(began + 7.5)
            assert [type(x) for x in waiting.found.values()] == [Dialled] * 60


async def test_who_is_answered_nothing_holds_up_others_but_for_a_moment(
    autojump_clock: MockClock,
) -> None:
    with places(1, listening=False) as (place,):
        async with many(90, place, wait=60.0) as waiting:
            place.listen()
            await trio.sleep(0.8)
            assert len(waiting.found) == 10
            await trio.sleep(1.1)
            assert len(waiting.found) == 20
            # and one that says nothing by itself to anybody is not kept pace with
            await trio.sleep(4)
            assert len(waiting.found) == 90


async def test_a_turn_that_fails_or_ends_is_over(autojump_clock: MockClock) -> None:
    with places(1, listening=False) as (place,):
        async with many(25, place, wait=60.0) as waiting:
            place.listen()
            await trio.sleep(0.8)
            for found in waiting.found.values():
                assert isinstance(found, Dialled)
                found.socket.close()
            await trio.sleep(0.1)
            assert len(waiting.found) == 20
            # what is down again sends back who was sent, and keeps who was not
            place.sock.close()
            waiting.answer()
            await trio.sleep(3)
            backends = waiting.run.backends
            state = backends.states[place.address]
            assert (len(waiting.found), len(state.waiters), *backends.deals.scopes) == (20, 5)


async def test_the_turns_of_clients_that_are_gone_hold_up_nobody(
    autojump_clock: MockClock,
) -> None:
    with places(1, listening=False) as (place,):
        async with many(25, place, wait=60.0) as waiting:
            for client in waiting.run.clients[:10]:
                reset(client)
            place.listen()
            await trio.sleep(0.8)
            assert len(waiting.found) == 20
            found = [type(waiting.found[number]) for number in range(20)]
            assert found == [NotDialled] * 10 + [Dialled] * 10


async def test_a_client_that_is_gone_is_not_waited_with(autojump_clock: MockClock) -> None:
    with places(1, listening=False) as (place,):
        async with running(wait=60.0) as run, trio.open_nursery() as nursery:
            found: list[NotDialled] = []

            async def wait() -> None:
                found.append(await run.failed(place.address))

            for _ in range(3):
                nursery.start_soon(wait)
            await trio.sleep(1)
            one, other, third = run.clients
            await send_all(other, b"more")
            await send_all(third, b"more")
            fin(other)  # it may want an answer still
            await trio.sleep(2)
            assert not found
            reset(one)
            reset(third)
            await trio.sleep(1.1)
            assert [x.detail for x in found] == [
                f"{place.address}: Connection refused; the client left"
            ] * 2
            nursery.cancel_scope.cancel()


async def test_who_is_cancelled_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    with places(1, listening=False) as (place,):
        async with running() as run:
            before = open_descriptors()
            near, client = await tcp_pair()
            with near, client, trio.move_on_after(1):
                await run.backends.reach(Backend((place.address,)), near, None, dial_timeout=5)
            assert open_descriptors() == before
            state = run.backends.states[place.address]
            assert (state.connections, state.waiters) == (0, {})


async def test_out_of_descriptors_is_nobodys_fault_and_not_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with places(1) as (place,):
        async with running(wait=60.0) as run:
            near, client = await tcp_pair()
            with near, client:
                resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() // 2, hard))
                try:
                    found = await run.backends.reach(
                        Backend((place.address,)), near, None, dial_timeout=5
                    )
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert isinstance(found, NotDialled)
            assert (found.exhausted, found.waited) == (True, None)
            assert run.said() == []


async def test_by_turns_and_by_connections() -> None:
    with places(3) as found:
        addresses = [place.address for place in found]
        how = {"weights": (1, 2, 1)}
        async with running() as run:
            taken = Counter(
                [await run.reached(*addresses, balance="round_robin", **how) for _ in range(8)]
            )
            assert taken == dict(zip(addresses, (2, 4, 2), strict=True))
            # those are there still; others end
            for _ in range(3):
                run.backends.leave(addresses[1])
            for _ in range(3):
                assert await run.reached(*addresses, balance="least_conn", **how) == addresses[1]
            states = run.backends.states
            assert [states[address].connections for address in addresses] == [2, 4, 2]


async def test_by_source_and_the_sick_ones_sources_come_back(mock_clock: MockClock) -> None:
    with places(1, listening=False) as (sick,), places(3) as others:
        addresses = [place.address for place in (sick, *others)]
        sources = [f"192.0.2.{number}" for number in range(40)]
        async with running(balance="ip_hash", wait=0.0) as run:
            before = [await run.reached(*addresses, source=source) for source in sources]
            assert set(before) == set(addresses[1:])
            assert [await run.reached(*addresses, source=x) for x in sources] == before
            sick.listen()
            await run.reached(sick.address)
            after = [await run.reached(*addresses, source=source) for source in sources]
            moved = [x for x, y in zip(after, before, strict=True) if x != y]
            assert moved
            assert set(moved) == {sick.address}


async def test_what_fails_its_checks_is_tried_last() -> None:
    with places(2) as (first, second):
        async with running(fall=2, rise=2) as run:
            both = first.address, second.address
            run.backends.checked(first.address, False, "why")
            assert await run.reached(*both) == first.address
            run.backends.checked(first.address, False, "why")
            assert await run.reached(*both) == second.address
            # never not at all, and that it can be dialled does not make it up
            assert await run.reached(first.address) == first.address
            assert await run.reached(*both) == second.address
            run.backends.checked(first.address, True, "well")
            run.backends.checked(first.address, True, "well")
            assert await run.reached(*both) == first.address
            for _ in range(2):
                run.backends.checked(first.address, False, "why")
            run.backends.unchecked(first.address)
            run.backends.unchecked(TcpAddress("192.0.2.1", 1))
            assert await run.reached(*both) == first.address
            assert [state for _, state in run.said()] == ["down", "up"] * 2


async def test_a_check_that_passes_is_an_answer(mock_clock: MockClock) -> None:
    with places(1, listening=False) as (place,), places(1) as (other,):
        async with running() as run:
            assert await run.reached(place.address, other.address) == other.address
            place.listen()
            run.backends.checked(place.address, True, "well")
            assert await run.reached(place.address, other.address) == place.address


async def test_a_dial_from_before_it_came_back_says_nothing(autojump_clock: MockClock) -> None:
    """It was black then, for five seconds: what waits that long is late."""
    autojump_clock.autojump_threshold = 0.2
    with places(1, listening=False) as (place,), places(1) as (other,):
        place.listen(0)
        with socket.create_connection(place.sock.getsockname()) as holding:
            async with running() as run, trio.open_nursery() as nursery:
                nursery.start_soon(run.reached, place.address, other.address)
                await trio.sleep(3)
                nursery.start_soon(run.reached, place.address, other.address)
                await trio.sleep(2.5)
                assert run.said() == [(str(place.address), "down")]
                run.backends.checked(place.address, True, "well")
            assert [state for _, state in run.said()] == ["down", "up"]
            holding.close()


async def test_an_exchange_keeps_what_stays(autojump_clock: MockClock) -> None:
    def route(*addresses: DialAddress) -> Route:
        return Route(
            parse_pattern("a.test"), targets(tls=Backend(addresses, balance="round_robin"))
        )

    with places(3, listening=False) as (stays, goes, busy), places(1) as (up,):
        async with running() as run:
            busy.listen()
            await run.reached(busy.address, up.address, balance="round_robin")
            await run.reached(stays.address, goes.address, up.address)
            assert run.backends.down == {stays.address, goes.address}
            run.backends.defaults = BackendDefaults(wait=0.0)
            run.reconcile({Backend((stays.address, up.address))})
            assert run.backends.down == {stays.address}
            assert set(run.backends.states) == {stays.address, busy.address, up.address}
            assert not run.backends.turns
            goes.listen()
            stays.listen()
            await trio.sleep(2)
            assert run.said()[2:] == [(str(stays.address), "up")]
            run.backends.leave(busy.address)
            run.reconcile(set())
            assert set(run.backends.states) == {up.address}
            assert run.backends.defaults == BackendDefaults(wait=0.0)


async def test_what_was_waited_for_at_an_exchange_is_forgotten_afterwards(
    autojump_clock: MockClock, dials: list[tuple[DialAddress, float]]
) -> None:
    with places(1, listening=False) as (place,):
        async with running(wait=5.0) as run, trio.open_nursery() as nursery:
            nursery.start_soon(run.failed, place.address)
            await trio.sleep(2)
            run.reconcile(set())
            assert run.backends.down == set(run.backends.states) == {place.address}
            await trio.sleep(4)
            assert not run.backends.down
            assert not run.backends.states
            del dials[:]
            await trio.sleep(100)
            assert not dials


@pytest.mark.parametrize("balance", ["first", "round_robin", "least_conn", "ip_hash"])
async def test_what_is_dropped_while_connections_are_open_is_forgotten_with_the_last(
    autojump_clock: MockClock, balance: str
) -> None:
    with places(2) as (one, other), places(1, listening=False) as (down,):
        addresses = (one.address, other.address, down.address)
        async with running(balance=balance) as run:
            run.reconcile({Backend(addresses)})
            taken = [await run.reached(*addresses) for _ in range(6)]
            assert set(taken) <= {one.address, other.address}
            run.reconcile(set())
            for number, address in enumerate(taken, 1):
                assert address in run.backends.states
                run.backends.leave(address)
                assert set(run.backends.states) == set(taken[number:])
            assert not run.backends.down
            # it comes back, and what was counted before is not counted again
            run.reconcile({Backend(addresses)})
            await run.reached(one.address)
            assert run.backends.states[one.address].connections == 1


@pytest.mark.parametrize("balance", ["first", "round_robin", "least_conn", "ip_hash"])
async def test_of_a_connection_to_what_was_dropped_before_nothing_is_left(
    autojump_clock: MockClock, balance: str
) -> None:
    with places(1) as (up,), places(2, listening=False) as (down, returns):
        async with running(wait=5.0, balance=balance) as run:
            run.reconcile(set())
            run.backends.leave(await run.reached(down.address, up.address, returns.address))
            await run.failed(down.address)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run.reached, down.address, returns.address)
                await trio.sleep(1)
                returns.listen()
            run.backends.leave(returns.address)
            near, client = await tcp_pair()
            with near, client, trio.move_on_after(1):
                gone = Backend((down.address,))
                await run.backends.reach(gone, near, None, dial_timeout=5)
            await trio.sleep(1)
            assert not run.backends.states
            assert not run.backends.down
            assert not run.backends.turns


async def test_addresses_that_are_dropped_while_they_are_dialled_are_dialled_no_more_often(
    autojump_clock: MockClock, dials: list[tuple[DialAddress, float]]
) -> None:
    with places(3, listening=False) as found:
        async with running(wait=5.0) as run:
            run.reconcile(set())
            await run.failed(*(place.address for place in found))
            assert len(dials) < 100
            await trio.sleep(1)
            assert not run.backends.states


class Here(trio.abc.HostnameResolver):
    """Every name is this machine's."""

    async def getaddrinfo(self, host: Any, port: Any, *how: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_who_hears_of_failures_ends_nothing_by_what_it_raises(
    autojump_clock: MockClock,
) -> None:
    with places(1) as (up,), places(1, listening=False) as (down,):
        named = TcpAddress("localhost", down.address.port)
        async with running(observer=Failures(raises=True), wait=0.0) as run:
            assert await run.reached(named, up.address) == up.address
            assert run.backends.down == {named}
            assert run.backends.states[named].connections == 0
            await trio.sleep(100)  # it is dialled again and again
            down.listen()
            await trio.sleep(40)
            assert not run.backends.down
            lines = [json.loads(line) for line in run.stream.getvalue().splitlines()]
            said = [line["detail"] for line in lines if line["event"] == "observer-failed"]
            assert len(said) > 3
            assert set(said) == {"RuntimeError('not expected')"}


async def test_names_at_which_nobody_answers_are_doubted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(Log(io.StringIO()))
    doubted: list[str] = []
    monkeypatch.setattr(resolver, "refresh", doubted.append)
    with places(1, listening=False) as (place,):
        observer = Recheck(Prober(Log(io.StringIO())), resolver)
        async with running(observer=observer, wait=1.0) as run:
            await run.failed(place.address)
            assert not doubted
            before = trio.socket.set_custom_hostname_resolver(Here())
            await run.failed(TcpAddress("pool.test", place.address.port))
            trio.socket.set_custom_hostname_resolver(before)
            assert set(doubted) == {"pool.test"}
            assert len(doubted) > 2


async def test_what_is_reserved_is_down_where_a_caddy_says_it_and_stays_so(
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    stream = io.StringIO()
    with places(1) as (place,):
        log = Log(stream, form="json")
        backends = Backends(Events(log, AccessLog(log)), BackendDefaults(wait=0))
        own = Own(reserved={place.address: "an admin API"})
        config = configured(backends=BackendDefaults(wait=0))
        backend = Backend((place.address,))
        near, far = await tcp_pair()
        with near, far:
            reach = partial(backends.reach, backend, near, None, dial_timeout=5)
            async with trio.open_nursery() as nursery:
                await nursery.start(backends.run)
                for discovered in (frozenset({place.address}), frozenset[DialAddress]()) * 2:
                    backends.reconcile(Effects({backend}, discovered, config, own))
                    dialled = await reach()
                    assert isinstance(dialled, NotDialled) is bool(discovered)
                    if isinstance(dialled, Dialled):
                        dialled.socket.close()
                        backends.leave(place.address)
                    await trio.sleep(100 if discovered else 0)  # it is dialled again and again
                    assert (place.address in backends.down) is bool(discovered)
                nursery.cancel_scope.cancel()
    told = [json.loads(line)["state"] for line in stream.getvalue().splitlines()]
    assert told == ["down", "up"] * 2
