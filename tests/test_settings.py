"""``snimux.settings``: one table for keys, flags and help. What each accepts: ``test_sources``."""

import math

import pytest

from snimux.settings import SETTINGS, choice, shown


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


def test_a_choice_takes_its_words_only() -> None:
    assert choice("a", "b")("b") == "b"
    with pytest.raises(ValueError, match="'c' is not one of a, b"):
        choice("a", "b")("c")


def test_what_is_shown_is_short_and_on_one_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 1000)) == 80
