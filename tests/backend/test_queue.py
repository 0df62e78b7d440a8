"""``backend.queue``: opens where answers come soon, stays where they do not."""

from math import inf

import pytest

from snimux.backend.queue import Window


def after(*took: float, window: Window = Window()) -> Window:  # noqa: B008 (frozen)
    for seconds in took:
        window = window.after(seconds)
    return window


def served(count: int, *, each: float, away: float) -> float:
    """Seconds that a backend takes for so many, which it serves one after another."""
    window, now, is_free_at = Window(), 0.0, 0.0
    under_way: list[tuple[float, float]] = []
    while count or under_way:
        while count and len(under_way) < window.size:
            is_free_at = max(is_free_at, now + away) + each
            under_way.append((is_free_at, now))
            count -= 1
        now, began = under_way.pop(0)
        window = window.after(now - began)
        assert is_free_at - now < 2 * (2 * away + 0.05) + 12 * each  # its queue
    return now


def test_twice_as_many_for_each_portion_that_is_answered_soon() -> None:
    window = Window()
    sizes = []
    for _ in range(9):
        sizes.append(window.size)
        window = after(*[0.002] * window.size, window=window)
    assert sizes == [10 * 2**power for power in range(9)]


def test_fewer_for_what_is_late_or_never_but_always_some() -> None:
    wide = after(*[0.002] * 100)
    assert after(0.2, inf, window=wide).size == wide.size - 2
    assert after(0.2, 0.002, window=wide).size == wide.size
    assert after(*[inf] * 1000, window=wide).size == Window().size
    assert after(inf, 0.5).size == Window().size + 1  # the first that came is the quickest


@pytest.mark.parametrize(
    ("each", "away", "within"),
    [(0.001, 0, 5.1), (0.0001, 0, 0.6), (0.02, 0, 101), (0.001, 0.3, 10)],
)
def test_a_backend_is_kept_busy_and_its_queue_short(
    each: float, away: float, within: float
) -> None:
    assert served(5000, each=each, away=away) < within
