"""A run as tables for the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import figures
from bench.bed import Sample, average
from bench.figures import AIM, ITSELF, MOST, OURS, SHORT, Goal, Judged, Results
from bench.machine import Machine
from bench.rounds import Outcome
from bench.subjects import DIRECT
from bench.works import WORKS, Row

_LIMIT = 0.9  # processors, of which a process without threads has one
_COLOURS = {AIM: "green", MOST: "yellow", SHORT: "red"}


def show(
    console: Console,
    machine: Machine,
    rows: Sequence[Row],
    outcome: Outcome,
    judged: Sequence[Judged],
) -> None:
    """Print all of it."""
    results = outcome.results
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()), style="dim")
    console.print(
        "Figures are processor time of the proxy, all its processes, for each unit of work: median"
        " (lowest-highest round); then how many times as much snimux takes. For direct they are"
        " those of load generator and backend themselves. busy: processors' worth of client,"
        " backend and proxy, on average.",
        style="dim",
    )
    for work in dict.fromkeys(row.work for row in rows):
        of_work = [row for row in rows if row.work == work and results.get(row.key)]
        # so many columns that a terminal has room for them
        for start in range(0, len(of_work), 3):
            console.print(_table(work, of_work[start : start + 3], results))
    at_limit = _at_limit(rows, results)
    if at_limit:
        console.print(
            f"The load generator was at its limit in: {', '.join(at_limit)}.", style="dim"
        )
    if judged:
        console.print(_goals(judged))
    for problem in outcome.problems:
        console.print(f"did not work: {problem}", style="red", markup=False)


def _table(work: str, rows: Sequence[Row], results: Results) -> Table:
    table = Table(title=f"{work}: {WORKS[work]}", title_justify="left", title_style="bold")
    table.add_column("")
    for row in rows:
        table.add_column(f"{row.column}, {row.unit}", justify="right")
    table.add_column("busy", justify="right")
    for name in _names(rows, results):
        samples = [results[row.key].get(name, ()) for row in rows]
        ours = [results[row.key].get(OURS, ()) for row in rows]
        cells = [_cell(name, *pair) for pair in zip(samples, ours, strict=True)]
        style = "bold" if name == OURS else "dim" if name == DIRECT else None
        table.add_row(name, *cells, _busy([each for some in samples for each in some]), style=style)
    return table


def _names(rows: Sequence[Row], results: Results) -> Iterable[str]:
    return dict.fromkeys(name for row in rows for name in results[row.key])


def _cell(name: str, samples: Sequence[Sample], ours: Sequence[Sample]) -> Text:
    if not samples:
        return Text("-")
    found = figures.summary(samples)
    text = number(found.median)
    if len(samples) > 1:
        text += f" ({number(found.low)}-{number(found.high)})"
    times = figures.ratio(ours, samples)
    if times is not None and name not in (OURS, DIRECT):
        text += f"  {times:5.2f}x"
    return Text(text)


def _busy(samples: Sequence[Sample]) -> str:
    busy = average([sample.busy for sample in samples])
    return f"{busy.client:.2f} {busy.backend:.2f} {busy.proxy:.2f}"


def _at_limit(rows: Sequence[Row], results: Results) -> list[str]:
    """Where client or backend could not have done more: a proxy might have, had they."""
    found = []
    for row in rows:
        for name, samples in results.get(row.key, {}).items():
            busy = average([sample.busy for sample in samples])
            # Caddy has threads, and so another limit.
            share = busy.client if row.work == "caddy" else max(busy.client, busy.backend)
            if share >= _LIMIT and name != DIRECT:
                found.append(f"{row.key} {name}")
    return found


def number(value: float) -> str:
    """Three digits that count."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def _goals(judged: Sequence[Judged]) -> Table:
    table = Table(title="Figures to reach", title_justify="left", title_style="bold")
    for heading in ("", "at most", "aim", "measured", "verdict"):
        table.add_column(heading)
    for each in judged:
        goal = each.goal
        table.add_row(
            goal.title,
            _bounds(goal, goal.most),
            _bounds(goal, goal.aim),
            _bounds(goal, each.measured) or "-",
            Text(each.verdict, style=_COLOURS.get(each.verdict, "dim")),
        )
    return table


def _bounds(goal: Goal, values: Iterable[str]) -> str:
    assert isinstance(values, dict)
    return ", ".join(
        f"{number(value)}" if key == ITSELF else f"{value:.2f} x {key}"
        for key, value in values.items()
    )
