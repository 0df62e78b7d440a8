"""Addresses as people write them: where to listen, where to dial; and which of them are each other.

By what is written alone: a name is looked up nowhere, and only ``localhost`` is known.
"""

import ipaddress
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
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
        """Return whether the host is an IP address, so that nothing need be looked up."""
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


@dataclass(frozen=True, slots=True)
class DirectoryAddress:
    """A directory whose files hold routes."""

    path: str

    def __str__(self) -> str:
        return self.path


DialAddress = TcpAddress | UnixAddress
ListenAddress = TcpAddress | UnixAddress | FdAddress
AdminAddress = TcpAddress | UnixAddress | FileAddress
ProviderAddress = AdminAddress | DirectoryAddress


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


def parse_directory(text: str) -> DirectoryAddress:
    """Return the directory that a path leads to, which need not be there yet.

    Raises:
        AddressError: it is no path.
    """
    _check_printable(text)
    if not text:
        raise AddressError("a directory needs a path, as in /etc/snimux/routes")
    return DirectoryAddress(posixpath.normpath(text))


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


_EVERYWHERE = ("", "0.0.0.0", "::")  # hosts that stand for every interface


def is_own(listen: Iterable[ListenAddress], dial: DialAddress) -> bool:
    """Return whether a connection to an address would come to one of those that are listened on."""
    return any(is_same(own, dial) for own in listen)


def is_same(listen: ListenAddress | ProviderAddress, dial: ProviderAddress) -> bool:
    """Return whether what is dialled at one address is what listens at another."""
    if not (isinstance(listen, TcpAddress) and isinstance(dial, TcpAddress)):
        return listen == dial
    if listen.port != dial.port:
        return False
    if listen.host in _EVERYWHERE:
        return _is_loopback(dial.host)
    both_loopback = _is_loopback(listen.host) and _is_loopback(dial.host)
    return listen.host == dial.host or (both_loopback and "localhost" in (listen.host, dial.host))


def reserved_for(reserved: Mapping[DialAddress, str], dial: DialAddress) -> str | None:
    """Return what an address is reserved for, as far as it can be told by what is written, or None.

    All spellings of an address are one, and so are all addresses by which this machine has itself.
    """
    port = _port(dial)
    near = ((each, what) for each, what in reserved.items() if _port(each) == port)
    return next((what for each, what in near if _place(each) == _place(dial)), None)


def _port(address: DialAddress) -> int:
    return address.port if isinstance(address, TcpAddress) else 0


def _place(address: DialAddress) -> tuple[str, int]:
    """A host or path in one spelling, and the port."""
    if isinstance(address, UnixAddress):
        return posixpath.normpath(f"/{address.path.lstrip('/')}"), 0
    host = plain_host(address.host)
    return "" if not host or _is_loopback(host) else host, address.port


def plain_host(host: str) -> str:
    """A host in one spelling: without a dot at its end or a zone; IPv4 in IPv6 is IPv4."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.rstrip(".")
    return str((ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None) or ip)


def overlaps(one: ListenAddress, other: ListenAddress) -> bool:
    """Return whether both cannot be listened on at once."""
    if not (isinstance(one, TcpAddress) and isinstance(other, TcpAddress)):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    wild = one.host in _EVERYWHERE or other.host in _EVERYWHERE
    return one.host == other.host or (wild and bool(_families(one.host) & _families(other.host)))


def is_covered(address: ListenAddress, listen: Sequence[ListenAddress]) -> bool:
    """Return whether all that comes to an address comes to one of those that are listened on."""
    if not isinstance(address, TcpAddress):
        return address in listen
    hosts = {x.host for x in listen if isinstance(x, TcpAddress) and x.port == address.port}
    families = [_families(host) for host in hosts if host in _EVERYWHERE]
    return address.host in hosts or _families(address.host) <= set().union(*families)


def _families(host: str) -> set[str]:
    """IP versions of a host; both for one that is to be looked up."""
    try:
        return set(str(ipaddress.ip_address(host).version))
    except ValueError:
        return set("46")


def _is_loopback(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return ip.is_loopback or ip.is_unspecified


@dataclass(frozen=True, slots=True)
class Activated:
    """A listening socket that was handed over, as by systemd's socket activation."""

    descriptor: FdAddress
    protocol: str
    """What is to be served on it."""
    address: ListenAddress
    """Where it listens."""
