"""The work: what is done to each subject, and what the figures of it are called.

A case is one measurement; cases of a group are made one right after the other with the same
subject, because they are compared with each other.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bench import caddy, load, names, proc, running
from bench.bed import ROUTES, Bed, Sample, percentile
from bench.effort import Effort
from bench.load import Connections, Load, LoadError, RoundTrips, Streams
from bench.subjects import DIRECT, Subject

WORKS = {
    "connect": "CPU per new connection: hello, reply, close",
    "round-trips": "CPU per round trip of 200 bytes",
    "bulk": "CPU per GB",
    "rss": "memory per idle connection",
    "first-byte": "time to the first byte of new connections, beside 4 bulk streams",
    "routes": "CPU per new connection, by number of routes",
    "caddy": "requests over TLS to a real Caddy: CPU per request; mean first byte",
}
"""What is done, and what the figures of it are."""

HELLOS = {"connect-chrome": "chromium", "connect-517": "curl"}


@dataclass(frozen=True, slots=True)
class Row:
    """What one figure is."""

    key: str
    work: str
    title: str
    """What it is, for who knows nothing else."""
    column: str
    """The same, under the heading of the work."""
    unit: str


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement, and the rows that it fills."""

    rows: tuple[Row, ...]
    measure: Callable[[Bed, Subject], list[Sample]]
    suits: Callable[[Subject], bool] = lambda subject: True


Group = tuple[Case, ...]


Burst = Callable[[float], Sample]
"""Measures for so many seconds."""

_SETTLE = 0.03  # seconds, for what connections closed at the end leave to do


@dataclass(frozen=True, slots=True)
class Steady:
    """Work that can go on and on, and whose figure is the processor time of each unit of it."""

    row: Row
    mode: str
    load: Callable[[int], Load]
    """Makes the load through a port."""
    per_second: float = 1e6
    """The figure's unit in a second: 1e6 for microseconds."""
    routes: int = ROUTES

    @contextmanager
    def through(self, bed: Bed, subject: Subject, warm_up: float) -> Iterator[Burst]:
        """Open the load through a subject and warm it up; each call of what is yielded measures.

        Args:
            bed: where.
            subject: what is measured; it is started if it does not run.
            warm_up: seconds.
        """
        target = bed.running(subject, self.routes)
        with self.load(target.ports[self.mode]) as opened:
            opened.run(warm_up)
            meter = bed.meter(target, self.mode)

            def burst(seconds: float) -> Sample:
                if opened.lead:
                    opened.run(opened.lead)
                meter.begin()
                units = opened.run(seconds)
                busy, cpu = meter.read(settle=opened.settle)
                if not units:
                    raise LoadError(f"{subject.name}: nothing was done within {seconds:g} s")
                figure = cpu / units * self.per_second
                return Sample(self.row.key, figure, units / meter.seconds, busy)

            yield burst
        time.sleep(_SETTLE)

    def case(self, seconds: float) -> Case:
        """Return the case that measures it once for so long."""

        def measure(bed: Bed, subject: Subject) -> list[Sample]:
            with self.through(bed, subject, seconds / 4) as burst:
                return [burst(seconds)]

        def suits(subject: Subject) -> bool:
            if self.row.work != "routes":
                return True
            return _is_proxy(subject) and self.routes <= subject.most_routes

        return Case((self.row,), measure, suits)


def groups(effort: Effort) -> list[Group]:
    """All the work of a run, in order."""
    return [
        *((each.case(effort.seconds),) for each in steady(effort)),
        (_rss(effort),),
        (_first_byte(effort),),
        tuple(_routes(number).case(effort.seconds) for number in effort.routes),
        (_caddy(effort),),
    ]


def steady(effort: Effort) -> list[Steady]:
    """Return the work that can be done in bursts, with the usual routes."""
    return [
        *(_connect(key) for key in HELLOS),
        *(_round_trips(number) for number in (16, effort.many)),
        *(_bulk(way, number) for number in effort.streams for way in ("down", "up")),
    ]


def _connect(key: str) -> Steady:
    hello = names.hello(HELLOS[key], names.ANSWER)
    column = f"{len(hello)}-byte hello"
    row = Row(key, "connect", f"CPU per new connection, {column}", column, "µs")
    return Steady(row, names.ANSWER, lambda port: Connections(port, hello))


