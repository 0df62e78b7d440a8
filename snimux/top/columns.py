"""Rows of a running snimux -> lines of text: for people, as wide as their terminal; for programs.

For people numbers are short, and what is too long for its column ends in ``~``. For programs each
row is a line of as many words as the columns' names are, but for the last, which is a text; numbers
are whole, and "-" is none. Knows nothing of terminals.
"""

from collections.abc import Iterable, Mapping

from snimux.text import cut
from snimux.top.tree import Line, Overview, Row

_NONE = "-"
_MARK = "~"  # ends what is cut

# --- for people


def summary(overview: Overview, where: str) -> list[str]:
    """The totals, in a few lines.

    Args:
        overview: what there is.
        where: what to call who was asked.
    """
    sample, total, rates = overview.sample, overview.total, overview.rates
    silent = [name for name, answers in sample.workers.items() if not answers]
    workers = f", {len(sample.workers)} workers" if sample.workers else ""
    if silent:
        workers += f", NO ANSWER FROM {','.join(silent)}"
    serving = "DRAINING" if sample.draining else "serving"
    full = " FULL" if 0 < sample.limit <= sample.active else ""
    routes = sample.routes
    more = f" ({len(routes.shown)} shown)" if sample.routes_total > len(routes.shown) else ""
    oldest = len(sample.connections)
    full += f" (the oldest {oldest} shown)" if sample.connections_total > oldest else ""
    return [
        f"snimux {sample.version} at {where}: {serving}{workers}, "
        f"{sample.routes_total} routes{more}",
        f"connections {sample.active} of {sample.limit} open{full}; {total.total} accepted, "
        f"{_per_second(rates.new)}/s",
        f"bytes       up {short(total.up)}, {short(rates.up)}/s; "
        f"down {short(total.down)}, {short(rates.down)}/s",
        _refused(overview),
    ]


def _refused(overview: Overview) -> str:
    counts = overview.refused.items()
    words = [f"{reason} {n}, {_per_second(rate)}/s" for reason, (n, rate) in counts]
    return f"refused     {'; '.join((str(sum(n for _, (n, _) in counts)), *words))}"


_UNITS = " kMGTPE"


def short(number: float | None) -> str:
    """A number in four characters or less, by powers of 1000; ``-`` if there is none."""
    if number is None:
        return _NONE
    for unit in _UNITS:
        if number < 9.95 and unit != " ":
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit.strip()}"
        number /= 1000
    return "many"


def _per_second(rate: float | None) -> str:
    return _NONE if rate is None else f"{rate:.1f}" if rate < 99.95 else short(rate)


def span(seconds: float | None) -> str:
    """A time in four characters or less; nothing if there is none."""
    if seconds is None:
        return ""
    for unit, length in (("s", 100), ("m", 60), ("h", 60), ("d", 24)):
        if unit != "s":
            seconds /= length
        if seconds < 99.5:
            return f"{seconds:.0f}{unit}"
    return f"{min(seconds, 9999) / 365:.0f}y"


# name, width
_NUMBERS = (("OPEN", 5), ("AGE", 4), ("UP", 4), ("DOWN", 4), ("UP/S", 4), ("DOWN/S", 6))
# Which of them are left out, one after the other, where there is no room.
_EXPENDABLE = ("UP", "DOWN", "AGE")
# Columns: for a name, beside all numbers and beside the last few; and for where it leads.
_NARROW, _NARROWEST = 24, 20
_LEAST_WHERE = 8
_GAP = "  "
_MARKS = {None: " ", True: "-", False: "+"}


