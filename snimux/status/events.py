"""The live page: how a running snimux is, moving, for a person with a browser.

The page itself is in ``page``, and brings all that it shows of its own: nothing is loaded from
elsewhere, and its Content-Security-Policy has the browser refuse to. What moves comes as
server-sent events, one a second, put together once for all who watch; while nobody does, nothing
is asked and nothing made.

Knows what is shown, and not how it looks. Source: WHATWG HTML, Server-sent events; W3C CSP 3.
"""

import json
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from heapq import nlargest
from importlib.resources import files
from typing import Any
from urllib.parse import unquote

import trio

from snimux import __version__
from snimux.proto.reason import Reason
from snimux.status.api import (
    NONE,
    Answers,
    Source,
    Whole,
    common,
    gathered,
    named,
    newest,
    pages,
    total,
)
from snimux.status.checkup import Checkup
from snimux.status.local import MOST_LAST, MOST_LIVE
from snimux.status.metrics import BOUNDS, Snapshot
from snimux.status.web import Page, Pages, Stream

# Seconds from one to the next; but with very many routes, to put one together takes no more than a
# part of the time.
_EVERY = 1.0
_SHARE = 20

# Milliseconds until a browser whose stream was cut asks again; else 3 to 5 seconds, or more.
_RETRY = 1000

# Of what a person looks for.
_LONGEST_WANTED = 255

_TIMES = ("hello_seconds", "first_byte_seconds")

# What a client said can be no script: there is none but the page's own, and it writes text only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_HEADERS = (("Content-Security-Policy", _POLICY), ("Referrer-Policy", "no-referrer"))
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def all_pages(source: Source, checkup: Checkup) -> Pages:
    """The live page, what it asks for, and all other pages, by path."""
    live = Live(source)
    return {
        **pages(source),
        **{path: partial(_file, *each) for path, each in _FILES.items()},
        "/events": partial(_events, live),
        "/find?": partial(_find, source),
        "/doctor": partial(_doctor, checkup, False),
        "/doctor?": partial(_doctor, checkup, True),
    }


async def _file(name: str, kind: str, accept: str) -> Page:
    return Page((files("snimux.status") / "page" / name).read_bytes(), kind, headers=_HEADERS)


async def _events(live: "Live", accept: str) -> Stream:
    return Stream(live.listener())


async def _doctor(checkup: Checkup, again: bool, told: str) -> Page:
    return Page(json.dumps(checkup.tell(again=again)).encode() + b"\n")


async def _find(source: Source, query: str) -> Page:
    """The first routes that have a text in their pattern or their backends, and how many do."""
    wanted = unquote(query)[:_LONGEST_WANTED].lower()
    told = newest((await source.ask(f"find {' '.join(wanted.split())}")).values())
    if told is None:
        return Page(b"no worker has answered in time\n", "text/plain; charset=utf-8", 503)
    whole = await source.whole()
    by_route = whole.figures.by_route()
    rows = [
        {**row, **named(by_route.get(row["pattern"], NONE))} for row in gathered([told], "routes")
    ]
    return Page(json.dumps({"total": total(told), "rows": rows}).encode() + b"\n")


class Live:
    """What is shown now: made by whoever wants it first, and then there for all."""

    def __init__(self, source: Source) -> None:
        self.source = source
        # By which a page knows that all is counted anew.
        self.instance = secrets.token_hex(8)
        self.one_at_a_time = trio.Lock()
        self.number = 0
        self.made = -math.inf
        self.pause = _EVERY
        self.event = b""

    def listener(self) -> Callable[[], Any]:
        """Gives, each time, the newest event that it has not given yet."""
        seen = 0

        async def more() -> bytes:
            nonlocal seen
            seen = await self._after(seen)
            return self.event

        return more

    async def _after(self, seen: int) -> int:
        async with self.one_at_a_time:
            due = self.made + self.pause
            if seen == self.number or trio.current_time() > due + _EVERY:
                await trio.sleep_until(max(due, trio.current_time()))
                began = trio.current_time()
                self.event, all_answered = await self._event()
                self.made = trio.current_time()
                # One that is stuck says nothing of how long it takes.
                took = self.made - began if all_answered else 0
                self.pause = max(_EVERY, took * _SHARE)
                self.number += 1
            return self.number

    async def _event(self) -> tuple[bytes, bool]:
        """It, and whether all have answered."""
        whole = await self.source.whole()
        about = {
            "instance": self.instance,
            "time": round(trio.current_time(), 4),
            "every": round(self.pause, 1),
            "state": self.source.why_not_serving() or "serving",
            **self.source.past().told(),
        }
        answers = await self.source.ask("live")

        def write() -> bytes:
            told = json.dumps({**about, **shown(whole, answers)})
            return f"retry: {_RETRY}\ndata: {told}\n\n".encode()

        # In a thread, for of many routes it takes a while, and connections are not to wait for it.
        event = await trio.to_thread.run_sync(write)
        return event, None not in (*whole.answers.values(), *answers.values())


