"""``snimux init``: write a configuration for the Caddys of this host."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from snimux.cli.ask import ask_host, search_option
from snimux.cli.options import configured, fail, merge, options, read_file
from snimux.cli.usage import Command
from snimux.config.from_toml import read_toml
from snimux.config.load import load
from snimux.config.model import ConfigError
from snimux.doctor import caddyfile
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.routing.address import DirectoryAddress

_EPILOG = """--listen, --http and --caddy go into the file; other settings are for you to add.
Without --output the file alone is on standard output, and what is to be done on standard error.

\b
EXAMPLES
  snimux init
  snimux init --output /etc/snimux.toml
  snimux init --config /etc/snimux.toml --output /etc/snimux.toml --force

\b
EXIT STATUS
  0 written    1 no Caddy was found, or the file cannot be written    2 wrong flags or configuration
"""

# What init takes over from flags, and what it says of others.
_WRITTEN = ("config", "listen", "http", "caddy")
_NOT_WRITTEN = "init does not write it; leave it out, and add it to the file"


@click.command(
    "init",
    cls=Command,
    short_help="Write a configuration for the Caddys of this host.",
    epilog=_EPILOG,
)
@options
@search_option
@click.option("--output", metavar="FILE", help="write it there  [default: print it]")
@click.option("--force", is_flag=True, help="also where there is a file already")
@click.pass_obj
def command(
    group_flags: Mapping[str, Any],
    /,
    *,
    output: str | None,
    force: bool,
    no_search: bool,
    **flags: Any,
) -> None:
    """Write a configuration for the Caddys of this host, and say what their Caddyfiles need.

    With --config FILE all that is in FILE is kept, and the Caddys are added that it has not.
    """
    merged = merge(group_flags, flags)
    text = read_file(merged["config"])
    config = configured(merged, text, needs_routes=False)
    unwritten = [x for x in merged if merged[x] and x not in _WRITTEN]
    if unwritten:
        fail(2, *(f"--{x.replace('_', '-')}: {_NOT_WRITTEN}" for x in unwritten))
    facts = ask_host(config, search=not no_search)
    if not facts.caddys:
        fail(1, "no Caddy is running here that can be seen; start them, or name one: --caddy ADDR")
    places = caddyfile.places(facts)
    written = read_toml(text or "")
    for key, has in (("listen", TLS.name in written.listen), ("http", HTTP.name in written.listen)):
        if merged[key] and has:
            fail(2, f"--{key}: {merged['config']} has {key} already: change it there")
    is_new = text is None
    file = caddyfile.toml(
        facts.tls if is_new or merged["listen"] else None,
        facts.http if config.is_http_said and (is_new or merged["http"]) else None,
        places,
        text=text,
        named=[x for x in written.providers if not isinstance(x, DirectoryAddress)],
    )
    try:
        load({}, output or "FILE", file)
    except ConfigError as error:
        fail(1, *error.problems, "so it is not written")
    if output is None:
        click.echo(file)
    else:
        try:
            _write(Path(output), file, force=force)
        except FileExistsError:
            fail(1, f"--output: {output}: there is a file already; --force replaces it")
        except OSError as error:
            fail(1, f"--output: {output}: {error.strerror}")
    for line in caddyfile.letter(facts, places, output or "FILE"):
        click.echo(line, err=output is None)  # or `init > FILE` would have it in the file


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write a file whole or not at all, and none that is there already."""
    if not force and path.exists():
        raise FileExistsError
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as directory:
        whole = Path(directory, path.name)
        whole.write_text(text, "utf-8")
        if path.exists():
            shutil.copymode(path, whole)
        (os.replace if force else os.link)(whole, path)
