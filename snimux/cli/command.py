"""The commands: argv -> a running server, or words and an exit status.

0: stopped as asked, or the check found nothing wrong. 1: could not start, or the check could not
ask a Caddy. 2: the flags or the configuration file are wrong; every problem has its line.

What the shared flags are is ``flags``' to know, how a process serves ``process``'.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from snimux import __version__
from snimux.backend.proxy_auto import Remark, ask_all, asked, concluded, remark
from snimux.cli.describe import describe
from snimux.cli.options import configured, fail, merge, options, read_file, search_option, sockets
from snimux.cli.usage import Group
from snimux.config import hints
from snimux.config.from_toml import read_toml
from snimux.config.load import load
from snimux.config.model import Config, ConfigError
from snimux.config.source import OFF
from snimux.doctor import caddyfile
from snimux.doctor import render as report
from snimux.doctor.facts import Facts
from snimux.doctor.judge import diagnose
from snimux.explain import capture
from snimux.explain import explain as explanation
from snimux.explain import input as cases
from snimux.explain import render as account
from snimux.explain.compare import Refused, Running, RunningError, beside, read_refused, read_routes
from snimux.extras import install
from snimux.net.http_get import FetchError, fetch
from snimux.providers.caddy.admin import AdminError, look
from snimux.providers.caddy.sites import Sites
from snimux.providers.discovery import planned
from snimux.providers.merge import Plan
from snimux.routing.address import AdminAddress, FdAddress
from snimux.routing.routes import Route
from snimux.runtime.files import read_stream
from snimux.runtime.filewatch import State
from snimux.runtime.filewatch import look as look_at_file
from snimux.service.handover import Handed, handed_to_worker
from snimux.service.reload import File
from snimux.service.run import StartError, handed_over, hold_wishes, run, run_worker
from snimux.status.state import plain
from snimux.top.columns import table
from snimux.top.poll import Eye, Lost, glance
from snimux.top.tree import lines

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
    snimux --config /etc/snimux.toml --listen :4443
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
  plain HTTP, and all else for TLS. NOTIFY_SOCKET is told READY, RELOADING, STATUS, STOPPING and
  WATCHDOG.

\b
SIGNALS
  TERM, INT  stop accepting, and drain; a second one closes what is still open; a
             third one kills workers that are stuck
  HUP        read the --config FILE again, and ask the Caddys: what is good is in effect
             at once for new connections, what is wrong changes nothing. A FILE that has
             changed is read again without it, but with --watch off
  USR2       start what is installed now, hand it the sockets, and drain without a limit
             as soon as it serves; if it does not, go on

\b
EXIT STATUS
  0 stopped as asked    1 could not start    2 wrong flags or configuration
"""


_CHECK_EPILOG = """A Caddy that is named is asked; backends whose PROXY protocol is auto are probed;
nothing is listened on.

\b
EXAMPLES
  snimux check --config /etc/snimux.toml
  snimux check --route secure.ciso.com=127.0.0.1:8443
  snimux check --caddy localhost:2019

\b
EXIT STATUS
  0 good    1 a Caddy could not be asked    2 wrong flags or configuration
"""

_DOCTOR_EPILOG = """Without any flag the Caddys that run here are looked for.

\b
EXAMPLES
  snimux doctor
  snimux doctor --config /etc/snimux.toml
  snimux doctor --no-search --caddy localhost:2019

\b
EXIT STATUS
  0 all green    1 something yellow    2 something red, or wrong flags
"""

_INIT_EPILOG = """--listen, --http and --caddy go into the file; other settings are for you to add.
Without --output the file alone is on standard output, and what is to be done on standard error.

\b
EXAMPLES
  snimux init
  snimux init --output /etc/snimux.toml
  snimux init --config /etc/snimux.toml --output /etc/snimux.toml --force

\b
EXIT STATUS
  0 written    1 no Caddy was found, or the file cannot be written    2 wrong flags or configuration
"""

