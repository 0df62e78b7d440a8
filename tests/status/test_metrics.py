"""``status.metrics``: what is counted when, and what several processes have counted together."""

import gc
import json
from collections import Counter
from typing import Any

import pytest

from snimux.frontend.outcome import Outcome
from snimux.proto.client_hello import LARGEST_MAX_HELLO
from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello, Request
from snimux.relay.interface import End
from snimux.routing.address import TcpAddress
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from snimux.status import metrics as module
from snimux.status.metrics import (
    REST,
    Metrics,
    Sums,
    Totals,
    connections,
    snapshot,
)

ONE, TWO = TcpAddress("127.0.0.1", 1), TcpAddress("127.0.0.1", 2)


def outcome(name: str = "a.example", **known: Any) -> Outcome:
    hello = Hello(name, (b"h2", b"http/1.1"), False, 600)
    return Outcome(("192.0.2.1", 5), hello=hello, started=100.0, **known)


def relayed(figures: Metrics, pattern: str = "a.example", **known: Any) -> Outcome:
    """A connection that is being relayed."""
    at = outcome(backend=str(ONE), **known)
    at.route = Route(parse_pattern(pattern), targets(tls=Backend((ONE,))))
    figures.accepted(at)
    return at


def end(figures: Metrics, at: Outcome, ended: str = End.EOF, reason: Reason | None = None) -> None:
    at.ended, at.reason = ended, reason
    figures.ended(at)


def seen(figures: Metrics) -> Sums:
    """The figures, as they are after a way as JSON."""
    return snapshot(json.loads(json.dumps(list(figures.pieces()))))


def test_what_has_not_happened_is_none_and_not_absent() -> None:
    found = seen(Metrics())
    assert found.counts["refused"] == dict.fromkeys(map(str, Reason), 0)
    assert found.counts["ended"].keys() == {
        *map(str, End), "refused", "redirected", "shutdown", "failed", "silent",
    }  # fmt: skip
    assert found.histograms.keys() == module.BOUNDS.keys()
    assert (found.shares, found.active) == ({}, 0)


def test_bytes_count_while_a_connection_is_open_and_once() -> None:
    figures = Metrics()
    at = relayed(figures, header_size=28)
    key = ("a.example", str(ONE))
    assert seen(figures).shares[key] == [1, 1, 0, 0]
    at.tally.up = 20  # of the PROXY header, which is none of the client's
    assert seen(figures).shares[key] == [1, 1, 0, 0]
    at.tally.up, at.tally.down = 28 + 700, 5
    for _ in range(2):
        assert seen(figures).shares[key] == [1, 1, 700, 5]
    at.tally.down = 6
    end(figures, at)
    for _ in range(2):
        found = seen(figures)
        assert found.shares[key] == [1, 0, 700, 6]
    assert found.active == 0
    assert found.counts["ended"]["eof"] == 1
    assert found.counts["connections"] == {"tls": 1, "http": 0}


def test_one_that_ends_while_the_figures_are_told_counts_once() -> None:
    figures = Metrics()
    at = relayed(figures)
    at.tally.down = 5
    pieces = figures.pieces()
    first = next(pieces)
    at.tally.down = 9
    end(figures, at)
    found = snapshot([first, *pieces])
    assert found.shares["a.example", str(ONE)] == [1, 0, 0, 9]
    assert seen(figures).shares == found.shares


def test_one_that_is_refused_while_the_figures_are_told_counts_once() -> None:
    figures = Metrics()
    at = outcome()
    figures.accepted(at)
    pieces = figures.pieces()
    first = next(pieces)
    end(figures, at, "refused", Reason.NO_ROUTE)
    found = snapshot([first, *pieces])
    assert found.counts["connections"]["tls"] == found.counts["ended"]["refused"] == 1
    assert sum(found.histograms["hello_bytes"][:-1]) == 1
    assert found.active == 0
    assert seen(figures) == found


def test_only_some_that_have_ended_wait_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ENDED", 3)
    figures = Metrics()
    for number in range(1, 8):
        end(figures, relayed(figures))
        assert len(figures.over) == number % 3
    assert seen(figures).counts["ended"]["eof"] == 7
    assert figures.over == []


