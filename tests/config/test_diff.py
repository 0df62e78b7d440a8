"""``config.diff``: routes are counted, keys are named, and what cannot change does not."""

from dataclasses import fields

import pytest

from snimux.config.diff import _COMPARED, _FIXED, Difference, difference, in_effect
from snimux.config.load import load
from snimux.config.model import Config
from snimux.config.settings import SETTINGS, Setting

ROUTES = 'default = "127.0.0.1:1"\n'


def config(toml: str, **flags: object) -> Config:
    return load(flags, "f", ROUTES + toml)


def test_nothing_differs_from_the_same() -> None:
    assert difference(config("drain = 3"), config("drain = 3")) == Difference()


def test_routes_are_told_apart_by_their_patterns() -> None:
    route = '[[route]]\nhosts = {}\nto = "127.0.0.1:{}"\n'
    before = config(route.format('["a.test", "b.test", "c.test", "a.test/h2"]', 2))
    after = config(route.format('["b.test", "a.test/h2"]', 2) + route.format('"c.test"', 3))
    assert difference(before, after) == Difference(removed=1, changed=1)
    assert difference(after, before) == Difference(added=1, changed=1)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_each_setting_that_differs_is_named_or_needs_a_restart(setting: Setting) -> None:
    others = {
        "relay": '"portable"', "log_format": '"json"', "log_level": '"debug"', "watch": '"off"',
        "balance": '"round_robin"', "check": '"tcp"',
        "status": '"127.0.0.1:1"', "keep_refused": "7",
    }  # fmt: skip
    key = setting.key
    toml = f"{key} = {others.get(key, '2000')}\n" if key != "workers" else "workers = 2\n"
    found = difference(config(""), config(toml))
    is_fixed = key in ("workers", "relay", "status", "keep_refused")
    assert found.settings == (() if is_fixed else (key,))
    assert found.needs_restart == ((key,) if is_fixed else ())


def test_addresses_and_caddys_are_named_by_their_keys() -> None:
    def settings(toml: str) -> tuple[str, ...]:
        return difference(config(""), config(toml)).settings

    assert settings('listen = ":8"\nhttp = ":9"') == ("listen", "http")
    assert settings('deny = "10.0.0.0/8"') == ("admission",)
    assert settings('http = "off"\n[[routes_dir]]\npath = "a"') == ("routes_dir",)
    # beside port 443, a Caddy brings port 80
    assert settings('[[caddy]]\nadmin = "localhost:1"\nproxy = "off"') == ("http", "caddy")


def test_what_a_running_process_cannot_change_stays() -> None:
    before = config('workers = 2\nrelay = "portable"\ndrain = 3')
    after = config('workers = 3\nrelay = "auto"\ndrain = 4')
    assert in_effect(before, after) == config('workers = 2\nrelay = "portable"\ndrain = 4')


def test_all_of_a_configuration_is_compared() -> None:
    # what was handed over is there from the start; two are no news beside http and routes
    apart = {
        "routes",
        "limits",
        "backends",
        "handed_over",
        "is_http_said",
        "written",
        "entrypoints",
        "providers",
    }
    assert {x.name for x in fields(Config)} == apart | {*_COMPARED, *_FIXED}
