"""``frontend.rate``: against a bucket of tokens."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.frontend.rate import Pace

SECOND = 10**9


def arrivals(pace: Pace, times: list[int]) -> list[bool]:
    """Which of those who arrive at these times may come."""
    expected, came = 0, []
    for now in times:
        following = pace.arrive(expected, now)
        came.append(following is not None)
        expected = expected if following is None else following
    return came


def bucket(pace: Pace, times: list[int]) -> list[bool]:
    """The same by a bucket that is filled with the rate and holds a burst; exact."""
    interval = round(SECOND / pace.per_second)
    tokens, last, came = Fraction(pace.burst), 0, []
    for now in times:
        tokens = min(Fraction(pace.burst), tokens + Fraction(now - last, interval))
        last = now
        came.append(tokens >= 1)
        tokens -= came[-1]
    return came


@given(
    st.builds(Pace, st.sampled_from([0.001, 0.3, 1, 3, 7, 1000]), st.integers(1, 5)),
    st.lists(st.sampled_from([0, 1, SECOND // 3, SECOND, 5 * SECOND]) | st.integers(0, SECOND)),
)
def test_it_is_a_bucket_of_tokens(pace: Pace, pauses: list[int]) -> None:
    times = [sum(pauses[: place + 1]) for place in range(len(pauses))]
    assert arrivals(pace, times) == bucket(pace, times)


@pytest.mark.parametrize("burst", [1, 3, 50])
def test_a_burst_may_come_at_once_and_then_the_rate_counts(burst: int) -> None:
    pace = Pace(2, burst)
    assert arrivals(pace, [SECOND] * (burst + 2)) == [True] * burst + [False] * 2
    later = [SECOND + SECOND // 2 * step for step in range(1, 4)]
    assert arrivals(pace, [SECOND] * burst + later) == [True] * (burst + 3)


def test_who_is_refused_does_not_wait_longer_for_it() -> None:
    pace = Pace(1, 1)
    hammering = [step * SECOND // 10 for step in range(31)]
    came = arrivals(pace, hammering)
    assert [step for step, may in enumerate(came) if may] == [0, 10, 20, 30]


def test_what_a_slower_pace_said_holds_nobody_up() -> None:
    """It was mended by a reload: who is refused would be for as long as the slow one says."""
    slow, fast = Pace(0.001, 50), Pace(10, 2)
    expected = 0
    for _ in range(50):
        expected = slow.arrive(expected, SECOND) or expected
    assert slow.arrive(expected, SECOND) is None
    following = fast.arrive(expected, SECOND)
    assert following == SECOND + SECOND // 10
    assert arrivals(fast, [SECOND] * 3) == [True, True, False]
