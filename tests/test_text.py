"""``text``: what may stand in a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.text import brief, cut, listed, plain


@given(st.text(), st.integers(0, 30), st.sampled_from(("~", "...")))
def test_what_is_cut_says_so(text: str, most: int, end: str) -> None:
    short = cut(text, most, end)
    assert len(short) <= most
    assert short == text or short.endswith(end[:most])


def test_what_others_wrote_is_cut_and_made_plain() -> None:
    assert brief("x" * 200) == "x" * 117 + "..."
    assert brief("x" * 200, 80) == "x" * 77 + "..."
    assert brief("\x1b[2J") == r"'\x1b[2J'"
    assert brief("") == "''"


@given(st.text(), st.booleans())
def test_plain_text_is_printable_and_stays_as_it_is(text: str, ascii_only: bool) -> None:
    spelt = plain(text, ascii_only=ascii_only)
    assert spelt.isprintable()
    assert spelt.isascii() or not ascii_only
    assert plain(spelt, ascii_only=ascii_only) == spelt


def test_what_is_not_ascii_is_spelt_out_where_it_must_be() -> None:
    assert plain("bücher\n") == r"bücher\n"
    assert plain("bücher\n", ascii_only=True) == r"b\xfccher\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", ""),
        ("abcdefgh", "a, b, c, d, e, f, g, h"),
        ("abcdefghij", "a, b, c, d, e, f, g, h, and 2 more"),
        ("aabbcdefghcij", "a, b, c, d, e, f, g, h, and 2 more"),
    ],
)
def test_a_long_list_is_cut(words: str, line: str) -> None:
    assert listed(words, 8) == line
