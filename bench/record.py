"""A run as JSON: everything, so that a later run can be compared with it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import figures, subjects
from bench.effort import Effort
from bench.figures import OURS, Judged, Results
from bench.machine import Machine
from bench.rounds import Outcome
from bench.running import Running
from bench.works import Row

_LONGEST = 100  # lines of a configuration; tables of routes are long and dull


def record(
    machine: Machine,
    effort: Effort,
    running: Mapping[str, Running],
    left_out: Mapping[str, str],
    rows: Sequence[Row],
    outcome: Outcome,
    judged: Sequence[Judged],
) -> dict[str, Any]:
    """The whole run as one value that JSON can hold.

    Args:
        machine: where.
        effort: how long and how much.
        running: the subjects as they ran, by name.
        left_out: why, by the name of the subject or the work.
        rows: what the figures are.
        outcome: the samples, and what did not work.
        judged: the figures to reach.
    """
    results = outcome.results
    return {
        "machine": machine,
        "effort": asdict(effort),
        "subjects": {
            name: {
                "version": subjects.version(ran.subject),
                "command": [Path(word).name for word in ran.subject.command],
                "configuration": configuration(ran),
            }
            for name, ran in running.items()
        },
        "left_out": dict(left_out),
        "problems": outcome.problems,
        "rows": {row.key: _row(row, results) for row in rows if results.get(row.key)},
        "figures_to_reach": [
            {**asdict(each.goal), "measured": each.measured, "verdict": each.verdict}
            for each in judged
        ],
    }


def configuration(ran: Running) -> dict[str, str]:
    """The files of a subject that runs."""
    return {name: _shortened(text) for name, text in ran.files.items()}


def _shortened(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > _LONGEST:
        lines[_LONGEST:] = [f"... {len(lines) - _LONGEST} more lines"]
    return "\n".join(lines)


def _row(row: Row, results: Results) -> dict[str, Any]:
    ours = results[row.key].get(OURS, ())
    return {
        "work": row.work,
        "title": row.title,
        "unit": row.unit,
        "subjects": {
            name: {
                **asdict(figures.summary(samples)),
                "rounds": [sample.figure for sample in samples],
                "rate": [sample.rate for sample in samples],
                "busy": [asdict(sample.busy) for sample in samples],
                "snimux_takes_times": figures.ratio(ours, samples),
            }
            for name, samples in results[row.key].items()
        },
    }
