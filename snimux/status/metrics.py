"""Count what becomes of connections: those of one process, and of several together.

What is counted by route is so by its pattern, and by backend by its address, whose lengths are
bounded; so is how many are told apart. Nothing that a client said is ever a key: anyone can make
names up.

Knows nothing of who wants the figures, nor of the form in which he gets them.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import add
from typing import Any

from snimux.frontend.events import Observer
from snimux.frontend.outcome import Outcome
from snimux.proto.reason import Reason
from snimux.relay.interface import End
from snimux.routing.address import DialAddress

Piece = dict[str, Any]
"""A part of an answer, of what JSON knows: so small that others have their turn between two."""

# Upper bounds of the histograms' buckets. Bytes: browsers' hellos have about 500 without and 2,000
# with post-quantum keys. Seconds: from a LAN's to the deadlines, which are 5 s by default.
_BYTES = (256, 512, 1024, 1536, 2048, 4096, 8192, 16384, 65536)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BOUNDS: Mapping[str, tuple[float, ...]] = {
    "hello_bytes": _BYTES,
    "hello_seconds": _SECONDS,
    "dial_seconds": _SECONDS,
    "first_byte_seconds": _SECONDS,
}
"""What has a histogram; values up to a bound, and not to the one before it, are in its bucket."""

# Of the protocols that are offered those that are worth a figure: a client may name any.
_ALPN = {b"h2": "h2", b"http/1.1": "http/1.1", b"acme-tls/1": "acme-tls/1"}

# Routes that come and go by the thousand (--caddy) must not fill the memory of whoever watches: of
# route and backend together as many are told apart as had traffic first, others are one.
_MOST_SHARES = 10_000
REST = "(others)"
"""Which no pattern and no address can be."""

# How those end that are closed without a word, in the log as on the connection.
_SILENT = "silent"

_LONGEST = 300  # characters of what a client said

_AT_A_TIME = 500  # shares, or live connections: some hundred µs

# Counted in one go, connections take a third of the time that each takes by itself amid all else
# that is done for it. So many that have ended wait for that, and so many bytes of what they sent:
# as many browsers' hellos have fewer, and who sends long ones on purpose takes no memory by it.
_MOST_ENDED = 50
_MOST_ENDED_BYTES = 128 * 1024


@dataclass(slots=True)
class _Share:
    """The traffic from one route to one backend."""

    route: str
    backend: str
    connections: int = 0
    active: int = 0
    up: int = 0
    down: int = 0


@dataclass(slots=True)
class _Live:
    """A connection: which share it has, and what of it is counted."""

    outcome: Outcome
    share: _Share | None = None
    up: int = 0
    down: int = 0


class _Histogram:
    """Counts how often a value was in each bucket, and sums all values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def row(self) -> list[float]:
        return [*self.counts, self.sum]


