"""``top.app``: what keys do to what is shown, without a terminal, and of any size."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from snimux.routing.address import TcpAddress
from snimux.text import cut
from snimux.top.app import Polled, Top
from snimux.top.poll import Poller
from snimux.top.widgets import Tree
from tests.support.caddy import closed_port
from tests.top.test_tree import ONE, Pages, connection, pages, refusal, route, share, state

EVIL = "\x1b[2J\x1b]0;x\x07[red]evil[/red]"

SHOWN = pages(
    shown=[route("a.test", ONE), route("b.test", ONE, not_answering=[ONE]), route("c.test", ONE)],
    shares=[
        share("a.test", ONE, 1, 1, 10, 20),
        share("b.test", ONE, 2, 1, 500, 9000),
        share("c.test", ONE, 9, 0, 1, 1),
    ],
    connections=[connection(1), connection(2, route="b.test", name="b.test", age=99.0)],
    refused=[refusal(1, name=EVIL, detail=EVIL)],
    refusals={"no-route": 1},
    accepted=13,
    active=2,
    routes=3,
)


class Shown:
    """The app, and what is on its screen."""

    def __init__(self, top: Top, pilot: Pilot[None]) -> None:
        self.top = top
        self.pilot = pilot

    async def see(self, shown: Pages, at: float) -> None:
        """Have something found."""
        self.top.post_message(Polled(state(shown, at=at)))
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    @property
    def names(self) -> list[str]:
        """The tree's first words, with what is before them."""
        rows = (self.top.tree_of_rows.columns.line(x) for x in self.top.tree_of_rows.lines)
        return [re.split(r"  +(?=\S)", row.lstrip())[0].strip() for row in rows]

    @property
    def chosen(self) -> str:
        row = self.top.tree_of_rows.row
        return "" if row is None else row.name

    def text(self, name: str) -> str:
        return str(self.top.default_screen.query_one(f"#{name}", Static).render())

    def is_shown(self, name: str) -> bool:
        return bool(self.top.default_screen.query_one(name).display)


@asynccontextmanager
async def running(columns: int, rows: int) -> AsyncIterator[Shown]:
    top = Top(Poller(TcpAddress("127.0.0.1", closed_port())), 3600)
    async with top.run_test(size=(columns, rows)) as pilot:
        shown = Shown(top, pilot)
        while top.no_answer is None:  # nobody is there
            await pilot.pause(0.01)
        text = "NO ANSWER: Connection refused (none yet; asking again)"
        assert shown.text("state") == cut(text, columns, "~")
        await shown.see(SHOWN, 100)
        yield shown


def in_app(test: Callable[[Shown], Awaitable[None]], columns: int = 100, rows: int = 30) -> None:
    """Run a test in textual's own loop."""

    async def run() -> None:
        async with asyncio.timeout(60), running(columns, rows) as shown:
            await test(shown)

    asyncio.run(run())


def test_orders_fold_and_go() -> None:
    async def keys(shown: Shown) -> None:
        listener = "- tls/127.0.0.1:443"
        refused = "+ the last 1 refused"
        assert shown.names == [listener, "+ a.test", "+ b.test", "c.test", refused]
        assert shown.text("state") == "by rate, every 3600 s"
        await shown.press("b")
        assert shown.text("state").startswith("by bytes,")
        assert shown.names == [listener, "+ b.test", "+ a.test", "c.test", refused]
        await shown.press("b")
        assert shown.text("state").startswith("by bytes, backwards,")
        assert shown.names[1:4] == ["c.test", "+ a.test", "+ b.test"]
        await shown.press("c")
        assert shown.names[1:4] == ["+ b.test", "+ a.test", "c.test"]
        await shown.press("a")
        assert shown.names[1:4] == ["+ b.test", "+ a.test", "c.test"]
        await shown.press("n", "down", "j")
        assert (shown.chosen, shown.names[1]) == ("b.test", "+ a.test")
        assert shown.text("detail").startswith(f"route b.test; to {ONE}; from configuration; not")
        await shown.press("enter")
        assert shown.names[2:5] == ["- b.test", "b.test", "c.test"]
        assert shown.chosen == "b.test"
        await shown.press("down")
        assert "192.0.2.1:2" in shown.text("detail")
        await shown.press("left", "left")
        assert shown.names == [listener, "+ a.test", "+ b.test", "c.test", refused]
        await shown.press("left", "left")
        assert shown.names == ["+ tls/127.0.0.1:443", refused]
        await shown.press("right", "e")
        assert shown.names[-2] == "- the last 1 refused"
        assert len(shown.names) == 8
        await shown.press("end")
        assert shown.top.tree_of_rows.cursor == len(shown.names) - 1
        await shown.press("pageup", "home", "up", "k")
        assert shown.top.tree_of_rows.cursor == 0

    in_app(keys)


