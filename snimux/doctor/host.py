"""Look at the system: who listens where, which processes are Caddys, and where to ask them.

Only looks: no connection is made, nothing is changed. What the user may not see is told, not
guessed. Knows nothing of what a Caddy would say; ``admin`` asks it.

Source: psutil; proc(5), net/tcp; Caddy 2.11.7, cmd/main.go (which configuration file it takes) and
storage.go (AppConfigDir, where autosave.json is).
"""

import os
import pwd
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from snimux.doctor.facts import Port, Process
from snimux.routing.address import (
    AddressError,
    AdminAddress,
    FileAddress,
    TcpAddress,
    UnixAddress,
    parse_admin,
)
from snimux.runtime.files import open_regular, read

_LARGEST = 8 * 1024 * 1024  # bytes of a Caddyfile
# Bytes of a program that are looked through: Caddy has 50 million, and 150 with many modules.
_LARGEST_PROGRAM = 256 * 1024 * 1024
_PIECE = 1024 * 1024
_WRAPPER = b"caddy.listeners.proxy_protocol"
_LISTENING = "0A"  # TCP_LISTEN in net/tcp

# A socket as psutil tells of it, and the process that has it; None if that cannot be seen.
_Entry = tuple[int | None, Any]


@dataclass(frozen=True, slots=True)
class Running:
    """A Caddy process, and where it may be asked for its configuration, likeliest first."""

    process: Process
    admins: tuple[AdminAddress, ...]
    is_guess: bool = False
    """Whether they are just sockets that it has, which may be its sites'."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The listening sockets and Caddys of a host, and what could not be seen."""

    ports: tuple[Port, ...]
    caddys: tuple[Running, ...]
    unseen: tuple[str, ...]


def survey() -> Survey:
    """Look at processes and sockets; takes some 50 ms, and blocks."""
    processes = {process.pid: process for process in psutil.process_iter()}
    seen = {pid: x for pid, each in processes.items() if (x := _process(each))}
    entries, unseen = _sockets(processes.values())
    ports = _ports(entries, seen, lambda pid: _leader(processes[pid], processes))
    admins = {
        each: list(_admins(processes[pid], each, ports))
        for pid, each in sorted(seen.items())
        # Others of the name do something else and end: caddy fmt, validate, adapt, reload.
        if each.is_caddy and (any(each in x.holders for x in ports) or _is_hidden(processes[pid]))
    }
    # A file that several keep is of whichever wrote last.
    times = Counter(admin for each in admins.values() for admin in set(each))
    caddys = [
        Running(
            process,
            tuple(x for x in own if not isinstance(x, FileAddress) or times[x] < 2),
            is_guess=_written_admin(process.config, _environment(processes[process.pid])) is None,
        )
        for process, own in admins.items()
    ]
    if any(None in port.holders for port in ports) and not unseen and os.geteuid():
        unseen = ["which of other users' processes hold some ports: sudo snimux doctor"]
    return Survey(ports, tuple(caddys), tuple(unseen))


def _process(process: psutil.Process) -> Process | None:
    """Return what can be seen of a process; None if it has ended."""
    try:
        name, command = process.name(), process.cmdline()
    except psutil.AccessDenied:
        return Process(process.pid, _name(process) or "a process that cannot be seen")
    except psutil.Error:
        return None
    program = Path(command[0]).name if command else name
    is_snimux = "snimux" in [Path(word).name for word in command[:3]]
    if name.startswith("caddy") or program.startswith("caddy"):
        config, has_wrapper = _config_file(process, command), _has_proxy_protocol(process)
        return Process(
            process.pid, name, is_caddy=True, config=config, has_proxy_protocol=has_wrapper
        )
    return Process(process.pid, "snimux" if is_snimux else name, is_snimux=is_snimux)