class Metrics(Observer):
    """Counts the connections of this process, and where its backends were not reached.

    What is to be counted of a connection is in its outcome, and is counted when somebody asks, or
    when some have ended.
    """

    def __init__(self) -> None:
        # Plain ones: to count by a Counter takes three times as long.
        self.connections = {"tls": 0, "http": 0}
        self.refused = dict.fromkeys(map(str, Reason), 0)
        words = (*map(str, End), "refused", "redirected", "shutdown", "failed", _SILENT)
        self.ends = dict.fromkeys(words, 0)
        self.alpn = dict.fromkeys((*_ALPN.values(), "other", "none"), 0)
        self.ech = 0
        self.dial_failures: dict[str, int] = {}
        self.hello_bytes = _Histogram(_BYTES)
        self.hello_seconds = _Histogram(_SECONDS)
        self.dial_seconds = _Histogram(_SECONDS)
        self.first_byte_seconds = _Histogram(_SECONDS)
        self.shares: dict[tuple[str, bytes | None, str], _Share] = {}
        self.live: dict[int, _Live] = {}
        self.over: list[_Live] = []  # ended, and not counted as that
        self.over_bytes = 0  # of what these sent

    def accepted(self, outcome: Outcome) -> None:
        """Count a connection that begins."""
        _count(self.connections, outcome.protocol or "tls")
        self.live[id(outcome)] = _Live(outcome)

    def ended(self, outcome: Outcome) -> None:
        """Count a connection that has ended, soon."""
        self.over.append(self.live.pop(id(outcome)))
        self.over_bytes += len(outcome.received) + (outcome.hello.size if outcome.hello else 0)
        if len(self.over) >= _MOST_ENDED or self.over_bytes >= _MOST_ENDED_BYTES:
            self._count_ended()

    def dial_failed(self, address: DialAddress, is_for_client: bool) -> None:
        """Count an address that did not answer a connection."""
        if not is_for_client:
            return
        backend = str(address)
        if backend not in self.dial_failures and len(self.dial_failures) >= _MOST_SHARES:
            backend = REST
        _count(self.dial_failures, backend)

    def pieces(self) -> Iterator[Piece]:
        """All figures; those of connections that go on meanwhile are as of some moment since."""
        live = list(self.live.values())
        for start in range(0, len(live), _AT_A_TIME):
            for each in live[start : start + _AT_A_TIME]:
                # One that has ended meanwhile may be settled already: again, that adds nothing.
                self._settle(each)
            yield {}
        self._count_ended()
        yield {
            "counts": {
                "connections": self.connections,
                "refused": self.refused,
                "ended": self.ends,
                "alpn": self.alpn,
                "ech": {"offered": self.ech},
                "dial_failures": self.dial_failures,
            },
            "histograms": {name: getattr(self, name).row() for name in BOUNDS},
            "active": len(self.live),
        }
        shares = iter(list(self.shares.values()))
        while some := list(islice(shares, _AT_A_TIME)):
            rows = [[x.route, x.backend, x.connections, x.active, x.up, x.down] for x in some]
            yield {"shares": rows}

    def _settle(self, live: _Live) -> None:
        """Count what is known of a connection and was not when it was settled last."""
        outcome = live.outcome
        if outcome.backend is None:
            return
        share = live.share
        if share is None:
            self._learn(outcome)
            share = live.share = self._share(outcome)
            share.connections += 1
            share.active += 1
        up, down = max(outcome.tally.up - outcome.header_size, 0), outcome.tally.down
        if down and not live.down:
            waited = outcome.tally.answered - outcome.started - outcome.hello_seconds
            self.first_byte_seconds.observe(max(waited, 0))
        share.up += up - live.up
        share.down += down - live.down
        live.up, live.down = up, down

    def _count_ended(self) -> None:
        over, self.over, self.over_bytes = self.over, [], 0
        for live in over:
            self._settle(live)
            self._end(live.outcome, live.share)

    def _end(self, outcome: Outcome, share: _Share | None) -> None:
        """Count the end of a connection that is settled."""
        _count(self.ends, _SILENT if outcome.is_silent else outcome.ended)
        if outcome.reason is not None:
            _count(self.refused, outcome.reason)
        if share is None:
            self._learn(outcome)
            return
        share.active -= 1

    def _learn(self, outcome: Outcome) -> None:
        """Count what is known once a hello is whole, and its backend dialled."""
        hello = outcome.hello
        if hello is None:
            return
        self.hello_bytes.observe(hello.size)
        self.hello_seconds.observe(outcome.hello_seconds)
        if hello.request is None:
            self.ech += hello.ech
            for word in {_ALPN.get(each, "other") for each in hello.alpn} or ("none",):
                self.alpn[word] += 1
        if outcome.backend is not None:
            self.dial_seconds.observe(outcome.dial_seconds)

    def _share(self, outcome: Outcome) -> _Share:
        assert outcome.route is not None
        assert outcome.backend is not None
        pattern, backend = outcome.route.pattern, outcome.backend
        key = (pattern.host, pattern.alpn, backend)
        share = self.shares.get(key)
        if share is None:
            named = _Share(str(pattern), backend)
            if len(self.shares) >= _MOST_SHARES:
                key, named = (REST, None, REST), _Share(REST, REST)
            share = self.shares.setdefault(key, named)
        return share


def _count(counts: dict[str, int], word: str) -> None:
    counts[word] = counts.get(word, 0) + 1


