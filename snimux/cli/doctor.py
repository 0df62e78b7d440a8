"""``snimux doctor``: say what is wrong on this host, and what mends it."""

import sys
from collections.abc import Mapping
from typing import Any

import click

from snimux.cli.ask import ask_host, search_option
from snimux.cli.options import configured, merge, options, read_file
from snimux.cli.usage import Command
from snimux.doctor import render
from snimux.doctor.judge import diagnose

_EPILOG = """Without any flag the Caddys that run here are looked for.

\b
EXAMPLES
  snimux doctor
  snimux doctor --config /etc/snimux.toml
  snimux doctor --no-search --caddy localhost:2019

\b
EXIT STATUS
  0 all green    1 something yellow    2 something red, or wrong flags
"""


@click.command(
    "doctor",
    cls=Command,
    short_help="Say what is wrong on this host, and what mends it.",
    epilog=_EPILOG,
)
@options
@search_option
@click.option("--json", "is_json", is_flag=True, help="say it as JSON")
@click.pass_obj
def command(
    group_flags: Mapping[str, Any], /, *, is_json: bool, no_search: bool, **flags: Any
) -> None:
    """Look at this host's Caddys and snimux's way to them, and say what mends what is wrong."""
    merged = merge(group_flags, flags)
    config = configured(merged, read_file(merged["config"]), needs_routes=False)
    facts = ask_host(config, search=not no_search)
    findings = diagnose(facts)
    form = render.as_json if is_json else render.text
    click.echo(form(findings, facts.unseen))
    sys.exit(render.status(findings))
