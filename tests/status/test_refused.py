"""``refused``: who was refused last, and what was sent, as far as there is room."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.frontend.outcome import Outcome
from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello
from snimux.status.refused import LONGEST, Kept, Refusals

SCANNERS = [reason for reason in Reason if reason.is_scanner]


def test_the_last_refused_are_kept_and_what_they_said_is_cut() -> None:
    refusals = Refusals()
    for number in range(150):
        at = Outcome(
            ("192.0.2.1", number), hello=Hello("x" * 253, (b"y" * 255,) * 9, False, 1),
            reason=Reason.NO_ROUTE, ended="refused", seconds=1.5,
        )  # fmt: skip
        refusals.ended(at)
    kept = list(refusals.last)
    assert [each["number"] for each in kept] == list(range(51, 151))
    assert all(a["time"] <= b["time"] for a, b in pairwise(kept))
    last = kept[-1]
    assert last["client"] == "192.0.2.1:149"
    assert (last["reason"], last["name"], last["seconds"]) == ("no-route", "x" * 253, 1.5)
    assert len(last["alpn"]) == 300
    assert json.loads(json.dumps(last)) == last


def test_scanners_and_whoever_was_served_are_not_kept() -> None:
    refusals = Refusals(9)
    for reason in (*SCANNERS, None):
        refusals.ended(Outcome(None, ended="refused", reason=reason, received=b"x"))
    assert not refusals.last


@pytest.mark.parametrize(("protocol", "hello"), [(None, b"x" * LONGEST), ("http", None)])
def test_what_was_sent_is_kept_but_nothing_of_plain_http(
    protocol: str | None, hello: bytes | None
) -> None:
    refusals = Refusals(1)
    received = bytearray(b"x" * (LONGEST + 1))
    refusals.ended(Outcome(None, protocol, reason=Reason.NO_ROUTE, received=received))
    assert refusals.hellos.get(1) == hello
    assert len(refusals.last) == 1


def test_the_last_are_kept() -> None:
    kept = Kept(2)
    for number in (1, 2, 3):
        kept.add(number, b"%d" % number)
    assert [kept.get(number) for number in (1, 2, 3, 4)] == [None, b"2", b"3", None]


def test_where_none_is_to_be_kept_none_is() -> None:
    kept = Kept(0)
    kept.add(1, b"x")
    assert kept.get(1) is None


def test_what_is_long_is_cut() -> None:
    kept = Kept(1)
    kept.add(1, b"x" * (LONGEST + 1))
    assert kept.get(1) == b"x" * LONGEST


@given(st.integers(0, 5), st.integers(0, 50), st.lists(st.binary(max_size=30), max_size=20))
def test_neither_their_number_nor_their_bytes_exceed_the_bounds(
    most: int, most_bytes: int, sent: list[bytes]
) -> None:
    kept = Kept(most, most_bytes=most_bytes)
    for number, received in enumerate(sent):
        kept.add(number, received)
        there = [kept.get(x) for x in range(number + 1)]
        found = [x for x in there if x is not None]
        assert len(found) <= most
        assert sum(map(len, found)) <= most_bytes
        # the last ones, and one more would be too many
        assert found == (sent[: number + 1][-len(found) :] if found else [])
        if len(found) < most and len(found) <= number:
            assert sum(map(len, sent[number - len(found) : number + 1])) > most_bytes
