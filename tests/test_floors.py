"""The house has floors: a module imports only from lower ones, and the lowest know no world."""

import ast
from pathlib import Path

import pytest

import snimux

ROOT = Path(snimux.__file__).parent

FLOORS = (
    (
        "hostname",
        "meant",
        "address",
        "verdict",
        "networks",
        "pace",
        "balance",
        "health",
        "window",
        "dump",
        "farewells",
        "kept",
        "extra",
    ),
    ("client_hello", "http_head", "proxy_header", "access", "routes", "overlap", "reasons"),
    (
        "settings",
        "sources",
        "config",
        "difference",
        "caddy",
        "caddy_json",
        "facts",
        "advice",
        "case",
        "explanation",
        "overview",
        "columns",
        "diagnosis.__init__",
        "diagnosis.ports",
        "diagnosis.caddys",
        "diagnosis.backends",
        "diagnosis.judge",
    ),
    (
        "background",
        "clock",
        "log",
        "batching",
        "files",
        "transparent",
        "itself",
        "lanes",
        "upstream",
        "backends",
        "names",
        "fetch",
        "running",
        "admin",
        "listeners",
        "systemd",
        "shim",
        "orders",
        "watch",
        "places",
        "probe",
        "survey",
        "certificate",
        "report",
        "relay.__init__",
        "relay.reset",
        "relay.pipes",
        "relay.portable",
        "relay.engine",
        "questions",
        "pages",
        "checkup",
    ),
    (
        "connection",
        "doors",
        "shares",
        "ends",
        "discovery",
        "proxy_auto",
        "checks",
        "pulse",
        "reload",
        "spawn",
        "upgrade",
        "life",
        "figures",
        "view",
        "exposition",
        "status",
        "live",
        "showing",
        "looking",
    ),
    ("server", "doctor", "description", "account", "screen", "handed", "worker"),
    ("supervisor",),
    ("flags", "process"),
    ("commands",),
    ("cli", "__main__"),
)
# address uses hostname; http_head knows other protocols by client_hello's first_bytes; routes uses
# access and proxy_header's Version; relay.portable its package.
SAME_FLOOR = {
    ("address", "hostname"),
    ("http_head", "client_hello"),
    ("routes", "access"),
    ("routes", "proxy_header"),
    ("sources", "settings"),
    ("config", "settings"),
    ("config", "sources"),
    ("difference", "config"),
    ("facts", "caddy"),
    ("explanation", "caddy"),
    ("explanation", "case"),
    ("explanation", "config"),
    ("advice", "facts"),
    ("columns", "overview"),
    ("diagnosis.__init__", "advice"),
    ("diagnosis.__init__", "caddy"),
    ("diagnosis.__init__", "facts"),
    ("diagnosis.ports", "diagnosis.__init__"),
    ("diagnosis.ports", "advice"),
    ("diagnosis.ports", "facts"),
    ("diagnosis.caddys", "diagnosis.__init__"),
    ("diagnosis.caddys", "advice"),
    ("diagnosis.caddys", "caddy"),
    ("diagnosis.caddys", "facts"),
    ("diagnosis.backends", "diagnosis.__init__"),
    ("diagnosis.backends", "advice"),
    ("diagnosis.backends", "caddy"),
    ("diagnosis.backends", "facts"),
    ("diagnosis.judge", "diagnosis.__init__"),
    ("diagnosis.judge", "diagnosis.ports"),
    ("diagnosis.judge", "diagnosis.caddys"),
    ("diagnosis.judge", "diagnosis.backends"),
    ("diagnosis.judge", "facts"),
    ("admin", "files"),
    ("survey", "files"),
    ("backends", "log"),
    ("backends", "relay.__init__"),
    ("backends", "upstream"),
    ("batching", "log"),
    ("names", "log"),
    ("fetch", "upstream"),
    ("admin", "background"),
    ("admin", "fetch"),
    ("caddy_json", "caddy"),
    ("checkup", "background"),
    ("itself", "listeners"),
    ("upstream", "itself"),
    ("upstream", "transparent"),
    ("backends", "itself"),
    ("backends", "lanes"),
    ("probe", "itself"),
    ("probe", "upstream"),
    ("certificate", "itself"),
    ("certificate", "upstream"),
    ("pages", "listeners"),
    ("pages", "log"),
    ("questions", "log"),
    ("doors", "connection"),
    ("shares", "connection"),
    ("ends", "connection"),
    ("figures", "connection"),
    ("view", "figures"),
    ("exposition", "figures"),
    ("status", "exposition"),
    ("status", "figures"),
    ("status", "reload"),
    ("status", "view"),
    ("live", "figures"),
    ("live", "status"),
    ("live", "view"),
    ("upgrade", "spawn"),
    ("life", "reload"),
    ("life", "upgrade"),
    ("showing", "figures"),
    ("showing", "live"),
    ("showing", "reload"),
    ("showing", "status"),
    ("showing", "upgrade"),
    ("showing", "view"),
    ("relay.portable", "relay.__init__"),
    ("relay.portable", "relay.reset"),
    ("relay.engine", "relay.__init__"),
    ("relay.engine", "relay.pipes"),
    ("relay.engine", "relay.reset"),
    ("worker", "handed"),
    ("__main__", "cli"),
}
PURE_FLOORS = 3
COMMAND_LINE = {"cli", "flags", "commands", "__main__"}
WORLD = {"trio", "socket", "time", "datetime", "logging", "asyncio", "selectors", "subprocess"}

MODULES = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in ROOT.rglob("*.py")]


def floor(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module in names)


def imports(module: str) -> set[str]:
    """Dotted names of everything that a module imports, at any depth of its code."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inner(dotted: str) -> str | None:
    """The module of snimux that an imported name is, or is in."""
    path = dotted.split(".")[1:]
    for length in range(len(path), 0, -1):
        for name in (".".join(path[:length]), ".".join([*path[:length], "__init__"])):
            if name in MODULES:
                return name
    return None


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__"}))
def test_a_module_imports_only_from_lower_floors(module: str) -> None:
    for dotted in imports(module):
        below = inner(dotted) if dotted.startswith("snimux.") else None
        if below is not None and (module, below) not in SAME_FLOOR:
            assert floor(below) < floor(module), f"{module} imports {below}"
        if floor(module) < PURE_FLOORS:
            assert dotted.partition(".")[0] not in WORLD, f"{module} imports {dotted}"


# What prints, or ends the process.
LAST_WORDS = {"print", "exit", "quit", "SystemExit"}
LAST_WORDS_OF = {
    "sys": {"exit"},
    "os": {"abort", "_exit"},
    "click": {"echo", "secho", "echo_via_pager", "Abort", "ClickException", "UsageError"},
}


# The shim is a program of its own.
@pytest.mark.parametrize("module", sorted(set(MODULES) - COMMAND_LINE - {"shim"}))
def test_only_the_command_line_prints_and_exits(module: str) -> None:
    """Whoever calls any other module can go on after its faults."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name):
                assert name not in LAST_WORDS, f"line {node.lineno}: {name}"
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                is_last = name in LAST_WORDS_OF.get(owner, ())
                assert not is_last, f"line {node.lineno}: {owner}.{name}"
    ours = [dotted for dotted in imports(module) if dotted.startswith("snimux.")]
    assert not COMMAND_LINE & set(map(inner, ours))


def test_every_module_says_what_it_is_for() -> None:
    for module in MODULES:
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")
        assert ast.get_docstring(ast.parse(text)), module
