"""``backend.limiter``: what takes long holds up only what does, and is known by the last time."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from snimux.backend.limiter import Lane, Lanes


async def take(seconds: float) -> float:
    """Take so long, and tell when it began."""
    began = trio.current_time()
    await trio.sleep(seconds)
    return began


async def test_what_takes_long_holds_up_only_its_like(autojump_clock: MockClock) -> None:
    lanes = Lanes(2)
    slow = [Lane(lanes) for _ in range(8)]
    done: list[float] = []

    async def note(lane: Lane) -> None:
        began = await lane.do(partial(take, 5))
        done.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for lane in slow:
            nursery.start_soon(note, lane)
        await trio.sleep(4.5)
        assert all(lane.takes_long for lane in slow)
        began = trio.current_time()
        assert await Lane(lanes).do(partial(take, 0.5)) == began
    # the last two were known at 4 seconds, and began when six others were done
    assert trio.current_time() == pytest.approx(1 + 4 * 5)
    assert done == [5] * 8  # none was left off then


async def test_what_no_longer_takes_long_is_quick_again(autojump_clock: MockClock) -> None:
    lane = Lane(Lanes(1))
    assert await lane.do(partial(take, 3)) == 1  # left off, and begun anew
    assert lane.takes_long
    await lane.do(partial(take, 3))
    assert trio.current_time() == 1 + 3 + 3
    await lane.do(partial(take, 0.5))
    assert not lane.takes_long


async def test_who_gives_up_leaves_its_place(autojump_clock: MockClock) -> None:
    lanes = Lanes(1)
    for seconds in (0.5, 2):
        with trio.move_on_after(seconds):
            await Lane(lanes).do(partial(take, 5))
    assert lanes.quick.borrowed_tokens == lanes.slow.borrowed_tokens == 0
