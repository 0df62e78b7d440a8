"""Where to listen or dial, in Caddy's own spelling.

``host:port``, ``[v6]:port``, ``:port`` (listen only: all interfaces, IPv4 and IPv6),
``unix//path``, and ``fd/N`` (listen only: a socket that was handed over, say by systemd). Beside
them ``file/path``, which is read where an admin API would be asked.

Knows no socket: an address here is a value that prints as it is typed.

Source: Caddy's "network addresses" (caddyserver.com, Conventions).
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from functools import lru_cache

from snimux.proto.hostname import HostnameError, from_user

# sun_path less its NUL: 104 bytes on macOS and the BSDs, 108 on Linux. The smaller one everywhere,
# so that a configuration does not work on one system only.
_MAX_PATH = 103
# Characters: a name has 253, but more before it is made canonical.
_LONGEST = 1000


class AddressError(ValueError):
    """An address that cannot be used; the message says why and how to write it."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP host and port; an empty host is every interface, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_numeric(self) -> bool:
        """Whether the host is an IP address, so that nothing need be looked up."""
        # `from_user` makes names of anything else, and no name is all digits and dots.
        return ":" in self.host or not self.host.strip("0123456789.")


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A UNIX stream socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix/{self.path}"


@dataclass(frozen=True, slots=True)
class FdAddress:
    """A listening socket that this process was started with, by descriptor number."""

    number: int

    def __str__(self) -> str:
        return f"fd/{self.number}"


@dataclass(frozen=True, slots=True)
class FileAddress:
    """A file that holds what an admin API would answer: Caddy's autosave.json."""

    path: str

    def __str__(self) -> str:
        return f"file/{self.path}"


DialAddress = TcpAddress | UnixAddress
ListenAddress = TcpAddress | UnixAddress | FdAddress
AdminAddress = TcpAddress | UnixAddress | FileAddress


def parse_listen(text: str) -> ListenAddress:
    """An address to listen on; port 0 takes a free one.

    Raises:
        AddressError: it is none.
    """
    if text.startswith("fd/"):
        return _parse_fd(text)
    return _parse_socket(text, ":8443")


def parse_dial(text: str) -> DialAddress:
    """An address to dial.

    Raises:
        AddressError: it is none, or names no host or no port to dial.
    """
    if text.startswith("fd/"):
        raise AddressError("fd/N can be listened on, not dialled")
    address = _parse_socket(text, "127.0.0.1:8443")
    if isinstance(address, TcpAddress):
        if not address.host:
            raise AddressError(f"no host to dial; perhaps 127.0.0.1:{address.port}")
        if not address.port:
            raise AddressError("port 0 cannot be dialled")
    return address


def parse_admin(text: str) -> AdminAddress:
    """An address where a Caddy's configuration can be read: its admin API, or a file.

    Raises:
        AddressError: it is none.
    """
    _check_printable(text)
    if text.startswith("file/"):
        path = text.removeprefix("file/")
        if path in ("", "/"):
            raise AddressError("a file needs a path, as in file//var/lib/caddy/autosave.json")
        return FileAddress(path)
    if "://" in text:
        host = text.partition("://")[2].partition("/")[0]
        raise AddressError(f"a URL, not an address; perhaps {host or 'localhost:2019'}")
    if text.startswith(("/", "./", "~")):
        raise AddressError(f"a path; a UNIX socket is written unix/{text}, a file file/{text}")
    if ":" not in text and "/" not in text:
        host = "localhost" if text.isdecimal() else text or "localhost"
        port = text if text.isdecimal() else "2019"
        raise AddressError(f"no port; perhaps {host}:{port}")
    return parse_dial(text)


def _parse_fd(text: str) -> FdAddress:
    number = text.removeprefix("fd/")
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise AddressError("fd/N needs a descriptor number, as in fd/3")
    return FdAddress(int(number))


def _check_printable(text: str) -> None:
    """Refuse what would play with a terminal in which it is shown, in a hint or in the log."""
    if not text.isprintable():
        raise AddressError("a character that cannot be printed")


def _parse_socket(text: str, example: str) -> DialAddress:
    if len(text) > _LONGEST:
        raise AddressError(f"an address has at most {_LONGEST} characters")
    return _parse_short(text, example)


# Of 100,000 routes most lead to the same few. Caddys say addresses, too: their lengths are bounded,
# and so is what is kept of them.
@lru_cache(1024)
def _parse_short(text: str, example: str) -> DialAddress:
    _check_printable(text)
    if text.startswith("unix/"):
        return _parse_unix(text.removeprefix("unix/"))
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").lstrip("/")
        raise AddressError(f"a UNIX socket is written unix//{path or 'path/to/socket'}")
    if "://" in text:
        place = text.partition("://")[2].partition("/")[0]
        raise AddressError(f"a URL, not an address; perhaps {place or example}")
    if "/" in text:
        raise AddressError("not host:port; a UNIX socket is written unix//path/to/socket")
    if text == "off":
        raise AddressError("no address; where there is none, leave this out")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        example = example.replace("8443", text) if text.isdecimal() else f"{text or 'host'}:8443"
        raise AddressError(f"no port; perhaps {example}")
    return TcpAddress(_parse_host(host), _parse_port(port))


def _parse_unix(path: str) -> UnixAddress:
    if not path.startswith("/"):
        raise AddressError("a UNIX socket needs a path from the root: unix//path/to/socket")
    if re.search(r"\|[0-7]{3,4}$", path):
        raise AddressError("permissions are not supported here; leave the | and the digits out")
    if len(os.fsencode(path)) > _MAX_PATH:
        raise AddressError(f"the path of a UNIX socket has at most {_MAX_PATH} bytes")
    return UnixAddress(path)


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise AddressError(f"{text!r} is no port; a port is a number up to 65535")
    return int(text)


def _parse_host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        ip = _ip(text[1:-1])
        if not isinstance(ip, ipaddress.IPv6Address):
            raise AddressError(f"{text!r} is no IPv6 address")
        return str(ip)
    if text == "*":
        raise AddressError("a * is no host; all interfaces are the port alone, as in :443")
    if not text or _ip(text):
        if ":" in text:
            raise AddressError(f"an IPv6 address goes in brackets: [{text}]:port")
        return text
    if not text.strip("0123456789."):
        raise AddressError(f"{text!r} is no IPv4 address")
    try:
        return from_user(text)
    except HostnameError as error:
        hint = "; an IPv6 address goes in brackets: [::1]:8443" if ":" in text else ""
        raise AddressError(f"host {text!r}: {error}{hint}") from None


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
