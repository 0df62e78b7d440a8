"""``status.events``: what is shown, made once for all who watch, and for nobody not at all."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.status.api import Answers, Figures, Reloaded, Uptime
from snimux.status.checkup import Checkup
from snimux.status.events import Feed, all_pages, shown
from snimux.status.metrics import REST, Metrics, Piece, snapshot
from snimux.status.web import Page, Stream

HEAD = {
    "limit": 7,
    "routes": 1,
    "draining": False,
    "listeners": [{"protocol": "tls", "address": "a"}],
}
SILENT: Piece = {"backend": "10.0.0.1:1", "is_up": False, "silent_for": 12.4}
UP: Piece = {"backend": "10.0.0.1:1", "is_up": True, "silent_for": None}


def routes(*patterns: str, total: int | None = None) -> Piece:
    rows = [{"pattern": each, "backend": ["10.0.0.1:1"], "http": None} for each in patterns]
    return {"total": len(rows) if total is None else total, "routes": rows, "refused": []}


def backends(*rows: Piece) -> Piece:
    return {"down": sum(not row["is_up"] for row in rows), "backends": list(rows)}


def figures(*shares: list[Any], workers: dict[int, bool] | None = None, **counts: Any) -> Figures:
    """The figures of one process that has these shares, and else nothing."""
    pieces = [*Metrics().pieces(), {"shares": list(shares)}]
    figures = snapshot(pieces)
    for word, more in counts.items():
        figures.counts[word].update(more)
    return Figures(figures, {1: [HEAD]}, workers or {})


@dataclass
class Asked:
    """Processes that answer as they are told to, and what they were asked."""

    answers: dict[str, Answers] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    takes: float = 0
    why_not: str | None = None

    async def ask(self, what: str) -> Answers:
        self.asked.append(what)
        await trio.sleep(self.takes)
        return self.answers.get(what, {1: [routes("a.test"), backends(UP)]})

    async def figures(self) -> Figures:
        self.asked.append("figures")
        return figures()

    def why_not_serving(self) -> str | None:
        return self.why_not

    def uptime(self) -> Uptime:
        return Uptime(time.monotonic() - 5, Reloaded(1.0, ["f: no"] * 9))


def read(event: bytes) -> Any:
    first, data, end = event.split(b"\n", 2)
    assert (first, end) == (b"retry: 1000", b"\n")
    return json.loads(data.removeprefix(b"data: "))


async def test_nothing_is_asked_while_nobody_watches(mock_clock: MockClock) -> None:
    source = Asked()
    more = Feed(source).listener()
    mock_clock.jump(100)
    assert source.asked == []
    event = read(await more())
    assert event["state"] == "serving"
    assert 5 <= event["uptime"] < 60
    assert event["reload"] == {"time": 1.0, "problems": ["f: no"] * 5}
    assert source.asked == ["figures", "live"]
    mock_clock.jump(100)
    await wait_all_tasks_blocked()
    assert source.asked == ["figures", "live"]


async def test_all_who_watch_have_the_same_once_a_second(mock_clock: MockClock) -> None:
    source = Asked()
    live = Feed(source)
    got: list[bytes] = []

    async def watch(more: Callable[[], Any], times: int) -> None:
        for _ in range(times):
            got.append(await more())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(watch, live.listener(), 3)
        for number in range(1, 4):
            while len(got) < 5 * number:
                await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()
            assert source.asked.count("live") == number
            assert len({*got[-5:]}) == 1
            mock_clock.jump(1)
    assert [read(each)["time"] for each in got[::5]] == pytest.approx(
        [read(got[0])["time"] + each for each in range(3)]
    )


async def test_who_comes_later_gets_what_there_is_and_nothing_that_is_old(
    mock_clock: MockClock,
) -> None:
    source = Asked()
    live = Feed(source)
    first = await live.listener()()
    mock_clock.jump(0.5)
    assert await live.listener()() is first
    mock_clock.jump(60)
    source.why_not = "draining"
    late = read(await live.listener()())
    assert (late["state"], late["time"] - read(first)["time"]) == ("draining", 60.5)
    assert late["instance"] == read(first)["instance"] != Feed(source).instance


async def test_one_who_goes_while_it_is_made_leaves_it_to_the_next(mock_clock: MockClock) -> None:
    source = Asked(takes=5)
    live = Feed(source)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live.listener())
            await wait_all_tasks_blocked()
            scope.cancel()
    source.takes = 0
    assert read(await live.listener()())["state"] == "serving"


async def test_what_takes_long_is_made_seldom(mock_clock: MockClock) -> None:
    source = Asked(takes=0.5)
    live = Feed(source)
    more = live.listener()
    mock_clock.rate = 1000
    await more()
    mock_clock.rate = 0
    assert live.pause >= 0.5 * 20


async def test_one_that_is_stuck_makes_it_no_more_seldom(mock_clock: MockClock) -> None:
    source = Asked({"live": {1: [routes("a.test"), backends(UP)], 2: None}}, takes=1)
    live = Feed(source)
    mock_clock.rate = 1000
    await live.listener()()
    mock_clock.rate = 0
    assert live.pause == 1


def test_what_has_traffic_is_shown_first_and_no_more_than_fits() -> None:
    shares = [[f"n{x}.test", "10.0.0.1:1", x, 0, 0, 0] for x in range(150)]
    told = shown(figures(*shares), {1: [routes("idle.test", total=151), backends()]})
    rows = told["routes"]["rows"]
    assert told["routes"]["total"] == 151
    assert [row["pattern"] for row in rows] == [f"n{x}.test" for x in range(149, 49, -1)]
    assert (told["limit"], told["listeners"]) == (7, HEAD["listeners"])
    assert rows[0] == {
        "pattern": "n149.test", "backend": ["10.0.0.1:1"], "connections": 149, "active": 0,
        "up": 0, "down": 0,
    }  # fmt: skip


def test_routes_without_traffic_follow() -> None:
    share = ["b.test", "10.0.0.1:1", 1, 1, 2, 3]
    told = shown(figures(share), {1: [routes("a.test", "b.test"), backends()]})
    assert [(x["pattern"], x["down"]) for x in told["routes"]["rows"]] == [
        ("b.test", 3),
        ("a.test", 0),
    ]
    assert (told["up"], told["down"]) == (2, 3)
    (row,) = told["backends"]["rows"]
    assert (row["backend"], row["health"], row["connections"]) == ("10.0.0.1:1", "unknown", 1)


def test_a_route_that_refuses_says_so_where_others_have_backends() -> None:
    refusing = {"pattern": "b.test@in", "backend": None, "http": None, "refuses": True}
    rows = routes("a.test")
    told = shown(figures(), {1: [{**rows, "routes": [*rows["routes"], refusing]}, backends()]})
    found = {x["pattern"]: x["backend"] for x in told["routes"]["rows"]}
    assert found["b.test@in"] == ["refuse"]
    assert "refuse" not in [x["backend"] for x in told["backends"]["rows"]]


def test_what_has_no_route_any_more_is_shown_too() -> None:
    told = shown(figures([REST, REST, 1, 0, 0, 9]), {1: [routes("a.test"), backends()]})
    assert [x["pattern"] for x in told["routes"]["rows"]] == [REST, "a.test"]


@pytest.mark.parametrize(
    ("states", "health", "words"),
    [
        ([UP], "up", ""),
        ([SILENT], "down", "no answer for 12 s"),
        ([SILENT | {"silent_for": 119.0}], "down", "no answer for 119 s"),
        ([SILENT | {"silent_for": 3600.0}], "down", "no answer for 60 min"),
        ([SILENT | {"silent_for": 172_800.0}], "down", "no answer for 2 d"),
        ([SILENT | {"silent_for": None}], "down", "fails its checks"),
        ([UP, SILENT], "down", "no answer for 12 s, for 1 of 2 workers"),
        ([SILENT, SILENT], "down", "no answer for 12 s"),
    ],
)
def test_the_health_of_a_backend_is_that_in_all_workers(
    states: list[Piece], health: str, words: str
) -> None:
    answers = {
        number: [routes("a.test"), backends(state)] for number, state in enumerate(states, 1)
    }
    told = shown(figures(), answers)["backends"]
    (row,) = told["rows"]
    assert (row["health"], row["words"]) == (health, words)
    assert told["down"] == (health == "down")


def test_each_worker_may_know_of_another_that_is_down() -> None:
    other = SILENT | {"backend": "10.0.0.2:1"}
    told = shown(figures(), {1: [backends(SILENT)], 2: [backends(other)], 3: [backends()]})
    assert told["backends"]["down"] == 2
    # and of very many it tells how many there are, and some
    many = backends(SILENT) | {"down": 500}
    assert shown(figures(), {1: [many]})["backends"]["down"] == 500


def test_reasons_are_in_words_and_the_last_refused_of_all_workers_in_order() -> None:
    def refused(*times: int) -> Piece:
        return {"refused": [{"number": x, "time": x, "reason": "ssh"} for x in times]}

    answers = {1: [refused(1, 4)], 2: [refused(*range(5, 20))], 3: None}
    told = shown(figures(refused={"ssh": 2, "no-route": 3}), answers)
    assert [(x["reason"], x["count"]) for x in told["refused"]] == [("no-route", 3), ("ssh", 2)]
    assert told["refused"][0]["means"] == "no route has a pattern that matches"
    assert "--route" in told["refused"][0]["remedy"]
    assert [x["number"] for x in told["last_refused"]] == list(range(19, 9, -1))


def test_a_fault_of_a_provider_is_shown_once_whichever_workers_tell_it() -> None:
    one, two = "/routes: a.toml: not UTF-8", "/routes: b.toml: is a FIFO"
    told = shown(figures(), {1: [{"faults": [one]}], 2: [{"faults": [two, one]}], 3: None})
    assert told["faults"] == [one, two]
    assert shown(figures(), {1: [routes("a.test")]})["faults"] == []  # an older one tells none


def test_before_any_worker_has_answered_there_is_nothing_to_show() -> None:
    told = shown(Figures(snapshot([*Metrics().pieces()]), {1: None}, {1: False}), {1: None})
    assert told["routes"] == {"total": 0, "rows": []}
    assert told["backends"] == {"down": 0, "rows": []}
    assert told["workers"] == {"1": False}


async def made(path: str, source: Asked, told: str = "") -> Page | Stream:
    return await all_pages(source, Checkup([]))[path](told)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("A%20%3Cb%3E", "a <b>"),
        ("a%0Ab%09%20c", "a b c"),
        ("x" * 999, "x" * 255),
        ("%FF", "\ufffd"),
    ],
)
async def test_what_is_looked_for_is_asked_on_one_line(query: str, wanted: str) -> None:
    question = f"find {wanted}"
    source = Asked({question: {1: None, 2: [{}, routes("a.test", total=3)]}})
    page = await made("/find?", source, query)
    assert isinstance(page, Page)
    told = json.loads(page.body)
    assert (source.asked[0], told["total"]) == (question, 3)
    assert [(row["pattern"], row["connections"]) for row in told["rows"]] == [("a.test", 0)]


async def test_a_search_that_has_no_answer_is_none_without_hits() -> None:
    page = await made("/find?", Asked({"find x": {1: None}}), "x")
    assert isinstance(page, Page)
    assert (page.status, page.body) == (503, b"no worker has answered in time\n")


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js"])
async def test_the_page_may_load_nothing_from_elsewhere(path: str) -> None:
    page = await made(path, Asked())
    assert isinstance(page, Page)
    policy = dict(page.headers)["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert len(page.body) > 1000


async def test_the_doctor_is_asked_by_either_path() -> None:
    for path in ("/doctor", "/doctor?"):
        page = await made(path, Asked())
        assert isinstance(page, Page)
        assert json.loads(page.body)["looking"] is True