class Columns:
    """The columns of a line of some width: which there are, and how wide."""

    def __init__(self, width: int) -> None:
        self.numbers = dict(_NUMBERS)
        for number in _EXPENDABLE:
            if width - self._taken < _NARROW:
                del self.numbers[number]
        left = max(width - self._taken, _NARROWEST)
        self.name = max(left // 2, _NARROW)
        self.where = left - self.name - len(_GAP)
        if self.where < _LEAST_WHERE:
            self.name, self.where = left, 0
        self.width = width

    @property
    def _taken(self) -> int:
        """Return the columns that numbers take."""
        return sum(1 + width for width in self.numbers.values())

    def head(self) -> str:
        """The columns' names."""
        return self._line("NAME", {name: name for name in self.numbers}, "FROM > TO")

    def line(self, line: Line) -> str:
        """A row: with ``+`` where more is below it, and ``-`` where that is overview."""
        row = line.row
        name = f"{'  ' * line.depth}{_MARKS[line.is_open]} {row.name}"
        return self._line(name, _numbers(row), _where(row))

    def _line(self, name: str, numbers: Mapping[str, str], where: str) -> str:
        cells = [f"{numbers.get(x, ''):>{width}}" for x, width in self.numbers.items()]
        name, where = cut(name, self.name, _MARK), cut(where, self.where, _MARK)
        text = f"{name:<{self.name}} {' '.join(cells)}{_GAP}{where}"
        return f"{text:<{self.width}}"[: self.width]


def _numbers(row: Row) -> dict[str, str]:
    if row.kind == "refused":
        return {"AGE": span(row.age)}
    traffic, rates = row.traffic, row.rates
    return {
        "OPEN": "" if row.kind == "connection" else short(traffic.open),
        "AGE": span(row.age),
        "UP": short(traffic.up),
        "DOWN": short(traffic.down),
        "UP/S": short(rates.up),
        "DOWN/S": short(rates.down),
    }


def _where(row: Row) -> str:
    if row.kind == "refused":
        return f"{row.client} {row.note}".strip()
    mark = "! " if row.is_down else ""
    return mark + " > ".join(x for x in (row.client, row.backend) if x)


def detail(row: Row) -> str:
    """All that is known of a row, in words, however long."""
    parts = (("from", row.client), ("to", row.backend), ("", row.note))
    words = [f"{word} {x}".strip() for word, x in parts if x]
    if row.kind != "refused":
        traffic, rates = row.traffic, row.rates
        if row.kind != "connection":
            words.append(f"{traffic.total} connections so far, {_per_second(rates.new)}/s")
        words.append(f"up {short(traffic.up)}, {short(rates.up)}/s")
        words.append(f"down {short(traffic.down)}, {short(rates.down)}/s")
    name = row.name if row.key == ("refused",) else f"{row.kind} {row.name}"
    return "; ".join((name, *words))


# --- for programs

_HEAD = (
    *("KIND", "NAME", "CLIENT", "BACKEND"),
    *("AGE", "OPEN", "TOTAL", "UP", "DOWN", "NEW/S", "UP/S", "DOWN/S"),
    "NOTE",
)
_NUMERIC = range(4, 12)
"""The columns that are aligned to the right."""


def table(overview: Overview, where: str, lines: Iterable[Line]) -> str:
    """All as text that stays as it is: totals, a word first in each line; an empty line; the rows.

    Args:
        overview: what there is.
        where: what to call who was asked.
        lines: of its tree.
    """
    rows = [_HEAD, *(_cells(line.row) for line in lines if line.row.key != ("refused",))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([_aligned(i, x, widths[i]) for i, x in enumerate(row)] for row in rows)
    text = ("  ".join(row).rstrip() for row in cells)
    return "\n".join((*_totals(overview, where), "", *text, ""))


def _aligned(number: int, text: str, width: int) -> str:
    return f"{text:>{width}}" if number in _NUMERIC else f"{text:<{width}}"


def _totals(overview: Overview, where: str) -> list[str]:
    sample, total, rates = overview.sample, overview.total, overview.rates
    counts = [
        f"refused      {_word(x)} {n} {_tenths(r)}/s" for x, (n, r) in overview.refused.items()
    ]
    answering = sum(sample.workers.values())
    return [
        f"snimux       {sample.version} {'draining' if sample.draining else 'serving'} at {where}",
        f"workers      {answering} of {len(sample.workers)} answer"
        if sample.workers
        else "workers      1",
        f"routes       {sample.routes_total} in all, {len(sample.routes.shown)} here",
        f"connections  {sample.active} of {sample.limit} open, {len(sample.connections)} here",
        f"accepted     {total.total} {_tenths(rates.new)}/s",
        f"up           {total.up} {_whole(rates.up)}/s",
        f"down         {total.down} {_whole(rates.down)}/s",
        *counts,
    ]


def _cells(row: Row) -> tuple[str, ...]:
    texts = map(_word, (row.kind, row.name, row.client, row.backend))
    age = _tenths(row.age)
    if row.kind == "refused":
        return (*texts, age, *[_NONE] * 7, row.note)
    traffic, rates = row.traffic, row.rates
    counts = (traffic.open, traffic.total, traffic.up, traffic.down)
    speeds = (_tenths(rates.new), _whole(rates.up), _whole(rates.down))
    return (*texts, age, *map(str, counts), *speeds, row.note or _NONE)


def _word(text: str) -> str:
    """A text without spaces, so that the columns after it can be counted."""
    return text.replace(" ", "_") or _NONE


def _tenths(number: float | None) -> str:
    return _NONE if number is None else f"{number:.1f}"


def _whole(rate: float | None) -> str:
    return _NONE if rate is None else f"{rate:.0f}"
