"""Show a running snimux in a terminal: totals, and a tree to look through by keys.

Needs textual: ``snimux[top]``. What is in a line is ``columns``' to say, and in which order
``overview``'s; this has the keys, and draws the lines that are in sight, of however many.
"""

import asyncio
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Key as KeyPressed
from textual.events import Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.strip import Strip
from textual.widgets import Footer, Input, Static

from snimux.status.sample import Key, Sample
from snimux.text import cut, plain
from snimux.top.columns import Columns, detail, summary
from snimux.top.poll import Eye, Found, Looking, Lost
from snimux.top.tree import SORTS, Line, Overview, Row, arranged, comparable, lines, overview

# Seconds between two looks.
_PACES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

# Seconds without an answer until that is said: until it is said why may be ten.
_PATIENCE = 3.0

_SCROLLS = ("up", "down", "pageup", "pagedown", "home", "end")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

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

# Rows of a terminal from which on something is shown beside the tree.
_LEAST_ROWS = {"#head": 4, "#state": 5, "#detail": 9, "Footer": 11, "#summary": 14}


class Seen(Message):
    """What was found by a look."""

    def __init__(self, found: Found) -> None:
        super().__init__()
        self.found = found


class Help(ModalScreen[None]):
    """What the keys do."""

    def compose(self) -> ComposeResult:
        """The text, which may be higher than the terminal."""
        with VerticalScroll():
            yield Static(_HELP, markup=False)

    def on_key(self, event: KeyPressed) -> None:
        """Any key closes it, but for those that scroll."""
        if event.key not in _SCROLLS:
            event.stop()
            event.prevent_default()  # else it would do what it does without the help
            self.dismiss()


class _Bar(ScrollBarRender):
    """Of spaces alone: blocks of a part of a row are beyond ASCII."""

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
        """That under the cursor."""
        return self.lines[self.cursor] if self.lines else None

    @property
    def row(self) -> Row | None:
        """That under the cursor."""
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
        """A line of the terminal."""
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


