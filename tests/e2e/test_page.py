"""``snimux/status/page``: the live page in a real browser, of a snimux with real traffic."""

import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.test_serve import client_hello
from tests.e2e.test_status import WORKERS, answer, refused, watched
from tests.service import test_upgrade
from tests.support import browser, muxes
from tests.support.browser import Browser, Tab
from tests.support.caddy import closed_port, free_port, short_directory

pytestmark = pytest.mark.needs(browser.missing, "needs chromium: apt-get install chromium")

HOSTILE = "<img src=x onerror=document.title='hit'>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all: it takes a second or more to start."""
    with browser.started() as found:
        yield found


@contextlib.asynccontextmanager
async def opened(
    chromium: Browser, status: tuple[str, int] | str, **screen: Any
) -> AsyncIterator[Tab]:
    """The page, with figures; in the end nobody has complained of anything."""
    assert not isinstance(status, str)
    async with chromium.attached() as attached:
        tab = await attached.tab(**screen)
        await tab.open(f"http://127.0.0.1:{status[1]}/")
        await tab.until("document.getElementById('state').dataset.state != 'waiting'")
        yield tab
        assert tab.complaints() == []


def line(table: str, row: str) -> str:
    """A line of a table, as a script."""
    return f"document.querySelector('#{table}-table tr[data-row=\"{row}\"]')"


def cell(table: str, row: str, column: str) -> str:
    """The value of a cell, as a script."""
    return (
        f"(() => {{const head = document.querySelector('#{table}-table th[data-key={column}]');"
        f"const row = {line(table, row)};"
        "return row && Number(row.cells[head.cellIndex].dataset.value)})()"
    )


def document(identifier: str) -> str:
    """An element, as a script."""
    return f"document.getElementById({json.dumps(identifier)})"


def words(selector: str) -> str:
    """What is to be read there, as a script."""
    return f"document.querySelector({json.dumps(selector)}).innerText"


@WORKERS
async def test_numbers_are_what_was_sent(chromium: Browser, workers: int) -> None:
    sent = [("a.test", x * 1000, x * 30_000 + 1) for x in range(5)] + [
        ("second.test", 3_000_000, 1)
    ]
    up, down = {"a.test": 0, "second.test": 0}, {"a.test": 0, "second.test": 0}
    async with watched(workers=workers) as run, opened(chromium, run.status) as tab:
        for name, some_up, some_down in sent:
            up[name] += await run.exchange(name, some_up, some_down)
            down[name] += some_down
        for name in ["nobody.test"] * 3 + ["down.test"] * 2:
            await refused(run, client_hello(name, ("h2",)))
        await refused(run, b"GET / HTTP/1.1\r\n\r\n")
        stream, size = await run.opened("a.test", 5000, 7000)
        up["a.test"] += size
        down["a.test"] += 7000
        async with stream:
            for name, count, active in (("a.test", 6, 1), ("second.test", 1, 0)):
                wanted = {
                    "connections": count,
                    "active": active,
                    "up": up[name],
                    "down": down[name],
                }
                for column, value in wanted.items():
                    await tab.until(cell("routes", name, column), value)
            await tab.until(cell("backends", run.backend, "connections"), 7)
            await tab.until(cell("backends", run.backend, "active"), 1)
            await tab.until(cell("backends", run.down[0], "failures"), 2)
            for reason, count in (("no-route", 3), ("backend-down", 2), ("http", 1)):
                await tab.until(cell("refused", reason, "count"), count)
            assert await tab.run(words("#refused-total")) == "6"
            assert "give it a --route" in await tab.run(words("#refused-table"))
            assert await tab.run("document.querySelectorAll('#last-table tbody tr').length") == 5
            await tab.until(
                "Number(document.querySelector('#plot-active p span').dataset.value)", 1
            )
            assert "13 in all" in await tab.run(words("#plot-new figcaption"))
            in_all = f"{round(sum(down.values()) / 1000)} kB in all"
            assert in_all in await tab.run(words("#plot-down figcaption"))
            curves = "document.querySelectorAll('#plots .curve')"
            await tab.until(f"[...{curves}].slice(0, 4).every((x) => x.getAttribute('d'))")
            state = await tab.run(words("#state-words"))
            assert state == "Serving, but 2 backends down. 1 connection, 4 routes."
        await tab.until(cell("routes", "a.test", "active"), 0)
        # then both times are known of connections that have ended
        await tab.until(f"[...{curves}].every((x) => x.getAttribute('d'))")
        asked = {re.sub(r":\d+", "", url) for url in tab.asked()}
        pages = ("", "page.css", "page.js", "events", "doctor")
        assert {url for url in asked if not url.startswith("data:")} == {
            f"http://127.0.0.1/{each}" for each in pages
        }


