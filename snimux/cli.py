"""argv -> a running server and an exit status.

0: stopped as asked, or the check found nothing wrong. 1: could not start, or the check could not
ask a Caddy. 2: the flags or the configuration file are wrong; every problem has its line.
"""

import gc
import io
import math
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import trio

from snimux import __version__, advice, hostname, report
from snimux.address import AdminAddress
from snimux.admin import AdminError, look
from snimux.caddy import Plan, Sites
from snimux.config import Config, ConfigError, load
from snimux.diagnosis.judge import diagnose
from snimux.discovery import planned
from snimux.facts import Facts
from snimux.listeners import ListenError, activated, open_listeners
from snimux.log import Log
from snimux.places import LocalPlaces, SharedPlaces
from snimux.proxy_auto import Remark, ask_all, asked, concluded, remark
from snimux.relay.pipes import MOST
from snimux.routes import Backend
from snimux.server import STOP_SIGNALS, serve
from snimux.settings import SETTINGS
from snimux.supervisor import Handed, Team, handed_to_worker, processors, supervise
from snimux.systemd import HandoverError, Manager, Named, manager, receive

F = TypeVar("F", bound=Callable[..., Any])

# Descriptors that are neither connections' nor pipes': streams, listeners, epoll, look-ups.
_RESERVED_DESCRIPTORS = 32

_EPILOG = """\b
EXAMPLES
  Two Caddys on one host, each on a private port:
    snimux --route secure.ciso.com=127.0.0.1:8443 \\
           --route dao.ciso.com,traefik.ciso.com=127.0.0.1:8444
  Every name below ciso.com, and all else to a third:
    snimux --route '**.ciso.com=unix//run/caddy.sock' --default 127.0.0.1:8445
  A second address for when the first does not answer:
    snimux --route secure.ciso.com=10.0.0.1:443,10.0.0.2:443
  ACME's TLS-ALPN-01 challenges apart from the site's traffic:
    snimux --route secure.ciso.com/acme-tls/1=127.0.0.1:8449 \\
           --route secure.ciso.com=127.0.0.1:8443
  Whatever two Caddys serve, as they change:
    snimux --caddy localhost:2019 --caddy unix//run/caddy-dao/admin.sock
  From a file, on another port, after a look at what it says:
    snimux check --config /etc/snimux.toml
    snimux --config /etc/snimux.toml --listen :8443
  What is wrong with the Caddys of this host; and a file for snimux with them:
    snimux doctor
    snimux init --output /etc/snimux.toml

\b
ADDR
  host:port, [v6]:port or unix//path; to listen also :port and fd/N; for --caddy also file/path,
  the path of its autosave.json

\b
HOST
  name     this name            *.name   one more label, as in certificates
  **.name  one or more labels   *        every hello, what --default takes
  HOST/ALPN matches only hellos that offer the protocol, such as HOST/h2, and beats HOST.
  Exact beats longest suffix beats default.

\b
PORT 80
  Requests by plain HTTP go where a [[route]] of the file has http, or where a Caddy serves them;
  else they are redirected to https, but for those that validate certificates
  (/.well-known/acme-challenge/ and /.well-known/pki-validation/), which get 404.
  One connection goes to one server, that of its first request.

\b
SYSTEMD
  Listening sockets that are handed over (LISTEN_FDS) are instead of the default addresses, and of
  given ones that they cover: those named tls and http for that; of others those on port 80 for
  plain HTTP, and all else for TLS. NOTIFY_SOCKET is told READY, STATUS, STOPPING and WATCHDOG.

\b
SIGNALS
  TERM, INT  stop accepting, and drain; a second one closes what is still open; a
             third one kills workers that are stuck

\b
EXIT STATUS
  0 stopped as asked    1 could not start    2 wrong flags or configuration
"""


_DOCTOR_EPILOG = """The flags are those of snimux itself; without any, the Caddys that run here are
looked for.

\b
EXIT STATUS
  0 all green    1 something yellow    2 something red, or wrong flags
"""


