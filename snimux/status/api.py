"""The pages that a running snimux shows of itself: what its processes answer, put together.

Of HTTP it has a status and a content type; ``pages`` serves them. Knows neither how processes are
asked nor how many there are.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Protocol

import trio

from snimux import __version__
from snimux.status.local import MOST_CONNECTIONS
from snimux.status.metrics import Sums
from snimux.status.web import Page, Pages

_MOST_REFUSED = 100

_WORDS = ("connections", "active", "up", "down")
NONE = (0,) * len(_WORDS)
"""Of what was not used."""

# Of a reload that came to nothing, what a person reads; the log has all.
_MOST_PROBLEMS, _LONGEST_PROBLEM = 5, 300

_AT_A_TIME = 100  # rows of JSON: some hundred µs

Answers = Mapping[int, list[Any] | None]
"""The pieces that each process answered with; None if it has not."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of all processes, and of which."""

    sums: Sums
    answers: Answers
    workers: Mapping[int, bool] = field(default_factory=dict)
    """Whether each has answered; empty where there are none."""
    processes: Mapping[str, int] = field(default_factory=dict)
    """By what they are called, "" where there is but one."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A reload: when it was, and why nothing came of it, if so."""

    time: float
    """When: Unix time."""
    problems: Sequence[str] = ()
    """Why nothing came of it, if so."""


@dataclass(frozen=True, slots=True)
class Uptime:
    """The start of a snimux, and its last reload."""

    started: float
    """When, by ``time.monotonic``."""
    reloaded: Reloaded | None = None
    """None if there was none."""

    def as_json(self) -> dict[str, Any]:
        """Return the same for a page: since how many seconds it runs, and the reload."""
        last = self.reloaded
        problems = (
            [each[:_LONGEST_PROBLEM] for each in last.problems[:_MOST_PROBLEMS]] if last else []
        )
        return {
            "uptime": round(time.monotonic() - self.started, 1),
            "reload": last and {"time": round(last.time, 3), "problems": problems},
        }


class Processes(Protocol):
    """The processes of a running snimux."""

    async def ask(self, what: str) -> Answers:
        """Ask all of them the same."""

    async def figures(self) -> Figures:
        """Ask for their figures, and sum them up."""

    def why_not_serving(self) -> str | None:
        """Return what keeps connections from being accepted; None if nothing does."""

    def uptime(self) -> Uptime:
        """Return since when it runs, and its last reload."""


def pages(processes: Processes) -> Pages:
    """Return the pages, by path."""
    # prometheus-client is an extra, and slow to import. Not at the first look at the page: what is
    # installed by then may be another version, which has it elsewhere.
    from snimux.status import prometheus

    async def metrics(accept: str) -> Page:
        figures = await processes.figures()
        shared = common(figures)
        exposed = prometheus.Exposed(
            figures.sums,
            routes=shared["routes"],
            connections_limit=shared["limit"],
            draining=shared["draining"],
            workers=figures.workers,
            processes=figures.processes,
        )
        # In a thread, for many series take a while, and connections are not to wait for it.
        return Page(*await trio.to_thread.run_sync(prometheus.render, exposed, accept))

    return {
        "/metrics": metrics,
        "/figures": partial(_figures, processes),
        "/healthz": partial(_health, processes),
        "/routes": partial(_routes, processes),
        "/connections": partial(_connections, processes),
        "/refused": partial(_refused, processes, "refused"),
        "/refused/hellos": partial(_refused, processes, "hellos"),
    }


async def _figures(processes: Processes, accept: str) -> Page:
    """Show what changes from one second to the next, for who polls as often: no histograms."""
    figures = await processes.figures()
    sums = figures.sums
    words = ("route", "backend", "connections", "active", "up", "down")
    shares = [
        dict(zip(words, (*key, *row), strict=True)) for key, row in sorted(sums.shares.items())
    ]
    about = {"version": __version__, **processes.uptime().as_json(), **common(figures)}
    counted = {"active": sums.active, "counts": sums.counts}
    return await _json("shares", shares, **about, workers=figures.workers, **counted)