async def test_the_empty_is_explained_and_the_doctor_asked(
    chromium: Browser, tmp_path: Path
) -> None:
    caddy = f"127.0.0.1:{closed_port()}"
    async with muxes.running(tmp_path, "--status=127.0.0.1:0", f"--caddy={caddy}") as mux:
        address = (await mux.log_line(event="status"))["address"]
        host, _, port = address.rpartition(":")
        async with opened(chromium, (host, int(port))) as tab:
            state = await tab.run(words("#state-words"))
            fault = f"routes not read: {caddy}: Connection refused"
            assert state == (f"Serving, but there is no route; {fault}. 0 connections, 0 routes.")
            assert "no route is configured" in await tab.run(words("#routes-note"))
            assert "no route leads" in await tab.run(words("#backends-note"))
            assert await tab.run(words("#refused-note")) == "Nobody was refused yet."
            assert await tab.run(words("#plot-first figcaption")) == (
                "nothing yet\nnone in the last 10 s"
            )
            tables = "[...document.querySelectorAll('.table')].filter((x) => x.checkVisibility())"
            assert await tab.run(f"{tables}.length") == 0
            # what it finds is its own matter; here there is a Caddy that does not answer
            await tab.until("document.querySelectorAll('#findings li').length > 0")
            assert "ago" in await tab.run(words("#doctor-state"))
            assert "wrong" in await tab.run(words("#doctor-total"))
            await tab.run("document.getElementById('doctor-again').click()")
            await tab.until(f"{words('#doctor-state')}.startsWith('It has just looked')")


async def test_what_others_wrote_is_only_text_on_any_screen(chromium: Browser) -> None:
    long = f"{'x' * 60}.{'y' * 60}.{'z' * 60}.{'w' * 60}.test"
    with short_directory() as here:
        flags = [f"--route=hostile.test=unix/{here}/{HOSTILE}", f"--route={long}=127.0.0.1:1"]
        async with watched(*flags) as run, opened(chromium, run.status) as tab:
            hello = client_hello("a" * len(HOSTILE.encode()), ("h2",))
            await refused(run, hello.replace(b"a" * len(HOSTILE.encode()), HOSTILE.encode()))
            await refused(run, client_hello("hostile.test", ("h2",)))
            await refused(run, client_hello(long, ("h2",)))
            await tab.until("document.querySelectorAll('#last-table tbody tr').length == 3")
            shown = await tab.run(f"{line('routes', 'hostile.test')}.innerText")
            assert HOSTILE in shown
            # no word of theirs is in what is to be copied
            assert await tab.run(words("#explain")) == (
                f"snimux explain --refused 3 --status 127.0.0.1:{run.status[1]}"
            )
            # no field of the log has such a sign; should one come to have it, it turns nothing
            assert await tab.run(r"plain('a\u202eb\u0000<')") == r"a\u{202e}b\u{0}<"
            assert await tab.run("document.querySelectorAll('img').length") == 0
            # as text to look for, too
            await tab.run(
                f"find.value = {json.dumps(HOSTILE)}; find.dispatchEvent(new Event('input'))"
            )
            await tab.until(words("#routes-note"), "1 of 6 has it.")
            await tab.run("find.value = ''; find.dispatchEvent(new Event('input'))")
            for width in (320, 360, 768, 1280):
                await tab.resize(width, 800, dark=False)
                wide = "document.documentElement.scrollWidth - innerWidth"
                assert await tab.run(wide) <= 0, width
            assert not (await tab.run("document.title")).startswith("hit")


async def test_tables_of_common_names_fit_without_scrolling(chromium: Browser) -> None:
    names = ("secure.ciso.com", "traefik.ciso.com", "*.apps.ciso.com")
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        port = listener.socket.getsockname()[1]
        flags = [f"--route={','.join(names)}=127.0.0.1:{port}"]
        async with watched(*flags) as run, opened(chromium, run.status) as tab:
            for _ in range(12):
                await run.exchange("secure.ciso.com", 200_000, 300_000)
            await refused(run, client_hello("down.test", ("h2",)))
            await tab.until(cell("routes", "secure.ciso.com", "connections"), 12)
            # none of these is one long word, though one has its addresses below it
            assert await tab.run("document.querySelectorAll('td.long, th.long').length") == 0
            for width in (360, 768, 1280):
                await tab.resize(width, 800, dark=False)
                cut = "[...document.querySelectorAll('.table')].filter((x) =>"
                cut += (
                    " x.checkVisibility() && x.scrollWidth > x.clientWidth).map((x) => x.innerText)"
                )
                assert await tab.run(cut) == [], width
        nursery.cancel_scope.cancel()


