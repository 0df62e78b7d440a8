"""``backend.state``: so many checks in a row, and not one less, change what is thought."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.backend.state import UP, Checked


def after(checks: str, *, rise: int, fall: int, start: Checked = UP) -> Checked:
    """What is thought after some checks: "+" passed, "-" failed."""
    for check in checks:
        start = start.after(check == "+", rise=rise, fall=fall)
    return start


@pytest.mark.parametrize(
    ("checks", "is_up"),
    [
        ("", True), ("--", True), ("--+--", True), ("---", False), ("---+", False),
        ("---+-+", False), ("---++", True), ("---++--", True), ("---++---", False),
    ],
)  # fmt: skip
def test_rise_and_fall(checks: str, is_up: bool) -> None:
    assert after(checks, rise=2, fall=3).is_up == is_up


@given(st.text("+-"), st.integers(1, 5), st.integers(1, 5))
def test_as_many_in_a_row_as_it_takes_change_it_whatever_was_before(
    checks: str, rise: int, fall: int
) -> None:
    before = after(checks, rise=rise, fall=fall)
    assert not after("-" * fall, rise=rise, fall=fall, start=before).is_up
    assert after("+" * rise, rise=rise, fall=fall, start=before).is_up
    assert before.against < max(rise, fall)
