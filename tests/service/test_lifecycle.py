"""``service.lifecycle``: what signals and orders do, one after the other, and who reloads."""

import contextlib
import io
import json
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from snimux.config.model import Config, Limits
from snimux.log import Log
from snimux.net.listeners import Listener
from snimux.service.control import Order, send
from snimux.service.handover import Inheritance
from snimux.service.lifecycle import Lifecycle
from snimux.service.reload import File, Follower, Reloader, Source
from snimux.service.systemd import Manager
from snimux.service.upgrade import SIGNAL as UPGRADE
from snimux.service.upgrade import Succession

CONFIG = Config((), (), Limits(), "auto", "json", "info")


class Target:
    """Who serves by a configuration, as far as it is known here."""

    config = CONFIG
    listeners: Sequence[Listener] = ()

    def status(self) -> str:
        return "fine"

    async def take(self, config: Config, listeners: Sequence[Listener], text: str) -> None:
        raise AssertionError("nothing is to be taken")


@dataclass
class Lived:
    """A life, and what came of what it was told."""

    stream: io.StringIO = field(default_factory=io.StringIO)
    upgrades: int = 0
    polls: int = 0
    life: Lifecycle = field(init=False)

    def begin(
        self,
        reload: Callable[[Log], Reloader | Follower] | None = None,
        inherited: Inheritance = Inheritance(()),  # noqa: B008 (frozen)
    ) -> Lifecycle:
        log = Log(self.stream, form="json")
        self.life = Lifecycle(
            log,
            Succession(log, Manager(), inherited),
            None if reload is None else reload(log),
            listeners=list,
            poll_now=self.poll_now,
        )
        return self.life

    def upgrade(self) -> None:
        self.upgrades += 1

    def poll_now(self) -> None:
        self.polls += 1

    def stage(self) -> tuple[bool, bool, bool]:
        """Say whether it has stopped accepting, drains, closes."""
        life = self.life
        return life.stopped_accepting.is_set(), life.draining.is_set(), life.closing.is_set()

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.stream.getvalue().splitlines()]


SERVES, STOPPED, DRAINS, CLOSES = [(x > 0, x > 1, x > 2) for x in range(4)]


async def heed(lived: Lived, *numbers: int) -> None:
    async def come() -> AsyncGenerator[int, None]:
        for number in numbers:
            yield number

    async with contextlib.aclosing(come()) as signals:
        await lived.life.handle_signals(signals, lived.upgrade)


@contextlib.asynccontextmanager
async def supervised(lived: Lived) -> AsyncIterator[socket.socket]:
    """A life that obeys, until the supervisor is gone."""
    ours, its = socket.socketpair()
    its.setblocking(False)
    with its:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lived.life.handle_orders, its)
            with ours:
                yield ours


@pytest.mark.parametrize(
    ("numbers", "stage"),
    [
        ([], SERVES),
        ([signal.SIGHUP, UPGRADE, signal.SIGCHLD], SERVES),
        ([signal.SIGTERM], DRAINS),
        ([signal.SIGINT], DRAINS),
        ([signal.SIGTERM, signal.SIGINT], CLOSES),
        ([signal.SIGINT] * 3, CLOSES),
    ],
)
async def test_signals_to_stop_are_stages(
    numbers: list[int], stage: tuple[bool, bool, bool]
) -> None:
    lived = Lived()
    lived.begin()
    await heed(lived, *numbers)
    assert lived.stage() == stage


async def test_the_third_signal_kills_however_many_orders_there_were() -> None:
    lived = Lived()
    lived.begin()
    async with supervised(lived) as supervisor:
        send(supervisor, Order("drain"))
        await wait_all_tasks_blocked(0.02)
        await heed(lived, signal.SIGTERM, signal.SIGTERM)
        assert (lived.stage(), lived.life.killing.is_set()) == (CLOSES, False)
    await heed(lived, *[signal.SIGTERM] * 3)
    assert lived.life.killing.is_set()


async def test_a_successor_is_started_but_not_by_who_leaves() -> None:
    lived = Lived()
    lived.begin()
    await heed(lived, UPGRADE, signal.SIGTERM, UPGRADE)
    assert lived.upgrades == 1


async def test_a_hangup_has_caddys_asked_and_the_file_read_if_there_is_one(tmp_path: Path) -> None:
    lived = Lived()
    lived.begin()
    await heed(lived, signal.SIGHUP)
    assert (lived.polls, lived.events()) == (1, ["reloaded"])
    file = File(str(tmp_path / "none"), "", lambda text: CONFIG)
    source = Source(file, lambda limits: 1)
    life = lived.begin(lambda log: Reloader(source, Target(), log, Manager()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.keep_reloading)
        await heed(lived, signal.SIGHUP)
        with trio.fail_after(20):  # the clock is the real one, for threads
            while lived.events() != ["reloaded", "reload-failed"]:
                await trio.sleep(0.01)
        assert lived.polls == 2
        life.stop_accepting()  # and with that nothing is reloaded any more


async def test_orders_are_stages_and_counted_apart_from_signals() -> None:
    lived = Lived()
    lived.begin()
    async with supervised(lived) as supervisor:
        for order, stage in (
            (Order("ask"), SERVES),
            (Order("leave"), STOPPED),
            (Order("drain"), DRAINS),
        ):
            send(supervisor, order)
            await wait_all_tasks_blocked(0.02)
            assert lived.stage() == stage
        await heed(lived, signal.SIGTERM)
        assert lived.stage() == DRAINS
        send(supervisor, Order("close"))
        await wait_all_tasks_blocked(0.02)
        assert lived.stage() == CLOSES
    assert lived.polls == 1


async def test_without_its_supervisor_a_worker_drains() -> None:
    lived = Lived()
    lived.begin()
    async with supervised(lived):
        pass
    assert (lived.stage(), lived.events()) == (DRAINS, ["supervisor-gone"])


async def test_an_order_that_does_not_arrive_whole_is_said_and_the_last() -> None:
    lived = Lived()
    lived.begin()
    async with supervised(lived) as supervisor:
        supervisor.sendall(b'{"descriptors": 1}\n')
        await wait_all_tasks_blocked(0.02)
        assert (lived.stage(), lived.events()) == (DRAINS, ["reload-failed", "supervisor-gone"])


async def test_a_worker_that_cannot_follow_stops(tmp_path: Path) -> None:
    lived = Lived()
    ours, its = socket.socketpair()
    source = Source(File("x", "", lambda text: CONFIG), lambda limits: 1)
    with ours, its:
        life = lived.begin(lambda log: Follower(source, Target(), its))
        (tmp_path / "config").write_text("")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.keep_reloading)
            async with supervised(lived) as supervisor:
                with (tmp_path / "config").open("rb") as text:
                    # a listener that it was never handed
                    order = Order("reload", 1, serve={9: "tls"}, descriptors=(text.fileno(),))
                    send(supervisor, order)
                with trio.fail_after(20):
                    await life.draining.wait()
                assert lived.events()[0] == "reload-failed"


async def test_who_is_told_to_stop_tells_those_before_it_once_a_stage() -> None:
    before, own = socket.socketpair()
    lived = Lived()
    with before:
        before.setblocking(False)
        life = lived.begin(inherited=Inheritance((), (), (own.detach(),)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life.succession.listen_to_predecessors)
            before.send(b"h")
            await life.succession.taken_over.wait()
            for _ in range(2):
                life.drain()
            assert before.recv(9) == b"s"
            for _ in range(2):
                life.close()
            assert before.recv(9) == b"s"
            with pytest.raises(BlockingIOError):
                before.recv(9)
            before.close()