async def test_on_paper_it_is_light_and_has_no_controls(chromium: Browser) -> None:
    async with watched() as run, opened(chromium, run.status, dark=True) as tab:
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        await tab.call("Emulation.setEmulatedMedia", media="print", features=features)
        ground = "getComputedStyle(document.body).backgroundColor"
        assert await tab.run(ground) == "rgb(251, 251, 250)"
        shown = "[...document.querySelectorAll('nav, input, .tools button')].filter((x) =>"
        assert await tab.run(f"{shown} x.checkVisibility()).length") == 0


@WORKERS
async def test_it_tells_where_it_listens_and_how_a_reload_went(
    chromium: Browser, tmp_path: Path, workers: int
) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text("drain = 3\n", "utf-8")
    flags = (f"--config={file}", "--watch=off")
    async with watched(*flags, workers=workers) as run, opened(chromium, run.status) as tab:
        assert await tab.run(words("#listeners")) == f"127.0.0.1:{run.mux.port} (tls)"
        assert re.fullmatch(r"\d+ s", await tab.run(words("#uptime")))
        assert await tab.run(words("#reload")) == "as at the start"
        state = document("state") + ".dataset.state"
        for text, wanted, how in (
            ("drain = 'x'", "not reloaded at", "warn"),
            ("drain = 4", "reloaded at", "good"),
        ):
            file.write_text(text, "utf-8")
            run.mux.send_signal(signal.SIGHUP)
            await tab.until(
                f"{words('#reload')}.replace('\u2715', '').trim().startsWith('{wanted}')"
            )
            assert ("drain" in await tab.run(words("#reload"))) == (how == "warn")
            await tab.until(state, how)


@WORKERS
async def test_a_file_of_routes_that_is_wrong_is_named(
    chromium: Browser, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "good.toml").write_text('[[route]]\nhosts = "a.example"\nto = "127.0.0.1:1"\n')
    async with (
        watched(f"--routes-dir={tmp_path}", workers=workers) as run,
        opened(chromium, run.status) as tab,
    ):
        state = document("state") + ".dataset.state"
        await tab.until(state, "good")
        (tmp_path / "bad.toml").write_text("<img src=x onerror=document.title='hit'>")
        await tab.until(state, "warn")
        said = await tab.run(words("#faults"))
        assert said.startswith(f"{tmp_path}: bad.toml: not TOML: ")
        assert said.count("bad.toml") == 1  # of all workers
        (tmp_path / "bad.toml").unlink()
        await tab.until(state, "good")
        assert await tab.run(words("#faults")) == ""


async def test_who_comes_back_sees_what_is_old_as_that_and_no_burst(chromium: Browser) -> None:
    async with watched() as run, opened(chromium, run.status) as tab:
        await run.exchange("a.test", 10, 10)
        await tab.until(cell("routes", "a.test", "connections"), 1)
        await tab.run("Object.defineProperty(document, 'hidden', {get: () => !!window.away})")
        change = "document.dispatchEvent(new Event('visibilitychange'))"
        await tab.run(f"window.away = true; {change}")
        assert await tab.run("[source, document.title]") == [None, "snimux"]
        for _ in range(20):
            await run.exchange("a.test", 10, 100_000)
        # an hour has gone by; and what is known of that is said before more is
        await tab.run("heard -= 3600; shown.time -= 3600;"
                      "for (const x of points) x.at -= 3600;"
                      "for (const x of liveRates.before.values()) x.time -= 3600")  # fmt: skip
        back = f"(() => {{window.away = false; {change}; return {words('#state-words')}}})()"
        assert await tab.run(back) == "What is shown is 1 h old; asking."
        await tab.until(cell("routes", "a.test", "connections"), 21)
        assert await tab.run(f"{document('state')}.dataset.state") == "good"
        first = "points.find((x) => x.at > seconds() - 60)"
        assert await tab.run(f"[{first}.accepted, {first}.down]") == [None, None]


async def test_a_span_is_said_as_a_person_says_it(chromium: Browser) -> None:
    spans = {
        0: "0 s",
        59.9: "59 s",
        61: "1 min",
        3600: "1 h",
        7320: "2 h 2 min",
        266_400: "3 d 2 h",
    }
    async with watched() as run, opened(chromium, run.status) as tab:
        assert await tab.run(f"{list(spans)}.map(span)") == list(spans.values())