@pytest.mark.parametrize("sent", ["hellos", "names of protocols", "what is refused"])
def test_of_what_clients_sent_and_have_ended_bounded_bytes_are_kept(sent: str) -> None:
    figures = Metrics()
    most = 128 * 1024 + 64 * 1024  # what is kept, and one more
    for number in range(200):
        data = number.to_bytes(2, "big") * (LARGEST_MAX_HELLO // 2)
        at = outcome()
        if sent == "what is refused":
            at.hello, at.received = None, data[: 16 * 1024]
        else:
            alpn = tuple(data[i : i + 255] for i in range(0, len(data), 255))
            alpn = alpn if sent == "names of protocols" else ()
            at.hello = Hello(None, alpn, False, len(data))
        figures.accepted(at)
        end(figures, at, "refused", Reason.NO_ROUTE)
        kept = [each.outcome for each in figures.over]
        sizes = [len(x.received) + (x.hello.size if x.hello else 0) for x in kept]
        assert sum(sizes) < most
    assert seen(figures).counts["ended"]["refused"] == 200
    assert not figures.over


def test_nothing_of_a_hello_is_left_when_it_is_counted() -> None:
    """Not even as the key of a cache."""
    figures = Metrics()
    name = bytes(200).replace(b"\0", b"x")
    at = outcome()
    at.hello = Hello(None, (name,), False, 300)
    figures.accepted(at)
    end(figures, at)
    assert seen(figures).counts["alpn"]["other"] == 1
    kept = gc.get_referrers(at.hello.alpn)
    assert [x for x in kept if x is not at.hello] == []


def test_it_is_told_in_pieces_of_a_bounded_size() -> None:
    figures = Metrics()
    for number in range(1200):
        relayed(figures, f"n{number}.example")
    pieces = list(figures.pieces())
    assert max(len(piece.get("shares", ())) for piece in pieces) == 500
    assert len([piece for piece in pieces if not piece]) == 3  # for 1,200 live ones
    assert len(snapshot(pieces).shares) == 1200


def test_what_is_known_is_counted_as_soon_as_it_is_and_once() -> None:
    figures = Metrics()
    at = relayed(figures, hello_seconds=0.02, dial_seconds=0.3)

    def check() -> Sums:
        found = seen(figures)
        assert sum(found.histograms["hello_bytes"][:-1]) == 1
        assert found.histograms["hello_bytes"][-1] == 600
        assert found.histograms["hello_seconds"][-1] == 0.02
        assert found.histograms["dial_seconds"][-1] == 0.3
        assert +found.counts["alpn"] == {"h2": 1, "http/1.1": 1}
        return found

    assert sum(check().histograms["first_byte_seconds"]) == 0
    # and so is the time to the first byte, of a connection that may last for hours
    at.tally.answered, at.tally.down = 100.5, 1
    for has_ended in (False, True):
        row = check().histograms["first_byte_seconds"]
        assert sum(row[:-1]) == 1
        assert row[-1] == pytest.approx(0.48)
        if not has_ended:
            at.tally.down = 2
            end(figures, at)


def test_without_an_answer_there_is_no_time_to_it() -> None:
    figures = Metrics()
    end(figures, relayed(figures), End.BACKEND_RESET)
    assert sum(seen(figures).histograms["first_byte_seconds"]) == 0


def test_a_value_is_in_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    figures = Metrics()
    for size in (1, 256, 257, 65536, 65537):
        at = outcome()
        assert at.hello is not None
        at.hello = Hello("a.example", (), False, size)
        figures.accepted(at)
        end(figures, at, "refused", Reason.NO_ROUTE)
    assert seen(figures).histograms["hello_bytes"] == [
        2, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1 + 256 + 257 + 65536 + 65537,
    ]  # fmt: skip


def test_who_is_refused_is_counted_by_reason_and_what_is_known_of_the_hello() -> None:
    figures = Metrics()
    for reason, known in (
        (Reason.NO_BYTES, Outcome(None)),
        (Reason.BACKEND_DOWN, outcome()),
        (Reason.OUT_OF_RESOURCES, outcome()),
    ):
        figures.accepted(known)
        end(figures, known, "refused", reason)
    found = seen(figures)
    assert +found.counts["refused"] == {"no-bytes": 1, "backend-down": 1, "out-of-resources": 1}
    assert found.counts["ended"]["refused"] == 3
    assert sum(found.histograms["hello_bytes"][:-1]) == 2
    assert sum(found.histograms["dial_seconds"][:-1]) == 0
    assert found.shares == {}


def test_who_is_closed_without_a_word_has_ended_too() -> None:
    figures = Metrics()
    at = Outcome(None, is_silent=True)
    figures.accepted(at)
    end(figures, at, "shutdown")
    found = seen(figures)
    assert +found.counts["ended"] == {"silent": 1}
    assert found.active == 0


def test_no_word_of_a_client_is_a_key() -> None:
    figures = Metrics()
    for alpn in ((b"made-up", b"up-made"), (b"h2", b"h2"), (b"acme-tls/1",), ()):
        at = Outcome(None, hello=Hello("made.up", alpn, True, 1))
        figures.accepted(at)
        end(figures, at, "refused", Reason.NO_ROUTE)
    http = Outcome(
        None, "http", hello=Hello("made.up", (), False, 1, Request("GET", None, "/made-up"))
    )
    figures.accepted(http)
    end(figures, http, "redirected")
    found = seen(figures)
    assert "made" not in json.dumps(list(figures.pieces()))
    assert found.counts["alpn"] == {
        "h2": 1, "http/1.1": 0, "acme-tls/1": 1, "other": 1, "none": 1,
    }  # fmt: skip
    assert found.counts["ech"] == {"offered": 4}
    assert found.counts["connections"] == {"tls": 4, "http": 1}


def test_of_very_many_routes_and_backends_the_first_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_SHARES", 2)
    figures = Metrics()
    for number in (1, 2, 3, 4, 1):
        at = relayed(figures, f"n{number}.example")
        at.tally.up = number
        end(figures, at)
        figures.dial_failed(TcpAddress("127.0.0.1", number), True)
    found = seen(figures)
    assert found.shares == {
        ("n1.example", str(ONE)): [2, 0, 2, 0],
        ("n2.example", str(ONE)): [1, 0, 2, 0],
        (REST, REST): [2, 0, 7, 0],
    }
    assert found.counts["dial_failures"] == {str(ONE): 2, str(TWO): 1, REST: 2}


def test_routes_with_alpn_are_others_than_without() -> None:
    figures = Metrics()
    for pattern in ("a.example", "a.example/h2"):
        end(figures, relayed(figures, pattern))
    assert {route for route, _ in seen(figures).shares} == {"a.example", "a.example/h2"}


def test_the_oldest_connections_are_listed_and_all_are_counted() -> None:
    figures = Metrics()
    for number in range(120):
        relayed(figures).started = float(number)
    waiting = Outcome(None, started=120.0)
    figures.accepted(waiting)
    total, *pieces = connections(figures, 200.0, most=110)
    assert total == {"total": 121}
    rows = [row for piece in pieces for row in piece["connections"]]
    assert len(pieces) == 3
    assert [row["age"] for row in rows] == [200.0 - number for number in range(110)]
    assert len({row["id"] for row in rows}) == 110
    assert rows[0] == {
        "client": "192.0.2.1:5", "via": None, "protocol": None, "name": "a.example",
        "alpn": "h2,http/1.1", "ech": None, "route": "a.example", "backend": str(ONE),
        "up": 0, "down": 0, "age": 200.0, "id": 0,
    }  # fmt: skip
    (_, *all_pieces) = connections(figures, 200.0, most=1000)
    last = [row for piece in all_pieces for row in piece["connections"]][-1]
    assert (last["client"], last["name"], last["backend"]) == ("unix", None, None)


def test_what_a_worker_counted_stays_counted_when_it_is_gone() -> None:
    totals = Totals()
    first, second = Metrics(), Metrics()
    for figures, pattern in ((first, "a.example"), (first, "b.example"), (second, "a.example")):
        relayed(figures, pattern).tally.up = 100
    totals.take(11, seen(first))
    totals.take(12, seen(second))
    before = totals.sum()
    assert before.shares["a.example", str(ONE)] == [2, 2, 200, 0]
    assert before.active == 3
    totals.lose(11)
    after = totals.sum()
    assert after.shares["a.example", str(ONE)] == [2, 1, 200, 0]
    assert after.shares["b.example", str(ONE)] == [1, 0, 100, 0]
    assert after.active == 1
    assert (after.counts, after.histograms) == (before.counts, before.histograms)
    totals.take(13, seen(first))
    assert totals.sum().shares["b.example", str(ONE)] == [2, 1, 200, 0]
    totals.lose(99)  # of which nothing was ever heard
    assert totals.sum().counts["connections"] == {"tls": 5, "http": 0}


def test_of_workers_that_are_gone_the_first_routes_and_backends_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_SHARES", 2)
    totals = Totals()
    for worker in range(1, 6):
        figures = Metrics()
        at = relayed(figures, f"n{worker}.example")
        at.tally.up = worker
        figures.dial_failed(TcpAddress("127.0.0.1", worker), True)
        totals.take(worker, seen(figures))
        totals.lose(worker)
    found = totals.sum()
    assert found.shares == {
        ("n1.example", str(ONE)): [1, 0, 1, 0],
        ("n2.example", str(ONE)): [1, 0, 2, 0],
        (REST, REST): [3, 0, 12, 0],
    }
    assert found.counts["dial_failures"] == {str(ONE): 1, str(TWO): 1, REST: 3}
    assert found.counts["connections"] == {"tls": 5, "http": 0}


def test_a_sum_is_no_part_of_what_it_is_a_sum_of() -> None:
    totals = Totals()
    figures = Metrics()
    relayed(figures)
    totals.take(1, seen(figures))
    for _ in range(2):
        assert totals.sum().counts["connections"] == Counter(tls=1, http=0)
        assert totals.sum().shares["a.example", str(ONE)] == [1, 1, 0, 0]