def connections(metrics: Metrics, now: float, *, most: int) -> Iterator[Piece]:
    """The connections that have not ended, as of now by trio's clock; the oldest, if too many."""
    yield {"total": len(metrics.live)}
    oldest = iter(list(islice(metrics.live.values(), most)))
    words = ("client", "via", "protocol", "name", "alpn", "ech", "route", "backend", "up", "down")
    while some := list(islice(oldest, _AT_A_TIME // 10)):
        rows = [
            {**brief(x.outcome, *words), "age": round(now - x.outcome.started, 3), "id": _id(x)}
            for x in some
        ]
        yield {"connections": rows}


def _id(live: _Live) -> int:
    """Return what tells it from others of its client, whose ports come again: its begin in µs."""
    return round(live.outcome.started * 1e6)


def brief(outcome: Outcome, *words: str) -> Piece:
    """Return some of the fields of the log line, cut where they are long."""
    fields = outcome.fields()
    shown = {word: fields[word] for word in words}
    return {word: x[:_LONGEST] if isinstance(x, str) else x for word, x in shown.items()}


@dataclass(slots=True)
class Sums:
    """The figures of one process, or the sums of several."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    histograms: dict[str, list[float]] = field(default_factory=dict)
    """For each the counts of its buckets, and of what is beyond, and the sum of the values."""
    shares: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """By route and backend: connections so far, active ones, bytes up, bytes down."""
    active: int = 0

    def add(self, other: "Sums") -> None:
        """Have another's figures, too."""
        for name, counter in other.counts.items():
            # Not Counter's own addition, which drops what is 0.
            self.counts.setdefault(name, Counter()).update(counter)
        for mine, theirs in ((self.histograms, other.histograms), (self.shares, other.shares)):
            _add_rows(mine, theirs)
        self.active += other.active

    def by_route(self) -> dict[str, list[int]]:
        """The sums of the shares of each route."""
        return self._by(0)

    def by_backend(self) -> dict[str, list[int]]:
        """The sums of the shares of each backend."""
        return self._by(1)

    def _by(self, place: int) -> dict[str, list[int]]:
        sums: dict[str, list[int]] = {}
        for key, row in self.shares.items():
            so_far = sums.get(key[place])
            sums[key[place]] = list(row) if so_far is None else list(map(add, so_far, row))
        return sums

    def without_live(self) -> "Sums":
        """Return what is left when its process has ended: the counts, and no connection."""
        shares = {key: [x[0], 0, *x[2:]] for key, x in self.shares.items()}
        return Sums(self.counts, self.histograms, shares)


def _fold(rows: dict[Any, Any], rest: Any) -> None:
    """Keep the first ``_MOST_SHARES`` rows apart, and make one row of all further ones."""
    for key in list(islice(rows, _MOST_SHARES, None)):
        if key != rest:
            row, sum_so_far = rows.pop(key), rows.get(rest)
            if isinstance(row, int):
                rows[rest] = row + (sum_so_far or 0)
            else:
                rows[rest] = row if sum_so_far is None else list(map(add, sum_so_far, row))


def _add_rows(mine: dict[Any, list[Any]], theirs: Mapping[Any, list[Any]]) -> None:
    for key, row in theirs.items():
        so_far = mine.get(key)
        mine[key] = [a + b for a, b in zip(so_far or [0] * len(row), row, strict=True)]


def snapshot(pieces: list[Piece]) -> Sums:
    """Join the pieces of one process's figures."""
    whole = Sums()
    for piece in pieces:
        for name, counts in piece.get("counts", {}).items():
            whole.counts[name] = Counter(counts)
        for name, row in piece.get("histograms", {}).items():
            whole.histograms[name] = list(row)
        for route, backend, *row in piece.get("shares", ()):
            whole.shares[route, backend] = row
        whole.active += piece.get("active", 0)
    return whole


class Totals:
    """The figures of workers together; none goes backwards when one of them is gone."""

    def __init__(self) -> None:
        self.latest: dict[int, Sums] = {}
        self.gone = Sums()

    def take(self, process: int, figures: Sums) -> None:
        """Note what a process has counted so far."""
        self.latest[process] = figures

    def lose(self, process: int) -> None:
        """Note that a process has ended: what it counted last stays counted."""
        last = self.latest.pop(process, None)
        if last is not None:
            self.gone.add(last.without_live())
            _fold(self.gone.shares, (REST, REST))
            _fold(self.gone.counts.get("dial_failures", {}), REST)

    def sum(self) -> Sums:
        """Sum up the figures of all, also of those that are gone."""
        whole = snapshot([*Metrics().pieces()])  # what nothing has happened to is 0, not absent
        for each in chain((self.gone,), self.latest.values()):
            whole.add(each)
        return whole
