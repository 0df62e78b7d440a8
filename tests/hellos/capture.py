"""Capture the ClientHellos of the real clients again: `python -m tests.hellos.capture [NAME...]`.

For each client of `tests.support.clients` (or each NAME) that is installed here, listens on a free
port of 127.0.0.1, lets the client connect, keeps what it sends until its ClientHello is complete,
and writes `<name>.bin` and its table of `origin.toml`. The entries of other files stay as they are.

The few fields of a hello that `origin.toml` states are read by a parser of this file's own: what
they are compared with must not have a hand in them.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import trio
import trustme

from tests.support import clients

HERE = Path(__file__).parent
ORIGIN = HERE / "origin.toml"
HOST = "secure.ciso.com"
DATE = "2026-11-23"
CONNECT_SECONDS = 30
SILENCE_SECONDS = 1

_SERVER_NAME, _ALPN, _ECH = 0x0000, 0x0010, 0xFE0D

_HEADER = """\
# Where each hello in this folder comes from: one table per file, `<table>.bin`.
# name, alpn: as sent, name being absent if none is; ech: whether extension 0xfe0d is there
# command: how tests/hellos/capture.py got it; how: how it was got otherwise
# CA_FILE, WORK_DIR, PORT, SCRIPT stand for what differs from run to run or is in tests/clients.py
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What origin.toml states about the contents of a hello."""

    name: str | None
    alpn: list[str]
    ech: bool


def handshake_of(data: bytes) -> tuple[bytes, int] | None:
    """Join the handshake records up to the end of the first message.

    Returns the message and the number of bytes of its records, or None if more has to come.
    """
    message, end = b"", 0
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4]):
        header = data[end : end + 5]
        if len(header) < 5:
            return None
        if header[0] != 22:
            raise ValueError(f"not a handshake record: {header.hex()}")
        end += 5 + int.from_bytes(header[3:5])
        if len(data) < end:
            return None
        message += data[end - int.from_bytes(header[3:5]) : end]
    return message, end


def extensions_of(message: bytes) -> dict[int, bytes]:
    """List the extensions of a ClientHello message by number."""
    at = 4 + 2 + 32
    at += 1 + message[at]  # session id
    at += 2 + int.from_bytes(message[at : at + 2])  # cipher suites
    at += 1 + message[at]  # compression methods
    at += 2
    found = {}
    while at < len(message):
        size = int.from_bytes(message[at + 2 : at + 4])
        found[int.from_bytes(message[at : at + 2])] = message[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def facts_of(data: bytes) -> Facts:
    """Read server name, ALPN list and presence of ECH from a whole hello."""
    whole = handshake_of(data)
    if whole is None:
        raise ValueError("not a whole hello")
    extensions = extensions_of(whole[0])
    # list length (2), type (1), name length (2): no client sends more than one name
    name = extensions[_SERVER_NAME][5:].decode("ascii") if _SERVER_NAME in extensions else None
    protocols, rest = [], extensions.get(_ALPN, b"")[2:]
    while rest:
        protocols.append(rest[1 : 1 + rest[0]].decode("ascii"))
        rest = rest[1 + rest[0] :]
    return Facts(name, protocols, _ECH in extensions)


def store(slug: str, data: bytes, client: str, **made: str) -> None:
    """Write the hello and its table; `made` is its `command` or its `how`, in words."""
    (HERE / f"{slug}.bin").write_bytes(data)
    facts = facts_of(data)
    entry: dict[str, object] = {"client": client, **made}
    if facts.name is not None:
        entry["name"] = facts.name
    entry |= {"alpn": facts.alpn, "ech": facts.ech, "date": DATE, "size": len(data)}
    origin = tomllib.loads(ORIGIN.read_text("utf-8")) if ORIGIN.exists() else {}
    origin[slug] = entry
    tables = [_table(slug, origin[slug]) for slug in sorted(origin)]
    ORIGIN.write_text(_HEADER + "".join(tables), "utf-8")


def _table(slug: str, entry: dict[str, object]) -> str:
    # JSON's strings, lists, numbers and booleans are TOML's too
    lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    return "\n".join(["", f'["{slug}"]', *lines, ""])


async def receive_hello(stream: trio.SocketStream) -> bytes:
    """Read until the ClientHello is complete; what follows it is dropped."""
    data = b""
    while (whole := handshake_of(data)) is None:
        with trio.fail_after(SILENCE_SECONDS):
            chunk = await stream.receive_some()
        if not chunk:
            raise EOFError(f"the client hung up after {len(data)} bytes")
        data += chunk
    return data[: whole[1]]


async def capture(client: clients.Client, ca_file: Path, work_dir: Path) -> bytes:
    """Run the client against a listener that hears its hello and hangs up."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(clients.run, client, HOST, port, ca_file, work_dir)
        with trio.fail_after(CONNECT_SECONDS):
            stream = await listener.accept()
        async with stream:
            data = await receive_hello(stream)
        nursery.cancel_scope.cancel()
    return data


def version_of(client: clients.Client, work_dir: Path) -> str:
    """Ask the client which version it is."""
    done = subprocess.run(
        client.version,
        capture_output=True,
        check=True,
        cwd=work_dir,
        env=clients.environment(work_dir),
        text=True,
        timeout=CONNECT_SECONDS,
    )
    return done.stdout.splitlines()[0].strip()


def command_of(client: clients.Client) -> str:
    """Give the command line as a shell would take it, without what is of this machine and run."""
    port = 65535
    argv = client.command(HOST, port, Path("CA_FILE"), Path("WORK_DIR"))
    plain = ["SCRIPT" if "\n" in word else word.replace(str(port), "PORT") for word in argv]
    return shlex.join("python" if word == sys.executable else word for word in plain)


def main(names: list[str]) -> None:
    """Capture each client named, or all of them."""
    unknown = set(names) - {client.name for client in clients.CLIENTS}
    if unknown:
        sys.exit(f"no such client: {', '.join(sorted(unknown))}")
    wanted = [client for client in clients.CLIENTS if not names or client.name in names]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        ca_file = Path(scratch) / "ca.pem"
        trustme.CA().cert_pem.write_to_path(str(ca_file))
        for client in wanted:
            missing = clients.available(client)
            if missing is not None:
                print(f"{client.name}: {missing}")
                continue
            work_dir = Path(scratch) / client.name
            work_dir.mkdir()
            data = trio.run(capture, client, ca_file, work_dir)
            store(client.name, data, version_of(client, work_dir), command=command_of(client))
            print(f"{client.name}: {len(data)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
