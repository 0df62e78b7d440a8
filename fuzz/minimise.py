"""What of a search's finds is worth keeping: the fewest and smallest files that reach all they do.

What files reach is counted by the lines of snimux, and which line came before; so anyone can do it
again, with any Python.
"""

import hashlib
import sys
from collections.abc import Iterable
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import snimux
from fuzz.target import Target

_ROOT = str(Path(snimux.__file__).parent)

Step = tuple[str, int, int]
"""A file of snimux, a line of it that was run, and the one before."""


def reached(target: Target, data: bytes) -> frozenset[Step]:
    """The steps within the target's modules that some bytes lead to."""
    files = {f"{_ROOT}/{module}.py" for module in target.modules}
    steps: set[Step] = set()
    before: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if file not in files:
            return None
        if event == "line":
            steps.add((file, before.get(frame, 0), frame.f_lineno))
            before[frame] = frame.f_lineno
        return trace

    others = sys.gettrace()
    sys.settrace(trace)
    try:
        target.check(data)
    finally:
        sys.settrace(others)
    return frozenset(steps)


def lines_of(target: Target) -> set[tuple[str, int]]:
    """The lines of the target's modules that are within functions."""
    found: set[tuple[str, int]] = set()
    for module in target.modules:
        source = Path(f"{_ROOT}/{module}.py")
        whole = compile(source.read_text("utf-8"), str(source), "exec")
        for code in _functions(whole):
            lines = {line for _, _, line in code.co_lines() if line} - {code.co_firstlineno}
            found |= {(str(source), line) for line in lines}
    return found


def _functions(code: CodeType) -> Iterable[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & CO_OPTIMIZED:  # not the body of a class
                yield inner
            yield from _functions(inner)


def new(target: Target, found: Path) -> list[bytes]:
    """What of a directory reaches what nothing in the corpus does, the smallest first."""
    there: set[Step] = set().union(*(reached(target, data) for data in target.seeds()))
    chosen = []
    for data in sorted((path.read_bytes() for path in found.iterdir()), key=len):
        more = reached(target, data) - there
        if more:
            there |= more
            chosen.append(data)
    return chosen


def keep(target: Target, found: Path) -> int:
    """Put what of a directory is new into the corpus; how many files that are."""
    chosen = new(target, found)
    target.corpus.mkdir(parents=True, exist_ok=True)
    for data in chosen:
        (target.corpus / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
    return len(chosen)
