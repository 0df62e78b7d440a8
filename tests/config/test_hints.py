"""``config.hints``: what people write by mistake, and what it is told that they meant."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.config import hints


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("Off", "; did you mean off?"),
        (False, "; did you mean off?"),
        ("none", "; did you mean off?"),
        (True, ""),
        ("round-robin", "; did you mean round_robin?"),
        ("roundrobin", "; did you mean round_robin?"),
        (2, "; did you mean v2?"),
        ("zebra", ""),
        (["off"], ""),
        (None, ""),
    ],
)
def test_words(value: object, hint: str) -> None:
    assert hints.word(value, ["off", "round_robin", "v2"]) == hint


@pytest.mark.parametrize(
    ("value", "units", "hint"),
    [
        ("5s", hints.SECONDS, "; write 5, without a unit"),
        ("5 S", hints.SECONDS, "; write 5, without a unit"),
        ("500ms", hints.SECONDS, "; write 0.5, without a unit"),
        ("1.5h", hints.SECONDS, "; write 5400, without a unit"),
        ("5", hints.SECONDS, "; write 5, without quotes"),
        ("16KiB", hints.BYTES, "; write 16384, without a unit"),
        ("10/s", hints.A_SECOND, "; write 10, without a unit"),
        ("5s", hints.COUNT, ""),
        (16.0, hints.COUNT, "; write 16"),
        (16.5, hints.COUNT, ""),
        (True, hints.SECONDS, ""),
        (False, hints.SECONDS, "; did you mean off?"),
        ("Off", hints.SECONDS, "; did you mean off?"),
        ("9" * 5000, hints.SECONDS, ""),
    ],
)
def test_numbers(value: object, units: dict[str, float], hint: str) -> None:
    assert hints.number(value, units, ["off"]) == hint


@pytest.mark.parametrize(
    ("key", "known", "guess"),
    [
        ("Hello-Timeout", ["hello_timeout"], "hello_timeout"),
        ("backend", ["hosts", "to"], "to"),
        ("address", ["hosts", "to"], "to"),
        ("address", ["admin", "proxy"], "admin"),
        ("host", ["address", "weight"], "address"),
        ("host", ["hosts", "to"], "hosts"),
        ("zebra", ["hosts", "to"], None),
    ],
)
def test_keys(key: str, known: list[str], guess: str | None) -> None:
    assert hints.key(key, known) == guess


def test_keys_that_are_spelled_nearly_so() -> None:
    assert hints.near("Drian", ["drain", "wait"]) == "drain"
    assert hints.near("zebra", ["drain", "wait"]) is None


@pytest.mark.parametrize(
    ("toml", "hint"),
    [
        ("a = 1\nb = True\nc = 3", "; write b = true or false, in small letters"),
        ("b = yes # it is", "; write b = true or false, in small letters"),
        ("b = 5s\n", "; write b = 5, without a unit"),
        ("b = 0.5 ms\n", "; write b = 0.5, without a unit"),
        ("b = :443", '; text goes in quotes: b = ":443"'),
        ("b = 127.0.0.1:1\n", '; text goes in quotes: b = "127.0.0.1:1"'),
        ("b =\n", "; b has no value"),
        ("listen: :443\n", "; write listen = ..., with an equals sign"),
        ("b = 1\nb = 2", "; b is there twice: as keys, or as a key and as a table"),
        ('b = 1\n[[b]]\nc = 1', "; b is there twice: as keys, or as a key and as a table"),
        ("b", ""),
        ('b = "1\n', ""),
        ("{}", ""),
        ("b = \N{ESCAPE}[1m", ""),
        ("[" * 10, ""),
    ],
)  # fmt: skip
def test_lines_that_are_no_toml(toml: str, hint: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(toml)
    assert hints.toml(toml, str(caught.value)) == hint


@given(st.text(), st.sampled_from(["(at line 3, column 1)", "(at end of document)", "overwrite"]))
def test_what_is_said_of_any_text_is_one_line(toml: str, fault: str) -> None:
    assert hints.toml(toml, fault).isprintable()
