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
from snimux.status.metrics import Snapshot
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
class Whole:
    """The figures of all processes, and of which."""

    figures: Snapshot
    answers: Answers
    workers: Mapping[int, bool] = field(default_factory=dict)
    """Whether each has answered; empty where there are none."""
    processes: Mapping[str, int] = field(default_factory=dict)
    """By what they are called, "" where there is but one."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """How it went to read the configuration again."""

    time: float
    """When: Unix time."""
    problems: Sequence[str] = ()
    """Why nothing came of it, if so."""


@dataclass(frozen=True, slots=True)
class Past:
    """What has been since a snimux was started."""

    started: float
    """When, by ``time.monotonic``."""
    reloaded: Reloaded | None = None
    """How that went the last time, if it was tried."""

    def told(self) -> dict[str, Any]:
        """The same for who reads JSON: since how many seconds it runs, and the reload."""
        last = self.reloaded
        problems = (
            [each[:_LONGEST_PROBLEM] for each in last.problems[:_MOST_PROBLEMS]] if last else []
        )
        return {
            "uptime": round(time.monotonic() - self.started, 1),
            "reload": last and {"time": round(last.time, 3), "problems": problems},
        }


class Source(Protocol):
    """The processes of a running snimux."""

    async def ask(self, what: str) -> Answers:
        """Ask all of them the same."""

    async def whole(self) -> Whole:
        """Their figures."""

    def why_not_serving(self) -> str | None:
        """What keeps connections from being accepted; None if nothing does."""

    def past(self) -> Past:
        """Since when it runs, and how the last reload went."""


def pages(source: Source) -> Pages:
    """Return the pages, by path."""
    # prometheus-client is an extra, and slow to import. Not at the first look at the page: what is
    # installed by then may be another version, which has it elsewhere.
    from snimux.status import prometheus

    async def metrics(accept: str) -> Page:
        whole = await source.whole()
        common_words = common(whole)
        exposed = prometheus.Exposed(
            whole.figures,
            routes=common_words["routes"],
            connections_limit=common_words["limit"],
            draining=common_words["draining"],
            workers=whole.workers,
            processes=whole.processes,
        )
        # In a thread, for many series take a while, and connections are not to wait for it.
        return Page(*await trio.to_thread.run_sync(prometheus.render, exposed, accept))

    return {
        "/metrics": metrics,
        "/figures": partial(_figures, source),
        "/healthz": partial(_health, source),
        "/routes": partial(_routes, source),
        "/connections": partial(_connections, source),
        "/refused": partial(_refused, source, "refused"),
        "/refused/hellos": partial(_refused, source, "hellos"),
    }


async def _figures(source: Source, accept: str) -> Page:
    """What changes from one second to the next, for who looks as often: without histograms."""
    whole = await source.whole()
    figures = whole.figures
    words = ("route", "backend", "connections", "active", "up", "down")
    shares = [
        dict(zip(words, (*key, *row), strict=True)) for key, row in sorted(figures.shares.items())
    ]
    told = {"version": __version__, **source.past().told(), **common(whole)}
    counted = {"active": figures.active, "counts": figures.counts}
    return await _json("shares", shares, **told, workers=whole.workers, **counted)


def common(whole: Whole) -> dict[str, Any]:
    """What processes tell with their figures, which each has of all."""
    told: list[dict[str, Any]] = [each[0] for each in whole.answers.values() if each]
    told.sort(key=lambda each: (each.get("generation", []), each["routes"]))
    latest = told[-1] if told else {}
    # Of those that have done the same reload one that ends has closed some by now.
    reloads = latest.get("generation", [])[:1]
    listeners = [x["listeners"] for x in told if x.get("generation", [])[:1] == reloads]
    return {
        "routes": latest.get("routes", 0),
        "limit": max((each["limit"] for each in told), default=0),
        "draining": bool(told) and all(each["draining"] for each in told),
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


async def _health(source: Source, accept: str) -> Page:
    why_not = source.why_not_serving()
    text = "text/plain; charset=utf-8"
    if why_not is None:
        return Page(b"ok\n", text)
    return Page(f"{why_not}\n".encode(), text, 503)


async def _routes(source: Source, accept: str) -> Page:
    """The routes, as the process has them whose are newest, with what they were used for.

    An address does not answer if it has not answered one of the processes: each dials by itself.
    """
    whole = await source.whole()
    answers = (await source.ask("routes")).values()
    silent = _silent(answers)
    pieces = newest(answers)
    routes, lists = gathered([pieces], "routes"), gathered([pieces], "lists")
    by_route = whole.figures.by_route()
    for each in routes:
        each |= named(by_route.get(each["pattern"], NONE))
        each["not_answering"] = silent.get(each["pattern"], [])
    return await _json("routes", routes, total=total(pieces), lists=lists)


def _silent(answers: Iterable[list[Any] | None]) -> dict[str, list[str]]:
    """The addresses of each route that have not answered, where there are any."""
    found: dict[str, list[str]] = {}
    for each in gathered(answers, "routes"):
        if each["not_answering"]:
            known = found.setdefault(each["pattern"], [])
            known += (x for x in each["not_answering"] if x not in known)
    return found


async def _connections(source: Source, accept: str) -> Page:
    answers = (await source.ask("connections")).items()
    count, found = 0, []
    for worker, pieces in answers:
        if pieces:
            count += pieces[0]["total"]
            found += [{"worker": worker, **x} for x in gathered([pieces], "connections")]
    found.sort(key=lambda each: -each["age"])
    return await _json("connections", found[:MOST_CONNECTIONS], total=count)


async def _refused(source: Source, what: str, accept: str) -> Page:
    answers = (await source.ask(what)).items()
    found = [
        {"worker": worker, **each}
        for worker, pieces in answers
        for each in gathered([pieces], "refused")
    ]
    found.sort(key=lambda each: each["time"])
    return await _json("refused", found[-_MOST_REFUSED:])


def named(row: Sequence[int]) -> dict[str, int]:
    """What a route or a backend was used for, by words."""
    return dict(zip(_WORDS, row, strict=True))


def gathered(answers: Iterable[list[Any] | None], word: str) -> list[dict[str, Any]]:
    """What all pieces have under a word, in one list."""
    return list(chain(*(piece.get(word, ()) for pieces in answers for piece in pieces or ())))


async def _json(word: str, rows: Sequence[object], **before: object) -> Page:
    """An object with a list; others have their turn while it is written."""
    body = bytearray(json.dumps({**before, word: []}).encode()[: -len("]}")])
    for start in range(0, len(rows), _AT_A_TIME):
        some = json.dumps(rows[start : start + _AT_A_TIME])
        body += (b",\n" if start else b"\n") + some[1:-1].encode()
        await trio.lowlevel.checkpoint()
    return Page(bytes(body) + b"]}\n")
