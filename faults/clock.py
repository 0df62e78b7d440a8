"""The clock jumps: no connection ends early or late, and the log has the new time.

libfaketime moves the wall clock of the one process, and leaves the monotonic one alone, as setting
the machine's clock does.
"""

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

from faults import client, running
from faults.client import Got
from faults.found import Found, Size
from faults.load import PATIENT, Load, wait
from tests.support import muxes
from tests.support.muxes import Mux

_NAME = "clock.test"
_LIMIT = 4  # seconds
_LIBRARIES = ("/usr/lib", "/usr/local/lib", "/lib")
_JUMPS = {"ten years ahead": timedelta(days=3650), "ten years back": timedelta(days=-3650)}


def _library() -> Path | None:
    """libfaketime, wherever Debian and others put it."""
    for directory in _LIBRARIES:
        for pattern in ("*/faketime/libfaketime.so.1", "faketime/libfaketime.so.1"):
            for found in Path(directory).glob(pattern):
                return found
    return None


def missing() -> str | None:
    """Say what is missing, or None."""
    return None if _library() else "needs libfaketime: apt-get install libfaketime"


async def run(here: Path, size: Size) -> list[Found]:
    """Let the clock jump, ahead and back, while connections are open."""
    signed = running.authority(here, _NAME)
    clock = here / "clock"
    environment = {
        "LD_PRELOAD": _library(),
        "FAKETIME_TIMESTAMP_FILE": clock,
        "FAKETIME_NO_CACHE": 1,
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,
    }
    wrapper = ["env", *(f"{key}={value}" for key, value in environment.items())]
    _jump(clock, timedelta())
    async with running.server(signed) as port:
        route = f"--route={_NAME}=127.0.0.1:{port}"
        limits = f"--hello-timeout={_LIMIT}", f"--idle-timeout={_LIMIT}"
        async with (
            muxes.running(here, route, PATIENT, wrapper=wrapper) as patient,
            muxes.running(here, route, *limits, wrapper=wrapper) as impatient,
        ):
            load = Load(patient.port, _NAME, client.context(signed.root))
            return [await _run(clock, size.pick(10, 100), load, patient, impatient)]


async def _run(clock: Path, count: int, load: Load, patient: Mux, impatient: Mux) -> Found:
    """See that connections of the one last, and those of the other end when they are to."""
    problems: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(load.staying(count))
        begun = await _begin(impatient, stack, count)
        for words, by in _JUMPS.items():
            before = len(patient.lines(event="connection"))
            _jump(clock, by)
            begun += await _begin(impatient, stack, count)
            async with load.staying(count):
                pass
            await wait(lambda: len(patient.lines(event="connection")) > before, "a new line")  # noqa: B023
            shown = datetime.fromisoformat(patient.lines(event="connection")[-1]["time"])
            if abs(shown - by - datetime.now(UTC)) > timedelta(days=1):
                problems.append(f"{words}, the log says {shown}")
        await wait(lambda: len(impatient.lines(event="connection")) == begun, "all have ended")
    seconds = [float(line["seconds"]) for line in impatient.lines(event="connection")]
    early = sum(each < _LIMIT for each in seconds)
    return Found(
        f"the clock set {' and '.join(_JUMPS)}, with connections open",
        len(load.results) + begun,
        lost=len(load.results) - load.count()[Got.ALL] + early,
        remark=f"{begun} of them, idle or with half a hello, were to end after {_LIMIT} s, and did "
        f"after {min(seconds):.2f} to {max(seconds):.2f} s (idle ones are looked for each second, "
        "and an alert has two seconds to be read)",
        problems=tuple(problems),
    )


async def _begin(mux: Mux, stack: contextlib.AsyncExitStack, count: int) -> int:
    """Send so many hellos, half of them in part, and then nothing more."""
    hello = client.client_hello(_NAME)
    for number in range(count):
        plain = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", mux.port))
        await plain.send_all(hello[: 50 if number % 2 else len(hello)])
    return count


def _jump(clock: Path, by: timedelta) -> None:
    """Set the clock; at once, for it is read whenever anyone wants to know the time."""
    new = clock.with_suffix(".new")
    new.write_text(f"{by.total_seconds():+.0f}\n")
    new.rename(clock)
