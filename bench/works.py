"""The work: what is done to each subject, and what the figures of it are called.

A case is one measurement; cases of a group are made one right after the other with the same
subject, because they are compared with each other.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from bench import caddy, load, names, proc, running
from bench.bed import ROUTES, Bed, Sample, percentile
from bench.effort import Effort
from bench.load import Connections, RoundTrips, Streams
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


def groups(effort: Effort) -> list[Group]:
    """All the work of a run, in order."""
    return [
        *((_connect(row, effort),) for row in HELLOS),
        *((_round_trips(number, effort),) for number in (16, effort.many)),
        *((_bulk(way, n, effort),) for n in effort.streams for way in ("down", "up")),
        (_rss(effort),),
        (_first_byte(effort),),
        tuple(_routes(number, effort) for number in effort.routes),
        (_caddy(effort),),
    ]


def _case(row: Row, measure: Callable[[Bed, Subject], Sample]) -> Case:
    return Case((row,), lambda bed, subject: [measure(bed, subject)])


def _connect(key: str, effort: Effort) -> Case:
    hello = names.hello(HELLOS[key], names.ANSWER)
    column = f"{len(hello)}-byte hello"
    row = Row(key, "connect", f"CPU per new connection, {column}", column, "µs")

    def measure(bed: Bed, subject: Subject) -> Sample:
        return _new_connections(bed, subject, row.key, hello, ROUTES, effort)

    return _case(row, measure)


def _new_connections(
    bed: Bed, subject: Subject, row: str, hello: bytes, routes: int, effort: Effort
) -> Sample:
    target = bed.running(subject, routes)
    work = Connections(target.ports[names.ANSWER], hello)
    return bed.measure(row, target, work, mode=names.ANSWER, seconds=effort.seconds, per_second=1e6)


def _round_trips(connections: int, effort: Effort) -> Case:
    few = connections == 16
    key = "round-trips-16" if few else "round-trips-2000"
    column = f"{connections} connections"
    row = Row(key, "round-trips", f"CPU per round trip, {column}", column, "µs")

    def measure(bed: Bed, subject: Subject) -> Sample:
        target = bed.running(subject)
        work = RoundTrips(target.ports[names.ECHOES], connections)
        return bed.measure(
            key, target, work, mode=names.ECHOES, seconds=effort.seconds, per_second=1e6
        )

    return _case(row, measure)


def _bulk(way: str, streams: int, effort: Effort) -> Case:
    key = f"bulk-{way}-{streams}"
    column = f"{way}, {streams} stream{'s'[: streams > 1]}"
    row = Row(key, "bulk", f"CPU per GB {column}", column, "s")
    mode = names.UPLOAD if way == "up" else names.STREAM

    def measure(bed: Bed, subject: Subject) -> Sample:
        target = bed.running(subject)
        work = Streams(target.ports[mode], streams, up=way == "up")
        return bed.measure(key, target, work, mode=mode, seconds=effort.seconds, per_second=1)

    return _case(row, measure)


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


def _routes(number: int, effort: Effort) -> Case:
    column = f"{number:,} routes"
    row = Row(f"routes-{number}", "routes", f"CPU per new connection, {column}", column, "µs")
    hello = names.hello("curl", names.ANSWER)

    def measure(bed: Bed, subject: Subject) -> list[Sample]:
        return [_new_connections(bed, subject, row.key, hello, number, effort)]

    def suits(subject: Subject) -> bool:
        return _is_proxy(subject) and number <= subject.most_routes

    return Case((row,), measure, suits)


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
