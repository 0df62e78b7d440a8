"""The corpus of real ClientHellos: what browsers, tools and libraries sent, byte for byte.

Each `<slug>.bin` is the first flight of one real TLS client up to the end of its ClientHello, as it
came from the socket, record headers included. `origin.toml` says for each which client and version
it was, how it was captured, and what it asks for. `capture.py` captures those again whose clients
are in `tests.support.clients`.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class RealHello:
    """One captured ClientHello, and what is known about it."""

    slug: str
    data: bytes
    name: str | None
    """The server name as sent, or None if none was."""
    alpn: tuple[bytes, ...]
    """The protocols offered, as sent; empty without the extension."""
    ech: bool
    """Whether the encrypted_client_hello extension is there, real or grease."""
    origin: str
    """Client and version, and the command or the way it was captured, for people."""


def load() -> list[RealHello]:
    """Read the whole corpus, in the order of the slugs."""
    origins = tomllib.loads((HERE / "origin.toml").read_text("utf-8"))
    return [
        RealHello(
            slug=slug,
            data=(HERE / f"{slug}.bin").read_bytes(),
            name=entry.get("name"),
            alpn=tuple(protocol.encode("ascii") for protocol in entry["alpn"]),
            ech=entry["ech"],
            origin=f"{entry['client']}: {entry.get('command') or entry['how']}",
        )
        for slug, entry in sorted(origins.items())
    ]
