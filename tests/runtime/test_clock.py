"""``runtime.clock``: it stands while the process does not run, and goes on in any case."""

import math

import pytest

from snimux.runtime.clock import RunningClock


class Machine:
    """A clock that does not stand, which is driven."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.clock = RunningClock(lambda: self.time)

    def sleep(self, until: float, *, late: float = 0) -> float:
        """Sleep as trio does; what the clock says then."""
        self.time += self.clock.deadline_to_sleep_time(until) + late
        return self.clock.current_time()


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_it_goes_as_time_goes(machine: Machine) -> None:
    started = machine.clock.current_time()
    for _ in range(50):
        machine.time += 0.1
        machine.clock.current_time()
    assert machine.clock.current_time() - started == pytest.approx(5)


def test_a_sleep_ends_at_its_deadline(machine: Machine) -> None:
    deadline = machine.clock.current_time() + 3.5
    sleeps = 1
    while machine.sleep(deadline, late=0.002) < deadline:
        sleeps += 1
    assert sleeps == 4
    assert machine.clock.current_time() == pytest.approx(deadline, abs=0.01)


def test_it_is_looked_at_each_second_where_nothing_is_due(machine: Machine) -> None:
    assert machine.clock.deadline_to_sleep_time(math.inf) == 1


@pytest.mark.parametrize("stop", [0.7, 3, 3600, 1e6])
def test_a_stop_in_a_sleep_brings_no_deadline(machine: Machine, stop: float) -> None:
    before = machine.clock.current_time()
    deadline = before + 0.5
    assert before <= machine.sleep(deadline, late=stop) < deadline
    assert machine.clock.deadline_to_sleep_time(deadline) >= 0.25


@pytest.mark.parametrize("stop", [3, 3600, 1e6])
def test_a_stop_between_two_looks_brings_no_deadline(machine: Machine, stop: float) -> None:
    before = machine.sleep(machine.clock.current_time() + 0.001)
    machine.time += stop
    assert before <= machine.clock.current_time() <= before + 0.51


def test_it_never_goes_back_and_always_goes_on(machine: Machine) -> None:
    deadline = machine.clock.current_time() + 5
    now = -math.inf
    for _ in range(100):
        before, now = now, machine.sleep(deadline, late=2)  # stopped in each sleep
        assert now >= before
        if now >= deadline:
            return
    pytest.fail("a process that is late each time comes to no deadline")
