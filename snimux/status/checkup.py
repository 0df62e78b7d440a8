"""Have the doctor look at the host, now and then, when somebody wants to know.

In a process of its own: it takes seconds of a processor, imports much, and must not be able to
harm whoever serves. Bounded in time; one at a time, and then none for a while, whoever asks.

Knows nothing of what the findings are.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from snimux.runtime.background import OWN_VARIABLES

# Seconds that it may take: it bounds itself to half of that, on a machine that is not busy.
_PATIENCE = 60.0
# Seconds between two looks at the least, for each shakes hands with all backends.
_REST = 30.0
# And after so many a look is old.
_OLD = 300.0

# Bytes that it may print: what there is to say of 10,000 sites is some of that.
_LARGEST = 32 * 1024 * 1024

# Of its words on stderr, and of its findings, what a person reads.
_LONGEST = 300
_MOST_FINDINGS = 100

_ORDER = ("red", "yellow", "green")


class Checkup:
    """The doctor's last findings; there are none until ``run`` runs."""

    def __init__(self, command: Sequence[str]) -> None:
        """Have no findings yet.

        Args:
            command: what prints the findings as ``report.as_json`` has them.
        """
        self.command = command
        self.report: dict[str, Any] = {"status": None, "findings": [], "unseen": [], "left_out": 0}
        self.fault = ""
        self.looked: float | None = None  # when
        self.due = trio.Event()

    def tell(self, *, again: bool) -> dict[str, Any]:
        """Return the findings; have the doctor look where they are old, or ``again`` is true."""
        age = None if self.looked is None else round(trio.current_time() - self.looked, 1)
        if age is None or age > (_REST if again else _OLD):
            self.due.set()
        return {
            "looking": self.due.is_set(),
            "age": age,
            "rest": _REST,
            "fault": self.fault,
            **self.report,
        }

    async def run(self) -> None:
        """Look whenever that is due, until cancelled."""
        while True:
            await self.due.wait()
            try:
                self.fault = await self._look()
            except Exception as error:  # not expected; but what is looked at must go on
                self.fault = repr(error)[:_LONGEST]
            self.looked, self.due = trio.current_time(), trio.Event()

    async def _look(self) -> str:
        """Look; return what kept it from that, if anything."""
        if not self.command:
            return "it was not started: there is no command"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(OWN_VARIABLES)}
        start = partial(trio.lowlevel.open_process, stdin=subprocess.DEVNULL, env=environment)
        try:
            process = await start(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            return f"it was not started: {error.strerror}"
        printed, said = bytearray(), bytearray()
        try:
            with trio.fail_after(_PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_gather, process, process.stdout, printed)
                    nursery.start_soon(_gather, process, process.stderr, said)
                await process.wait()
        except trio.TooSlowError:
            return f"it took longer than {_PATIENCE:g} s"
        finally:
            await _end(process)
        if max(len(printed), len(said)) > _LARGEST:
            return f"it said more than {_LARGEST >> 20} MiB"
        try:
            # In a thread, for of very many sites it may be long.
            self.report = await trio.to_thread.run_sync(_read, printed)
        except (ValueError, LookupError, TypeError):  # or of another version
            words = said.decode("utf-8", "replace").strip()
            return words[-_LONGEST:] or f"it ended with status {process.returncode}"
        return ""


def _read(printed: bytearray) -> dict[str, Any]:
    """Return the findings, the worst first; of very many only the first."""
    report = json.loads(printed)
    worst_first = sorted(report["findings"], key=lambda each: _ORDER.index(each["colour"]))
    left_out = max(len(worst_first) - _MOST_FINDINGS, 0)
    unseen = report["unseen"][:_MOST_FINDINGS]
    shown = {"findings": worst_first[:_MOST_FINDINGS], "unseen": unseen, "left_out": left_out}
    return {"status": report["status"], **shown}


async def _gather(
    process: trio.Process, stream: trio.abc.ReceiveStream | None, into: bytearray
) -> None:
    """Take what a process says up to its end, which comes where that is more than the limit."""
    assert stream is not None
    async for data in stream:
        into += data
        if len(into) > _LARGEST:
            process.kill()
            return


async def _end(process: trio.Process) -> None:
    """See to it that a process has ended, and that nothing of it is open."""
    process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            await stream.aclose()