_EXPLAIN_EPILOG = """\b
EXAMPLES
  snimux explain https://dao.ciso.com/ --config /etc/snimux.toml
  snimux explain dao.ciso.com --alpn acme-tls/1 --caddy localhost:2019
  openssl s_client -msg -connect HOST:443 | snimux explain --hello - --config /etc/snimux.toml
  snimux explain --refused 17 --status 127.0.0.1:9443

\b
EXIT STATUS
  0 the client is served, or redirected    2 wrong flags or configuration
  1 it is not, or --status could not be asked for --refused
"""

# What init takes over from flags, and what it says of others.
_WRITTEN = ("config", "listen", "http", "caddy")
_NOT_WRITTEN = "init does not write it; leave it out, and add it to the file"

_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.1, 3600  # seconds

_IS_IT_THERE = "; does a snimux run with that --status?"

# Bytes: 64 KiB in one-byte records, as hex with spaces, is less by half.
_LARGEST_CAPTURE = 4 * 1024 * 1024


_TOP_EPILOG = """In a terminal, ? lists the keys, and who does not answer is asked again. It needs
snimux[top]. Where standard output or input is no terminal, or TERM is dumb, it is plain text, once,
and needs nothing: totals, a word first in each line; an empty line; and a line for each listener,
route, connection and refused client, in columns that spaces divide. Bytes are whole numbers
there, ages are in seconds, rates are of --interval, - is none, and the last column is the rest of
the line.

\b
EXAMPLES
  snimux top 127.0.0.1:9443
  snimux top --config /etc/snimux.toml --interval 5
  snimux top 127.0.0.1:9443 | awk '$1 == "route" && $6 > 0 {print $2, $6}'
  watch snimux top --plain unix//run/snimux/status

\b
EXIT STATUS
  0 shown; or left by a key    1 no answer (in plain text), or snimux[top] is not there
  2 wrong flags or configuration    130 interrupted (in plain text)
"""


