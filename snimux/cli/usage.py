"""Commands that tell of a slip on the command line as of any other: in one line, with what to do.

Values are not for them to judge; that is ``config``'s.

Source: click, which finds most slips, and has its own words and usage for them.
"""

import errno
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import click

from snimux.cli.options import fail
from snimux.config import hints

# What a full or broken disk says. That nobody reads any more click heeds.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Command(click.Command):
    """A command that shows its own flags before those that it shares with snimux itself."""

    allow_extra_args = True  # which are told of here

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read what was typed; or exit."""
        rest = _parsed(self, ctx, super().parse_args, args)
        if rest:
            hint = _instead(rest[0]) or f"see {ctx.command_path} --help"
            fail(2, f"{rest[0]!r}: {self.name} takes no such word; {hint}")
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each flag does."""
        group = ctx.parent.command.params if ctx.parent else []
        shared = {(x.name, x.help) for x in group if isinstance(x, click.Option)}
        own: list[tuple[str, str]] = []
        of_snimux: list[tuple[str, str]] = []
        for option in _options(self, ctx):
            is_shared = (option.name, option.help) in shared
            record = option.get_help_record(ctx)
            if record is not None:
                (of_snimux if is_shared else own).append(record)
        for title, records in (("Options", own), ("Options of snimux itself", of_snimux)):
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(click.Group):
    """A command that has further commands."""

    command_class = Command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run what was typed; where what it says cannot be written, one line says why."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if error.errno not in _NOT_WRITTEN:
                raise
            fail(1, f"standard output: {error.strerror}")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read what was typed, up to a command's name; or exit."""
        return _parsed(self, ctx, super().parse_args, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed; or exit."""
        name, names = args[0], self.list_commands(ctx)
        if name not in names:
            guess = hints.near(name, names)
            hint = f"did you mean {guess}?" if guess else f"{', '.join(names)}, or none to serve"
            fail(2, f"{name!r}: no such command; {_instead(name) or hint}")
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what the commands are, and then, for it is longer, what each flag does."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)


def _parsed(
    command: click.Command,
    ctx: click.Context,
    parse: Callable[[click.Context, list[str]], list[str]],
    args: list[str],
) -> list[str]:
    """Return what is left of the words when all flags are read; or exit."""
    try:
        rest = parse(ctx, args)
    except click.UsageError as error:
        fail(2, _words(command, ctx, error))
    for option in _options(command, ctx):
        for text in _values(option, ctx.params.get(option.name or "")):
            if not text or text.startswith("--"):
                fail(2, _missing(option, text))
    return rest


def _options(command: click.Command, ctx: click.Context) -> list[click.Option]:
    return [x for x in command.get_params(ctx) if isinstance(x, click.Option)]


def _values(option: click.Option, value: Any) -> Sequence[str]:
    """Return the texts that an option was given."""
    if option.is_flag or value is None:
        return ()
    return value if option.multiple else (str(value),)


def _missing(option: click.Option, following: str = "") -> str:
    flag = option.opts[-1]
    where = f" before {following}" if following else ""
    return f"{flag}: its value is missing{where}; write {flag} {option.metavar}"


def _words(command: click.Command, ctx: click.Context, error: click.UsageError) -> str:
    """Say what is wrong, and what to do, in one line."""
    by_flag = {flag: option for option in _options(command, ctx) for flag in option.opts}
    match error:
        case click.NoSuchOption(option_name=flag):
            names = {x.lstrip("-").replace("-", "_"): x for x in by_flag}
            name = flag.lstrip("-").replace("-", "_")
            guess = hints.key(name, list(names)) or hints.near(name, list(names))
            hint = f"did you mean {names[guess]}?" if guess else f"see {ctx.command_path} --help"
            return f"{flag}: no such flag; {hint}"
        case click.BadOptionUsage(option_name=flag) if flag in by_flag:
            is_flag = by_flag[flag].is_flag
            return f"{flag}: takes no value" if is_flag else _missing(by_flag[flag])
    return error.format_message().removesuffix(".")


def _instead(word: str) -> str:
    """Guess what was meant by a word that goes behind a flag; empty if there is no guess."""
    if "=" in word:
        return f"write --route {shlex.quote(word)}"
    if word.endswith(".toml"):
        return f"write --config {shlex.quote(word)}"
    return ""