def _options(command: F) -> F:
    """The flags that running and checking share."""
    for setting in reversed(SETTINGS):
        text = f"{setting.help}  [default: {setting.default}]"
        command = click.option(setting.flag, metavar=setting.metavar, help=text)(command)
    for flag, metavar, multiple, text in reversed(
        [
            ("--listen", "ADDR", True, "listen here; repeatable  [default: :443, IPv4 and IPv6]"),
            (
                "--http",
                "ADDR|off",
                True,
                "listen here for plain HTTP: a connection goes, by the Host of its first request, "
                "to the http of a route, or is redirected to https; repeatable  "
                "[default: :80, if port 443 is listened on, and a Caddy is asked or a route has "
                "http; else off]",
            ),
            (
                "--route",
                "HOST[,HOST...]=ADDR[,ADDR...]",
                True,
                "send hellos for HOST to the first ADDR that answers; repeatable",
            ),
            (
                "--default",
                "ADDR[,ADDR...]",
                False,
                "where hellos go that have no route, or no name",
            ),
            (
                "--proxy-protocol",
                "v1|v2|auto|off",
                False,
                "tell backends of --route and --default who the client is, by the PROXY protocol; "
                "auto is v2 where a probe has proved that it is understood, and off without. What "
                "--caddy finds is auto, or off",
            ),
            (
                "--caddy",
                "ADDR",
                True,
                "route the sites of the Caddy whose admin API is there, as they change; repeatable",
            ),
            ("--config", "FILE", False, "read this TOML file; flags win over it"),
        ]
    ):
        command = click.option(flag, metavar=metavar, multiple=multiple, help=text)(command)
    return command


_no_search = click.option(
    "--no-search",
    is_flag=True,
    help="only look at the Caddys that are named; leave others that run here alone",
)


