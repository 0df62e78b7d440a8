"""How long a reload takes, and what clients notice of it meanwhile: `python -m bench.reload`.

One client sends 200 bytes through snimux and gets them back, again and again: while nothing else
happens, and while as many routes as you like are exchanged for others. By itself, because no peer
does the same in one process.
"""

import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from bench.bed import percentile
from tests.hellos import load

_HELLO = next(hello.data for hello in load() if hello.slug == "curl")
_NAME = "secure.ciso.com"
_TRIP = b"x" * 200
_ROUTE = '[[route]]\nhosts = "{}"\nto = "127.0.0.1:{}"\n'
_PATIENCE = 120.0  # seconds that anything may take


@click.command()
@click.option("--routes", default=10_000, help="How many are exchanged.", show_default=True)
@click.option("--workers", default=1, help="Processes.", show_default=True)
@click.option("--times", default=3, help="How often.", show_default=True)
def main(routes: int, workers: int, times: int) -> None:
    """Measure reloads, and round trips meanwhile."""
    with tempfile.TemporaryDirectory() as name, _echo() as backend:
        file = Path(name, "snimux.toml")
        _write(file, routes, backend, 1)
        with _snimux(file, workers) as (process, log), _client(_port(log)) as sock:
            quiet_until = time.monotonic() + 3
            _say("quiet", _trips(sock, lambda: time.monotonic() > quiet_until))
            for number in range(times):
                _write(file, routes, backend, 2 + number)
                known = log.stat().st_size
                process.send_signal(signal.SIGHUP)
                _say("reload", _trips(sock, lambda: bool(_reloaded(log, known))))  # noqa: B023
                click.echo(f"  {_reloaded(log, known)}")


def _write(file: Path, routes: int, backend: int, port: int) -> None:
    """Write other routes than those of another port, and the one that is used."""
    others = (_ROUTE.format(f"h{number}.test", port) for number in range(routes))
    new = file.with_suffix(".new")
    new.write_text('watch = "off"\n' + _ROUTE.format(_NAME, backend) + "".join(others))
    new.rename(file)


@contextmanager
def _snimux(file: Path, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = file.with_name("log")
    flags = ["--config", str(file), "--listen", "127.0.0.1:0", "--workers", str(workers)]
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "snimux", *flags], stderr=stderr)
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def _port(log: Path) -> int:
    return int(_wait_for(log, 0, r"event=listening address=\S+:(\d+)"))


def _reloaded(log: Path, known: int) -> str | None:
    found = re.search(r"event=(reload.*)", log.read_bytes()[known:].decode())
    return found and found[1]


def _wait_for(log: Path, known: int, pattern: str) -> str:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if found := re.search(pattern, log.read_bytes()[known:].decode()):
            return found[1]
        time.sleep(0.05)
    raise TimeoutError(pattern)


@contextmanager
def _echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(sock,), daemon=True).start()

    def answer(sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@contextmanager
def _client(port: int) -> Iterator[socket.socket]:
    """A connection that is being relayed."""
    with socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _trip(sock, _HELLO)
        yield sock


def _trip(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    left = len(data)
    while left:
        got = len(sock.recv(left))
        if not got:
            raise EOFError("snimux closed the connection")
        left -= got


def _trips(sock: socket.socket, is_over: Callable[[], bool]) -> list[float]:
    """The seconds of each of the round trips that are made until it is over."""
    seconds = []
    end = time.monotonic() + _PATIENCE
    while not is_over():
        started = time.perf_counter()
        _trip(sock, _TRIP)
        seconds.append(time.perf_counter() - started)
        if time.monotonic() > end:
            raise TimeoutError("snimux did not say that it has reloaded")
        time.sleep(0.001)
    return seconds


def _say(what: str, seconds: list[float]) -> None:
    p50, p99 = (1000 * percentile(seconds, share) for share in (50, 99))
    most = 1000 * max(seconds)
    click.echo(f"{what}: {len(seconds)} trips, ms: p50 {p50:.2f}, p99 {p99:.2f}, max {most:.1f}")


if __name__ == "__main__":
    main()
