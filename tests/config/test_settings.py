"""``config.settings``: one table for keys, flags and help. What each accepts: ``test_sources``."""

import math
import re

import pytest

from snimux.config.settings import SETTINGS, choice, shown
from snimux.routing.address import AddressError


def test_every_default_is_what_its_own_setting_accepts() -> None:
    for setting in SETTINGS:
        setting.parse(setting.default)
        assert setting.flag == "--" + setting.key.replace("_", "-")
        assert setting.help


def test_keys_are_distinct_and_words_are_read() -> None:
    assert len({setting.key for setting in SETTINGS}) == len(SETTINGS)
    parsed = {setting.key: setting.parse for setting in SETTINGS}
    assert parsed["idle_timeout"]("off") == math.inf
    assert parsed["max_connections"]("auto") is None
    assert parsed["workers"]("auto") is None
    assert parsed["max_connections_per_source"]("off") is None
    assert parsed["max_rate_per_source"]("off") is None
    assert parsed["max_rate_per_source"](0.5) == 0.5


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 is not a number of connections a second or off, from 0.001 to 1000000"),
        (-1, "-1 is not a number"),
        (math.nan, "nan is not a number"),
        (math.inf, "inf is not a number"),
        (True, "true is not a number of connections a second or off"),
        ("10/s", "'10/s' is not a number of connections a second or off"),
    ],
)
def test_a_rate_is_a_number_above_nothing(value: object, words: str) -> None:
    parse = next(x.parse for x in SETTINGS if x.key == "max_rate_per_source")
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(value)


def test_status_is_for_this_machine_alone() -> None:
    (parse,) = (setting.parse for setting in SETTINGS if setting.key == "status")
    assert parse("off") is None
    for text in ("127.0.0.1:9443", "127.9.9.9:1", "[::1]:9443", "localhost:9443", "unix//run/x"):
        assert str(parse(text)) == text
    for text in (":9443", "0.0.0.0:9443", "[::]:9443", "192.0.2.1:9443", "ciso.com:9443", "fd/3",
                 "localhost.ciso.com:1"):  # fmt: skip
        with pytest.raises(AddressError, match="shows who is connected"):
            parse(text)
    with pytest.raises(AddressError, match="no port"):
        parse("localhost")
    for value in (9443, True, ["127.0.0.1:1"]):
        with pytest.raises(ValueError, match="is not an address or off"):
            parse(value)


def test_a_choice_takes_its_words_only() -> None:
    assert choice("a", "b")("b") == "b"
    with pytest.raises(ValueError, match="'c' is not one of a, b"):
        choice("a", "b")("c")


def test_what_is_shown_is_short_and_on_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 1000)) == 80
