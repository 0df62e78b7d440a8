"""Names are nouns and verbs, and the first sentence of each docstring stands alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import snimux

ROOT = Path(snimux.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Participles and pronouns, where a noun exists.
NO_NAMES = {"told", "wanted", "asked", "found", "there", "others", "known", "given"}
# With these a sentence begins that has no subject, or is none.
NO_OPENINGS = {
    "What", "Whether", "How", "Where", "Who", "Whom", "Whose", "Which", "When", "Why", "Of", "As",
    "If", "Those", "That", "Is", "Has", "Are", "For", "Before", "After", "Until", "Since", "With",
    "By", "In", "At", "From", "To", "Once", "Else", "None", "Because",
}  # fmt: skip


def names(node: ast.AST) -> Iterator[str]:
    """What a piece of code gives a name to."""
    match node:
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
            yield name
        case ast.Attribute(attr=name, ctx=ast.Store()):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.MatchAs(name=str() as name):
            yield name


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_name_is_a_participle_or_a_pronoun(file: Path) -> None:
    defined = {
        name for node in ast.walk(ast.parse(file.read_text("utf-8"))) for name in names(node)
    }
    assert not [name for name in defined if {*name.lower().strip("_").split("_")} & NO_NAMES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_first_sentence_of_a_docstring_stands_alone(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            opening = docstring.split()[0].rstrip(",:") if docstring else ""
            assert opening not in NO_OPENINGS, docstring
