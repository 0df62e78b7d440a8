"""This process -> a server: alone, the supervisor of workers, or one of these; and its successor.

What a process has once is seen to here: its environment, its descriptors, its signals, its
collector, its stderr. Knows no flags and no commands, and nothing of connections: serving is
``server``'s, and starting workers is ``supervisor``'s.
"""

import importlib.util
import io
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import trio

from snimux.config.model import Config, ConfigError, Limits
from snimux.extras import install
from snimux.frontend.limits import LocalLimits
from snimux.log import Field, Log
from snimux.net.listeners import ListenError, open_listeners
from snimux.net.transparent import missing
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.relay.pipes import MOST
from snimux.runtime.background import freeze
from snimux.runtime.clock import RunningClock
from snimux.service.handover import Handed, Inheritance, inheritance, sockets
from snimux.service.lifecycle import STOP_SIGNALS
from snimux.service.reload import File, Source
from snimux.service.scoreboard import SharedLimits
from snimux.service.server import serve
from snimux.service.supervisor import Team, processors, supervise
from snimux.service.systemd import HandoverError, Manager, manager, receive
from snimux.service.upgrade import SIGNAL as UPGRADE_SIGNAL
from snimux.service.upgrade import Succession
from snimux.status.web import AT_A_TIME

# Descriptors that are neither connections' nor pipes': streams, listeners, epoll, look-ups, probes
# and checks.
_RESERVED_DESCRIPTORS = 80


# Looking through all that there is takes about as long (10 ms) as through so many routes.
_MANY_ROUTES = 10_000

_HANDLED = (signal.SIGHUP, UPGRADE_SIGNAL, *STOP_SIGNALS)


class StartError(Exception):
    """This process cannot serve; the message says why, for whoever started it."""


def hold_signals() -> None:
    """Have SIGHUP and SIGUSR2 wait until the server handles them: who sends them wants no end.

    Of a worker they wait for ever: to reload and to upgrade is the supervisor's to say, but who
    wants either may signal each process of a service.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, UPGRADE_SIGNAL])


def handed_over() -> tuple[Inheritance, Manager]:
    """Take what was handed to this process, and whom it is to tell how it is.

    Raises:
        StartError: it is not as the protocol has it.
    """
    try:
        named = receive(os.environ, os.getpid())
        return inheritance(named), manager(os.environ, os.getpid())
    except HandoverError as error:
        raise StartError(str(error)) from None


def run(
    config: Config, file: File | None, service_manager: Manager, inherited: Inheritance
) -> None:
    """Serve, alone or by workers, until told to stop.

    Args:
        config: what to serve.
        file: that it was read from, if any: workers read the same, and so does a reload.
        service_manager: told how the service is.
        inherited: what was handed to this process.

    Raises:
        StartError: it cannot serve; nothing is listened on then.
    """
    if config.status is not None and importlib.util.find_spec("prometheus_client") is None:
        how = install("prometheus-client")
        raise StartError(f"--status: needs prometheus-client: {how}")
    log = _log(config)
    workers = config.workers or processors()
    descriptors = _raise_descriptor_limit() - (AT_A_TIME if config.status else 0)
    allowed = workers * max(_room_for(descriptors), 1)
    lacking = missing(config.routes)
    if lacking:
        raise StartError(lacking)

    def limit(limits: Limits) -> int:
        count = limits.max_connections or allowed
        if count > allowed:
            fields: dict[str, Field] = {"max_connections": count, "room_for": allowed}
            log.write("warning", "few-descriptors", fields)
        # No worker takes more than it has descriptors for, so there are no more places.
        return count if workers == 1 else min(count, allowed)

    most = limit(config.limits)
    source = file and Source(replace(file, parse=_permitted(file.parse)), limit, _settle_many)
    status_at = [] if config.status is None else [config.status]
    try:
        opened = open_listeners(
            config.addresses(TLS), config.addresses(HTTP), inherited.listeners, status=status_at
        )
    except ListenError as error:
        raise StartError(str(error)) from None
    status = [listener for listener in opened if listener.protocol == "status"]
    listeners = [listener for listener in opened if listener.protocol != "status"]
    # As this process was started: by its script or -m, with the interpreter's own flags.
    command = [sys.executable, *sys.orig_argv[1:]]
    succession = Succession(log, service_manager, inherited, command=command, listeners=opened)
    if workers == 1:
        server = partial(serve, config, LocalLimits(most), listeners, log, status=status)
        _run_until_stopped(
            partial(server, manager=service_manager, source=source, succession=succession)
        )
        return
    team = Team(workers, most, allowed, config, file.text if file else None)
    supervisor = partial(supervise, command, listeners, team, log, status=status)
    _run_until_stopped(
        partial(supervisor, manager=service_manager, source=source, succession=succession)
    )


def _permitted(parse: Callable[[str], Config]) -> Callable[[str], Config]:
    """Return the same reader, for which what this process may not do is a problem, too."""

    def checked(text: str) -> Config:
        config = parse(text)
        lacking = missing(config.routes)
        if lacking:
            raise ConfigError([lacking])
        return config

    return checked


def run_worker(config: Config, file: File | None, handed: Handed) -> None:
    """Serve as one of several, with what the supervisor handed over, until told to stop.

    Raises:
        StartError: the supervisor is of another version.
    """
    log = _log(config, worker=handed.number)
    most = max(_room_for(_raise_descriptor_limit()), 1)
    try:
        shared = SharedLimits(handed.places, handed.number, most=most)
        listeners = handed.listeners()
    except ValueError as error:
        raise StartError(str(error)) from None
    source = file and Source(file, lambda _: shared.limit, _settle_many)
    server = partial(serve, config, shared, listeners, log, sockets=sockets(os.environ))
    _run_until_stopped(
        partial(server, orders=handed.orders, source=source, questions=handed.questions())
    )


def _log(config: Config, *, worker: int | None = None) -> Log:
    # Python has no stderr where its descriptor is closed.
    stream = sys.stderr or io.StringIO()
    return Log(stream, form=config.log_format, level=config.log_level, worker=worker)


def _settle_many(config: Config) -> None:
    """Settle again after a reload, if that is worth the while it takes."""
    if len(config.routes) >= _MANY_ROUTES:
        freeze()


def _run_until_stopped(main: Callable[[], Awaitable[None]]) -> None:
    freeze()
    # From here on no signal ends this process: one that comes before the server handles it
    # waits, and one that comes when all is over is void. (A handler, because a signal that is
    # ignored would not wait; ignored in the end, because Python takes its handlers away first.)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    _set_handlers(lambda *_: None)
    trio.run(main, clock=RunningClock())
    _set_handlers(signal.SIG_IGN)


def _room_for(descriptors: int) -> int:
    """Return how many connections there are descriptors for: two each, besides what else there is.

    The relay's pipes get an eighth at the most: without a pipe bytes are copied, but a connection
    without a descriptor is none.
    """
    pipes = min(2 * MOST, descriptors // 8)
    return (descriptors - _RESERVED_DESCRIPTORS - pipes) // 2


def _set_handlers(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in _HANDLED:
        signal.signal(number, handler)


def _raise_descriptor_limit() -> int:
    """Raise the soft limit on descriptors to the hard one, and return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS calls the hard limit unlimited (-1), and then takes no more than OPEN_MAX.
    for limit in (hard, 10240):
        if 0 <= soft < limit:
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            except (OSError, ValueError):
                continue
            return limit
    return soft if soft >= 0 else 2**20
