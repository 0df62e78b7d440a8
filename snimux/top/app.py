"""Show a running snimux in a terminal: totals, and a tree to look through by keys.

Needs textual: ``snimux[top]``. What is in a line is ``columns``' to say, in which order is
``tree``'s; ``widgets`` draws; this has the keys.
"""

import asyncio
import math
import os
import signal
import time
from typing import ClassVar

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.message import Message
from textual.widgets import Footer, Input, Static

from snimux.status.sample import Key, Sample
from snimux.text import cut, plain
from snimux.top.columns import detail, summary
from snimux.top.poll import Answer, NoAnswer, Poller, PollerThread
from snimux.top.tree import SORTS, Overview, Row, arranged, comparable, lines, overview
from snimux.top.widgets import Help, Tree

# Seconds between two polls.
_PACES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

# Seconds without an answer until that is said: until it is said why may be ten.
_PATIENCE = 3.0

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# Rows of a terminal from which on something is shown beside the tree.
_LEAST_ROWS = {"#head": 4, "#state": 5, "#detail": 9, "Footer": 11, "#summary": 14}


class Polled(Message):
    """The snimux has answered, or has not."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class Top(App[None]):
    """The terminal: totals, the tree, and the row under the cursor."""

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

    def __init__(self, poller: Poller, every: float) -> None:
        """Show what a poller gets.

        Args:
            poller: asks the snimux.
            every: how often, in seconds.
        """
        super().__init__(ansi_color=True)
        self.where = plain(str(poller.address), ascii_only=True)
        self.every = every
        self.thread = PollerThread(poller, every, lambda x: self.post_message(Polled(x)))
        self.past: list[Sample] = []
        """The samples that rates are had from, and the last one."""
        self.hopes_since = math.inf
        """Since when an answer is waited for, if there was none after that."""
        self.overview: Overview | None = None
        self.no_answer: NoAnswer | None = None
        self.sort = SORTS[0]
        self.backwards = False
        self.paused = False
        self.filter_text = ""
        self.all_open = False
        self.turned: set[Key] = set()
        """Rows that are open where others like them are not, or the other way around."""
        self.turned_in_filter: set[Key] = set()
        """The same, while only rows with ``filter_text`` are shown."""

    def compose(self) -> ComposeResult:
        """Make the widgets, from top to bottom."""
        yield Static(f"snimux at {self.where}", id="summary", markup=False)
        yield Static("asking ...", id="state", markup=False)
        yield Input(placeholder="only rows with this text; Enter, or Esc", id="filter")
        yield Static(id="head", markup=False)
        yield Tree()
        yield Static(id="detail", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to poll."""
        self.tree_of_rows.focus()
        for number in _STOP_SIGNALS:  # whoever sends one is not to find the terminal as it is now
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.hopes_since = time.monotonic()
        self.set_interval(1.0, self.show_state)
        self.thread.__enter__()

    def on_unmount(self) -> None:
        """Poll no more."""
        self.thread.__exit__()
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

    def on_polled(self, message: Polled) -> None:
        """Show what was answered."""
        if isinstance(message.answer, NoAnswer):
            self.no_answer = message.answer
        elif not self.paused:  # else it was under way
            self.no_answer = None
            past = comparable(self.past, message.answer)
            self.overview = overview(message.answer, past[0] if past else None)
            self.past = [*past, message.answer]
            self.show_rows()
        self.show_state()

    def show_rows(self) -> None:
        """Put rows in order, and show them."""
        if self.overview is None:
            return
        tree = arranged(
            self.overview.tree, sort=self.sort, backwards=self.backwards, text=self.filter_text
        )
        self.tree_of_rows.put(lines(tree, self.is_open))
        totals = summary(self.overview, self.where)
        self.query_one("#summary", Static).update(
            "\n".join(cut(line, self.size.width, "~") for line in totals)
        )
        self.show_detail()

    def is_open(self, row: Row) -> bool:
        """Return whether what is below a row is shown."""
        if self.filter_text:
            return row.key not in self.turned_in_filter
        return (row.kind == "listener" or self.all_open) != (row.key in self.turned)

    def show_state(self) -> None:
        """Say how rows are shown, and whether they are of now."""
        sample = self.past[-1] if self.past else None
        last = "none yet"
        if sample is not None:
            at = time.localtime(sample.time)
            last = f"the last one at {time.strftime('%H:%M:%S', at)}"
        waits = time.monotonic() - max(self.hopes_since, sample.at if sample else 0)
        if self.no_answer is not None:
            text = f"NO ANSWER: {plain(self.no_answer.why, ascii_only=True)} ({last}; asking again)"
        elif not self.paused and waits > self.every + _PATIENCE:
            text = f"NO ANSWER for {waits:.0f} s ({last}; waiting)"
        elif sample is None:
            text = "asking ..."
        else:
            order = f"by {self.sort}{', backwards' if self.backwards else ''}"
            only = f", only with {self.filter_text!r} (Esc: all)" if self.filter_text else ""
            text = f"{order}, every {self.every:g} s{only}"
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
        """Poll no more, or again."""
        self.paused = not self.paused
        self.hopes_since = time.monotonic()
        self.thread.set_every(math.inf if self.paused else self.every)
        self.show_state()

    def action_pace(self, steps: int) -> None:
        """Poll less often, or more."""
        slower = [x for x in _PACES if x > self.every]
        faster = [x for x in _PACES if x < self.every]
        self.every = next(iter(slower[:1] if steps > 0 else faster[-1:]), self.every)
        if not self.paused:
            self.thread.set_every(self.every)
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
            turned = self.turned_in_filter if self.filter_text else self.turned
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
        """Return whether an action may be.

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
        self.filter_text = message.value
        self.turned_in_filter.clear()
        self.show_rows()
        self.show_state()

    def on_input_submitted(self) -> None:
        """Have keys again."""
        self.query_one(Input).display = False
        self.tree_of_rows.focus()


def show(poller: Poller, every: float) -> None:
    """Show a running snimux until that is ended by a key or a signal.

    Args:
        poller: asks it.
        every: how often, in seconds.
    """
    Top(poller, every).run(mouse=False)  # so that the terminal's own can mark and copy