@click.group(
    "snimux",
    cls=Group,
    invoke_without_command=True,
    subcommand_metavar="[check|doctor|explain|init|top]",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@options
@click.version_option(__version__, message="snimux %(version)s")
@click.pass_context
def main(context: click.Context, /, **flags: Any) -> None:
    """One port 443, many servers behind it, no keys handed over.

    Reads the server name (and ALPN) of each TLS ClientHello and passes the connection, bytes
    untouched, to the server that has the name. Never decrypts anything.
    """
    context.obj = flags
    if context.invoked_subcommand is None:
        try:
            _serve(flags)
        except StartError as error:
            fail(1, str(error))


def _serve(flags: Mapping[str, Any]) -> None:
    """Serve as flags and file say, alone, by workers or as one of these, until told to stop."""
    hold_wishes()
    inherited, told = handed_over()
    worker = handed_to_worker(inherited.activated)
    handed = sockets(worker.activated() if worker else inherited.activated)
    name = flags["config"]
    state = _state(name) if name else None  # before it is read: a later change is another
    text = _handed_text(worker) if worker else read_file(name)
    config = configured(flags, text, handed)
    has_workers = config.workers != 1
    parse = partial(load, flags, name, activated=handed, has_workers=has_workers)
    file = None if text is None else File(name, text, parse, state)
    if worker:
        run_worker(config, file, worker)
    else:
        run(config, file, told, inherited)


def _handed_text(worker: Handed) -> str | None:
    """The text of the configuration that a supervisor handed over, if any; or an exit."""
    try:
        return worker.config_text()
    except (OSError, UnicodeError) as error:
        fail(1, f"LISTEN_FDNAMES: config: {getattr(error, 'strerror', None) or error}")


@main.command(
    short_help="Say whether flags and file are good, and what they come to.", epilog=_CHECK_EPILOG
)
@options
@click.pass_obj
def check(group_flags: Mapping[str, Any], /, **flags: Any) -> None:
    """Say whether the configuration is good, and print it as snimux understands it."""
    merged = merge(group_flags, flags)
    config = configured(merged, read_file(merged["config"]))
    caddys, faults = _served(config)
    found = planned(config, caddys)
    click.echo(describe(config, found, caddys, _remarks(found.routes, found)))
    if faults:
        fail(1, *(f"{fault.rstrip('.')}; snimux doctor looks where it is" for fault in faults))
    click.echo("ok")


@main.command(short_help="Say what becomes of a client, and why.", epilog=_EXPLAIN_EPILOG)
@click.argument("name", required=False)
@options
@click.option(
    "--alpn",
    metavar="P[,P...]",
    multiple=True,
    help="the ALPN protocols that the client offers, in its order  [default: none]",
)
@click.option("--from", "source", metavar="IP|unix", help="where the client comes from")
@click.option(
    "--hello",
    metavar="FILE|-",
    help="what the client sent, instead of NAME: raw, or hex, base64 or a dump of it",
)
@click.option(
    "--refused",
    metavar="N",
    help="what a client sent whom the snimux at --status refused, by its number in /refused",
)
@click.option("--json", "is_json", is_flag=True, help="say it as JSON")
@click.pass_obj
def explain(
    group_flags: Mapping[str, Any],
    /,
    *,
    name: str | None,
    alpn: Sequence[str],
    source: str | None,
    hello: str | None,
    refused: str | None,
    is_json: bool,
    **flags: Any,
) -> None:
    """Say, step by step, what would become of a client that asks for NAME.

    NAME is a host name in any spelling, with or without a port; or a URL, which is of plain HTTP
    where it begins with http://. Nothing is sent to the backend but the probe of PROXY protocol
    auto. With --status ADDR the snimux that shows itself there is asked what it does with the same;
    without any other flag, it alone.
    """
    merged = merge(group_flags, flags)
    if name is None and hello is None and refused is None:
        fail(2, "nothing to explain: give a NAME, or --hello FILE")
    is_alone = hello is None and refused is None and merged["status"] in (None, OFF)
    config = configured(merged, read_file(merged["config"]), needs_routes=is_alone)
    if refused is None:
        case, client = _case(name, alpn, hello, config.limits.max_hello), None
    elif name is not None or alpn or hello is not None:
        fail(2, "--refused: goes without NAME, --alpn and --hello: what was sent is known")
    else:
        kept = _refused(config, refused)
        case, client = kept.case, kept.source
    if source is not None:
        client = _source(source)
    caddys, faults = _served(config)
    running, more_faults = _running(config)
    found = planned(config, caddys)
    if config.status and not (config.routes or config.caddys):
        if running is None:
            fail(1, *(f"{fault}{_IS_IT_THERE}" for fault in more_faults))
        config, found = running.as_config(config)
        if client is not None:
            more_faults = [f"--status: {running.where}: it does not show whom listeners let in"]
    explained = explanation.explain(case, config, found, caddys, source=client)
    explained = replace(explained, hints=(*explained.hints, *faults, *more_faults))
    route = explained.decision.route
    remarks = _remarks([route] if route else [], found)
    there = beside(explained, config, running) if running else None
    click.echo((account.as_json if is_json else account.text)(explained, remarks, there))
    sys.exit(account.status(explained))


def _case(name: str | None, alpn: Sequence[str], hello: str | None, max_hello: int) -> cases.Case:
    """What is to be explained; or an exit."""
    if alpn and hello is not None:
        fail(2, "--alpn: is for NAME; a hello has its own")
    try:
        offered = cases.protocols(alpn)
    except cases.CaseError as error:
        fail(2, f"--alpn: {error}")
    try:
        named = None if name is None else cases.of_name(name, offered)
    except cases.CaseError as error:
        fail(2, f"{name!r}: {error}")
    if hello is None:
        assert named is not None
        return named
    received, form = capture.read(_read_capture(hello))
    case = cases.of_bytes(received, max_hello, f"--hello {hello}, {form}")
    return case if named is None else cases.of_both(named, case)


def _source(text: str) -> str:
    try:
        return cases.source(text)
    except cases.CaseError as error:
        fail(2, f"--from: {error}")


def _refused(config: Config, number: str) -> Refused:
    """Whom the snimux at --status refused; or an exit."""
    if config.status is None:
        fail(2, "--refused: of which snimux? give its --status ADDR")
    where = str(config.status)
    try:
        page = _page(config, "/refused/hellos")
        return read_refused(where, page, number, config.limits.max_hello)
    except FetchError as error:
        fail(1, f"--refused: {where}: {error}{_IS_IT_THERE}")
    except RunningError as error:
        fail(1, f"--refused: {where}: {error}")


def _page(config: Config, path: str) -> bytes:
    """What the snimux at --status shows."""
    assert config.status is not None
    assert not isinstance(config.status, FdAddress)  # which its setting refuses
    return trio.run(fetch, config.status, path)


def _running(config: Config) -> tuple[Running | None, list[str]]:
    """The routes of the snimux at --status, and why they are not known."""
    if config.status is None:
        return None, []
    where = str(config.status)
    try:
        return read_routes(where, _page(config, "/routes")), []
    except (FetchError, RunningError) as error:
        return None, [f"--status: {where}: {error}"]


def _read_capture(name: str) -> bytes:
    """What a file, or standard input, has; or an exit."""
    if name == "-" and sys.stdin is None:
        fail(2, "--hello: -: there is no standard input: it is closed")
    try:
        if name != "-":
            return read_stream(name, _LARGEST_CAPTURE)
        with click.open_file(name, "rb") as stdin:
            capture: bytes = stdin.read(_LARGEST_CAPTURE + 1)
    except OSError as error:
        fail(2, f"--hello: {name}: {error.strerror}")
    if len(capture) > _LARGEST_CAPTURE:
        fail(2, f"--hello: {name}: more than {_LARGEST_CAPTURE >> 20} MiB, so no hello")
    return capture


def _served(config: Config) -> tuple[dict[AdminAddress, Sites], list[str]]:
    """What each Caddy serves that answers, and why others do not."""
    answers = trio.run(_ask, config.caddys)
    caddys = {address: sites for address, sites in answers.items() if isinstance(sites, Sites)}
    return caddys, [f"--caddy: {x}: {answers[x]}" for x in answers if x not in caddys]


def _remarks(routes: Iterable[Route], found: Plan) -> list[Remark]:
    """What the backends of routes are learnt to be whose PROXY protocol is auto."""
    all_asked = asked(routes, found.listeners)
    learnt = trio.run(ask_all, all_asked)
    return [remark(x, concluded(None, learnt[x]), learnt[x], all_asked[x]) for x in all_asked]


@main.command(
    short_help="Say what is wrong on this host, and what mends it.", epilog=_DOCTOR_EPILOG
)
@options
@search_option
@click.option("--json", "is_json", is_flag=True, help="say it as JSON")
@click.pass_obj
def doctor(
    group_flags: Mapping[str, Any], /, *, is_json: bool, no_search: bool, **flags: Any
) -> None:
    """Look at this host's Caddys and snimux's way to them, and say what mends what is wrong."""
    merged = merge(group_flags, flags)
    config = configured(merged, read_file(merged["config"]), needs_routes=False)
    facts = _examined(config, search=not no_search)
    findings = diagnose(facts)
    form = report.as_json if is_json else report.text
    click.echo(form(findings, facts.unseen))
    sys.exit(report.status(findings))


@main.command(short_help="Write a configuration for the Caddys of this host.", epilog=_INIT_EPILOG)
@options
@search_option
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
    """Write a configuration for the Caddys of this host, and say what their Caddyfiles need.

    With --config FILE all that is in FILE is kept, and the Caddys are added that it has not.
    """
    merged = merge(group_flags, flags)
    text = read_file(merged["config"])
    config = configured(merged, text, needs_routes=False)
    unwritten = [x for x in merged if merged[x] and x not in _WRITTEN]
    if unwritten:
        fail(2, *(f"--{x.replace('_', '-')}: {_NOT_WRITTEN}" for x in unwritten))
    facts = _examined(config, search=not no_search)
    if not facts.caddys:
        fail(1, "no Caddy is running here that can be seen; start them, or name one: --caddy ADDR")
    found = caddyfile.places(facts)
    there = read_toml(text or "")
    for key, has in (("listen", bool(there.listen)), ("http", there.http is not None)):
        if merged[key] and has:
            fail(2, f"--{key}: {merged['config']} has {key} already: change it there")
    is_new = text is None
    file = caddyfile.toml(
        facts.tls if is_new or merged["listen"] else None,
        facts.http if config.is_http_said and (is_new or merged["http"]) else None,
        found,
        text=text,
        named=there.caddys,
    )
    try:
        load({}, output or "FILE", file)
    except ConfigError as error:
        fail(1, *error.problems, "so it is not written")
    if output is None:
        click.echo(file)
    else:
        try:
            _write(Path(output), file, force=force)
        except FileExistsError:
            fail(1, f"--output: {output}: there is a file already; --force replaces it")
        except OSError as error:
            fail(1, f"--output: {output}: {error.strerror}")
    for line in caddyfile.letter(facts, found, output or "FILE"):
        click.echo(line, err=output is None)  # or `init > FILE` would have it in the file


@main.command(short_help="Show a running snimux in the terminal.", epilog=_TOP_EPILOG)
@click.argument("addr", required=False)
@click.option("--status", metavar="ADDR", help="the same as ADDR")
@click.option("--config", metavar="FILE", help="take ADDR from the status of this TOML file")
@click.option(
    "--interval",
    metavar="SECONDS",
    default="1",
    help="look as often, 0.1 to 3600; in plain text have rates of as long  [default: 1]",
)
@click.option("--plain", "is_plain", is_flag=True, help="as plain text, once")
@click.pass_obj
def top(
    group_flags: Mapping[str, Any],
    /,
    *,
    addr: str | None,
    interval: str,
    is_plain: bool,
    **flags: Any,
) -> None:
    """Show a running snimux in the terminal: listeners, routes and connections, as they change.

    ADDR is what the snimux was started with as --status ADDR. Nothing can be changed by looking.
    """
    merged = {**group_flags, **merge(group_flags, flags)}
    seconds = _interval(interval)
    if addr is not None and merged["status"] is not None:
        fail(2, f"{addr}: is what --status {merged['status']} says, too: give one of them")
    merged["status"] = addr or merged["status"]
    address = configured(merged, read_file(merged["config"]), needs_routes=False).status
    if address is None:
        fail(2, "top: of which snimux? give its --status ADDR")
    assert not isinstance(address, FdAddress)  # which its setting refuses
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        if is_plain or not is_terminal or os.environ.get("TERM", "") in ("", "dumb"):
            _print_once(Eye(address), seconds)
        else:
            _show(Eye(address), seconds)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        hint = hints.number(text, hints.SECONDS)
        fail(2, f"--interval: {text!r} is not a number of seconds{hint}")
    if not _SHORTEST_INTERVAL <= seconds <= _LONGEST_INTERVAL:
        limits = f"from {_SHORTEST_INTERVAL} to {_LONGEST_INTERVAL}"
        fail(2, f"--interval: {text} is not a number of seconds {limits}")
    return seconds


def _print_once(eye: Eye, seconds: float) -> None:
    found = trio.run(glance, eye, seconds)
    if isinstance(found, Lost):
        fail(1, f"--status: {eye.address}: {found.why}{_IS_IT_THERE}")
    everything = lines(found.tree, lambda row: True)
    click.echo(table(found, plain(str(eye.address)), everything), nl=False)


def _show(eye: Eye, every: float) -> None:
    try:
        # An extra, and slow to import.
        from snimux.top.app import show
    except ModuleNotFoundError as error:
        if error.name not in ("textual", "rich"):
            raise
        fail(1, f"top: needs {error.name}: {install('textual')}; --plain does without")
    show(eye, every)


def _state(name: str) -> State | None:
    """How a file is, as far as can be seen."""
    with contextlib.suppress(OSError):
        return look_at_file(name)
    return None


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a file whole or not at all, and none that is there already."""
    if not force and path.exists():
        raise FileExistsError
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
        whole = Path(directory, path.name)
        whole.write_text(text, "utf-8")
        if path.exists():
            shutil.copymode(path, whole)
        (os.replace if force else os.link)(whole, path)


def _examined(config: Config, *, search: bool) -> Facts:
    """What there is to know of what was told, which may be no route."""
    # psutil is slow to import, and a server does not need it.
    from snimux.doctor.examine import examine

    return trio.run(partial(examine, config, search=search))


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
