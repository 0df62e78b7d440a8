"""Do long work beside who serves: in a thread that gives way, or in a process of its own.

A thread is enough where the work is Python's own: who serves has its turn after half a millisecond.
One call of C, as to read JSON, keeps the interpreter's lock until it is done. Knows nothing of the
work.
"""

import contextlib
import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

Result = TypeVar("Result")

# Seconds that a process gets; on a busy machine ten times what 8 MiB take.
_PATIENCE = 30.0

# What a service manager and a supervisor hand to a process is for that one alone.
OWN_VARIABLES = ("LISTEN_", "NOTIFY_", "WATCHDOG_")

# Objects that the collector looks through in 2 ms, all the while nobody is served; and how often it
# is spared that, before it looks for what circles have kept.
_MANY = 20_000
_CIRCLES_EVERY = 64
_times_spared = itertools.count(1)

_ROOT = str(Path(__file__).parents[1])
_RUN = "import sys; sys.path[:] = sys.argv[2:]; from {0} import main; main()"

# How often work is under way, each time with how the interpreter was before the first.
_before: list[tuple[float, bool]] = []


class ProcessError(Exception):
    """A process has not done its work; the message says why."""


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """Have threads give way to who serves after a tenth of the usual time, and no collector.

    It would look through all that is read, again and again while that grows.
    """
    usual, was_enabled = _before[0] if _before else (sys.getswitchinterval(), gc.isenabled())
    _before.append((usual, was_enabled))
    sys.setswitchinterval(usual / 10)
    gc.disable()
    try:
        yield
    finally:
        _before.pop()
        if not _before:
            if gc.get_count()[0] > _MANY:  # made meanwhile, and still there
                _spare_the_collector()
            sys.setswitchinterval(usual)
            if was_enabled:
                gc.enable()


def freeze() -> None:
    """Let the collector know that what is there by now stays: 100,000 routes, perhaps."""
    gc.unfreeze()  # what has become garbage since the last time
    gc.collect()
    gc.freeze()


def _spare_the_collector() -> None:
    """Have it pass over what is there; what goes, goes without it, but for what is in circles."""
    if next(_times_spared) % _CIRCLES_EVERY:
        gc.freeze()
    else:
        freeze()


async def in_thread(work: Callable[[], Result]) -> Result:
    """Return what some work returns, done in a thread; that is not waited for if cancelled."""
    with giving_way():
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def in_process(module: str, data: bytes) -> bytes:
    """Return what a module's ``main`` writes to its standard output for some data.

    Args:
        module: dotted name.
        data: all that it has on its standard input.

    Raises:
        ProcessError: it could not be started, failed, or took more than half a minute.
    """
    command = [sys.executable, "-I", "-c", _RUN.format(module), module, _ROOT, *sys.path]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OWN_VARIABLES)}
    run = partial(trio.run_process, capture_stdout=True, capture_stderr=True, check=False)
    try:
        with trio.fail_after(_PATIENCE):
            done = await run(command, stdin=data, env=environment, deliver_cancel=kill)
    except trio.TooSlowError:
        raise ProcessError(f"it took longer than {_PATIENCE:g} s") from None
    except OSError as error:
        raise ProcessError(f"no process could be started: {error.strerror}") from None
    if done.returncode:
        raise ProcessError(f"its process ended with status {done.returncode}")
    output: bytes = done.stdout
    return output


async def kill(process: trio.Process) -> None:
    """End a process at once."""
    process.kill()