async def test_text_is_told_from_its_ground(chromium: Browser) -> None:
    async with watched() as run, opened(chromium, run.status) as tab:
        await refused(run, client_hello("down.test", ("h2",)))
        await tab.until("document.querySelectorAll('#last-table tbody tr').length", 1)
        for dark, ground in ((False, "rgb(251, 251, 250)"), (True, "rgb(20, 23, 26)")):
            await tab.resize(1280, 900, dark=dark)
            assert await tab.run("getComputedStyle(document.body).backgroundColor") == ground
            assert await tab.run(_FAINT) == []


# WCAG 2.2, 1.4.3: each element that has text of its own, and its ratio where that is below 4.5.
_FAINT = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, place) => sum + x * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((parts(colour)[3] ?? 1) === 1) return colour;
    }
  };
  const found = [];
  let seen = 0;
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((x) => x.nodeType === 3 && x.data.trim());
    if (!own || !element.checkVisibility()) continue;
    seen += 1;
    const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName} ${element.innerText}: ${ratio}`);
  }
  return seen > 50 ? found : [`only ${seen} were seen`];
})()"""


async def test_all_can_be_done_by_keyboard(chromium: Browser) -> None:
    async with watched() as run, opened(chromium, run.status) as tab:
        await tab.prefer(reduced_motion="reduce")
        scrolls = "getComputedStyle(document.documentElement).scrollBehavior"
        assert await tab.run(scrolls) == "auto"
        await tab.press("Tab")
        assert await tab.run("document.activeElement.className") == "skip"
        assert await tab.run("document.activeElement.getBoundingClientRect().left >= 0")
        await tab.press("Enter")
        await tab.until("document.activeElement.id", "main")
        reached, outlined = [], "getComputedStyle(document.activeElement).outlineStyle"
        for _ in range(60):
            await tab.press("Tab")
            if await tab.run("document.activeElement.closest('main, footer') === null"):
                break
            reached.append(await tab.run("document.activeElement.innerText.split('\\n')[0]"
                                         " || document.activeElement.id"))  # fmt: skip
            assert await tab.run(outlined) == "solid", reached
            if reached[-1] == "Pattern":
                await tab.press("Enter")
                sort = "document.activeElement.parentElement.getAttribute('aria-sort')"
                await tab.until(sort, "ascending")
                rows = await tab.run("[...document.querySelectorAll('#routes-table tbody tr')]"
                                     ".map((x) => x.dataset.row)")  # fmt: skip
                assert rows == sorted(rows)
                assert len(rows) == 4
        controls = await tab.run("[...document.querySelectorAll('main a, main button, main input,"
                                 " footer a')].filter((x) => x.checkVisibility())"
                                 ".map((x) => x.innerText || x.id)")  # fmt: skip
        assert {"find", "Look again", "/metrics"} <= set(controls)
        assert set(controls) <= set(reached)


async def test_a_screen_reader_is_told_what_there_is(chromium: Browser) -> None:
    async with watched() as run, opened(chromium, run.status) as tab:
        await run.exchange("a.test", 10, 10)
        await refused(run, client_hello("down.test", ("h2",)))
        await tab.until("document.querySelectorAll('#last-table tbody tr').length", 1)
        await tab.until(cell("routes", "a.test", "connections"), 1)
        names = await tab.names()
        for role, name in (
            ("banner", ""), ("main", ""), ("contentinfo", ""),
            ("navigation", "Parts of this page"), ("heading", "snimux 0.1.0"),
            ("heading", "Routes 4"), ("heading", "Backends 1 down"), ("heading", "Refused 1"),
            ("region", "What the doctor says"), ("searchbox", "Find a route or a backend"),
            ("button", "Look again"), ("button", "Pattern"), ("rowheader", "a.test"),
            ("columnheader", "Connections"), ("cell", "down: no answer for"),
            ("table", "Routes, where they lead, and what they were used for"),
            ("table", "Addresses that routes lead to, and how they are"),
            ("image", "Connections, the last two minutes: least"), ("figure", ""),
        ):  # fmt: skip
            assert any(x == role and y.startswith(name) for x, y in names), (role, name, names)
        headings = await tab.run("[...document.querySelectorAll('h1, h2, h3')]"
                                 ".map((x) => Number(x.tagName[1]))")  # fmt: skip
        assert all(after - before <= 1 for before, after in pairwise(headings))
        # said politely, and then no more until something changes
        live = "document.getElementById('live')"
        assert await tab.run(f"[{live}.role, {live}.textContent]") == [
            "status", f"Serving, but 1 backend down. 0 connections, 4 routes. Down: {run.down[0]}."
        ]  # fmt: skip
        of_what = "{childList: true, characterData: true, subtree: true}"
        observer = f"new MutationObserver(() => window.said++).observe({live}, {of_what})"
        await tab.run(f"window.said = 0; {observer}")
        for count in range(2, 4):
            await run.exchange("a.test", 10, 10)
            await tab.until(cell("routes", "a.test", "connections"), count)
        assert await tab.run("window.said") == 0


async def test_it_comes_back_when_snimux_does(chromium: Browser, tmp_path: Path) -> None:
    port = free_port()
    flags = [f"--status=127.0.0.1:{port}", "--route=a.test=127.0.0.1:1"]
    async with chromium.attached() as attached:
        tab = await attached.tab()
        state = "document.getElementById('state').dataset.state"
        for number in range(2):
            (tmp_path / str(number)).mkdir()
            async with muxes.running(tmp_path / str(number), *flags) as mux:
                await mux.log_line(event="status")
                if number == 0:
                    await tab.open(f"http://127.0.0.1:{port}/")
                await tab.until(state, "good")
                mux.send_signal(signal.SIGTERM)
                assert await mux.exit_status() == 0
            await tab.until(f"{words('#state-words')}.startsWith('Lost touch')")
            assert (await tab.run("document.title")) == "snimux: lost touch"
            assert "Lost touch" in await tab.run("document.getElementById('live').textContent")


async def test_it_goes_on_through_an_upgrade(chromium: Browser) -> None:
    port = free_port()
    with short_directory() as here:
        async with test_upgrade.running(here, f"--status=127.0.0.1:{port}", workers=2) as run:
            await run.mux.log_line(event="status")
            async with chromium.attached() as attached:
                tab = await attached.tab()
                await tab.open(f"http://127.0.0.1:{port}/")
                await tab.until("document.getElementById('state').dataset.state", "good")
                instance = await tab.run("shown.instance")
                await run.upgrade()
                await tab.until(f"shown.instance != {json.dumps(instance)}")
                await tab.until("document.getElementById('state').dataset.state", "good")


async def test_it_says_so_while_snimux_drains(chromium: Browser) -> None:
    async with watched() as run, opened(chromium, run.status) as tab:
        stream, _ = await run.opened("a.test", 10, 10)
        async with stream:
            run.mux.send_signal(signal.SIGTERM)
            await tab.until(words("#state-words"), "Draining: 1 connection open.")
            await tab.call("Page.navigate", url="about:blank")


async def test_who_finds_no_place_is_told_so_and_gets_one_later(chromium: Browser) -> None:
    async with watched() as run, chromium.attached() as attached:
        assert not isinstance(run.status, str)
        tab = await attached.tab()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(8):
                stream = await trio.open_tcp_stream(*run.status)
                await stack.enter_async_context(stream)
                await stream.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert await stream.receive_some(12) == b"HTTP/1.1 200"
            await tab.open(f"http://127.0.0.1:{run.status[1]}/")
            await tab.until(
                words("#state-words"),
                "Not watching: 8 watch already, and more may not. Trying again.",
            )
        await tab.until("document.getElementById('state').dataset.state", "good")


async def test_of_very_many_routes_some_are_shown_and_the_rest_found(
    chromium: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "snimux.toml"
    route = '[[route]]\nhosts = "n{}.example"\nto = "127.0.0.1:1"\n'
    file.write_text("".join(route.format(x) for x in range(10_000)), "utf-8")
    flags = (f"--config={file}", "--watch=off")
    async with watched(*flags) as run, opened(chromium, run.status) as tab:
        await run.exchange("b.test", 10, 10)
        await tab.until(cell("routes", "b.test", "connections"), 1)
        rows = "[...document.querySelectorAll('#routes-table tbody tr')].map((x) => x.dataset.row)"
        shown = await tab.run(rows)
        assert (len(shown), shown[0]) == (100, "b.test")
        assert await tab.run(words("#routes-total")) == "10,004"
        await tab.run("find.value = ' N9999 '; find.dispatchEvent(new Event('input'))")
        await tab.until(words("#routes-note"), "1 of 10,004 has it.")
        assert await tab.run(rows) == ["n9999.example"]
        await tab.run("find.value = 'n'; find.dispatchEvent(new Event('input'))")
        await tab.until(words("#routes-note"), "The first 100 of 10,002 that have it.")


def test_the_page_asks_nobody_else_and_needs_no_markup_of_others() -> None:
    page = Path(__file__).parents[2] / "snimux/status/page"
    script = (page / "page.js").read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    for file in page.iterdir():
        urls = re.findall(r"(?:https?:)?//[a-z][\w.]+", file.read_text("utf-8"))
        assert set(urls) <= {"http://www.w3.org"}, file.name