def _routes(number: int) -> Steady:
    column = f"{number:,} routes"
    row = Row(f"routes-{number}", "routes", f"CPU per new connection, {column}", column, "µs")
    return replace(_connect("connect-517"), row=row, routes=number)


def _round_trips(connections: int) -> Steady:
    key = "round-trips-16" if connections == 16 else "round-trips-2000"
    column = f"{connections} connections"
    row = Row(key, "round-trips", f"CPU per round trip, {column}", column, "µs")
    return Steady(row, names.ECHOES, lambda port: RoundTrips(port, connections))


def _bulk(way: str, streams: int) -> Steady:
    column = f"{way}, {streams} stream{'s'[: streams > 1]}"
    row = Row(f"bulk-{way}-{streams}", "bulk", f"CPU per GB {column}", column, "s")
    mode = names.UPLOAD if way == "up" else names.STREAM
    return Steady(row, mode, lambda port: Streams(port, streams, up=way == "up"), per_second=1)


def _rss(effort: Effort) -> Case:
    column = f"{effort.idle} connections"
    row = Row("rss", "rss", f"memory per idle connection, {column}", column, "KiB")

    def measure(bed: Bed, subject: Subject) -> Sample:
        with bed.fresh(subject) as target:
            # what a first connection makes it load is not what a connection costs
            with RoundTrips(target.ports[names.ECHOES], 16) as few:
                few.run(0.05)
            time.sleep(0.2)
            before = proc.resident(target.pids)
            meter = bed.meter(target, names.ECHOES)
            idle = list(load.open_echoing(target.ports[names.ECHOES], effort.idle))
            busy, _ = meter.read()
            time.sleep(0.3)
            after = proc.resident(target.pids)
            for each in idle:
                each.close()
        return Sample(row.key, (after - before) / effort.idle / 1024, 0, busy)

    return Case((row,), lambda bed, subject: [measure(bed, subject)], _is_proxy)


def _is_proxy(subject: Subject) -> bool:
    return subject.name != DIRECT


def _first_byte(effort: Effort) -> Case:
    rows = tuple(
        Row(f"first-byte-p{n}", "first-byte", f"first byte beside bulk, p{n}", f"p{n}", "ms")
        for n in (50, 99)
    )
    hello = names.hello("curl", names.ANSWER)

    def measure(bed: Bed, subject: Subject) -> list[Sample]:
        target = bed.running(subject)
        beside = running.python("bench.load", str(target.ports[names.STREAM]), "4")
        try:
            running.first_line(beside)
            load.first_bytes(target.ports[names.ANSWER], hello, effort.seconds / 4)
            meter = bed.meter(target, names.STREAM, (beside.pid,))
            # three times as long: a p99 of few is a maximum
            found = load.first_bytes(target.ports[names.ANSWER], hello, effort.seconds * 3)
            busy, _ = meter.read()
        finally:
            running.end(beside)
        rate = len(found) / meter.seconds
        return [
            Sample(row.key, percentile(found, n) * 1e3, rate, busy)
            for row, n in zip(rows, (50, 99), strict=True)
        ]

    return Case(rows, measure)


def _caddy(effort: Effort) -> Case:
    rows = (
        Row("caddy", "caddy", "CPU per request to a real Caddy", "CPU per request", "µs"),
        Row("caddy-first-byte", "caddy", "first byte of a real Caddy, mean", "first byte", "ms"),
    )

    def measure(bed: Bed, subject: Subject) -> list[Sample]:
        target = bed.running(subject)
        port = target.ports[names.SECURE]
        caddy.load(port, effort.requests // 4)
        meter = bed.meter(target, names.SECURE)
        seen = caddy.load(port, effort.requests)
        busy, cpu = meter.read()
        return [
            Sample("caddy", cpu / effort.requests * 1e6, seen.rate, busy),
            Sample("caddy-first-byte", seen.first_byte * 1e3, seen.rate, busy),
        ]

    return Case(rows, measure)


def missing(work: str) -> str | None:
    """Why some work cannot be done here, or None if it can."""
    return caddy.missing() if work == "caddy" else None
