"""``service.watchdog``: a byte through each relay; and none where it is stuck."""

import contextlib
import sys
from collections.abc import AsyncIterator
from socket import socket

import pytest
import trio
from trio.testing import MockClock

from snimux.relay import portable
from snimux.relay.interface import End, Relay, Tally
from snimux.service.watchdog import check_relay
from tests.support.sockets import open_descriptors


@contextlib.asynccontextmanager
async def relay_of(kind: str) -> AsyncIterator[Relay]:
    if kind == "portable":
        yield portable.relay
    else:
        from snimux.relay.engine import engine

        async with engine() as relay:
            yield relay


KINDS = [
    "portable",
    pytest.param("engine", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux's")),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_felt_again_and_again(kind: str, autojump_clock: MockClock) -> None:
    before = open_descriptors()
    felt: list[float] = []
    started = trio.current_time()
    async with relay_of(kind) as relay:
        with trio.CancelScope() as scope:

            def feel() -> None:
                felt.append(trio.current_time() - started)
                if len(felt) == 2000:  # hours, in which no idle limit ends it
                    scope.cancel()

            await check_relay(relay, feel, every=5)
    assert felt == [5.0 * count for count in range(2000)]
    assert open_descriptors() == before


async def test_it_is_not_felt_through_a_relay_that_is_stuck(autojump_clock: MockClock) -> None:
    async def stuck(
        client: socket, backend: socket, tally: Tally, *, head: bytearray, idle_timeout: float
    ) -> End:
        await trio.sleep_forever()
        raise AssertionError

    felt: list[None] = []
    with trio.move_on_after(100):
        await check_relay(stuck, lambda: felt.append(None), every=5)
    assert felt == []
