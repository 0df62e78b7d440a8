"""``doctor.render``: how findings look, to people and to programs, and the exit status."""

import json

import click
import pytest

from snimux.doctor.findings import Colour, Finding
from snimux.doctor.render import as_json, status, text

GREEN = Finding("caddy", Colour.GREEN, "localhost:2019", "it answers")
LINES = ("# /etc/Caddyfile, in the global options:", "servers {", "    protocols h1 h2", "}")
YELLOW = Finding(
    "http3", Colour.YELLOW, "/etc/Caddyfile", "it offers HTTP/3", "Browsers try it.", LINES
)
RED = Finding("backend-down", Colour.RED, "a.example", "refused", "Nobody answers.", ("start it",))


@pytest.mark.parametrize(
    ("findings", "expected"),
    [([], 0), ([GREEN], 0), ([GREEN, YELLOW], 1), ([RED, YELLOW], 2), ([RED], 2)],
)
def test_the_exit_status_is_the_worst(findings: list[Finding], expected: int) -> None:
    assert status(findings) == expected
    assert json.loads(as_json(findings, []))["status"] == expected


def test_how_it_looks_without_colours() -> None:
    shown = click.unstyle(text([RED, YELLOW, GREEN], ["the rest"]))
    assert shown.splitlines() == [
        "BAD   refused",
        "      Nobody answers.",
        "          start it",
        "",
        "warn  it offers HTTP/3",
        "      Browsers try it.",
        "          # /etc/Caddyfile, in the global options:",
        "          servers {",
        "              protocols h1 h2",
        "          }",
        "",
        "ok    it answers",
        "not seen  the rest",
        "1 red, 1 yellow, 1 green",
    ]


def test_long_words_fit_the_width_and_remedies_are_left_as_they_are() -> None:
    unseen = click.unstyle(text([], ["word " * 50])).splitlines()
    assert max(len(line) for line in unseen) <= 100
    assert unseen[0].startswith("not seen  word")
    long = Finding("c", Colour.RED, "a", "word " * 50, "word " * 50, ("remedy " * 50,))
    *lines, _, _ = click.unstyle(text([long], [])).splitlines()
    assert max(len(line) for line in lines[:-1]) <= 100
    assert lines[-1].split() == ["remedy"] * 50


def test_nothing_that_others_wrote_reaches_the_terminal_as_it_is() -> None:
    evil = Finding("c", Colour.RED, "a", "a\x1b[2J\nb", "m\x1b]0;t\a", ("r\x1b[1m\r",))
    plain = click.unstyle(text([evil], []))
    assert "\x1b" not in plain
    assert "\\x1b[2J\\nb" in plain


def test_the_json_has_every_finding_with_every_key() -> None:
    said = json.loads(as_json([RED, GREEN], ["the rest"]))
    assert said == {
        "status": 2,
        "findings": [
            {
                "check": "backend-down",
                "colour": "red",
                "about": "a.example",
                "title": "refused",
                "meaning": "Nobody answers.",
                "remedy": ["start it"],
            },
            {
                "check": "caddy",
                "colour": "green",
                "about": "localhost:2019",
                "title": "it answers",
                "meaning": "",
                "remedy": [],
            },
        ],
        "unseen": ["the rest"],
    }
