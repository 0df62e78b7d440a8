"""See when a file has changed: by looking at it once a second.

A change is told when the file was the same twice in a row: one that is being written is not taken
for whole, which TOML would not show (half of the routes may be good, too). What is looked at is the
file that the path leads to, through whichever links: Kubernetes exchanges those.

By looking, and not inotify or kqueue: those are of a file or a directory, not of a path, and not
there on every file system. Knows nothing of what is in the file.
"""

import os
import stat
from collections.abc import Callable

import trio

State = tuple[int, ...]
"""What of a file is other when its content is."""

_EVERY = 1.0  # seconds


def look(path: str) -> State | None:
    """Return how a file is now; None for what is none that could be read again, such as a pipe.

    Raises:
        OSError: it is not there, or cannot be reached.
    """
    status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISREG(status.st_mode):
        return None
    # ctime beside mtime: cp -p keeps that, and a file that may be read at last has this alone.
    times = status.st_mtime_ns, status.st_ctime_ns
    return *times, status.st_size, status.st_ino, status.st_dev


async def watch(
    path: str,
    last_read: Callable[[], State | None],
    changed: Callable[[], None],
    missing: Callable[[str], None],
) -> None:
    """Look at a file, until cancelled.

    Args:
        path: of the file.
        last_read: how it was when it was last read; None if it is to be read in any case.
        changed: told when it is otherwise for a second; again and again until that was read.
        missing: told why there is no such file, once until there is one.
    """
    last: State | None = None
    is_missing = False
    while True:
        await trio.sleep(_EVERY)
        try:
            # In a thread: on a network's file system that may take any time.
            now = await trio.to_thread.run_sync(look, path, abandon_on_cancel=True)
            why = "not a regular file"
        except OSError as error:
            now, why = None, error.strerror or str(error)
        if now is None and not is_missing:
            missing(why)
        is_missing = now is None
        if now is not None and now == last and now != last_read():
            changed()
        last = now