def test_the_cursor_stays_on_its_row() -> None:
    async def keys(shown: Shown) -> None:
        await shown.press("n", "down", "down", "b")
        assert shown.chosen == "b.test"
        fewer = {**SHOWN, "shown": [route("b.test", ONE)], "shares": [], "connections": []}
        await shown.see(fewer, 101)
        assert shown.chosen == "b.test"
        await shown.see(pages(shown=[], routes=0), 102)
        assert shown.chosen == "tls/127.0.0.1:443"
        await shown.see(pages(shown=[], routes=0, listeners=[]), 103)
        assert (shown.chosen, shown.text("detail")) == ("", "")
        await shown.press("down", "up", "end", "home", "enter", "left", "right", "pagedown")
        await shown.see(SHOWN, 104)
        assert len(shown.names) == 5

    in_app(keys)


def test_the_cursor_goes_to_the_row_that_hides_its_own() -> None:
    async def keys(shown: Shown) -> None:
        await shown.press("n", "e", "down", "down")
        assert "192.0.2.1:1" in shown.text("detail")
        await shown.press("e")
        assert shown.text("detail").startswith("route a.test;")
        await shown.press("e", "down", "home", "down", "down")
        await shown.see({**SHOWN, "connections": []}, 101)
        assert shown.text("detail").startswith("route a.test;")

    in_app(keys)


def test_nothing_is_cut_for_the_bar_where_there_are_more_rows_than_fit() -> None:
    async def keys(shown: Shown) -> None:
        many = [connection(x, client=f"192.0.2.1:{x}") for x in range(1000, 1200)]
        await shown.press("e")
        await shown.see({**SHOWN, "connections": many}, 101)
        tree = shown.top.tree_of_rows
        assert tree.show_vertical_scrollbar
        assert tree.render_line(2).text.rstrip() == tree.columns.line(tree.lines[2]).rstrip()

    in_app(keys, 80, 24)


def test_that_an_answer_is_late_is_said() -> None:
    async def keys(shown: Shown) -> None:
        shown.top.every = 0.5
        shown.top.hopes_since = time.monotonic()
        shown.top.show_state()
        assert shown.text("state") == "by rate, every 0.5 s"
        shown.top.past, shown.top.hopes_since = [], time.monotonic() - 60
        shown.top.show_state()
        assert re.fullmatch(r"NO ANSWER for 6\d s \(none yet; waiting\)", shown.text("state"))
        await shown.press("p")
        assert shown.text("state") == "PAUSED, asking ..."
        await shown.press("p")
        assert "waiting" not in shown.text("state")

    in_app(keys)


def test_rates_do_not_jump_from_one_look_to_the_next() -> None:
    async def keys(shown: Shown) -> None:
        busy = [share("b.test", ONE, 2, 1, 500, 9000), share("c.test", ONE, 9, 0, 1, 5001)]
        await shown.see({**SHOWN, "shares": busy}, 101)
        await shown.see({**SHOWN, "shares": busy}, 102)
        tree = shown.top.tree_of_rows
        (busiest,) = (x.row for x in tree.lines if x.row.name == "c.test")
        assert busiest.rates.down == 2500

    in_app(keys)


