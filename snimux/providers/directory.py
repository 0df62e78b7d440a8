"""Provide the routes of a directory: of each file in it whose name ends in .toml, as they change.

What is looked at is what each name leads to, through whichever links: Kubernetes exchanges one that
all files of a ConfigMap are behind. A file that is being written is left alone until it rests, for
half of it may be good TOML, too. One that is wrong has the routes that it had before, and all
others have theirs.

By looking, and not by inotify or kqueue: see ``runtime.filewatch``.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import trio

from snimux.config.from_toml import LARGEST, read_routes
from snimux.providers.base import Claim, Fault, Lost, Publish, Snapshot
from snimux.routing.address import DirectoryAddress
from snimux.routing.routes import Pattern, Route
from snimux.runtime import files, filewatch
from snimux.runtime.background import in_thread
from snimux.text import plain

# Seconds between two looks, and for which a file is to be the same before it is read.
_EVERY, _REST = 1.0, 0.2
# Seconds after which what rests is published, although something else does not.
_PATIENCE = 0.8

# Files: as many as routes that somebody writes one by one. A second look takes 50 ms of a thread.
_MOST_FILES = 10_000
# Problems of one file that are said; one slip may have a thousand.
_MOST_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was read last; what is wrong with it now, if it is wrong."""

    state: filewatch.State | str
    routes: Mapping[Pattern, Route] = field(default_factory=dict)
    places: Mapping[Pattern, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a look: how each name is, and what is in each file that has rested."""

    states: Mapping[str, filewatch.State | str]
    """By name; words where it is no file that can be read."""
    files: Mapping[str, _File]
    rests: bool
    """Whether nothing has changed since the look before, or all of it is in ``files``."""
    unread: tuple[Fault, ...]
    """That there are more files than are read, if there are."""
    snapshot: Snapshot


class DirectoryProvider:
    """A directory, looked at every second."""

    kind = "routes-dir"

    def __init__(self, address: DirectoryAddress) -> None:
        """Look at nothing yet."""
        self.path = address.path
        self.name = str(address)
        self.hurry = trio.Event()

    def poll_now(self) -> None:
        """Look at once; once more where it is being looked at."""
        self.hurry.set()

    async def provide(self, publish: Publish) -> None:
        """Publish the routes of all files together; the same value where nothing has changed."""
        last: Look | None = None
        while True:
            self.hurry = trio.Event()
            try:
                started = trio.current_time()
                last = await in_thread(partial(look, self.path, last))
                while not last.rests and trio.current_time() < started + _PATIENCE:
                    await trio.sleep(_REST)
                    last = await in_thread(partial(look, self.path, last))
                await publish(last.snapshot)
            except OSError as error:
                await publish(Lost(error.strerror or str(error)))
            with trio.move_on_after(_EVERY):
                await self.hurry.wait()


def look(path: str, before: Look | None) -> Look:
    """Look at a directory, and read what has changed in it, once that rests.

    Args:
        path: of the directory.
        before: the last look; None at the first, when all that is there is read.

    Raises:
        OSError: it is not there, or cannot be listed.
    """
    states, unread = _states(path)
    last = before.states if before else states
    contents = dict(before.files) if before else {}
    rests = True
    for name in [*contents]:
        if name not in states and name not in last:
            del contents[name]
        rests = rests and (name in states or name not in last)
    for name, state in states.items():
        old = contents.get(name)
        if old is not None and old.state == state:
            continue
        if last.get(name) == state:
            contents[name] = _read(os.path.join(path, name), state, old)  # noqa: PTH118
        else:
            rests = False
    is_same = before is not None and before.files == contents and before.unread == unread
    snapshot = before.snapshot if before and is_same else _snapshot(path, contents, unread)
    return Look(states, contents, rests, unread, snapshot)


def _states(path: str) -> tuple[dict[str, filewatch.State | str], tuple[Fault, ...]]:
    """Return how each file is, by name in order; and that there are too many, if there are."""
    names = sorted(x for x in os.listdir(path) if x.endswith(".toml") and not x.startswith("."))  # noqa: PTH208
    states: dict[str, filewatch.State | str] = {}
    for name in names[:_MOST_FILES]:
        try:
            states[name] = filewatch.look(os.path.join(path, name)) or "no regular file"  # noqa: PTH118
        except OSError as error:
            states[name] = error.strerror or str(error)
    more = len(names) - _MOST_FILES
    why = f"has {more} more files than are read, which are the first {_MOST_FILES}"
    return states, (Fault("*.toml", why),) if more > 0 else ()


def _read(path: str, state: filewatch.State | str, old: _File | None) -> _File:
    """Read a file; if it is wrong, it has the routes that it had."""
    try:
        source = read_routes(files.read(path, LARGEST).decode("utf-8"))
        problems = source.problems
    except OSError as error:
        problems = [error.strerror or str(error)]
    except UnicodeDecodeError:
        problems = ["not UTF-8, so not TOML"]
    if not problems:
        return _File(state, source.routes, source.places)
    more = len(problems) - _MOST_PROBLEMS
    shown = (*problems[:_MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else []))
    return _File(state, old.routes, old.places, shown) if old else _File(state, faults=shown)


def _snapshot(path: str, contents: Mapping[str, _File], faults: tuple[Fault, ...]) -> Snapshot:
    """Put the files together; of a pattern that several have, the first by name has it."""
    routes: dict[Pattern, Route] = {}
    written: dict[Pattern, str] = {}
    has: dict[Pattern, str] = {}
    claims = []
    for name in sorted(contents):
        file, shown = contents[name], plain(os.path.join(path, name))  # noqa: PTH118
        faults += tuple(Fault(plain(name), why) for why in file.faults)
        for pattern, route in file.routes.items():
            if pattern in routes:
                claims.append(Claim(str(pattern), has[pattern], shown))
            else:
                routes[pattern], has[pattern] = route, shown
                written[pattern] = f"{file.places[pattern]} of {shown}"
    return Snapshot(
        routes=tuple(routes.values()), claims=tuple(claims), written=written, faults=faults
    )
