"""``snimux.kept``: the last, within bounds."""

from hypothesis import given
from hypothesis import strategies as st

from snimux.kept import LONGEST, Kept


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
