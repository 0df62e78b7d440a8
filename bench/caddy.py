"""The real thing: a Caddy behind and h2load in front, both with TLS: what a user would feel."""

import re
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench import names, running, subjects
from bench.load import LoadError

_CLIENTS = 50
_PAGE = 10_000  # bytes
_STARTS_WITHIN = 20.0  # seconds
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the clients saw."""

    rate: float
    """Requests a second."""
    first_byte: float
    """Seconds from connecting to the first byte, mean of all connections."""


def missing() -> str | None:
    """Why this cannot be done here, or None if it can."""
    for program in ("caddy", "h2load"):
        if subjects.find_program(program) is None:
            return f"no program {program!r}"
    return None


def start(directory: Path, port: int) -> subprocess.Popen[bytes]:
    """Start Caddy and wait until it has its certificate.

    Raises:
        StartError: it ended, or was not ready in time.
    """
    directory.mkdir()
    template = _Template((subjects.CONFIGS / "Caddyfile").read_text("utf-8"))
    text = template.substitute({"directory": directory, names.SECURE: port})
    (directory / "Caddyfile").write_text(text, "utf-8")
    (directory / "page").write_bytes(bytes(_PAGE))
    program = subjects.find_program("caddy") or "caddy"
    command = [program, "run", "--adapter", "caddyfile", "--config", f"{directory}/Caddyfile"]
    home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": ""}
    process = running.spawn(command, directory, home)
    end = time.monotonic() + _STARTS_WITHIN
    while not _speaks_tls(port):
        if process.poll() is not None or time.monotonic() > end:
            running.end(process)
            raise running.StartError("Caddy did not start: " + (directory / "log").read_text())
        time.sleep(0.05)
    return process


class _Template(Template):
    delimiter = "@"


def _speaks_tls(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=names.host(names.SECURE)),
        ):
            return True
    except OSError:
        return False


def load(port: int, requests: int) -> Seen:
    """Make requests by HTTP/2, on new connections.

    Raises:
        LoadError: some were not answered.
    """
    host = names.host(names.SECURE)
    command = [subjects.find_program("h2load") or "h2load", "-n", str(requests)]
    command += ["-c", str(_CLIENTS), "-m", "1", f"--connect-to=127.0.0.1:{port}"]
    command += [f"https://{host}/page"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return parse(done.stdout, requests)


def parse(text: str, requests: int) -> Seen:
    """Read what h2load says.

    Raises:
        LoadError: some requests were not answered, or it says nothing that is understood.
    """
    rate = re.search(r"([\d.]+) req/s", text)
    good = re.search(r"status codes: (\d+) 2xx", text)
    first = re.search(r"time to 1st byte: +\S+ +\S+ +([\d.]+)(us|ms|s)\b", text)
    if not (rate and good and first) or int(good[1]) != requests:
        raise LoadError(f"h2load: {text[-300:]!r}")
    return Seen(float(rate[1]), float(first[1]) * _UNITS[first[2]])
