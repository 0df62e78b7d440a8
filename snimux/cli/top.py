"""``snimux top``: show a running snimux in the terminal."""

import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import click
import trio

from snimux.cli.options import IS_IT_RUNNING, configured, fail, merge, read_file
from snimux.cli.usage import Command
from snimux.config import hints
from snimux.extras import install
from snimux.routing.address import FdAddress
from snimux.text import plain
from snimux.top.columns import table
from snimux.top.poll import NoAnswer, Poller, poll_twice
from snimux.top.tree import lines

_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.1, 3600  # seconds

_EPILOG = """In a terminal, ? lists the keys, and who does not answer is asked again. It needs
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


@click.command(
    "top", cls=Command, short_help="Show a running snimux in the terminal.", epilog=_EPILOG
)
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
def command(
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
            _print_once(Poller(address), seconds)
        else:
            _show(Poller(address), seconds)
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


def _print_once(poller: Poller, seconds: float) -> None:
    overview = trio.run(poll_twice, poller, seconds)
    if isinstance(overview, NoAnswer):
        fail(1, f"--status: {poller.address}: {overview.why}{IS_IT_RUNNING}")
    everything = lines(overview.tree, lambda row: True)
    click.echo(table(overview, plain(str(poller.address), ascii_only=True), everything), nl=False)


def _show(poller: Poller, every: float) -> None:
    try:
        # An extra, and slow to import.
        from snimux.top.app import show
    except ModuleNotFoundError as error:
        if error.name not in ("textual", "rich"):
            raise
        fail(1, f"top: needs {error.name}: {install('textual')}; --plain does without")
    show(poller, every)
