"""Faults made on purpose, and what was lost: ``python -m faults``; ``make faults`` does it, too.

Needs Linux, and for some root. What is missing here is named, and that fault left out.
"""

import signal
import sys
import tempfile
from pathlib import Path

import click
import trio
from rich.console import Console
from rich.table import Table

from faults.catalogue import FAULTS
from faults.found import Fault, Found, Size

_NAMES = ", ".join(fault.name for fault in FAULTS)


@click.command("python -m faults", context_settings={"max_content_width": 100})
@click.option("--only", metavar="NAME,...", help=f"Only these: {_NAMES}.")
@click.option("--quick", is_flag=True, help="As little as shows anything, as in the tests.")
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    metavar="N",
    show_default=True,
    help="How often what is killed is killed.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0.1),
    default=5.0,
    metavar="M",
    show_default=True,
    help="How long the soak takes.",
)
def main(only: str | None, quick: bool, rounds: int, minutes: float) -> None:
    """Make faults, with real processes, and say what was lost.

    Exit status 1 if more was than had to be.
    """
    if sys.platform != "linux":
        raise click.ClickException("needs Linux: namespaces, and /proc")
    wanted = only.split(",") if only else [fault.name for fault in FAULTS]
    for name in wanted:
        if name not in [fault.name for fault in FAULTS]:
            raise click.UsageError(f"no fault {name!r}; there are {_NAMES}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so end what runs
    size = Size(quick, rounds, minutes)
    table = Table("fault", "what was done", "connections", "lost", "remark", show_lines=True)
    well = True
    for fault in FAULTS:
        if fault.name in wanted:
            print(f"{fault.name}: {fault.title} ...", file=sys.stderr, flush=True)
            missing = fault.missing()
            found = [] if missing else _make(fault, size)
            if missing:
                table.add_row(fault.name, fault.title, "-", "-", f"left out: {missing}")
            for each in found:
                table.add_row(fault.name, *_cells(each))
                well = well and each.is_well
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    sys.exit(0 if well else 1)


def _make(fault: Fault, size: Size) -> list[Found]:
    with tempfile.TemporaryDirectory(prefix="snimux-") as name:
        return trio.run(fault.run, Path(name), size)


def _cells(found: Found) -> tuple[str, ...]:
    lost = str(found.lost)
    if found.own:
        lost += f", and {found.own} of what was killed"
    remark = "; ".join([*found.problems, found.remark])
    return found.done, f"{found.connections:,}", lost, remark


if __name__ == "__main__":
    main()
