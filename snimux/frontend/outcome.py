"""Record what is known of one connection: its log line and its figures are made of that."""

from dataclasses import dataclass, field

from snimux.log import Field
from snimux.proto.proxy_header import Endpoint
from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello
from snimux.relay.interface import Tally
from snimux.routing.routes import Backend, Route


@dataclass(slots=True)
class Outcome:
    """The record of one connection; whole once it has ended. Time in seconds.

    ``ended`` is how: a relay's ``End``, or "refused" (see ``reason``), "redirected" (``detail`` has
    where to), "shutdown" or "failed".
    """

    source: Endpoint | None
    """The client's, as far as it is known."""
    protocol: str | None = None
    """None for TLS, which is not worth a word in every line."""
    via: str | None = None
    """Who said in a PROXY protocol header that ``source`` is the client's."""
    destination: Endpoint | None = None
    """Where the client connected to, if that was said."""
    is_senders: bool = False
    """Whether there was such a header that names no client."""
    hello: Hello | None = None
    route: Route | None = None
    to: Backend | None = None
    backend: str | None = None
    """The address that was dialled, of those of ``to``."""
    waited: float | None = None
    """For a backend to come back; None if that was not needed."""
    tally: Tally = field(default_factory=Tally)
    header_size: int = 0
    started: float = 0.0
    """By trio's clock."""
    hello_seconds: float = 0.0
    """Until the hello was whole."""
    dial_seconds: float = 0.0
    """It took until a backend was connected."""
    seconds: float = 0.0
    ended: str = ""
    reason: Reason | None = None
    detail: str = ""
    is_silent: bool = False
    """Whether it is worth no line."""
    received: bytes | bytearray = b""
    """What it sent, as far as that was read, where it is refused."""

    def fields(self) -> dict[str, Field]:
        """The fields of the log line, in order."""
        hello, route = self.hello, self.route
        return {
            "client": shown(self.source),
            "via": self.via,
            "protocol": self.protocol,
            "name": hello.name if hello else None,
            "alpn": _shown_alpn(hello.alpn) if hello and hello.alpn else None,
            "ech": "offered" if hello and hello.ech else None,
            "route": str(route.pattern) if route else None,
            "backend": self.backend,
            "waited": None if self.waited is None else round(self.waited, 3),
            "up": max(self.tally.up - self.header_size, 0),
            "down": self.tally.down,
            "seconds": round(self.seconds, 3),
            "ended": self.ended,
            "reason": self.reason,
            "detail": self.detail or None,
        }


def host_of(source: Endpoint | None) -> str | None:
    """Return the host of an endpoint; None for a UNIX socket."""
    return None if source is None else source[0]


def shown(source: Endpoint | None) -> str:
    """Return an endpoint as the log has it; "unix" for a UNIX socket."""
    if source is None:
        return "unix"
    host, port = source
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _shown_alpn(alpn: tuple[bytes, ...]) -> str:
    return b",".join(alpn).decode("ascii", "backslashreplace")
