"""The flags that serving and the commands share: flags and file -> a Config, or an exit.

An exit has a line on stderr for each problem, and a status: 1 could not start, 2 wrong flags or
configuration. Knows neither the commands nor what they do with a Config; what is right and what
is wrong is ``config``'s and ``settings``' to say.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import click

from snimux.config.from_toml import LARGEST
from snimux.config.load import load
from snimux.config.model import Config, ConfigError
from snimux.config.settings import PROVIDERS, SETTINGS
from snimux.net.listeners import ListenError, activated
from snimux.routing.address import Activated
from snimux.runtime.files import read_stream
from snimux.service.systemd import Named

F = TypeVar("F", bound=Callable[..., Any])


# Flag, what goes behind it, whether it can be given again, help; of what is no ``Setting``.
_FLAGS = (
    (
        "--route",
        "HOST[,HOST...]=ADDR[,ADDR...]",
        True,
        "send hellos for HOST to the first ADDR that answers, or as --balance says; refuse in the "
        "place of ADDR refuses them; repeatable",
    ),
    (
        "--default",
        "ADDR[,ADDR...]",
        False,
        "where hellos go that have no route, or no name",
    ),
    *((x.flag, x.metavar, True, x.help) for x in PROVIDERS),
    ("--config", "FILE", False, "read this TOML file; flags win over it"),
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
    ("--allow", "CIDR", True, "refuse who is in none of these networks; repeatable"),
    ("--deny", "CIDR", True, "refuse who is in one of these networks; repeatable"),
    (
        "--proxy-from",
        "CIDR",
        True,
        "connections from there begin with a PROXY protocol header, v1 or v2, as those of "
        "a balancer do, and it says who the client is; repeatable",
    ),
    (
        "--proxy-protocol",
        "v1|v2|auto|off",
        False,
        "tell backends of --route and --default who the client is, by the PROXY protocol; "
        "auto is v2 where a probe has proved that it is understood, and off without. What "
        "--caddy finds is auto, or off  [default: off]",
    ),
)

IS_IT_RUNNING = "; does a snimux run with that --status?"
"""The end of a message about a --status that does not answer."""


def options(command: F) -> F:
    """Add to a command the flags that serving and all commands share."""
    for setting in reversed(SETTINGS):
        text = f"{setting.help}  [default: {setting.default}]"
        command = click.option(setting.flag, metavar=setting.metavar, help=text)(command)
    for flag, metavar, multiple, text in reversed(_FLAGS):
        command = click.option(flag, metavar=metavar, multiple=multiple, help=text)(command)
    return command


def merge(group_flags: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Join the flags before a command's name with those behind it, which win."""
    merged = {key: flags[key] or group_flags[key] for key in flags}
    repeatable = [key for key in flags if isinstance(flags[key], tuple)]
    return merged | {key: (*group_flags[key], *flags[key]) for key in repeatable}


def configured(
    flags: Mapping[str, Any],
    text: str | None,
    handed: Sequence[Activated] = (),
    *,
    needs_routes: bool = True,
) -> Config:
    """Return what flags and file say together; or exit.

    Args:
        flags: the values of ``options``, as click has them.
        text: of the file that ``--config`` names, if any.
        handed: listening sockets that were handed to this process.
        needs_routes: whether it is an error that nothing has a route.
    """
    name = flags["config"] or ""
    try:
        return load(flags, name, text, activated=handed, needs_routes=needs_routes)
    except ConfigError as error:
        fail(2, *error.problems)


def sockets(named: Sequence[Named]) -> list[Activated]:
    """Return the listening sockets of what was handed over; or exit."""
    try:
        return activated(named)
    except ListenError as error:
        fail(1, str(error))


def read_file(name: str | None) -> str | None:
    """Return the text of the file that ``--config`` names, if any; or exit."""
    if name is None:
        return None
    try:
        return read_stream(name, LARGEST).decode("utf-8")
    except OSError as error:
        fail(2, f"--config: {name}: {error.strerror}")
    except UnicodeDecodeError:
        fail(2, f"--config: {name}: not UTF-8, so not TOML")


def fail(status: int, *problems: str) -> NoReturn:
    """Exit, with a line on stderr for each problem."""
    for problem in problems:
        click.echo(f"snimux: {problem}", err=True)
    sys.exit(status)
