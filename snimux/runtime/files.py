"""Read a file whole, but never more of it than a limit, and never for ever.

A path that somebody wrote down, or that another user's process names, may lead to anything: to
/dev/zero, which has no end; to a FIFO, whose writer never comes; to a device that starts something
when it is opened. Each error is an ``OSError`` whose ``strerror`` says in words what is there.

Knows nothing of what is in a file. A file system that does not answer is waited for: there is no
other way.

Source: open(2), fifo(7), select(2).
"""

import errno
import os
import select
import stat
import time

_PIECE = 64 * 1024
# Seconds: what a start may take is twice that (see `upgrade`).
_PATIENCE = 30.0

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def read(path: str, limit: int) -> bytes:
    """Return the content of a regular file, without waiting for anybody.

    Args:
        path: of the file.
        limit: bytes, whole MiB.

    Raises:
        OSError: there is none, or it is larger.
    """
    descriptor = open_regular(path)
    try:
        if os.fstat(descriptor).st_size > limit:
            raise _too_large(limit)
        return _read(descriptor, limit)
    finally:
        os.close(descriptor)


def read_stream(path: str, limit: int, *, patience: float = _PATIENCE) -> bytes:
    """Return the content of a regular file, or what a pipe, a terminal or /dev/null has, once.

    Args:
        path: of the file; /dev/stdin, and what a shell writes for ``<(...)``.
        limit: bytes, whole MiB.
        patience: seconds until what is no regular file has to have ended.

    Raises:
        OSError: there is none, or it is larger, or has not ended.
    """
    descriptor = _open(path, streams=True)
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return _read(descriptor, limit, patience=None if is_regular else patience)
    finally:
        os.close(descriptor)


def read_shared(descriptor: int, limit: int) -> bytes:
    """Return the content of an open file without its position, which several processes share.

    Raises:
        OSError: it cannot be read so, or is larger than the limit (bytes, whole MiB).
    """
    size = os.fstat(descriptor).st_size
    if size > limit:
        raise _too_large(limit)
    return os.pread(descriptor, size, 0)


def open_regular(path: str) -> int:
    """Open a regular file for reading, without waiting for anybody.

    Raises:
        OSError: there is none.

    Resource handling: the caller owns the descriptor. No child inherits it.
    """
    return _open(path, streams=False)


def _open(path: str, *, streams: bool) -> int:
    # Looked at twice: to open some devices is to set them going, and by then it may be another.
    _check(os.stat(path), streams=streams)  # noqa: PTH116 (a path is no object here)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        _check(os.fstat(descriptor), streams=streams)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check(status: os.stat_result, *, streams: bool) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    is_stream = stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and _ends(status))
    if not (stat.S_ISREG(mode) or (streams and is_stream)):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise OSError(errno.EINVAL, f"is {kind} and not a regular file")


def _ends(device: os.stat_result) -> bool:
    """Return whether a character device has an end: /dev/null, or standard input's terminal."""
    finite: list[str | int] = [os.devnull, *[0] * os.isatty(0)]
    return any(os.stat(each).st_rdev == device.st_rdev for each in finite)  # noqa: PTH116


def _read(descriptor: int, limit: int, *, patience: float | None = None) -> bytes:
    received = bytearray()
    started = time.monotonic()
    while len(received) <= limit:
        if patience is not None:
            left = max(started + patience - time.monotonic(), 0)
            if not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError(errno.ETIMEDOUT, f"has not ended after {patience:g} s")
        piece = os.read(descriptor, min(_PIECE, limit + 1 - len(received)))
        if not piece:
            return bytes(received)
        received += piece
    raise _too_large(limit)


def _too_large(limit: int) -> OSError:
    return OSError(errno.EFBIG, f"is larger than {limit >> 20} MiB")
