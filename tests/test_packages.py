"""The house: a package imports only packages of lower levels, and what is in it stays small."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import snimux

ROOT = Path(snimux.__file__).parent

LEVELS = (
    ("runtime", "proto", "relay", "log", "text", "extras"),
    ("routing",),
    ("config", "net"),
    ("backend",),
    ("frontend", "providers"),
    ("status", "doctor"),
    ("service", "explain", "top"),
    ("cli",),
    ("__main__",),
)
# What takes bytes and time as arguments, and gives values.
PURE = (
    "proto", "text", "extras", "routing", "config", "providers.merge", "providers.caddy.read",
    "providers.caddy.sites", "status.client", "status.sample", "doctor.facts", "doctor.findings",
    "doctor.caddyfile", "doctor.ports", "doctor.caddys", "doctor.backends", "doctor.judge",
    "explain.input", "explain.capture", "explain.refusal", "explain.foresee", "explain.explain",
    "top.tree", "top.columns",
)  # fmt: skip
WORLD = {"trio", "socket", "time", "datetime", "logging", "asyncio", "selectors", "subprocess"}

MOST_MODULES = 16
LONGEST_MODULE = 400
LONGEST_FUNCTION = 45  # lines, without its docstring

FILES = sorted(ROOT.rglob("*.py"))


def dotted(file: Path) -> str:
    """The name of a module, without the first part."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def imports(file: Path) -> set[str]:
    """Dotted names of everything that a module imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules_imported(file: Path) -> set[str]:
    """The modules of snimux among these, without the first part."""
    known = {dotted(each) for each in FILES}
    inner = {name.removeprefix("snimux.") for name in imports(file) if name.startswith("snimux.")}
    return {name if name in known else name.rpartition(".")[0] for name in inner} - {""}


def size_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, without those up to the end of its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    before = function.lineno - 1 if docstring is None else docstring.end_lineno
    return (function.end_lineno or 0) - (before or 0)


def level(package: str) -> int:
    return next(number for number, names in enumerate(LEVELS) if package in names)


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_a_module_imports_only_packages_of_lower_levels(file: Path) -> None:
    package = dotted(file).partition(".")[0]
    for other in {name.partition(".")[0] for name in modules_imported(file)} - {package}:
        assert package != "__init__", f"snimux itself imports {other}"
        assert level(other) < level(package), f"{dotted(file)} imports {other}"


def test_within_a_package_no_imports_go_in_a_circle() -> None:
    graph = {dotted(file): modules_imported(file) - {dotted(file)} for file in FILES}
    assert [*TopologicalSorter(graph).static_order()]


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_what_is_pure_knows_no_world(file: Path) -> None:
    if any(f"{dotted(file)}.".startswith(f"{pure}.") for pure in PURE):
        assert not {name.partition(".")[0] for name in imports(file)} & WORLD


@pytest.mark.parametrize("file", [x for x in FILES if x.name == "__init__.py"], ids=dotted)
def test_a_package_says_what_it_is_for_and_imports_nothing(file: Path) -> None:
    tree = tree_of(file)
    assert ast.get_docstring(tree)
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [x for x in file.parent.glob("*.py") if x != file]
    assert len(modules) <= MOST_MODULES


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_a_module_says_what_it_is_for(file: Path) -> None:
    assert ast.get_docstring(tree_of(file))


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_a_module_and_its_functions_can_be_read_at_once(file: Path) -> None:
    lines = len(file.read_text("utf-8").splitlines())
    assert lines <= LONGEST_MODULE
    nodes = ast.walk(tree_of(file))
    functions = [x for x in nodes if isinstance(x, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [x.name for x in functions if size_of(x) > LONGEST_FUNCTION] == []


def test_what_a_package_is_at_is_written_once() -> None:
    packages = {dotted(file).partition(".")[0] for file in FILES} - {"__init__"}
    assert packages == {name for names in LEVELS for name in names}
    assert all(name in (snimux.__doc__ or "") for name in packages - {"__main__"})


# Attributes that a library's own objects have in order to be assigned, and who does so.
LIBRARIES = {
    "deadline": ("relay", "service", "status"), "shield": ("status",),  # trio.CancelScope
    "check_hostname": ("backend", "doctor"), "verify_mode": ("backend", "doctor"),  # ssl.SSLContext
    "obj": ("cli",),  # click.Context
    "samples": ("status",),  # prometheus_client's metrics
    "display": ("top",), "renderer": ("top",), "value": ("top",),  # textual's widgets
}  # fmt: skip


def records(package: Path) -> set[str]:
    """The fields of a package's records: dataclasses that change, and slots without methods."""
    fields: set[str] = set()
    classes = [x for f in package.glob("*.py") for x in ast.walk(tree_of(f))]
    for each in (x for x in classes if isinstance(x, ast.ClassDef)):
        kinds = [ast.unparse(decorator) for decorator in each.decorator_list]
        if any("dataclass" in kind and "frozen=True" not in kind for kind in kinds):
            fields |= {ast.unparse(x.target) for x in each.body if isinstance(x, ast.AnnAssign)}
        methods = {x.name for x in each.body if isinstance(x, ast.FunctionDef)}
        assigned = [x for x in each.body if isinstance(x, ast.Assign)]
        slots = [x.value for x in assigned if ast.unparse(x.targets[0]) == "__slots__"]
        if slots and methods <= {"__init__"}:
            fields |= set(ast.literal_eval(slots[0]))
    return fields


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_no_object_is_changed_from_outside_but_a_record_by_its_own_package(file: Path) -> None:
    """An attribute is assigned by its object's methods (``self.x = ...``), and by nobody else.

    Two kinds are left out. A record has no secrets, and is there to be filled: a dataclass that is
    not frozen, or slots without methods; the package that has it fills it, and no other does.
    And some objects of libraries are told what to do by an attribute. What is left is wiring:
    parts of another object that somebody exchanges after it was made. Types are not known here, so
    a name that is a record's field in the package counts as that.
    """
    package = dotted(file).partition(".")[0]
    allowed = records(file.parent) | {x for x, users in LIBRARIES.items() if package in users}
    targets = [
        ast.unparse(node)
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store | ast.Del)
        and ast.unparse(node.value) != "self"
        and node.attr not in allowed
    ]
    assert targets == []
