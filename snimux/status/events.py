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
    Figures,
    Processes,
    common,
    gathered,
    named,
    newest,
    pages,
    total,
)
from snimux.status.checkup import Checkup
from snimux.status.local import MOST_FAULTS, MOST_LAST, MOST_LIVE
from snimux.status.metrics import BOUNDS, Sums
from snimux.status.web import Page, Pages, Stream

# Seconds from one to the next; but with very many routes, to put one together takes no more than a
# part of the time.
_EVERY = 1.0
_SHARE = 20

# Milliseconds until a browser whose stream was cut asks again; else 3 to 5 seconds, or more.
_RETRY = 1000

# Of what a person looks for.
_LONGEST_SEARCH = 255

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


def all_pages(processes: Processes, checkup: Checkup) -> Pages:
    """Return the live page, what it asks for, and all other pages, by path."""
    feed = Feed(processes)
    return {
        **pages(processes),
        **{path: partial(_file, *each) for path, each in _FILES.items()},
        "/events": partial(_events, feed),
        "/find?": partial(_find, processes),
        "/doctor": partial(_doctor, checkup, False),
        "/doctor?": partial(_doctor, checkup, True),
    }


async def _file(name: str, kind: str, accept: str) -> Page:
    return Page((files("snimux.status") / "page" / name).read_bytes(), kind, headers=_HEADERS)


async def _events(feed: "Feed", accept: str) -> Stream:
    return Stream(feed.listener())


async def _doctor(checkup: Checkup, again: bool, query: str) -> Page:
    return Page(json.dumps(checkup.tell(again=again)).encode() + b"\n")


async def _find(processes: Processes, query: str) -> Page:
    """Show the first routes with a text in their pattern or backends, and how many have it."""
    text = unquote(query)[:_LONGEST_SEARCH].lower()
    answer = newest((await processes.ask(f"find {' '.join(text.split())}")).values())
    if answer is None:
        return Page(b"no worker has answered in time\n", "text/plain; charset=utf-8", 503)
    by_route = (await processes.figures()).sums.by_route()
    rows = [
        {**row, **named(by_route.get(row["pattern"], NONE))} for row in gathered([answer], "routes")
    ]
    return Page(json.dumps({"total": total(answer), "rows": rows}).encode() + b"\n")


class Feed:
    """The newest event: made by whoever asks for it first, and then the same for all."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        # By which a page knows that all is counted anew.
        self.instance = secrets.token_hex(8)
        self.one_at_a_time = trio.Lock()
        self.number = 0
        self.made = -math.inf
        self.pause = _EVERY
        self.event = b""

    def listener(self) -> Callable[[], Any]:
        """Return what waits, each time it is called, for a newer event than the last."""
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
        """Make the event; return it, and whether all have answered."""
        figures = await self.processes.figures()
        about = {
            "instance": self.instance,
            "time": round(trio.current_time(), 4),
            "every": round(self.pause, 1),
            "state": self.processes.why_not_serving() or "serving",
            **self.processes.uptime().as_json(),
        }
        answers = await self.processes.ask("live")

        def write() -> bytes:
            data = json.dumps({**about, **shown(figures, answers)})
            return f"retry: {_RETRY}\ndata: {data}\n\n".encode()

        # In a thread, for of many routes it takes a while, and connections are not to wait for it.
        event = await trio.to_thread.run_sync(write)
        return event, None not in (*figures.answers.values(), *answers.values())


def shown(figures: Figures, answers: Answers) -> dict[str, Any]:
    """Return what the page shows of figures, and of the processes' answers to ``live``."""
    sums, shared = figures.sums, common(figures)
    latest = newest(answers.values())
    first = gathered([latest], "routes")
    return {
        "version": __version__,
        "workers": {str(number): is_up for number, is_up in figures.workers.items()},
        "limit": shared["limit"],
        "listeners": shared["listeners"],
        "active": sums.active,
        "accepted": sum(sums.counts["connections"].values()),
        "up": sum(row[2] for row in sums.shares.values()),
        "down": sum(row[3] for row in sums.shares.values()),
        "bounds": BOUNDS[_TIMES[0]],
        **{name: sums.histograms[name] for name in _TIMES},
        "refused": [*_refused(sums.counts["refused"])],
        "last_refused": _last(answers),
        # Each worker reads for itself, and one may be a little behind.
        "faults": list(
            dict.fromkeys(x for piece in _pieces(answers, "faults") for x in piece["faults"])
        )[:MOST_FAULTS],
        "routes": {"total": total(latest), "rows": _routes(sums, first)},
        "backends": _backends(sums, answers, first),
    }


def _refused(counts: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yield each reason for which anybody was refused, the most frequent first."""
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


def _routes(sums: Sums, first: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return those with traffic, the busiest first; then further ones, if there is room."""
    by_route = sums.by_route()
    backends = {row["pattern"]: [*(row["backend"] or ()), *(row["http"] or ())] for row in first}
    backends |= {row["pattern"]: ["refuse"] for row in first if row.get("refuses")}
    rows = list(dict.fromkeys((*_busiest(by_route), *backends)))[:MOST_LIVE]
    used: dict[str, list[str]] = {route: [] for route in rows}
    for route, backend in sums.shares:
        if route in used:
            used[route].append(backend)
    return [
        {
            "pattern": route,
            "backend": list(dict.fromkeys(backends.get(route, used[route]))),
            **named(by_route.get(route, NONE)),
        }
        for route in rows
    ]


def _busiest(sums: Mapping[str, Sequence[int]]) -> list[str]:
    """Order keys by active connections, then by those so far, the most first."""
    return nlargest(MOST_LIVE, sums, key=lambda each: (sums[each][1], sums[each][0]))


def _backends(sums: Sums, answers: Answers, first: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return those that are down first, then the busiest, then what routes have besides."""
    by_backend = sums.by_backend()
    states: dict[str, list[Mapping[str, Any]]] = {}
    for state in gathered(answers.values(), "backends"):
        states.setdefault(state["backend"], []).append(state)
    down = [x for x in states if not all(state["is_up"] for state in states[x])]
    routed = [x for row in first for key in ("backend", "http") for x in row[key] or ()]
    every = dict.fromkeys((*down, *_busiest(by_backend), *states, *routed))
    failures = sums.counts["dial_failures"]
    return {
        # Of very many each worker tells only some; and one may know of some that others do not.
        "down": max([len(down), *(piece["down"] for piece in _pieces(answers, "down"))]),
        "rows": [
            {
                "backend": backend,
                **_health(states.get(backend, [])),
                **named(by_backend.get(backend, NONE)),
                "failures": failures.get(backend, 0),
            }
            for backend in list(every)[:MOST_LIVE]
        ],
    }


def _health(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say how an address is, in a word and in a few, by all workers that know of it."""
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
    """Say how long something has been so, as a person does."""
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {word}"
    return f"{seconds:.0f} s"


def _pieces(answers: Answers, word: str) -> list[Any]:
    """Return all pieces that have a word."""
    return [piece for pieces in answers.values() for piece in pieces or () if word in piece]