def _is_hidden(process: psutil.Process) -> bool:
    """Return whether the user may not see a process's sockets."""
    try:
        process.num_fds()
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False
    return False


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _leader(process: psutil.Process, processes: Mapping[int, psutil.Process]) -> int:
    """The process that a worker was forked from, and which is what people know it as."""
    try:
        parent = processes.get(process.ppid())
        is_fork = parent is not None and parent.cmdline() == process.cmdline() != []
    except psutil.Error:
        return process.pid
    return _leader(parent, processes) if parent is not None and is_fork else process.pid


def _config_file(process: psutil.Process, command: Sequence[str]) -> str | None:
    """The configuration file that a Caddy was started with: ``--config``, or its Caddyfile."""
    named = None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in ("--config", "-config", "-c"):
            named = value if equals else following
    try:
        directory = Path(process.cwd())
    except (psutil.Error, OSError):
        return named
    path = directory / (named or "Caddyfile")
    return str(path) if named or path.is_file() else None


def _has_proxy_protocol(process: psutil.Process) -> bool | None:
    """Return whether the module is in a Caddy's program; to ask that would be to run it."""
    try:
        return _has_wrapper(process.exe())
    except (psutil.Error, OSError, ValueError):
        return None


@lru_cache(64)  # of several Caddys most are one program
def _has_wrapper(path: str) -> bool | None:
    # Not by mmap: a page that is there no more when it is looked at ends the process.
    with open(open_regular(path), "rb", buffering=0) as program:  # noqa: PTH123 (a descriptor)
        if os.fstat(program.fileno()).st_size > _LARGEST_PROGRAM:
            return None
        before = b""
        for _ in range(_LARGEST_PROGRAM // _PIECE):
            piece = program.read(_PIECE)
            if not piece:
                return False
            if _WRAPPER in before + piece:
                return True
            before = piece[-len(_WRAPPER) :]
    return None


def _sockets(processes: Iterable[psutil.Process]) -> tuple[list[_Entry], list[str]]:
    """All sockets, each with its process if that can be seen, and what could not be seen."""
    try:
        return [(entry.pid, entry) for entry in psutil.net_connections(kind="all")], []
    except psutil.AccessDenied:
        # macOS: an ordinary user sees those of the own processes.
        own = ((each.pid, entry) for each in processes for entry in _own_sockets(each))
        return list(own), ["the sockets of other users' processes: sudo snimux doctor"]


def _own_sockets(process: psutil.Process) -> Sequence[Any]:
    try:
        # psutil 6 renamed it.
        ask = getattr(process, "net_connections", None) or process.connections
        return list(ask(kind="all"))
    except (psutil.Error, OSError):
        return ()


def _ports(
    entries: Iterable[_Entry], seen: Mapping[int, Process], leader: Callable[[int], int]
) -> tuple[Port, ...]:
    """All that is listened on; a process and its workers are one holder."""
    pids: dict[tuple[str, TcpAddress | UnixAddress], list[int | None]] = {}
    for pid, entry in entries:
        kind, address = _listening(entry)
        if address is not None and (pid is None or pid in seen):
            pids.setdefault((kind, address), []).append(pid)
    kernel = _kernel_counts()
    ports = []
    for (kind, address), owners in pids.items():
        leaders = sorted({leader(pid) for pid in owners if pid is not None})
        holders = [seen[pid] for pid in leaders if pid in seen]
        # Where none is seen, the sockets can still be counted.
        count = 0 if leaders else max(kernel.get(address, 0) if kind == "tcp" else 0, 1)
        ports.append(Port(kind, address, (*holders, *[None] * count)))
    return tuple(sorted(ports, key=lambda port: (port.kind, str(port.address))))


def _listening(entry: Any) -> tuple[str, TcpAddress | UnixAddress | None]:
    """Kind and address of a socket; no address where nothing is listened on."""
    if entry.family == socket.AF_UNIX:
        # No status there. Abstract names, and those of nothing, are no paths.
        path = entry.laddr if isinstance(entry.laddr, str) else ""
        is_stream = entry.type == socket.SOCK_STREAM and path.startswith("/")
        return "unix", UnixAddress(path) if is_stream else None
    is_udp = entry.type == socket.SOCK_DGRAM
    is_listening = not entry.raddr if is_udp else entry.status == psutil.CONN_LISTEN
    address = TcpAddress(entry.laddr.ip, entry.laddr.port) if entry.laddr and is_listening else None
    return "udp" if is_udp else "tcp", address


def _kernel_counts() -> dict[TcpAddress | UnixAddress, int]:
    """Count the sockets that listen on each TCP address, whoever has them; Linux."""
    counts: Counter[TcpAddress | UnixAddress] = Counter()
    for family, file in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        try:
            # One at a time: there is one for each connection, which may be a million.
            with Path("/proc/net", file).open(encoding="ascii") as lines:
                local = [x[1] for x in map(str.split, lines) if x[3] == _LISTENING]
        except OSError:
            continue
        for address in local:
            host, _, port = address.partition(":")
            # Words of 32 bits, each in the machine's order.
            words = [int(host[i : i + 8], 16) for i in range(0, len(host), 8)]
            packed = struct.pack(f"={len(words)}I", *words)
            counts[TcpAddress(socket.inet_ntop(family, packed), int(port, 16))] += 1
    return dict(counts)


def _admins(
    process: psutil.Process, seen: Process, ports: Iterable[Port]
) -> Iterator[AdminAddress]:
    """Yield where a Caddy may be asked: by its file, its sockets on loopback, its autosave."""
    environment = _environment(process)
    written = _written_admin(seen.config, environment)
    held = [port for port in ports if seen in port.holders]
    if written:
        yield written
    else:
        # Its sites may be there, too: whatever is asked that is no admin API, says so.
        for port in held:
            if port.kind == "unix" or (port.kind == "tcp" and _is_private(port.address)):
                yield _spelled(port.address)
    yield from _autosaves(process, environment)


def _is_private(address: TcpAddress | UnixAddress) -> bool:
    return isinstance(address, TcpAddress) and address.host in ("127.0.0.1", "::1")


def _spelled(address: TcpAddress | UnixAddress) -> AdminAddress:
    """Spell an address as people do, and as Caddy's default is."""
    if isinstance(address, TcpAddress) and address.host == "127.0.0.1":
        return TcpAddress("localhost", address.port)
    return address


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _written_admin(config: str | None, environment: Mapping[str, str]) -> AdminAddress | None:
    """The address behind ``admin`` in a Caddyfile; None where it has none that can be read."""
    try:
        # What another user's process was started with may be anything.
        text = read(config or "", _LARGEST).decode("utf-8")
    except (OSError, ValueError):
        return None
    line = r'^[ \t]*+admin[ \t]+"?([^\s"{]*+(?:\{\$[^}\n]*\}[^\s"{]*+)*+)'
    match = re.search(line, text, re.MULTILINE)
    if match is None:
        return None

    def value(match: re.Match[str]) -> str:
        name, _, default = match[1].partition(":")
        return environment.get(name, default)

    try:
        return parse_admin(re.sub(r"\{\$([^}]*)\}", value, match[1]).partition("|")[0])
    except AddressError:
        return None


def _autosaves(process: psutil.Process, environment: Mapping[str, str]) -> Iterator[FileAddress]:
    """The file that a Caddy keeps its configuration in, if it is of the time since it started."""
    below = "Library/Application Support/Caddy" if sys.platform == "darwin" else ".config/caddy"
    base = environment.get("XDG_CONFIG_HOME")
    try:
        home = environment.get("HOME") or pwd.getpwuid(process.uids().real).pw_dir
        path = (Path(base, "caddy") if base else Path(home, below)) / "autosave.json"
        if path.stat().st_mtime >= process.create_time() - 1:
            yield FileAddress(str(path))
    except (OSError, KeyError, psutil.Error):
        return
