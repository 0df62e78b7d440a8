"""What the commands of the harness have in common."""

import resource
import signal
import sys
from collections.abc import Sequence

import click

_DESCRIPTORS = 20_000  # 5,000 connections in a proxy, twice, and something to spare


def chosen(kind: str, text: str | None, known: Sequence[str]) -> list[str]:
    """Return those of the known names that a list with commas names, in their order; or all.

    Raises:
        click.UsageError: a name is not known.
    """
    wanted = text.split(",") if text else list(known)
    for each in wanted:
        if each not in known:
            raise click.UsageError(f"no {kind} {each!r}; there are {', '.join(known)}")
    return [each for each in known if each in wanted]


def prepare() -> None:
    """Raise the limit of descriptors, and let SIGTERM end what runs, too.

    Raises:
        click.ClickException: this is not Linux.
    """
    if sys.platform != "linux":
        raise click.ClickException("needs Linux: processor time is read from /proc")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
