"""``snimux check``: say whether flags and file are good, and print what they come to."""

from collections.abc import Mapping
from typing import Any

import click

from snimux.cli.ask import ask_backends, ask_providers
from snimux.cli.describe import describe
from snimux.cli.options import configured, fail, merge, options, read_file
from snimux.cli.usage import Command
from snimux.providers.merge import planned

_EPILOG = """A Caddy that is named is asked, and a directory of routes read; backends whose PROXY
protocol is auto are probed; nothing is listened on.

\b
EXAMPLES
  snimux check --config /etc/snimux.toml
  snimux check --route secure.ciso.com=127.0.0.1:8443
  snimux check --caddy localhost:2019

\b
EXIT STATUS
  0 good    1 a Caddy could not be asked, or a file of routes not be read
  2 wrong flags or configuration
"""


@click.command(
    "check",
    cls=Command,
    short_help="Say whether flags and file are good, and what they come to.",
    epilog=_EPILOG,
)
@options
@click.pass_obj
def command(group_flags: Mapping[str, Any], /, **flags: Any) -> None:
    """Say whether the configuration is good, and print it as snimux understands it."""
    merged = merge(group_flags, flags)
    config = configured(merged, read_file(merged["config"]))
    snapshots, faults = ask_providers(config)
    plan = planned(config, snapshots)
    click.echo(describe(config, plan, snapshots, ask_backends(plan.routes, plan)))
    if faults:
        hint = "; snimux doctor looks where it is"
        fail(1, *(f"{x.rstrip('.')}{hint * x.startswith('--caddy')}" for x in faults))
    click.echo("ok")
