"""Why a connection is refused: the word in the log, what is wrong, and what to do about it.

Source: ``client_hello`` and ``http_head`` say when each of their reasons is meant.
"""

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why a connection was refused; the value is the word in the log."""

    # Nothing came, or not this protocol: scanners, health probes, clients at the wrong port.
    NO_BYTES = "no-bytes"
    HTTP = "http"
    TLS = "tls"
    SSH = "ssh"
    SSLV2 = "sslv2"
    PROXY_PROTOCOL = "proxy-protocol"
    NOISE = "noise"
    # This protocol, and wrong.
    MALFORMED_HELLO = "malformed-hello"
    BAD_SERVER_NAME = "bad-server-name"
    UNEXPECTED_MESSAGE = "unexpected-message"
    RECORD_OVERFLOW = "record-overflow"
    HELLO_TOO_LARGE = "hello-too-large"
    HELLO_TIMEOUT = "hello-timeout"
    HELLO_CUT_SHORT = "hello-cut-short"
    # From a balancer that is trusted to say who the client is.
    BAD_PROXY_HEADER = "bad-proxy-header"
    # Who is not to be served, whatever it asks for, or not that.
    ACCESS_DENIED = "access-denied"
    # A good hello that cannot be served.
    NO_ROUTE = "no-route"
    NO_HTTP = "no-http"
    BACKEND_DOWN = "backend-down"
    NO_SOURCE = "no-source"
    OUT_OF_RESOURCES = "out-of-resources"
    TOO_MANY_FROM_SOURCE = "too-many-from-source"
    RATE_LIMITED = "rate-limited"


MEANINGS: Mapping[Reason, str] = {
    Reason.NO_BYTES: "it says nothing",
    Reason.HTTP: "plain HTTP, where TLS is listened for",
    Reason.TLS: "TLS, where plain HTTP is listened for",
    Reason.SSH: "SSH",
    Reason.SSLV2: "a hello of SSLv2, which no server should take any more",
    Reason.PROXY_PROTOCOL: "a PROXY protocol header, which snimux does not take here",
    Reason.NOISE: "neither TLS nor HTTP",
    Reason.MALFORMED_HELLO: "not as the protocol wants it, so that two could read it differently",
    Reason.BAD_SERVER_NAME: "the server name is no host name",
    Reason.UNEXPECTED_MESSAGE: "something else where the hello should be",
    Reason.RECORD_OVERFLOW: "a record that is longer than TLS allows",
    Reason.HELLO_TOO_LARGE: "longer than max_hello allows",
    Reason.HELLO_TIMEOUT: "not whole within hello_timeout",
    Reason.HELLO_CUT_SHORT: "the client closes before it is whole",
    Reason.BAD_PROXY_HEADER: "no PROXY protocol header, where one of proxy_from begins with it",
    Reason.ACCESS_DENIED: "allow and deny do not let it in",
    Reason.NO_SOURCE: "the backend is transparent, and has no address of the client's family",
    Reason.RATE_LIMITED: "new connections come from there faster than they may",
    Reason.NO_ROUTE: "no route has a pattern that matches",
    Reason.NO_HTTP: "its route has no plain HTTP, and it is nothing to redirect to https",
    Reason.BACKEND_DOWN: "no address of the backend answers",
    Reason.OUT_OF_RESOURCES: "this machine has nothing left to dial with",
    Reason.TOO_MANY_FROM_SOURCE: "more connections from there than max_connections_per_source",
}
"""What was so, of the hello or the client; in the tone of the log's words."""

_SCANNER = "Nothing: scanners and health checks come to every open port."
_BROKEN = (
    "Nothing, where it is a scanner. Else look at that client; snimux explain reads its hello."
)

REMEDIES: Mapping[Reason, str] = {
    Reason.NO_BYTES: _SCANNER,
    Reason.HTTP: "Where a person typed it: the address wants https://.",
    Reason.TLS: "Where it is no scanner: the client, or what is before snimux, has the ports mixed "
    "up.",
    Reason.SSH: _SCANNER,
    Reason.SSLV2: _SCANNER,
    Reason.PROXY_PROTOCOL: "Where a balancer of yours sends it: name its network by --proxy-from.",
    Reason.NOISE: _SCANNER,
    Reason.MALFORMED_HELLO: _BROKEN,
    Reason.BAD_SERVER_NAME: _BROKEN,
    Reason.UNEXPECTED_MESSAGE: _BROKEN,
    Reason.RECORD_OVERFLOW: _BROKEN,
    Reason.HELLO_TOO_LARGE: "Where the client is a good one: raise --max-hello.",
    Reason.HELLO_TIMEOUT: "Where clients are far away or on bad lines: raise --hello-timeout.",
    Reason.HELLO_CUT_SHORT: "Nothing, where it is rare: people close tabs.",
    Reason.BAD_PROXY_HEADER: "Have the balancer send it, v1 or v2; or take it out of --proxy-from.",
    Reason.ACCESS_DENIED: "Where it is to be served: look at --allow, --deny and the route's own.",
    Reason.NO_ROUTE: "Where the name is yours: give it a --route, or see that its Caddy serves it.",
    Reason.NO_HTTP: "Where it is to be served by plain HTTP: give its [[route]] an http.",
    Reason.BACKEND_DOWN: "Start the backend, or mend its address; the log says what failed.",
    Reason.NO_SOURCE: "Give the backend an address of the client's family (IPv4 or IPv6), or take "
    "transparent from its route.",
    Reason.OUT_OF_RESOURCES: "Give snimux more descriptors, or the machine more ports or memory.",
    Reason.TOO_MANY_FROM_SOURCE: "Where many share an address: raise --max-connections-per-source.",
    Reason.RATE_LIMITED: "Where many share an address: raise --max-rate-per-source, or its burst.",
}
"""What to do, if anything."""
