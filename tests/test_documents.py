"""The README and ``docs/``: what they name is there, and what there is they name."""

import ast
import re
from pathlib import Path

import click
import pytest

from snimux.cli.command import main
from snimux.proto.reason import Reason

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_linked_is_there(document: Path) -> None:
    text = document.read_text("utf-8")
    links = re.findall(r"(?m)^\.\. (?:_[^:]+|image):+ (\S+)$|<([^<>\s]+)>`_", text)
    for link in (a or b for a, b in links):
        assert (document.parent / link).is_file(), link


def test_every_chart_is_shown() -> None:
    text = (ROOT / "docs" / "performance.rst").read_text("utf-8")
    charts = [x.name for x in (ROOT / "bench" / "plots").iterdir()]
    assert charts
    assert [x for x in charts if f".. image:: ../bench/plots/{x}\n" not in text] == []


def test_every_flag_is_written_of_and_no_other() -> None:
    text = "".join(x.read_text("utf-8") for x in DOCUMENTS if x.name != "faults.rst")
    assert isinstance(main, click.Group)
    context = click.Context(main)
    commands = [main, *(main.get_command(context, x) for x in main.list_commands(context))]
    there = {flag for command in commands if command for x in command.params for flag in x.opts}
    words = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    others = {
        "--now",
        "--connect-to",
        "--unix-socket",
        "--global",
        "--signal",
        "--upgrade",
        "--svg",
        "--only",
        "--seconds",
    }
    assert words - others - {"--help"} <= there
    assert {flag for flag in there if flag.startswith("--")} - words == {"--version"}


def test_every_reason_to_refuse_is_written_of() -> None:
    text = (ROOT / "docs" / "diagnosis.rst").read_text("utf-8")
    assert [x for x in Reason if f"``{x}``" not in text] == []


def test_each_word_of_the_glossary_has_one_place_and_lives_there() -> None:
    text = (ROOT / "docs" / "glossary.rst").read_text("utf-8")
    words = re.findall(r"(?m)^(\S.*)\n((?:    .+\n)+)", text)
    terms = [term for term, _ in words]
    assert terms == sorted(set(terms), key=str.casefold)
    assert len(terms) > 40
    for term, definition in words:
        paths = re.findall(r"(?:\bin|In) ``([a-z_/]+\.py)``", definition)
        assert len(paths) == 1, term
        source = (ROOT / "snimux" / paths[0]).read_text("utf-8")
        classes = {x.name for x in ast.parse(source).body if isinstance(x, ast.ClassDef)}
        assert set(re.findall(r"``([A-Z][A-Za-z]+)`` in ``", definition)) <= classes, term
