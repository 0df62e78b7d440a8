"""Bar charts as SVG, written by hand: a chart for each kind of work.

Readable on light and on dark ground: the colours of the text follow the reader's preference, and
those of the bars are neither.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench import figures
from bench.bed import Sample
from bench.figures import Results
from bench.report import number
from bench.subjects import DIRECT
from bench.works import Row

_WIDTH, _LEFT, _RIGHT = 760, 150, 90  # pixels
_LINE, _BAR, _HEAD, _GAP = 20, 13, 26, 12
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}"
    ".head{font-weight:600}.soft{fill:#57606a}"
    ".ours{fill:#2f81f7}.peer{fill:#8b949e}.spread{stroke:#57606a;stroke-width:1.5}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9198a1}"
    ".spread{stroke:#d0d7de}}"
)


def write(directory: Path, rows: Sequence[Row], results: Results) -> list[Path]:
    """Write ``WORK.svg`` for each work that was measured; returns what was written."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for work in dict.fromkeys(row.work for row in rows):
        measured = [row for row in rows if row.work == work and results.get(row.key)]
        if measured:
            path = directory / f"{work}.svg"
            path.write_text(chart(measured, results), "utf-8")
            written.append(path)
    return written


def chart(rows: Sequence[Row], results: Results) -> str:
    """One SVG with a block of bars for each row; shorter is better."""
    parts: list[str] = []
    top = 0
    for row in rows:
        bars = {name: found for name, found in results[row.key].items() if name != DIRECT}
        if not bars:
            continue
        parts.append(_block(row, bars, top))
        top += _HEAD + _LINE * len(bars) + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}"'
        f' width="{_WIDTH}" height="{top}" role="img"><style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _block(row: Row, bars: dict[str, Sequence[Sample]], top: int) -> str:
    longest = max(figures.summary(samples).high for samples in bars.values()) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    lines = [
        f'<text class="head" x="0" y="{top + 15}">{escape(row.title)}'
        f'<tspan class="soft"> {escape(row.unit)}, less is better</tspan></text>'
    ]
    for place, (name, samples) in enumerate(bars.items()):
        lines.append(_bar(name, figures.summary(samples), top + _HEAD + place * _LINE, scale))
    return "\n".join(lines)


def _bar(name: str, found: figures.Summary, y: int, scale: float) -> str:
    kind = "ours" if name.startswith(figures.OURS) else "peer"
    middle = y + _BAR / 2
    low, high = (_LEFT + max(value, 0) * scale for value in (found.low, found.high))
    return (
        f'<text x="{_LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="{kind}" x="{_LEFT}" y="{y}" rx="2" height="{_BAR}"'
        f' width="{max(found.median, 0) * scale:.1f}"/>'
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<text class="soft" x="{high + 6:.1f}" y="{y + 11}">{number(found.median)}</text>'
    )
