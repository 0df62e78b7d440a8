"""The story from start to end: two servers in each other's way, snimux in front, the verdict.

Every process and file that it makes is gone when it returns, however it ends.
"""

import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio
from rich.console import Console

from demo import report
from demo.before import before
from demo.client import ask
from demo.doctor import Finding, examine
from demo.processes import (
    Caddy,
    DemoError,
    Snimux,
    find_caddy,
    start_caddy,
    start_snimux,
    wait_until_one_ends,
    work_directory,
)

_HERE = Path(__file__).parent
_SERVERS = {
    "secure": ("first Caddy", ("secure.ciso.com",)),
    "dao": ("second Caddy", ("dao.ciso.com", "traefik.ciso.com")),
}
_UNKNOWN = "unknown.ciso.com"
_STOPPED = 130  # as shells report a program that Ctrl-C ended


async def run(console: Console, *, keep: bool) -> int:
    """Run the story; SIGINT, SIGTERM and SIGHUP end it at any point.

    Args:
        console: where to show all.
        keep: leave everything running afterwards, until such a signal.

    Returns:
        The exit status.
    """
    status = _STOPPED
    # The order matters: signals are heeded until the directory is gone, and the directory goes
    # after the processes.
    with (
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
        work_directory() as directory,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            try:
                await _show_before(console, Path(directory))
                caddys, snimux = await _start_all(nursery, Path(directory))
                report.show_introduction(console, caddys, snimux)
                rows = await _ask_all(caddys, snimux)
                findings = await _examine(caddys, snimux)
                status = report.show(console, rows, snimux, findings)
                if keep:
                    report.show_lines_to_try(console, caddys, snimux)
                    programs = [snimux.program, *(caddy.program for caddy in caddys)]
                    await wait_until_one_ends(programs)
            except DemoError as error:
                print(f"demo: {error}", file=sys.stderr)
                status = 1
            except (BrokenPipeError, SystemExit):
                status = 1  # rich's SystemExit: nobody reads any more, as with `| head`
            nursery.cancel_scope.cancel()
    return status


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


async def _show_before(console: Console, directory: Path) -> None:
    find_caddy()
    try:
        report.show_before(console, await before(_SERVERS, directory))
    except DemoError as error:
        # An older Caddy does not start on a UDP port that another has.
        console.print("Two Caddys on one port cannot be shown here:", style="bold yellow")
        console.out(str(error), "", sep="\n", highlight=False)


async def _examine(caddys: Sequence[Caddy], snimux: Snimux) -> Sequence[Finding]:
    flags = ["--listen", f"127.0.0.1:{snimux.port}"]
    flags += [word for caddy in caddys for word in ("--caddy", caddy.admin)]
    return await examine(*flags, *(word for route in snimux.routes for word in ("--route", route)))


async def _start_all(nursery: trio.Nursery, directory: Path) -> tuple[list[Caddy], Snimux]:
    caddys = [
        await start_caddy(nursery, title, _HERE / part / "Caddyfile", names, directory / part)
        for part, (title, names) in _SERVERS.items()
    ]
    return caddys, await start_snimux(nursery, caddys, directory / "snimux.log")


async def _ask_all(caddys: Sequence[Caddy], snimux: Snimux) -> list[report.Row]:
    """Ask for each name by each protocol, one after the other so that the times mean something."""
    rows = []
    for caddy in caddys:
        for name in caddy.names:
            for protocol in ("HTTP/1.1", "HTTP/2"):
                result = await ask(name, snimux.port, caddy.root, http2=protocol == "HTTP/2")
                rows.append(report.Row(name, protocol, caddy, result))
    refused = await ask(_UNKNOWN, snimux.port, caddys[0].root, http2=True)
    return [*rows, report.Row(_UNKNOWN, "-", None, refused)]
