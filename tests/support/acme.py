"""A real ACME server: Pebble, by those who run Let's Encrypt, made to test clients with.

It dials whatever name it validates at 127.0.0.1 (its companion, pebble-challtestsrv, is the DNS
server that says so), on two ports to choose instead of 80 and 443: so it needs no privileges. Each
start makes a new authority. Sources: RFC 8555, RFC 8737 (TLS-ALPN-01).
"""

import atexit
import contextlib
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import trustme

from tests.support.caddy import free_port, listens, until

_PROGRAMS = ("pebble", "pebble-challtestsrv")


@dataclass(frozen=True, slots=True)
class Pebble:
    """One running ACME server."""

    directory: Path
    port: int
    management: int

    @property
    def url(self) -> str:
        """Where clients begin: what Caddy calls `dir`."""
        return f"https://127.0.0.1:{self.port}/dir"

    @property
    def trust(self) -> Path:
        """The authority of the ACME server's own certificate, in PEM."""
        return self.directory / "trust.pem"

    @property
    def root(self) -> Path:
        """The authority of the certificates that it issues, in PEM."""
        return self.directory / "root.pem"

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return (self.directory / "pebble.log").read_text("utf-8")


def missing() -> str | None:
    """Say what is missing to start Pebble here, or None if nothing is."""
    if all(map(shutil.which, _PROGRAMS)):
        return None
    install = (
        "apt-get install pebble, or go install github.com/letsencrypt/pebble/v2/cmd/...@latest"
    )
    return f"needs {' and '.join(_PROGRAMS)}: {install}"


@contextlib.asynccontextmanager
async def running(directory: Path, *, http_port: int, tls_port: int) -> AsyncIterator[Pebble]:
    """A Pebble that answers; ended on leaving.

    Args:
        directory: its own.
        http_port: of 127.0.0.1, where it asks for HTTP-01 challenges.
        tls_port: of 127.0.0.1, where it asks for TLS-ALPN-01 challenges.
    """
    names, unused = free_port(), free_port()
    pebble = Pebble(directory, free_port(), free_port())
    _write_configuration(pebble, http_port, tls_port)
    # "": not at all; but -management= would be port 80
    off = ("-defaultIPv6=", "-http01=", "-https01=", "-tlsalpn01=")
    management = f"-management=127.0.0.1:{unused}"
    commands = (
        ["pebble-challtestsrv", f"-dns01=127.0.0.1:{names}", management, *off],
        ["pebble", f"-config={directory / 'config'}", f"-dnsserver=127.0.0.1:{names}"],
    )
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_process(directory, command)) for command in commands]

        def answers() -> bool:
            assert all(process.poll() is None for process in processes), "Pebble ended"
            return listens(names) and _fetch_root(pebble)

        try:
            await until(answers, "Pebble answers")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{pebble.log}") from None
        yield pebble


def _write_configuration(pebble: Pebble, http_port: int, tls_port: int) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(pebble.trust))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(pebble.directory / "own.pem"))
    settings = {
        "listenAddress": f"127.0.0.1:{pebble.port}",
        "managementListenAddress": f"127.0.0.1:{pebble.management}",
        "certificate": str(pebble.directory / "own.pem"),
        "privateKey": str(pebble.directory / "own.pem"),
        "httpPort": http_port,
        "tlsPort": tls_port,
        "ocspResponderURL": "",
        "externalAccountBindingRequired": False,
    }
    (pebble.directory / "config").write_text(json.dumps({"pebble": settings}), "utf-8")


@contextlib.contextmanager
def _process(directory: Path, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """One of the two programs; it holds nothing that a kill would spoil."""
    with (directory / "pebble.log").open("ab") as log:
        process = subprocess.Popen(
            [shutil.which(command[0]) or command[0], *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            # It would wait up to 15 s before each validation, lest clients take it to be at once;
            # and would now and then take a name to be valid because it was before.
            env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"},
        )
    # A test that runs out of time may not get to end it.
    atexit.register(process.kill)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _fetch_root(pebble: Pebble) -> bool:
    """Write down the authority that it made when it started; False as long as it does not say."""
    context = ssl.create_default_context(cafile=pebble.trust)
    with contextlib.suppress(httpx.TransportError):
        with httpx.Client(verify=context, trust_env=False, timeout=1) as client:
            answer = client.get(f"https://127.0.0.1:{pebble.management}/roots/0")
        pebble.root.write_bytes(answer.raise_for_status().content)
        return True
    return False
