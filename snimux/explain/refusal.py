"""Read the bytes that a refused client is sent, and say what people see of them.

Bytes -> a value. Knows neither why they are sent nor by whom.

Source: RFC 8446 section 6.2 and RFC 6066 section 9 (AlertDescription); RFC 9110 section 15 (status
codes); RFC 9113 section 6.8 (GOAWAY). What is shown was seen with Chromium 156, Firefox 153 and
curl 7.88 with OpenSSL 3.0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal

Kind = Literal["alert", "response", "goaway", "nothing"]


@dataclass(frozen=True, slots=True)
class Farewell:
    """The last that a client is sent before its connection is closed.

    ``number`` is the AlertDescription or the status code, ``name`` its name.
    """

    kind: Kind
    content: bytes
    number: int | None = None
    name: str = ""
    shown: Mapping[str, str] = field(default_factory=dict)
    """By program: what it shows."""

    def __str__(self) -> str:
        match self.kind:
            case "alert":
                return f"the TLS alert {self.name} ({self.number})"
            case "response":
                return f"the response {self.number} {self.name}"
            case "goaway":
                return "HTTP/2's GOAWAY"
            case "nothing":
                return "no word: the connection is closed"


_ALERTS = {
    10: "unexpected_message",
    22: "record_overflow",
    49: "access_denied",
    50: "decode_error",
    80: "internal_error",
    112: "unrecognized_name",
}
# Those for which they have words of their own.
_IN_CHROME = {112: "ERR_SSL_UNRECOGNIZED_NAME_ALERT"}
_IN_FIREFOX = {10: "SSL_ERROR_HANDSHAKE_UNEXPECTED_ALERT"}

_ALERT_RECORD = 21
_ALERT_SIZE = 7  # header of the record, level, description
_FATAL = 2
_GOAWAY = 7
_FRAME_HEADER = 9


def read(farewell: bytes) -> Farewell:
    """Return what a farewell means; see ``verdict.Protocol``."""
    if len(farewell) == _ALERT_SIZE and farewell[0] == _ALERT_RECORD and farewell[5] == _FATAL:
        return _alert(farewell, farewell[6])
    if farewell.startswith(b"HTTP/1.1 "):
        status = HTTPStatus(int(farewell[9:12]))
        words = farewell.partition(b"\r\n\r\n")[2].decode("utf-8", "replace").strip()
        # Who is redirected sees what is there.
        programs = {"browsers, curl": words} if words and status.value // 100 != 3 else {}
        return Farewell("response", farewell, status.value, status.phrase, programs)
    if farewell[_FRAME_HEADER + 3 : _FRAME_HEADER + 4] == bytes([_GOAWAY]):  # behind SETTINGS
        return Farewell("goaway", farewell)
    return Farewell("nothing", farewell)


def _alert(farewell: bytes, number: int) -> Farewell:
    name = _ALERTS.get(number, "")
    if not name:
        return Farewell("alert", farewell, number, "of no name")
    shown = {
        "Chrome": _IN_CHROME.get(number, "ERR_SSL_PROTOCOL_ERROR"),
        "Firefox": _IN_FIREFOX.get(number, f"SSL_ERROR_{name.upper()}_ALERT"),
        "curl": f"(35) ... {name.replace('_', ' ')}",
    }
    return Farewell("alert", farewell, number, name, shown)