class Top(App[None]):
    """The state of a running snimux."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #summary { height: 4; text-wrap: nowrap; }
    #state { height: 1; text-style: bold; text-wrap: nowrap; }
    #head { height: 1; text-style: underline; text-wrap: nowrap; }
    #detail { height: 2; }
    Tree { height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; }
    Tree { scrollbar-gutter: stable; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    Help { align: center middle; }
    Help VerticalScroll { width: 80; max-width: 100%; height: auto; max-height: 100%; }
    Help VerticalScroll { padding: 0 1; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,h", "help", "Help", key_display="?"),
        Binding("f1", "help", show=False),
        Binding("q", "quit", "Quit"),
        # By the app itself, so that no key that follows comes too early.
        Binding("slash", "filter", "Filter", key_display="/", priority=True),
        Binding("p", "pause", "Pause"),
        Binding("r", "sort('rate')", "Rate"),
        Binding("b", "sort('bytes')", "Bytes"),
        Binding("a", "sort('age')", "Age"),
        Binding("c", "sort('connections')", "Conns"),
        Binding("n", "sort('name')", "Name"),
        Binding("ctrl+c,ctrl+q", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
        Binding("enter,space", "turn", show=False),
        Binding("right", "show", show=False),
        Binding("left", "hide", show=False),
        Binding("e", "show_all", show=False),
        Binding("escape", "filter_no_more", show=False),
        Binding("greater_than_sign", "pace(1)", show=False),
        Binding("less_than_sign", "pace(-1)", show=False),
    ]

    def __init__(self, eye: Eye, every: float) -> None:
        """What to show.

        Args:
            eye: looks.
            every: how often, in seconds.
        """
        super().__init__(ansi_color=True)
        self.where = plain(str(eye.address), ascii_only=True)
        self.every = every
        self.looking = Looking(eye, every, lambda found: self.post_message(Seen(found)))
        self.past: list[Sample] = []
        """Those that rates are had from, and the last one."""
        self.hopes_since = math.inf
        """Since when an answer is waited for, if there was none after that."""
        self.seen: Overview | None = None
        self.lost: Lost | None = None
        self.sort = SORTS[0]
        self.backwards = False
        self.paused = False
        self.wanted = ""
        self.all_open = False
        self.turned: set[Key] = set()
        """Rows that are open where others like them are not, or the other way around."""
        self.turned_among_wanted: set[Key] = set()
        """The same, while only some rows are wanted."""

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Static(f"snimux at {self.where}", id="summary", markup=False)
        yield Static("asking ...", id="state", markup=False)
        yield Input(placeholder="only rows with this text; Enter, or Esc", id="filter")
        yield Static(id="head", markup=False)
        yield Tree()
        yield Static(id="detail", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.tree_of_rows.focus()
        for number in _STOP_SIGNALS:  # whoever sends one is not to find the terminal as it is now
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.hopes_since = time.monotonic()
        self.set_interval(1.0, self.show_state)
        self.looking.__enter__()

    def on_unmount(self) -> None:
        """Look no more."""
        self.looking.__exit__()
        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def on_resize(self, event: Resize) -> None:
        """Leave out in a terminal of few rows what matters less than the tree."""
        for what, rows in _LEAST_ROWS.items():
            self.query_one(what).display = event.size.height >= rows
        self.show_rows()
        self.show_state()

    @property
    def tree_of_rows(self) -> Tree:
        """The tree, as a widget."""
        return self.query_one(Tree)

    def on_seen(self, message: Seen) -> None:
        """Show what was found."""
        if isinstance(message.found, Lost):
            self.lost = message.found
        elif not self.paused:  # else it was under way
            self.lost = None
            past = comparable(self.past, message.found)
            self.seen = overview(message.found, past[0] if past else None)
            self.past = [*past, message.found]
            self.show_rows()
        self.show_state()

    def show_rows(self) -> None:
        """Put rows in order, and show them."""
        if self.seen is None:
            return
        tree = arranged(
            self.seen.tree, sort=self.sort, backwards=self.backwards, wanted=self.wanted
        )
        self.tree_of_rows.put(lines(tree, self.is_open))
        totals = summary(self.seen, self.where)
        self.query_one("#summary", Static).update(
            "\n".join(cut(line, self.size.width, "~") for line in totals)
        )
        self.show_detail()

    def is_open(self, row: Row) -> bool:
        """Whether what is below a row is shown."""
        if self.wanted:
            return row.key not in self.turned_among_wanted
        return (row.kind == "listener" or self.all_open) != (row.key in self.turned)

    def show_state(self) -> None:
        """Say how rows are shown, and whether they are of now."""
        state = self.past[-1] if self.past else None
        last = "none yet"
        if state is not None:
            at = time.localtime(state.time)
            last = f"the last one at {time.strftime('%H:%M:%S', at)}"
        waits = time.monotonic() - max(self.hopes_since, state.at if state else 0)
        if self.lost is not None:
            text = f"NO ANSWER: {plain(self.lost.why, ascii_only=True)} ({last}; asking again)"
        elif not self.paused and waits > self.every + _PATIENCE:
            text = f"NO ANSWER for {waits:.0f} s ({last}; waiting)"
        elif state is None:
            text = "asking ..."
        else:
            order = f"by {self.sort}{', backwards' if self.backwards else ''}"
            wanted = f", only with {self.wanted!r} (Esc: all)" if self.wanted else ""
            text = f"{order}, every {self.every:g} s{wanted}"
        text = f"{'PAUSED, ' if self.paused else ''}{text}"
        self.query_one("#state", Static).update(cut(text, self.size.width, "~"))

    @on(Tree.Moved)
    def show_detail(self) -> None:
        """Show the row under the cursor in full, and the columns' names."""
        tree = self.tree_of_rows
        self.query_one("#head", Static).update(tree.columns.head())
        self.query_one("#detail", Static).update("" if tree.row is None else detail(tree.row))

    # --- keys

    def action_help(self) -> None:
        """Say what keys do."""
        self.push_screen(Help())

    def action_sort(self, sort: str) -> None:
        """Put rows in an order, or the other way around if they are in it."""
        self.backwards = sort == self.sort and not self.backwards
        self.sort = sort
        self.show_rows()
        self.show_state()

    def action_pause(self) -> None:
        """Look no more, or again."""
        self.paused = not self.paused
        self.hopes_since = time.monotonic()
        self.looking.set_every(math.inf if self.paused else self.every)
        self.show_state()

    def action_pace(self, steps: int) -> None:
        """Look less often, or more."""
        slower = [x for x in _PACES if x > self.every]
        faster = [x for x in _PACES if x < self.every]
        self.every = next(iter(slower[:1] if steps > 0 else faster[-1:]), self.every)
        if not self.paused:
            self.looking.set_every(self.every)
        self.show_state()

    def action_show_all(self) -> None:
        """Show what is below all rows, or hide it."""
        self.all_open = not self.all_open
        self.turned.clear()
        self.show_rows()

    def action_turn(self) -> None:
        """Show what is below a row, or hide it."""
        line = self.tree_of_rows.line
        if line is not None and line.is_open is not None:
            turned = self.turned_among_wanted if self.wanted else self.turned
            turned ^= {line.row.key}
            self.show_rows()

    def action_show(self) -> None:
        """Show what is below a row."""
        line = self.tree_of_rows.line
        if line is not None and line.is_open is False:
            self.action_turn()

    def action_hide(self) -> None:
        """Hide what is below a row, or go to the row above."""
        line = self.tree_of_rows.line
        if line is not None and line.is_open:
            self.action_turn()
        else:
            self.tree_of_rows.go_above()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether an action may be.

        A slash is also typed into the filter, and closes the help. Who goes away where no shell has
        jobs would never come back.
        """
        match action:
            case "filter":
                return self.focused is self.tree_of_rows
            case "suspend_process":
                return os.getpgrp() != os.getsid(0)
        return True

    def action_filter(self) -> None:
        """Have a text typed that rows are to have."""
        box = self.query_one(Input)
        box.display = True
        self.screen.set_focus(box)  # at once: what is typed next is for it

    def action_filter_no_more(self) -> None:
        """Show all rows."""
        self.query_one(Input).value = ""
        self.on_input_submitted()

    def on_input_changed(self, message: Input.Changed) -> None:
        """Show the rows that have the text so far."""
        self.wanted = message.value
        self.turned_among_wanted.clear()
        self.show_rows()
        self.show_state()

    def on_input_submitted(self) -> None:
        """Have keys again."""
        self.query_one(Input).display = False
        self.tree_of_rows.focus()


def show(eye: Eye, every: float) -> None:
    """Show a running snimux until that is ended by a key or a signal.

    Args:
        eye: looks.
        every: how often, in seconds.
    """
    Top(eye, every).run(mouse=False)  # so that the terminal's own can mark and copy
