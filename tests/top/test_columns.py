"""``top.columns``: rows as text, of any width, for people and for programs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snimux.top.columns import Columns, detail, short, span, summary, table
from snimux.top.tree import Overview, lines, overview
from tests.top.test_tree import (
    ONE,
    OVERVIEWS,
    TWO,
    connection,
    pages,
    refusal,
    route,
    share,
    state,
)


def is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


@settings(max_examples=40)
@given(OVERVIEWS, st.integers(0, 300))
def test_lines_are_as_wide_as_they_are_to_be_and_act_on_no_terminal(
    seen: Overview, width: int
) -> None:
    columns = Columns(width)
    for line in lines(seen.tree, lambda row: True):
        text = columns.line(line)
        assert len(text) == width
        assert is_plain(text)
        assert is_plain(detail(line.row))
    assert len(columns.head()) == width
    assert all(map(is_plain, summary(seen, "here")))
    assert len(summary(seen, "here")) == 4


@settings(max_examples=40)
@given(OVERVIEWS)
def test_the_table_has_a_line_of_as_many_words_for_each_row(seen: Overview) -> None:
    text = table(seen, "here", lines(seen.tree, lambda row: True))
    totals, _, rows = text.partition("\n\n")
    assert all(map(is_plain, text.split("\n")))
    assert [x.split()[0] for x in totals.split("\n")[:7]] == [
        "snimux", "workers", "routes", "connections", "accepted", "up", "down",
    ]  # fmt: skip
    head, *found = rows.removesuffix("\n").split("\n")
    assert len(head.split()) == 13
    assert all(len(x.split(maxsplit=12)) == 13 for x in found)
    kinds = [x.split()[0] for x in found]
    assert kinds.count("connection") == len(seen.sample.connections)
    assert kinds.count("refused") == len(seen.sample.refused)
    up = [int(x.split()[7]) for x in found if x.split()[0] == "route"]
    assert sum(up) == seen.total.up


@given(st.floats(0, 1e30) | st.integers(0, 2**63) | st.none())
def test_a_number_takes_four_columns_and_is_about_right(number: float | None) -> None:
    text = short(number)
    assert len(text) <= 4
    if number is not None and number < 1e20:
        unit = text[-1] if not text[-1].isdigit() else ""
        value = float(text.removesuffix(unit)) * 1000 ** " kMGTPE".index(unit or " ")
        assert value == pytest.approx(number, rel=0.06, abs=0.5)


@given(st.floats(0, 1e15) | st.none())
def test_a_time_takes_four_columns(seconds: float | None) -> None:
    assert len(span(seconds)) <= 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0, "0s"), (99.4, "99s"), (100, "2m"), (5940, "99m"), (5999, "2h"),
     (86400 * 3, "72h"), (86400 * 10, "10d"), (86400 * 400, "1y")],
)  # fmt: skip
def test_times(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_what_people_see() -> None:
    shown = [route("a.test", ONE, TWO, not_answering=[TWO])]
    now = pages(
        shown=shown, accepted=12, active=1, workers={"1": True, "2": False}, routes=20_000,
        shares=[share("a.test", ONE, 3, 1, 1500, 20_000_000)], connections=[connection(1)],
        refused=[refusal(1, detail="why not")], refusals={"no-route": 1},
    )  # fmt: skip
    seen = overview(state(now, at=102), state({**now, "accepted": 10}, at=100))
    assert summary(seen, "here") == [
        "snimux 1 at here: serving, 2 workers, NO ANSWER FROM 2, 20000 routes (1 shown)",
        "connections 1 of 100 open; 12 accepted, 1.0/s",
        "bytes       up 1.5k, 0/s; down 20M, 0/s",
        "refused     1; no-route 1, 0.0/s",
    ]
    columns = Columns(100)
    head, *rows = columns.head(), *map(columns.line, lines(seen.tree, lambda row: True))
    words = "NAME OPEN AGE UP DOWN UP/S DOWN/S FROM > TO"
    assert head.split() == words.split()
    assert [x.split() for x in rows] == [
        ["-", "tls/127.0.0.1:443", "1", "3s", "1.5k", "20M", "0", "0"],
        ["-", "a.test", "1", "3s", "1.5k", "20M", "0", "0", "!", f"{ONE},{TWO}"],
        ["a.test", "3s", "10", "20", "0", "0", "192.0.2.1:1", ">", ONE],
        ["-", "the", "last", "1", "refused", "2m"],
        ["x.test", "2m", "192.0.2.1:9", "no-route:", "why", "not"],
    ]
    below = {x.row.kind: x.row for x in lines(seen.tree, lambda row: True)}
    assert detail(below["route"]) == (
        f"route a.test; to {ONE},{TWO}; from configuration; not answering: {TWO}; "
        "3 connections so far, 0.0/s; up 1.5k, 0/s; down 20M, 0/s"
    )
    assert detail(below["refused"]) == "refused x.test; from 192.0.2.1:9; no-route: why not"
    assert detail(lines(seen.tree, lambda row: False)[-1].row) == "the last 1 refused"


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (80, "NAME OPEN AGE UP DOWN UP/S DOWN/S FROM > TO"),
        (57, "NAME OPEN AGE UP DOWN UP/S DOWN/S"),
        (56, "NAME OPEN AGE DOWN UP/S DOWN/S"),
        (51, "NAME OPEN AGE UP/S DOWN/S"),
        (40, "NAME OPEN UP/S DOWN/S"),
    ],
)
def test_where_it_is_narrow_columns_are_left_out_and_none_is_cut(width: int, words: str) -> None:
    columns = Columns(width)
    assert columns.head().split() == words.split()
    seen = overview(state(pages(shares=[share("a.test", ONE, 3, 1, 1500, 20_000_000)])))
    _, line = map(columns.line, lines(seen.tree, lambda row: True))
    numbers = {"OPEN": "1", "AGE": "", "UP": "1.5k", "DOWN": "20M", "UP/S": "-", "DOWN/S": "-"}
    ends = {x: columns.head().index(f" {x} ") + len(x) + 1 for x in numbers if f" {x} " in words}
    ends["DOWN/S"] = columns.head().index("DOWN/S") + len("DOWN/S")
    for name, end in ends.items():
        assert line[:end].endswith(f" {numbers[name]}"), name


def test_that_not_all_connections_are_shown_is_said() -> None:
    seen = overview(state(pages(active=7, connections=[connection(1)], total=7)))
    assert summary(seen, "here")[1].startswith("connections 7 of 100 open (the oldest 1 shown);")


def test_of_one_that_is_full_and_ends_it_is_said() -> None:
    seen = overview(state(pages(active=100, draining=True)))
    first, second, *_ = summary(seen, "here")
    assert "DRAINING" in first
    assert "100 of 100 open FULL" in second
