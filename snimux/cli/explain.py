"""``snimux explain``: say what becomes of a client, and why."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click
import trio

from snimux.cli.ask import ask_backends, ask_providers
from snimux.cli.options import IS_IT_RUNNING, configured, fail, merge, options, read_file
from snimux.cli.usage import Command
from snimux.config.model import Config
from snimux.config.source import OFF
from snimux.explain import capture
from snimux.explain import explain as explanation
from snimux.explain import input as cases
from snimux.explain import render as account
from snimux.explain.compare import as_config, beside, of_refused
from snimux.net.http_get import FetchError, fetch
from snimux.providers.merge import planned
from snimux.routing.address import FdAddress
from snimux.runtime.files import read_stream
from snimux.status.client import ApiError, ServedRoutes, find_refused, read_routes

_EPILOG = """\b
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

# Bytes: 64 KiB in one-byte records, as hex with spaces, is less by half.
_LARGEST_CAPTURE = 4 * 1024 * 1024


@click.command(
    "explain", cls=Command, short_help="Say what becomes of a client, and why.", epilog=_EPILOG
)
@click.argument("name", required=False)
@options
@click.option(
    "--alpn",
    metavar="P[,P...]",
    multiple=True,
    help="the ALPN protocols that the client offers, in its order  [default: none]",
)
@click.option(
    "--listener",
    metavar="NAME",
    help="the name of the listener where the client comes in  [default: the first that fits]",
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
def command(
    group_flags: Mapping[str, Any],
    /,
    *,
    name: str | None,
    alpn: Sequence[str],
    listener: str | None,
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
        case, client = _refused(config, refused)
    if source is not None:
        client = _source(source)
    snapshots, faults = ask_providers(config)
    running, more_faults = _running(config)
    plan = planned(config, snapshots)
    if config.status and not (config.routes or config.providers):
        if running is None:
            fail(1, *(f"{fault}{IS_IT_RUNNING}" for fault in more_faults))
        config, plan = as_config(running, config)
        if client is not None:
            more_faults = [f"--status: {running.where}: it does not show whom listeners let in"]
    if listener is not None:
        case = replace(case, listener=_listener(listener, case, config))
    explained = explanation.explain(case, config, plan, snapshots, source=client)
    explained = replace(explained, hints=(*explained.hints, *faults, *more_faults))
    route = explained.ending.route
    remarks = ask_backends([route] if route else [], plan)
    comparison = beside(explained, config, running) if running else None
    click.echo((account.as_json if is_json else account.text)(explained, remarks, comparison))
    sys.exit(account.status(explained))


def _case(name: str | None, alpn: Sequence[str], hello: str | None, max_hello: int) -> cases.Case:
    """Return what is to be explained; or exit."""
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


def _listener(name: str, case: cases.Case, config: Config) -> str:
    entries = [x for x in config.entrypoints if x.protocol is case.protocol]
    names = [x.name for x in entries if x.name is not None]
    if name not in names:
        choice = f"there are {', '.join(dict.fromkeys(names))}" if names else "none has a name"
        fail(2, f"--listener: no listener for {case.protocol.label} is called {name!r}; {choice}")
    return name


def _source(text: str) -> str:
    try:
        return cases.source(text)
    except cases.CaseError as error:
        fail(2, f"--from: {error}")


def _refused(config: Config, number: str) -> tuple[cases.Case, str | None]:
    """Return what somebody sent whom the snimux at --status refused, and his address; or exit."""
    if config.status is None:
        fail(2, "--refused: of which snimux? give its --status ADDR")
    where = str(config.status)
    try:
        hello = find_refused(_page(config, "/refused/hellos"), number)
        return of_refused(where, hello, config.limits.max_hello)
    except FetchError as error:
        fail(1, f"--refused: {where}: {error}{IS_IT_RUNNING}")
    except ApiError as error:
        fail(1, f"--refused: {where}: {error}")


def _page(config: Config, path: str) -> bytes:
    """Fetch a page of the snimux at --status."""
    assert config.status is not None
    assert not isinstance(config.status, FdAddress)  # which its setting refuses
    return trio.run(fetch, config.status, path)


def _running(config: Config) -> tuple[ServedRoutes | None, list[str]]:
    """Return the routes of the snimux at --status, or why they are not known."""
    if config.status is None:
        return None, []
    where = str(config.status)
    try:
        return read_routes(where, _page(config, "/routes")), []
    except (FetchError, ApiError) as error:
        return None, [f"--status: {where}: {error}"]


def _read_capture(name: str) -> bytes:
    """Read a file, or standard input; or exit."""
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
