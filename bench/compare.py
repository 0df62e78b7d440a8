"""Two versions of snimux in one run: ``python -m bench.compare DIR``.

DIR is another checkout, or an unpacked wheel: "before". The tree that this is part of is "after".
Both run as processes of their own with the same configuration, and take turns in bursts
(`bench.slices`). They have a processor of their own, if there is another for clients and backends:
who shares one with whom makes a round trip cost a quarter more, or not. Both are started anew
several times, because where things lie in memory makes processes of the same code differ, too.
"""

import contextlib
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench import figures, options, slices, works
from bench.bed import Bed, Sample
from bench.effort import QUICK
from bench.load import LoadError
from bench.report import number
from bench.running import StartError
from bench.subjects import ROOT, Subject, snimux
from bench.works import Steady

_WORKS = ("connect", "round-trips", "bulk")
_BEFORE, _AFTER = "before", "after"
_STATUS = ("--status", "unix/@{directory}/status")
_STARTS = 4  # even: each is started, and its load opened, first as often as second
_SHORTEST = 0.05  # seconds of a burst, in which a proxy on a busy machine gets to run
_BESIDES = 0.08  # seconds of a burst that are not measured: what it leaves to do, reading /proc

Samples = dict[Steady, dict[str, list[Sample]]]


@click.command("python -m bench.compare", context_settings={"max_content_width": 100})
@click.argument(
    "before", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--only", metavar="WORK,...", help=f"Only this work: {', '.join(_WORKS)}.")
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=60.0,
    show_default=True,
    help="How long to measure, for all the work together.",
)
@click.option(
    "--status",
    type=click.Choice([_BEFORE, _AFTER, "both"]),
    help="Which of the two runs with --status.",
)
@click.option(
    "--scale",
    type=click.FloatRange(0.01, 1),
    default=1.0,
    metavar="FACTOR",
    help="Of every duration and count, for tests of the harness.",
)
def main(before: Path, only: str | None, seconds: float, status: str | None, scale: float) -> None:
    """Compare snimux in DIR (before) with the one of this tree (after).

    What is compared is the processor time of the proxy for each unit of work.
    """
    options.prepare()
    doing = options.chosen("work", only, _WORKS)
    trees = {_BEFORE: before.resolve(), _AFTER: ROOT}
    if not (trees[_BEFORE] / "snimux" / "__main__.py").is_file():
        raise click.UsageError(f"{before} has no snimux: give a checkout or an unpacked wheel")
    sides = [
        snimux(name, *(_STATUS if status in (name, "both") else ()), tree=tree)
        for name, tree in trees.items()
    ]
    effort = replace(QUICK.scaled(scale), seconds=max(_SHORTEST, slices.BURST * scale))
    work = [
        each
        for each in works.steady(effort)
        if each.row.work in doing and each.row.key != "connect-chrome"
    ]
    starts = max(1, round(_STARTS * scale))
    rounds = seconds * scale / starts / len(work) / 2 / (effort.seconds + _BESIDES * scale)
    try:
        samples = _measure(sides, work, starts, max(2, round(rounds / 2) * 2), effort.seconds)
    except (StartError, LoadError, OSError) as error:
        raise click.ClickException(str(error)) from error
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    for side in sides:
        console.print(f"{side.name}: {side.tree} {' '.join(side.command[5:6])}", markup=False)
    console.print(_table(samples))


def _measure(
    sides: Sequence[Subject], work: Sequence[Steady], starts: int, rounds: int, seconds: float
) -> Samples:
    """Measure all the work after each start, in an even number of rounds: both come first alike."""
    samples: Samples = {each: defaultdict(list) for each in work}
    *rest, last = sorted(os.sched_getaffinity(0))
    for start in range(starts):
        click.echo(f"start {start + 1} of {starts}", err=True)
        in_order = sides[:: -1 if start % 2 else 1]
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as directory,
            _on(rest or [last]),
            Bed(Path(directory)) as bed,
        ):
            with _on([last]):
                for side in in_order:
                    _start(bed, side)
            for each in work:
                for name, some in slices.measure(bed, each, in_order, rounds, seconds).items():
                    samples[each][name] += some
    return samples


def _start(bed: Bed, side: Subject) -> None:
    try:
        bed.running(side)
    except StartError as error:
        raise StartError(f"{side.name} ({side.tree}) did not start: {error}") from error


@contextlib.contextmanager
def _on(processors: Sequence[int]) -> Iterator[None]:
    """Run on these processors, and what is started meanwhile, too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _table(samples: Samples) -> Table:
    table = Table()
    table.add_column("", no_wrap=True)
    for heading in (_BEFORE, _AFTER, "after / before", "95 %", "turns"):
        table.add_column(heading, justify="right")
    for work, by_side in samples.items():
        before, after = by_side[_BEFORE], by_side[_AFTER]
        ratios = slices.ratios(after, before)
        ratio = figures.confidence(ratios) if ratios else None
        medians = (number(figures.summary(each).median) for each in (before, after))
        table.add_row(
            f"{work.row.title}, {work.row.unit}",
            *medians,
            f"{ratio.median:.3f}" if ratio else "-",
            f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio else "-",
            str(len(ratios)),
        )
    return table


if __name__ == "__main__":
    main()
