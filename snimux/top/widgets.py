"""The widgets of ``snimux top``: the tree, of which the lines in sight are drawn, and the help.

Needs textual: ``snimux[top]``.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Key as KeyPressed
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.strip import Strip
from textual.widgets import Static

from snimux.status.sample import Key
from snimux.top.columns import Columns
from snimux.top.tree import Line, Row

_SCROLLS = ("up", "down", "pageup", "pagedown", "home", "end")

_HELP = """\
KEYS
  up, down, k, j  one row; also Page Up, Page Down, Home, End
  Enter, Space    show or hide what is below a row ("+", "-" before it)
  right, left     show; hide, or go to the row above
  e               show all, or hide all but routes

  r  b  a  c  n   sort by rate, bytes, age, connections, name
                  again: backwards
  /               only rows with a text in name, client, backend or note
  Esc             all rows again
  p               pause, and go on
  <  >            look more often, less often
  ?  h  F1        this help
  q, Ctrl-C       quit; Ctrl-Z: away, and back by fg

COLUMNS
  OPEN            connections that are open; "-" is: not known
  AGE             of a connection, a route's oldest one, or a refusal
  UP, UP/S        bytes to the backend; a second, the mean of the last 5
  DOWN, DOWN/S    bytes to the client; a second
  FROM > TO       client and backend; "!": an address does not answer

Bytes of a route are of all its connections so far. The row that is
chosen is in full below the others. Any key but up and down closes this."""


class Help(ModalScreen[None]):
    """The help: what the keys do."""

    def compose(self) -> ComposeResult:
        """Show the text, which may be higher than the terminal."""
        with VerticalScroll():
            yield Static(_HELP, markup=False)

    def on_key(self, event: KeyPressed) -> None:
        """Close it at any key but those that scroll."""
        if event.key not in _SCROLLS:
            event.stop()
            event.prevent_default()  # else it would do what it does without the help
            self.dismiss()


class _Bar(ScrollBarRender):
    """A bar of spaces alone: blocks of a part of a row are beyond ASCII."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "]


class Tree(ScrollView, can_focus=True):
    """Lines of text, of which one is under the cursor; draws those in sight."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "go(0)", show=False),
        Binding("end", "go(-1)", show=False),
    ]

    cursor = reactive(0)

    class Moved(Message):
        """The cursor is on another row."""

    def __init__(self) -> None:
        super().__init__()
        ScrollBar.renderer = _Bar
        self.lines: Sequence[Line] = ()
        self.columns = Columns(0)

    @property
    def line(self) -> Line | None:
        """The line under the cursor."""
        return self.lines[self.cursor] if self.lines else None

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return None if self.line is None else self.line.row

    def put(self, lines: Sequence[Line]) -> None:
        """Show other lines; the cursor stays on its row, or else where it is.

        Where its row is hidden in another one, it goes to that.
        """
        old, above = self.row, self._above()
        self.lines = lines
        self.virtual_size = Size(0, len(lines))
        here = min(self.cursor, max(len(lines) - 1, 0))
        if old is not None and (not lines or lines[here].row.key != old.key):
            places = {line.row.key: i for i, line in enumerate(lines)}
            folded = (i for x in above if (i := places.get(x)) is not None and not lines[i].is_open)
            here = places.get(old.key, next(folded, here))
        self.cursor = here
        self.refresh()

    def on_resize(self) -> None:
        """Have columns for another width."""
        self.columns = Columns(self.scrollable_content_region.width)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Draw a line of the terminal."""
        number = y + self.scroll_offset.y
        width = self.size.width
        if number >= len(self.lines):
            return Strip.blank(width)
        line = self.lines[number]
        is_here = number == self.cursor
        row = line.row
        style = Style(
            color="red" if row.is_down else None,
            reverse=is_here,
            bold=line.depth == 0,
            dim=row.kind == "refused",
        )
        return Strip([Segment(self.columns.line(line), style)]).adjust_cell_length(width, style)

    def watch_cursor(self) -> None:
        """Keep it in sight."""
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)
        self.refresh()
        self.post_message(self.Moved())

    def action_move(self, rows: int) -> None:
        """Go up or down."""
        self.cursor = max(min(self.cursor + rows, len(self.lines) - 1), 0)

    def go_above(self) -> None:
        """Go to the row that this one is below."""
        self.cursor = next(self._numbers_above(), self.cursor)

    def _numbers_above(self) -> Iterator[int]:
        """The rows that the one under the cursor is below, from there up."""
        depth = self.lines[self.cursor].depth if self.lines else 0
        for number in range(self.cursor - 1, -1, -1):
            if self.lines[number].depth < depth:
                depth = self.lines[number].depth
                yield number

    def _above(self) -> list[Key]:
        return [self.lines[number].row.key for number in self._numbers_above()]

    def action_page(self, pages: int) -> None:
        """Go up or down by what is in sight."""
        self.action_move(pages * max(self.size.height - 1, 1))

    def action_go(self, row: int) -> None:
        """Go to the first row, or the last."""
        self.cursor = max(row % max(len(self.lines), 1), 0)
