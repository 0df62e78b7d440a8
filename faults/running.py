"""Start and end the processes of a fault that are not snimux: servers, clients, whatever else.

Ended by their own ids; what prints a first line is ready when it has printed it.
"""

import atexit
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio
import trustme

ROOT = Path(__file__).parent.parent
_STARTS_WITHIN = 30.0  # seconds


@contextlib.contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with pipes to its standard input and output; killed on leaving."""
    pipe = subprocess.PIPE
    started = subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, bufsize=0)
    atexit.register(started.kill)  # should this process not get there
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for file in (started.stdin, started.stdout):
            if file is not None:
                file.close()


async def line(started: subprocess.Popen[bytes], *, within: float = _STARTS_WITHIN) -> str:
    """The next line that a process prints.

    Raises:
        AssertionError: it ended without.
        trio.TooSlowError: there is none within so many seconds.
    """
    assert started.stdout is not None
    data = b""
    with trio.fail_after(within):
        while not data.endswith(b"\n"):
            await trio.lowlevel.wait_readable(started.stdout)
            piece = started.stdout.read(1)
            assert piece, f"{started.args!r} ended"
            data += piece
    return data.decode().strip()


def python(module: str, *words: str) -> list[str]:
    """The command that runs a module."""
    return [sys.executable, "-m", module, *words]


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs the certificates of the servers of a fault, and whom its clients trust."""

    root: Path
    certificate: Path
    """With its key, good for all names that were asked for."""


def authority(here: Path, *names: str) -> Authority:
    """An authority, and a certificate by it for some names."""
    signs = trustme.CA()
    made = Authority(here / "root.pem", here / "certificate.pem")
    signs.cert_pem.write_to_path(made.root)
    signs.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(made.certificate)
    return made


@contextlib.asynccontextmanager
async def server(
    signed: Authority, *, wrapper: Sequence[str] = (), host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[int]:
    """The server behind, as a process of its own; gives its port."""
    words = (host, str(port), str(signed.certificate))
    with process(*wrapper, *python("faults.server", *words)) as started:
        yield int(await line(started))
