"""Say why a connection is refused, and all that follows from the reason alone.

A reason is one row: its word, its meaning, the remedy, the alert and the level in the log. What an
HTTP client is answered stands in ``http_head``: that is a text for another reader.

Source: ``client_hello`` and ``http_head`` say when each of their reasons is meant; RFC 8446
section 6 and RFC 6066 section 3 name the alerts.
"""

from enum import StrEnum
from typing import Literal

Level = Literal["debug", "info", "warning"]

# AlertDescription
_UNEXPECTED_MESSAGE = 10
_RECORD_OVERFLOW = 22
_ACCESS_DENIED = 49
_DECODE_ERROR = 50
_INTERNAL_ERROR = 80
_UNRECOGNIZED_NAME = 112

_SCANNER = "Nothing: scanners and health checks come to every open port."
_BROKEN = (
    "Nothing, where it is a scanner. Else look at that client; snimux explain reads its hello."
)


class Reason(StrEnum):
    """A reason to refuse a connection; the value is the word in the log and in metrics."""

    meaning: str
    """What was so, of the hello or the client; in the tone of the log's words."""
    remedy: str
    """What to do, if anything: whole sentences."""
    alert: int | None
    """The AlertDescription for a TLS client; None where none is sent, or nobody speaks TLS."""
    level: Level
    """Of its line in the log: debug for scanners, warning for what is amiss on this side."""

    # Defaults, because a member is looked up by its word alone.
    def __new__(
        cls,
        word: str,
        meaning: str = "",
        remedy: str = "",
        alert: int | None = None,
        level: Level = "info",
    ) -> "Reason":
        """Make a member of its row."""
        self = str.__new__(cls, word)
        self._value_ = word
        self.meaning, self.remedy, self.alert, self.level = meaning, remedy, alert, level
        return self

    @property
    def is_scanner(self) -> bool:
        """Say whether such clients come to every open port by the minute: counted, not listed."""
        return self.level == "debug"

    # fmt: off
    # Nothing came, or not this protocol: scanners, health probes, clients at the wrong port.
    NO_BYTES = ("no-bytes", "it says nothing", _SCANNER, None, "debug")
    HTTP = (
        "http", "plain HTTP, where TLS is listened for",
        "Where a person typed it: the address wants https://.", None, "debug"
    )
    TLS = (
        "tls", "TLS, where plain HTTP is listened for",
        "Where it is no scanner: the client, or what is before snimux, has the ports mixed up.",
        None, "debug"
    )
    SSH = ("ssh", "SSH", _SCANNER, None, "debug")
    SSLV2 = (
        "sslv2", "a hello of SSLv2, which no server should take any more", _SCANNER, None, "debug"
    )
    PROXY_PROTOCOL = (
        "proxy-protocol", "a PROXY protocol header, which snimux does not take here",
        "Where a balancer of yours sends it: name its network by --proxy-from."
    )
    NOISE = ("noise", "neither TLS nor HTTP", _SCANNER, None, "debug")

    # This protocol, and wrong.
    MALFORMED_HELLO = (
        "malformed-hello", "not as the protocol wants it, so that two could read it differently",
        _BROKEN, _DECODE_ERROR
    )
    BAD_SERVER_NAME = ("bad-server-name", "the server name is no host name", _BROKEN, _DECODE_ERROR)
    UNEXPECTED_MESSAGE = (
        "unexpected-message", "something else where the hello should be", _BROKEN,
        _UNEXPECTED_MESSAGE
    )
    RECORD_OVERFLOW = (
        "record-overflow", "a record that is longer than TLS allows", _BROKEN, _RECORD_OVERFLOW
    )
    HELLO_TOO_LARGE = (
        "hello-too-large", "longer than max_hello allows",
        "Where the client is a good one: raise --max-hello.", _DECODE_ERROR
    )
    # For these two the peek that waited for more has the farewell: it depends on what had come.
    HELLO_TIMEOUT = (
        "hello-timeout", "not whole within hello_timeout",
        "Where clients are far away or on bad lines: raise --hello-timeout."
    )
    HELLO_CUT_SHORT = (
        "hello-cut-short", "the client closes before it is whole",
        "Nothing, where it is rare: people close tabs."
    )

    # From a balancer that is trusted to say who the client is.
    BAD_PROXY_HEADER = (
        "bad-proxy-header", "no PROXY protocol header, where one of proxy_from begins with it",
        "Have the balancer send it, v1 or v2; or take it out of --proxy-from."
    )

    # Who is not to be served, whatever it asks for, or not that.
    ACCESS_DENIED = (
        "access-denied", "allow and deny do not let it in",
        "Where it is to be served: look at --allow, --deny and the route's own.", _ACCESS_DENIED
    )

    # A good hello that cannot be served.
    NO_ROUTE = (
        "no-route", "no route has a pattern that matches",
        "Where the name is yours: give it a --route, or see that its Caddy serves it.",
        _UNRECOGNIZED_NAME
    )
    # RFC 8446 has access_denied for who the client is. Here that does not matter: whoever asks,
    # there is no server of this name (RFC 6066 section 3).
    ROUTE_REFUSES = (
        "route-refuses", "its route refuses whoever asks",
        'Nothing, where that is meant: it says to = "refuse". Else give that route a backend.',
        _UNRECOGNIZED_NAME
    )
    NO_HTTP = (
        "no-http", "its route has no plain HTTP, and it is nothing to redirect to https",
        "Where it is to be served by plain HTTP: give its [[route]] an http."
    )
    BACKEND_DOWN = (
        "backend-down", "no address of the backend answers",
        "Start the backend, or mend its address; the log says what failed.", _INTERNAL_ERROR,
        "warning"
    )
    NO_SOURCE = (
        "no-source", "the backend is transparent, and has no address of the client's family",
        "Give the backend an address of the client's family (IPv4 or IPv6), or take transparent "
        "from its route.", _INTERNAL_ERROR
    )
    OUT_OF_RESOURCES = (
        "out-of-resources", "this machine has nothing left to dial with",
        "Give snimux more descriptors, or the machine more ports or memory.", _INTERNAL_ERROR,
        "warning"
    )
    TOO_MANY_FROM_SOURCE = (
        "too-many-from-source", "more connections from there than max_connections_per_source",
        "Where many share an address: raise --max-connections-per-source.", _ACCESS_DENIED
    )
    RATE_LIMITED = (
        "rate-limited", "new connections come from there faster than they may",
        "Where many share an address: raise --max-rate-per-source, or its burst.", _ACCESS_DENIED
    )
    # fmt: on
