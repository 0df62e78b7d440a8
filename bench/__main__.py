"""snimux beside its peers: ``python -m bench``; ``make bench`` is the quick run of it.

Measures what each proxy costs, by its processor time for each unit of work, and what its clients
wait for. Needs Linux. ``bench.subjects`` has what is measured, ``bench.works`` what is done to it;
whatever is missing here is named and left out. Times mean little without the ratio to a peer
of the same run. ``python -m bench.compare`` measures one snimux beside another.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import (
    caddy,
    figures,
    machine,
    names,
    options,
    plot,
    record,
    report,
    rounds,
    subjects,
    works,
)
from bench.bed import ROUTES, Bed
from bench.effort import FULL, QUICK, Effort
from bench.running import Running, StartError
from bench.subjects import Subject
from bench.works import WORKS, Case, Group


@click.command("python -m bench", context_settings={"max_content_width": 100})
@click.option("--quick", is_flag=True, help="One short round: about a minute for everything.")
@click.option("--only", metavar="WORK,...", help=f"Only this work: {', '.join(WORKS)}.")
@click.option("--subjects", "wanted", metavar="NAME,...", help=f"{', '.join(subjects.NAMES)}.")
@click.option("--rounds", "number", type=click.IntRange(1), metavar="N", help="So many rounds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all to a file.")
@click.option("--svg", "svg", type=click.Path(path_type=Path), help="Write charts to a directory.")
@click.option("--show-configs", is_flag=True, help="Print each configuration before the result.")
@click.option(
    "--scale",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    metavar="FACTOR",
    help="Of every duration and count, for tests of the harness.",
)
def main(
    quick: bool,
    only: str | None,
    wanted: str | None,
    number: int | None,
    json_file: Path | None,
    svg: Path | None,
    show_configs: bool,
    scale: float,
) -> None:
    """Measure snimux beside its peers, on this machine."""
    options.prepare()
    effort = (QUICK if quick else FULL).scaled(scale)
    if number:
        effort = replace(effort, rounds=number)
    doing = options.chosen("work", only, list(WORKS))
    chosen = [subjects.by_name(name) for name in options.chosen("subject", wanted, subjects.NAMES)]
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    found = machine.describe()
    left_out = _left_out(doing, chosen, effort)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, Bed(Path(directory)) as bed:
        if "caddy" in doing and "caddy" not in left_out:
            _start_caddy(bed, left_out)
        running = _start(bed, [each for each in chosen if each.name not in left_out], left_out)
        for name, why in left_out.items():
            console.print(f"left out: {name}: {why}", style="yellow", markup=False)
        if show_configs:
            _show_configs(console, running)
        groups = [g for g in works.groups(effort) if g[0].rows[0].work in {*doing} - {*left_out}]
        outcome = _measure(bed, groups, [each.subject for each in running.values()], effort.rounds)
    rows = [row for group in groups for case in group for row in case.rows]
    of_this_run = [goal for goal in figures.GOALS if goal.row in {row.key for row in rows}]
    judged = [figures.judge(goal, outcome.results) for goal in of_this_run]
    report.show(console, found, rows, outcome, judged)
    if svg:
        plot.write(svg, rows, outcome.results)
    if json_file:
        whole = record.record(found, effort, running, left_out, rows, outcome, judged)
        json_file.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


def _left_out(doing: Sequence[str], chosen: Sequence[Subject], effort: Effort) -> dict[str, str]:
    """What cannot be measured here, and why."""
    works_ = {work: why for work in doing if (why := works.missing(work))}
    absent = {each.name: why for each in chosen if (why := subjects.missing(each))}
    with_routes = {
        f"{each.name} with more than {each.most_routes or 'the usual'} routes": each.why_no_more
        for each in chosen
        if each.name not in absent and each.most_routes < max(effort.routes) and "routes" in doing
    }
    return {**works_, **absent, **with_routes}


def _start_caddy(bed: Bed, left_out: dict[str, str]) -> None:
    try:
        process = caddy.start(bed.directory / "caddy", bed.ports[names.SECURE])
    except StartError as error:
        left_out["caddy"] = str(error)
    else:
        bed.keep(names.SECURE, process)


def _start(bed: Bed, there: Sequence[Subject], left_out: dict[str, str]) -> dict[str, Running]:
    """Start the subjects; one that does not start is left out."""
    running = {}
    for subject in there:
        try:
            running[subject.name] = bed.running(subject, ROUTES)
        except StartError as error:
            left_out[subject.name] = f"did not start: {error}"
    return running


def _show_configs(console: Console, running: dict[str, Running]) -> None:
    for name, ran in running.items():
        for file, text in record.configuration(ran).items():
            console.print(f"--- {name}: {file}", style="bold", markup=False)
            console.print(text, markup=False)


def _measure(
    bed: Bed, groups: Sequence[Group], ready: Sequence[Subject], number: int
) -> rounds.Outcome:
    """Make the measurements, and show how far they are: a bar, or a line for each case."""
    steps = list(rounds.plan(groups, ready, number))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # No thread that redraws by itself: it would be a load of its own.
    with Progress(
        *columns, TimeElapsedColumn(), console=console, auto_refresh=False, transient=True
    ) as bar:
        task = bar.add_task("", total=len(steps), visible=console.is_terminal)
        said: set[str] = set()

        def tell(round_: int, subject: Subject, case: Case) -> None:
            what = f"round {round_ + 1}/{number}: {case.rows[0].title}"
            bar.update(task, advance=1 if said else 0, description=f"{what}: {subject.name}")
            bar.refresh()
            if not console.is_terminal and what not in said:
                print(what, file=sys.stderr, flush=True)
            said.add(what)

        return rounds.run(bed, steps, tell)


if __name__ == "__main__":
    main()
