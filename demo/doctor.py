"""Ask ``snimux doctor``: what it finds, as values."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from demo.processes import DemoError


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor looked at: red, yellow or green, and a line that says what."""

    colour: str
    title: str


async def examine(*flags: str) -> Sequence[Finding]:
    """Run the doctor with these flags, which name all Caddys: others on this host stay alone.

    Raises:
        DemoError: it found nothing out; what it says of that is on standard error.
    """
    done = await trio.run_process(
        [sys.executable, "-m", "snimux", "doctor", "--json", "--no-search", *flags],
        capture_stdout=True,
        check=False,
    )
    if not done.stdout:
        raise DemoError(f"snimux doctor ended with status {done.returncode}")
    return [Finding(x["colour"], x["title"]) for x in json.loads(done.stdout)["findings"]]