def shown(whole: Whole, answers: Answers) -> dict[str, Any]:
    """What the page shows of figures, and of what the processes answered to ``live``."""
    figures, known = whole.figures, common(whole)
    told = newest(answers.values())
    return {
        "version": __version__,
        "workers": {str(number): is_up for number, is_up in whole.workers.items()},
        "limit": known["limit"],
        "listeners": known["listeners"],
        "active": figures.active,
        "accepted": sum(figures.counts["connections"].values()),
        "up": sum(row[2] for row in figures.shares.values()),
        "down": sum(row[3] for row in figures.shares.values()),
        "bounds": BOUNDS[_TIMES[0]],
        **{name: figures.histograms[name] for name in _TIMES},
        "refused": [*_refused(figures.counts["refused"])],
        "last_refused": _last(answers),
        "routes": {"total": total(told), "rows": _routes(figures, gathered([told], "routes"))},
        "backends": _backends(figures, answers, gathered([told], "routes")),
    }


def _refused(counts: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Each reason for which anybody was refused, the most frequent first."""
    for reason, count in sorted(counts.items(), key=lambda each: -each[1]):
        if count:
            yield {
                "reason": reason,
                "count": count,
                "means": Reason(reason).meaning,
                "remedy": Reason(reason).remedy,
            }


def _last(answers: Answers) -> list[dict[str, Any]]:
    last = [
        {"worker": worker, **row}
        for worker, pieces in answers.items()
        for row in gathered([pieces], "refused")
    ]
    return sorted(last, key=lambda row: -row["time"])[:MOST_LAST]


def _routes(figures: Snapshot, first: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those with traffic, the busiest first; and as many of the others as there is room for."""
    by_route = figures.by_route()
    told = {row["pattern"]: [*(row["backend"] or ()), *(row["http"] or ())] for row in first}
    rows = list(dict.fromkeys((*_busiest(by_route), *told)))[:MOST_LIVE]
    used: dict[str, list[str]] = {route: [] for route in rows}
    for route, backend in figures.shares:
        if route in used:
            used[route].append(backend)
    return [
        {
            "pattern": route,
            "backend": list(dict.fromkeys(told.get(route, used[route]))),
            **named(by_route.get(route, NONE)),
        }
        for route in rows
    ]


def _busiest(sums: Mapping[str, Sequence[int]]) -> list[str]:
    """Those with the most active connections, and of these with the most so far, first."""
    return nlargest(MOST_LIVE, sums, key=lambda each: (sums[each][1], sums[each][0]))


def _backends(
    figures: Snapshot, answers: Answers, first: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Those that are down first, then the busiest, then what routes have besides."""
    sums = figures.by_backend()
    states: dict[str, list[Mapping[str, Any]]] = {}
    for state in gathered(answers.values(), "backends"):
        states.setdefault(state["backend"], []).append(state)
    down = [x for x in states if not all(state["is_up"] for state in states[x])]
    routed = [x for row in first for key in ("backend", "http") for x in row[key] or ()]
    every = dict.fromkeys((*down, *_busiest(sums), *states, *routed))
    failures = figures.counts["dial_failures"]
    return {
        # Of very many each worker tells only some; and one may know of some that others do not.
        "down": max([len(down), *(piece["down"] for piece in _pieces(answers, "down"))]),
        "rows": [
            {
                "backend": backend,
                **_health(states.get(backend, [])),
                **named(sums.get(backend, NONE)),
                "failures": failures.get(backend, 0),
            }
            for backend in list(every)[:MOST_LIVE]
        ],
    }


def _health(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How an address is, in a word and in a few, by all workers that have an opinion."""
    down = [state for state in states if not state["is_up"]]
    if not states:
        return {"health": "unknown", "words": "not tried yet"}
    if not down:
        return {"health": "up", "words": ""}
    silent = [state["silent_for"] for state in down if state["silent_for"] is not None]
    words = f"no answer for {_span(max(silent))}" if silent else "fails its checks"
    if len(down) < len(states):
        words += f", for {len(down)} of {len(states)} workers"
    return {"health": "down", "words": words}


def _span(seconds: float) -> str:
    """How long something has been so, as a person says it."""
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {word}"
    return f"{seconds:.0f} s"


def _pieces(answers: Answers, word: str) -> list[Any]:
    """All pieces that have a word."""
    return [piece for pieces in answers.values() for piece in pieces or () if word in piece]