def common(figures: Figures) -> dict[str, Any]:
    """Return what each process says of all of them: routes, limit, draining, listeners."""
    heads: list[dict[str, Any]] = [each[0] for each in figures.answers.values() if each]
    heads.sort(key=lambda each: (each.get("generation", []), each["routes"]))
    latest = heads[-1] if heads else {}
    # Of those that have done the same reload one that ends has closed some by now.
    reloads = latest.get("generation", [])[:1]
    listeners = [x["listeners"] for x in heads if x.get("generation", [])[:1] == reloads]
    return {
        "routes": latest.get("routes", 0),
        "limit": max((each["limit"] for each in heads), default=0),
        "draining": bool(heads) and all(each["draining"] for each in heads),
        "listeners": max(listeners, key=len, default=[]),
    }


def newest(answers: Iterable[list[Any] | None]) -> list[Any] | None:
    """Return the answer of the process with the newest routes, or None if none has answered.

    Another may be about to follow a reload, or to hear what its Caddys have; one that was just
    started has not heard all of them. Of several that are as new it is the one with most routes.
    """
    return max(
        (each for each in answers if each),
        key=lambda pieces: (pieces[0].get("generation", []), total(pieces)),
        default=None,
    )


def total(pieces: list[Any] | None) -> int:
    """Return how many routes there are by an answer."""
    return max((piece["total"] for piece in pieces or () if "total" in piece), default=0)


async def _health(processes: Processes, accept: str) -> Page:
    why_not = processes.why_not_serving()
    text = "text/plain; charset=utf-8"
    if why_not is None:
        return Page(b"ok\n", text)
    return Page(f"{why_not}\n".encode(), text, 503)


async def _routes(processes: Processes, accept: str) -> Page:
    """Show the routes, as the process has them whose are newest, with what they were used for.

    An address does not answer if it has not answered one of the processes: each dials by itself.
    """
    figures = await processes.figures()
    answers = (await processes.ask("routes")).values()
    silent = _silent(answers)
    pieces = newest(answers)
    routes, lists = gathered([pieces], "routes"), gathered([pieces], "lists")
    by_route = figures.sums.by_route()
    for each in routes:
        each |= named(by_route.get(each["pattern"], NONE))
        each["not_answering"] = silent.get(each["pattern"], [])
    return await _json("routes", routes, total=total(pieces), lists=lists)


def _silent(answers: Iterable[list[Any] | None]) -> dict[str, list[str]]:
    """Return the addresses of each route that have not answered, where there are any."""
    by_route: dict[str, dict[str, None]] = {}
    for each in gathered(answers, "routes"):
        if each["not_answering"]:
            by_route.setdefault(each["pattern"], {}).update(dict.fromkeys(each["not_answering"]))
    return {pattern: list(addresses) for pattern, addresses in by_route.items()}


async def _connections(processes: Processes, accept: str) -> Page:
    answers = (await processes.ask("connections")).items()
    count, rows = 0, []
    for worker, pieces in answers:
        if pieces:
            count += pieces[0]["total"]
            rows += [{"worker": worker, **x} for x in gathered([pieces], "connections")]
    rows.sort(key=lambda each: -each["age"])
    return await _json("connections", rows[:MOST_CONNECTIONS], total=count)


async def _refused(processes: Processes, what: str, accept: str) -> Page:
    answers = (await processes.ask(what)).items()
    rows = [
        {"worker": worker, **each}
        for worker, pieces in answers
        for each in gathered([pieces], "refused")
    ]
    rows.sort(key=lambda each: each["time"])
    return await _json("refused", rows[-_MOST_REFUSED:])


def named(row: Sequence[int]) -> dict[str, int]:
    """Return the numbers of a route or a backend, by words."""
    return dict(zip(_WORDS, row, strict=True))


def gathered(answers: Iterable[list[Any] | None], word: str) -> list[dict[str, Any]]:
    """Join what all pieces have under a word."""
    return list(chain(*(piece.get(word, ()) for pieces in answers for piece in pieces or ())))


async def _json(word: str, rows: Sequence[object], **before: object) -> Page:
    """Write an object with a list; other tasks have their turn meanwhile."""
    body = bytearray(json.dumps({**before, word: []}).encode()[: -len("]}")])
    for start in range(0, len(rows), _AT_A_TIME):
        some = json.dumps(rows[start : start + _AT_A_TIME])
        body += (b",\n" if start else b"\n") + some[1:-1].encode()
        await trio.lowlevel.checkpoint()
    return Page(bytes(body) + b"]}\n")