def test_a_filter_is_heeded_as_it_is_typed() -> None:
    async def keys(shown: Shown) -> None:
        await shown.press("slash", "b", ".")
        assert shown.names == ["- tls/127.0.0.1:443", "- b.test", "b.test", "the last 1 refused"]
        assert "only with 'b.'" in shown.text("state")
        await shown.press("t", "question_mark", "slash", "q")  # which are no keys now
        assert shown.top.query_one(Input).value == "b.t?/q"
        await shown.press("backspace", "backspace", "backspace", "enter")
        assert not shown.is_shown("#filter")
        await shown.press("e")  # which is one again
        assert shown.top.all_open
        assert "b.test" in shown.names
        assert "c.test" not in shown.names
        await shown.press("escape")
        assert "c.test" in shown.names
        assert "only" not in shown.text("state")

    in_app(keys)


def test_what_is_open_is_open_among_the_wanted_and_again_after() -> None:
    async def keys(shown: Shown) -> None:
        await shown.press("n", "down", "enter", "slash", "a", ".", "enter")
        assert shown.names[:3] == ["- tls/127.0.0.1:443", "- a.test", "a.test"]
        await shown.press("enter")
        assert shown.names[1:] == ["+ a.test", "the last 1 refused"]
        await shown.press("escape")
        assert shown.names[1:4] == ["- a.test", "a.test", "+ b.test"]

    in_app(keys)


def test_pause_and_pace_and_no_answer() -> None:
    async def keys(shown: Shown) -> None:
        await shown.press("p")
        await shown.see(pages(version="2"), 101)
        assert shown.text("state").startswith("PAUSED, by rate")
        assert shown.text("summary").startswith("snimux 1 ")
        await shown.press("p")
        await shown.see(pages(version="2"), 102)
        assert shown.text("summary").startswith("snimux 2 ")
        await shown.press("less_than_sign")
        assert shown.top.every == 60
        await shown.press(*["less_than_sign"] * 9)
        assert shown.top.every == 0.5
        await shown.press("greater_than_sign")
        assert shown.top.every == 1
        last = r"NO ANSWER: Connection refused \(the last one at [\d:]+; asking again\)"
        while not re.fullmatch(last, shown.text("state")):
            await shown.pilot.pause(0.01)
        assert shown.text("summary").startswith("snimux 2 ")  # what was there is left there

    in_app(keys)


def test_any_key_closes_the_help_and_does_nothing_else() -> None:
    async def keys(shown: Shown) -> None:
        for key in ("question_mark", "h", "f1"):
            await shown.press(key)
            assert len(shown.top.screen_stack) == 2
            await shown.press("down")
            await shown.see(SHOWN, 101)
            assert len(shown.top.screen_stack) == 2
            await shown.press({"h": "q", "f1": "slash"}.get(key, "n"))
            assert len(shown.top.screen_stack) == 1
        assert shown.text("state").startswith("by rate")
        assert not shown.is_shown("#filter")
        await shown.press("q")
        assert not shown.top.is_running

    in_app(keys)


@pytest.mark.parametrize("rows", [1, 5, 12, 50])
@pytest.mark.parametrize("columns", [1, 40, 300])
def test_of_any_size_the_tree_is_there_and_no_name_acts(columns: int, rows: int) -> None:
    async def keys(shown: Shown) -> None:
        await shown.press("e")
        tree = shown.top.tree_of_rows
        assert tree.size.height >= max(rows // 3, 1)
        drawn = [tree.render_line(y).text for y in range(tree.size.height)]
        assert all(x.isascii() and x.isprintable() for x in drawn)
        if columns >= 40 and rows >= 12:
            assert "a.test" in "".join(drawn)
            await shown.press("end")
            assert r"\x1b[2J\x1b]0;x\x07[red]evil[/red]" in shown.text("detail")
        for name, least in (("#summary", 14), ("#head", 4), ("#state", 5), ("#detail", 9)):
            assert shown.is_shown(name) == (rows >= least)
        for width, height in ((80, 24), (20, 4), (columns, rows)):
            await shown.pilot.resize_terminal(width, height)
            await shown.pilot.pause()
            assert shown.is_shown("#summary") == (height >= 14)
        assert isinstance(tree, Tree)

    in_app(keys, columns, rows)