@click.group(
    "snimux",
    invoke_without_command=True,
    subcommand_metavar="[check|doctor|init]",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@_options
@click.version_option(__version__, message="snimux %(version)s")
@click.pass_context
def main(context: click.Context, /, **flags: Any) -> None:
    """One port 443, many servers behind it, no keys handed over.

    Reads the server name (and ALPN) of each TLS ClientHello and passes the connection, bytes
    untouched, to the server that has the name. Never decrypts anything.
    """
    context.obj = flags
    if context.invoked_subcommand is None:
        named, told = _handed()
        worker = handed_to_worker(named)
        text = worker.config_text() if worker else _read(flags["config"])
        config = _load(flags, text, worker.activated() if worker else named)
        if worker:
            _run_worker(config, worker)
        else:
            _run(config, text, told)


@main.command(epilog="The flags are those of snimux itself.")
@_options
@click.pass_obj
def check(group_flags: Mapping[str, Any], /, **flags: Any) -> None:
    """Say whether the configuration is good, and print it as snimux understands it."""
    merged = _merged(group_flags, flags)
    config = _load(merged, _read(merged["config"]))
    answers = trio.run(_ask, config.caddys)
    caddys = {address: sites for address, sites in answers.items() if isinstance(sites, Sites)}
    found = planned(config, caddys)
    all_asked = asked(found.routes, found.listeners)
    learnt = trio.run(ask_all, all_asked)
    proxies = [remark(x, concluded(None, learnt[x]), learnt[x], all_asked[x]) for x in all_asked]
    click.echo(_described(config, found, caddys, proxies))
    faults = [f"--caddy: {x}: {answers[x]}" for x in answers if x not in caddys]
    if faults:
        _fail(1, *faults)
    click.echo("ok")


@main.command(epilog=_DOCTOR_EPILOG)
@_options
@_no_search
@click.option("--json", "is_json", is_flag=True, help="say it as JSON")
@click.pass_obj
def doctor(
    group_flags: Mapping[str, Any], /, *, is_json: bool, no_search: bool, **flags: Any
) -> None:
    """Look at this host's Caddys and snimux's way to them, and say what mends what is wrong."""
    _, facts = _examined(_merged(group_flags, flags), search=not no_search)
    findings = diagnose(facts)
    form = report.as_json if is_json else report.text
    click.echo(form(findings, facts.unseen))
    sys.exit(report.status(findings))


@main.command(epilog="The flags are those of snimux itself; --listen and --http go into the file.")
@_options
@_no_search
@click.option("--output", metavar="FILE", help="write it there  [default: print it]")
@click.option("--force", is_flag=True, help="also where there is a file already")
@click.pass_obj
def init(
    group_flags: Mapping[str, Any],
    /,
    *,
    output: str | None,
    force: bool,
    no_search: bool,
    **flags: Any,
) -> None:
    """Write a configuration for the Caddys of this host, and say what their Caddyfiles need."""
    config, facts = _examined(_merged(group_flags, flags), search=not no_search)
    if not facts.caddys:
        _fail(1, "no Caddy is running here that can be seen; start them, or name one: --caddy ADDR")
    found = advice.places(facts)
    file = advice.toml(facts.tls, facts.http if config.is_http_said else None, found)
    if output is None:
        click.echo(file)
    else:
        try:
            _write(Path(output), file, force=force)
        except FileExistsError:
            _fail(1, f"--output: {output}: there is a file already; --force replaces it")
        except OSError as error:
            _fail(1, f"--output: {output}: {error.strerror}")
    for line in advice.letter(facts, found, output or "FILE"):
        click.echo(line)


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a file whole or not at all, and none that is there already."""
    if not force and path.exists():
        raise FileExistsError
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
        whole = Path(directory, path.name)
        whole.write_text(text, "utf-8")
        (os.replace if force else os.link)(whole, path)


def _examined(flags: Mapping[str, Any], *, search: bool) -> tuple[Config, Facts]:
    """What was told, by flags that may name no route, and what there is to know."""
    # psutil is slow to import, and a server does not need it.
    from snimux.doctor import examine

    config = _load(flags, _read(flags["config"]), needs_routes=False)
    return config, trio.run(partial(examine, config, search=search))


async def _ask(caddys: Sequence[AdminAddress]) -> dict[AdminAddress, Sites | AdminError]:
    """What each of the Caddys serves now, or why that is not known."""
    answers: dict[AdminAddress, Sites | AdminError] = {}

    async def ask(address: AdminAddress) -> None:
        try:
            answers[address] = await look(address)
        except AdminError as error:
            answers[address] = error

    async with trio.open_nursery() as nursery:
        for address in caddys:
            nursery.start_soon(ask, address)
    return {address: answers[address] for address in caddys}


def _merged(group_flags: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags before a command's name and those behind it."""
    merged = {key: flags[key] or group_flags[key] for key in flags}
    for key in ("listen", "http", "route", "caddy"):
        merged[key] = (*group_flags[key], *flags[key])
    return merged


def _load(
    flags: Mapping[str, Any],
    text: str | None,
    handed: Sequence[Named] = (),
    *,
    needs_routes: bool = True,
) -> Config:
    name = flags["config"] or ""
    try:
        return load(flags, name, text, activated=activated(handed), needs_routes=needs_routes)
    except ListenError as error:
        _fail(1, str(error))
    except ConfigError as error:
        _fail(2, *error.problems)


def _read(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        _fail(2, f"--config: {name}: {error.strerror}")
    except UnicodeDecodeError:
        _fail(2, f"--config: {name}: not UTF-8, so not TOML")


def _handed() -> tuple[list[Named], Manager]:
    """What was handed to this process, and whom it is to tell how it is."""
    try:
        return receive(os.environ, os.getpid()), manager(os.environ, os.getpid())
    except HandoverError as error:
        _fail(1, str(error))


def _run(config: Config, text: str | None, told: Manager) -> None:
    """Serve, alone or by workers."""
    log = _log(config)
    workers = config.workers or processors()
    limits = config.limits
    allowed = workers * max(_room_for(_raise_descriptor_limit()), 1)
    wanted = limits.max_connections or allowed
    if wanted > allowed:
        log.write("warning", "few-descriptors", {"max_connections": wanted, "room_for": allowed})
    try:
        listeners = open_listeners(config.listen, config.http)
    except ListenError as error:
        _fail(1, str(error))
    if workers == 1:
        places = LocalPlaces(wanted)
        _run_until_stopped(partial(serve, config, places, listeners, log, manager=told))
        return
    # No worker takes more than it has descriptors for, so there are no more places.
    by_source = limits.max_connections_per_source is not None
    team = Team(workers, min(wanted, allowed), by_source, text, limits.drain)
    # As this process was started: by its script or -m, with the interpreter's own flags.
    command = [sys.executable, *sys.orig_argv[1:]]
    _run_until_stopped(partial(supervise, command, listeners, team, log, manager=told))


def _run_worker(config: Config, handed: Handed) -> None:
    log = _log(config, worker=handed.number)
    most = max(_room_for(_raise_descriptor_limit()), 1)
    try:
        places = SharedPlaces(handed.places, handed.number, most=most)
    except ValueError as error:
        _fail(1, str(error))
    listeners = handed.listeners()
    _run_until_stopped(partial(serve, config, places, listeners, log, orders=handed.orders))


def _log(config: Config, *, worker: int | None = None) -> Log:
    # Python has no stderr where its descriptor is closed.
    stream = sys.stderr or io.StringIO()
    return Log(stream, form=config.log_format, level=config.log_level, worker=worker)


def _run_until_stopped(main: Callable[[], Awaitable[None]]) -> None:
    # What is there by now stays: the collector need not look through 100,000 routes again.
    gc.collect()
    gc.freeze()
    # From here on a stop signal is a wish, not an end: one that comes before the server heeds it
    # waits, and one that comes when all is over is void. (A handler, because a signal that is
    # ignored would not wait; ignored in the end, because Python takes its handlers away first.)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    _handle_stop_signals(lambda *_: None)
    trio.run(main)
    _handle_stop_signals(signal.SIG_IGN)


def _room_for(descriptors: int) -> int:
    """How many connections there are descriptors for: two each, with what else takes some.

    The relay's pipes get an eighth at the most: without a pipe bytes are copied, but a connection
    without a descriptor is none.
    """
    pipes = min(2 * MOST, descriptors // 8)
    return (descriptors - _RESERVED_DESCRIPTORS - pipes) // 2


def _handle_stop_signals(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in STOP_SIGNALS:
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


def _described(
    config: Config,
    found: Plan,
    caddys: Mapping[AdminAddress, Sites],
    proxies: Sequence[Remark],
) -> str:
    lines = ["listen"]
    lines += [f"  {address}" for address in config.listen]
    width = max([28, *(len(str(route.pattern)) for route in found.routes)])
    if config.http or any(route.http for route in found.routes):
        lines += [f"  {address!s:{width}}      plain HTTP" for address in config.http or ("off",)]
    lines.append("routes")
    for route in found.routes:
        unicode = hostname.for_people(route.pattern.host)
        note = unicode if unicode != route.pattern.host else ""
        to = _shown_backend(route.backend, note) if route.backend else "no TLS, plain HTTP only"
        lines.append(f"  {route.pattern!s:{width}}  ->  {to}")
        if route.http:
            lines.append(f"    {'plain HTTP':{width - 2}}  ->  {_shown_backend(route.http)}")
        elif config.http and route.pattern.alpn is None:
            lines.append(f"    {'plain HTTP':{width - 2}}  ->  redirected to https")
    if all(str(route.pattern) != hostname.ANY for route in found.routes):
        status = ", or with 404" if config.http else ""
        refused = f"refused with the alert unrecognized_name{status}"
        lines.append(f"  {'all else':{width}}  ->  {refused}")
    lines += _described_caddys(found, caddys)
    if proxies:
        lines.append("PROXY protocol auto")
        lines += [f"  {x.backend:{width}}  {x.header}: {x.detail}" for x in proxies]
    lines.append("limits")
    for limit in fields(config.limits):
        value = getattr(config.limits, limit.name)
        lines.append(f"  {limit.name:{width}}  {_limit(limit.name, value)}")
    return "\n".join(lines)


def _described_caddys(found: Plan, caddys: Mapping[AdminAddress, Sites]) -> list[str]:
    """What of the Caddys' sites has no route, and why."""
    claims = [f"  {x.host}: {x.has} has it, and {x.wants} serves it too" for x in found.claims]
    needs = [f"  {x.what}: {x.why}" for x in found.loops]
    needs += [f"  {x.what}: {x.why}" for sites in caddys.values() for x in sites.unrouted]
    lines = ["claimed twice", *claims] if claims else []
    return lines + (["needs a route or --default", *needs] if needs else [])


def _shown_backend(backend: Backend, note: str = "") -> str:
    notes = [f"PROXY protocol {backend.proxy}"] if backend.proxy else []
    notes += [note] if note else []
    to = ", else ".join(map(str, backend.addresses))
    return f"{to}  ({', '.join(notes)})" if notes else to


def _limit(name: str, value: float | None) -> str:
    if value is None:
        return "auto" if name == "max_connections" else "off"
    return "off" if value == math.inf else f"{value:g}"


def _fail(status: int, *problems: str) -> NoReturn:
    for problem in problems:
        click.echo(f"snimux: {problem}", err=True)
    sys.exit(status)
