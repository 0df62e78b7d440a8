"""The settings of one value: each a key of the file and a flag, how it is read, and its help.

For these one table serves the file, the flags and the help, so that all three say the same, and so
does one for the providers of routes. Routes, listeners, lists of networks and --proxy-protocol are
no rows of them: they are in ``cli.options`` and ``from_flags``, and in ``from_toml``.
"""

import ipaddress
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from snimux.config import hints
from snimux.proto.client_hello import DEFAULT_MAX_HELLO, LARGEST_MAX_HELLO
from snimux.routing.address import (
    AddressError,
    DirectoryAddress,
    FdAddress,
    FileAddress,
    ListenAddress,
    ProviderAddress,
    TcpAddress,
    UnixAddress,
    parse_admin,
    parse_directory,
    parse_listen,
)
from snimux.routing.routes import BALANCES
from snimux.text import cut

# Seconds: thirty years, which is off; and not inf or nan.
_LONGEST = 10**9


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file with its flag: how it is read, its default as written, its help."""

    key: str
    parse: Callable[[object], Any]
    default: object
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        """The flag of the same name."""
        return "--" + self.key.replace("_", "-")


def _seconds(
    *, off: bool = False, zero: bool = False, off_is: float = math.inf
) -> Callable[[object], float]:
    form = "a number of seconds" + (" or off" if off else "")

    def parse(value: object) -> float:
        if off and value == "off":
            return off_is
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = hints.number(value, hints.SECONDS, ["off"] if off else [])
            raise ValueError(f"{shown(value)} is not {form}{hint}")
        if not 0 <= value <= _LONGEST or (value == 0 and not zero):
            why = "for no limit" if off_is else "for no wait"
            hint = f"; write off {why}" if off else ""
            raise ValueError(f"{shown(value)} is not a number of seconds above 0{hint}")
        return float(value)

    return parse


def _count(
    what: str, *, low: int = 1, high: int = 10**9, word: str = ""
) -> Callable[[object], int | None]:
    form = f"a number of {what}" + (f" or {word}" if word else "")
    units = hints.BYTES if what == "bytes" else hints.COUNT

    def parse(value: object) -> int | None:
        if word and value == word:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            hint = hints.number(value, units, [word] if word else [])
            raise ValueError(f"{shown(value)} is not {form}{hint}")
        if not low <= value <= high:
            raise ValueError(f"{shown(value)} is not {form} from {low} to {high}")
        return value

    return parse


def _rate(what: str, *, low: float, high: int, word: str) -> Callable[[object], float | None]:
    form = f"a number of {what} or {word}"

    def parse(value: object) -> float | None:
        if value == word:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = hints.number(value, hints.A_SECOND, [word])
            raise ValueError(f"{shown(value)} is not {form}{hint}")
        if not low <= value <= high:
            raise ValueError(f"{shown(value)} is not {form}, from {low:g} to {high}")
        return float(value)

    return parse


def choice(*words: str) -> Callable[[object], str]:
    """Reads one of some words; the reader raises ValueError for anything else."""

    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            hint = hints.word(value, words)
            raise ValueError(f"{shown(value)} is not one of {', '.join(words)}{hint}")
        return value

    return parse


weight = _count("shares", high=256)  # HAProxy's highest, too
"""Reads how much of the whole an address is to have, beside others."""


def _status(value: object) -> ListenAddress | None:
    if value == "off":
        return None
    if str(value).isdecimal():
        raise ValueError(f"{shown(value)} is not an address or off; perhaps 127.0.0.1:{value}")
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not an address or off")
    address = parse_listen(value)
    if isinstance(address, FdAddress) or not _is_of_this_machine(address):
        raise AddressError(
            "shows who is connected, so it is for this machine alone: an address of loopback, such "
            "as 127.0.0.1:9443, or unix//path/to/socket"
        )
    return address


def _is_of_this_machine(address: ListenAddress) -> bool:
    if not isinstance(address, TcpAddress):
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"


# 512 bytes: hardly any client says less, so a smaller bound is a slip of units.
SETTINGS = (
    Setting(
        "hello_timeout",
        _seconds(),
        5,
        "SECONDS",
        "deadline for the whole ClientHello, or HTTP head",
    ),
    Setting(
        "max_hello",
        _count("bytes", low=512, high=LARGEST_MAX_HELLO),
        DEFAULT_MAX_HELLO,
        "BYTES",
        f"bound on the ClientHello, and on an HTTP request's head; at most {LARGEST_MAX_HELLO}",
    ),
    Setting("dial_timeout", _seconds(), 5, "SECONDS", "deadline for each backend address"),
    Setting(
        "idle_timeout",
        _seconds(off=True),
        3600,
        "SECONDS|off",
        "close a connection on which nothing moved, either way, for so long",
    ),
    Setting(
        "max_connections",
        _count("connections", word="auto"),
        "auto",
        "N|auto",
        "connections at a time; at the limit, new ones wait to be accepted; "
        "auto is a little less than half of the descriptors that a process may have, by workers",
    ),
    Setting(
        "max_connections_per_source",
        _count("connections", word="off"),
        "off",
        "N|off",
        "connections at a time from one IPv4 address or IPv6 /64; more are refused",
    ),
    Setting(
        "max_rate_per_source",
        # One in a quarter of an hour; what the processor could not do by far.
        _rate("connections a second", low=0.001, high=10**6, word="off"),
        "off",
        "N|off",
        "new connections a second from one IPv4 address or IPv6 /64, on average; more are refused",
    ),
    Setting(
        "max_burst_per_source",
        # A browser opens six for each name of a page, and several may be behind one address.
        _count("connections", high=10**6),
        50,
        "N",
        "how many new ones of a source may come at once where their rate is limited",
    ),
    Setting(
        "balance",
        choice(*BALANCES),
        "first",
        "POLICY",
        "which ADDR of several a connection goes to: first (that is up), round_robin, least_conn "
        "(the fewest connections), or ip_hash (always the same for a client's address)",
    ),
    Setting(
        "wait",
        _seconds(off=True, off_is=0.0),
        5,
        "SECONDS|off",
        "time that a new connection waits for a backend that restarts; one that has been down for "
        "longer is not waited for",
    ),
    Setting(
        "check",
        choice("off", "tcp", "tls"),
        "off",
        "off|tcp|tls",
        "ask each backend address whether it is up: by a connection, or by a hello for its name; "
        "one that is not is tried last",
    ),
    Setting("check_every", _seconds(), 10, "SECONDS", "time between two checks of an address"),
    Setting("rise", _count("checks"), 2, "N", "checks in a row that an address passes to be up"),
    Setting("fall", _count("checks"), 3, "N", "checks in a row that an address fails to be down"),
    Setting(
        "drain",
        _seconds(off=True, zero=True),
        30,
        "SECONDS|off",
        "time that open connections get to end after SIGTERM or SIGINT; "
        "off waits for as long as they take",
    ),
    Setting(
        "relay",
        choice("auto", "portable"),
        "auto",
        "auto|portable",
        "what moves the bytes; auto is the engine on Linux, and the portable relay elsewhere",
    ),
    Setting(
        "workers",
        # Each is a process, and a column of the counts that all of them share.
        _count("workers", high=256, word="auto"),
        1,
        "N|auto",
        "processes that share the work; auto is one for each processor that snimux may use",
    ),
    Setting(
        "watch",
        choice("on", "off"),
        "on",
        "on|off",
        "read the --config FILE again when it has changed; SIGHUP does so in any case",
    ),
    Setting(
        "status",
        _status,
        "off",
        "ADDR|off",
        "show there, by HTTP, how it is: / (for people), /metrics (for Prometheus), /figures, "
        "/healthz, /routes, /connections, /refused; on loopback or a UNIX socket alone; snimux top "
        "shows it",
    ),
    Setting(
        "keep_refused",
        # As many as are listed.
        _count("hellos", low=0, high=100),
        100,
        "N",
        "with status: keep what the last N refused TLS clients sent, for snimux explain --refused",
    ),
    Setting("log_format", choice("logfmt", "json"), "logfmt", "logfmt|json", "form of a log line"),
    Setting(
        "log_level",
        choice("debug", "info", "warning", "error"),
        "info",
        "LEVEL",
        "debug, info, warning or error; at info, scanners are summed up, not listed",
    ),
)


@dataclass(frozen=True, slots=True)
class ProviderTable:
    """A kind of source of routes: its table in the file with its flag, and how both are read."""

    name: str
    """Of the table."""
    key: str
    """Of that which says where it is, in the table."""
    parse: Callable[[str], ProviderAddress]
    types: tuple[type, ...]
    """Of what that returns."""
    noun: str
    example: str
    metavar: str
    help: str
    proxies: tuple[str, ...] = ()
    """The words that ``proxy`` may have, if there is such a key."""

    @property
    def flag(self) -> str:
        """The flag of the same name."""
        return "--" + self.name.replace("_", "-")

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys that its table may have."""
        return (self.key, "proxy") if self.proxies else (self.key,)

    def of(self, addresses: Iterable[ProviderAddress]) -> list[ProviderAddress]:
        """Return those of the addresses that are of this kind."""
        return [address for address in addresses if isinstance(address, self.types)]


# In the order in which they have a claim to a name: what somebody has written comes first.
PROVIDERS = (
    ProviderTable(
        "routes_dir",
        "path",
        parse_directory,
        (DirectoryAddress,),
        "directory",
        "/etc/snimux/routes",
        "DIR",
        "route what the [[route]] tables of the files DIR/*.toml say, as they change; repeatable",
    ),
    ProviderTable(
        "caddy",
        "admin",
        parse_admin,
        (TcpAddress, UnixAddress, FileAddress),
        "Caddy",
        "localhost:2019",
        "ADDR",
        "route the sites of the Caddy whose admin API is there, as they change; repeatable",
        ("auto", "off"),
    ),
)


def table_of(address: ProviderAddress) -> ProviderTable:
    """Return the kind of provider that is at an address."""
    return next(table for table in PROVIDERS if isinstance(address, table.types))


def shown(value: object) -> str:
    """A value as the user wrote it, short enough for a line, control characters made visible."""
    text = repr(value)
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif not isinstance(value, str | int | float | list | dict):
        text = str(value)  # a date or a time
    return cut(text, 80)
