"""Findings -> what a person reads, what a program reads, and an exit status.

Knows how it looks, and not what it means.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from textwrap import TextWrapper

import click

from snimux.doctor.findings import Colour, Finding
from snimux.text import plain

_STATUS = {Colour.GREEN: 0, Colour.YELLOW: 1, Colour.RED: 2}
# Told apart without colours, too.
_MARK = {Colour.GREEN: "ok  ", Colour.YELLOW: "warn", Colour.RED: "BAD "}
_INDENT, _WIDTH = " " * 6, 100


def status(findings: Iterable[Finding]) -> int:
    """Return 0 if all is green, 1 if something is yellow, 2 if something is red."""
    return max((_STATUS[finding.colour] for finding in findings), default=0)


def text(findings: Sequence[Finding], unseen: Iterable[str]) -> str:
    """Write for people: a line for each finding, its meaning and remedy below; colours by click."""
    lines = [line for finding in findings for line in _finding(finding)]
    lines += [
        click.style(line, dim=True) for what in unseen for line in _wrapped(what, "not seen  ")
    ]
    return "\n".join([*lines, _summary(findings)])


def _finding(finding: Finding) -> Iterator[str]:
    is_green = finding.colour is Colour.GREEN
    mark = click.style(_MARK[finding.colour], fg=finding.colour.value, bold=not is_green)
    first, *rest = _wrapped(finding.title)
    yield f"{mark}  {click.style(first.lstrip(), bold=not is_green)}"
    yield from (click.style(line, bold=not is_green) for line in rest)
    yield from _wrapped(finding.meaning)
    for line in finding.remedy:
        yield click.style(f"          {plain(line)}", dim=line.lstrip().startswith("#"))
    if not is_green:
        yield ""


def _wrapped(words: str, first: str = _INDENT) -> list[str]:
    """Lines that fit; what has no space is not broken, so that it can be copied."""
    wrapper = TextWrapper(
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(plain(words))


def _summary(findings: Iterable[Finding]) -> str:
    counts = Counter(finding.colour for finding in findings)
    return ", ".join(
        click.style(f"{counts[colour]} {colour.value}", fg=colour.value, bold=bool(counts[colour]))
        for colour in (Colour.RED, Colour.YELLOW, Colour.GREEN)
    )


def as_json(findings: Sequence[Finding], unseen: Iterable[str]) -> str:
    """Write for programs: one object; ``check`` and the keys stay, words may change."""
    return json.dumps(
        {
            "status": status(findings),
            "findings": [
                {
                    "check": finding.check,
                    "colour": finding.colour.value,
                    "about": finding.about,
                    "title": finding.title,
                    "meaning": finding.meaning,
                    "remedy": list(finding.remedy),
                }
                for finding in findings
            ],
            "unseen": list(unseen),
        },
        indent=2,
    )
