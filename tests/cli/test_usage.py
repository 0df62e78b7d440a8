"""``cli.usage``: slips on the command line, each told in one line that says what to do.

Those in values: ``test_config``.
"""

import click
import pytest
from click.testing import CliRunner, Result

from snimux.cli.usage import Group


@click.group("snimux", cls=Group, invoke_without_command=True)
@click.option("--config", metavar="FILE", help="a file")
@click.option("--listen", metavar="ADDR", multiple=True, help="a place")
@click.option("--hello-timeout", metavar="SECONDS", help="a time")
def main(**flags: object) -> None:
    """What a command is that has others."""


@main.command()
@click.option("--config", metavar="FILE", help="a file")
@click.option("--output", metavar="FILE", help="another file")
@click.option("--json", "is_json", is_flag=True, help="say it as JSON")
@click.argument("name", required=False)
def check(**flags: object) -> None:
    """What one of these is."""


def run(*args: str) -> Result:
    result = CliRunner().invoke(main, args)
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config", "--listen", "a=b"], "--config: its value is missing before --listen; "
         "write --config FILE"),
        (["--listen", ":1", "--listen", "--config=f"], "--listen: its value is missing before "
         "--config=f; write --listen ADDR"),
        (["check", "--output", "--json"], "--output: its value is missing before --json; "
         "write --output FILE"),
        (["--config"], "--config: its value is missing; write --config FILE"),
        (["--config", ""], "--config: its value is missing; write --config FILE"),
        (["check", "--json=1"], "--json: takes no value"),
        (["--confg", "f"], "--confg: no such flag; did you mean --config?"),
        (["--hello_timeout", "1"], "--hello_timeout: no such flag; did you mean --hello-timeout?"),
        (["--bind", ":1"], "--bind: no such flag; did you mean --listen?"),
        (["check", "--zebra"], "--zebra: no such flag; see snimux check --help"),
        (["-v"], "-v: no such flag; see snimux --help"),
        (["a.b=c:1"], "'a.b=c:1': no such command; write --route a.b=c:1"),
        (["*.b=c:1"], "'*.b=c:1': no such command; write --route '*.b=c:1'"),
        (["s.toml"], "'s.toml': no such command; write --config s.toml"),
        (["chekc"], "'chekc': no such command; did you mean check?"),
        (["zebra"], "'zebra': no such command; check, or none to serve"),
        (["check", "a", "b"], "'b': check takes no such word; see snimux check --help"),
        (["check", "a", "a.b=c"], "'a.b=c': check takes no such word; write --route a.b=c"),
    ],
)  # fmt: skip
def test_slips(args: list[str], words: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"snimux: {words}\n")


@pytest.mark.parametrize("args", [[], ["--config", "f", "--listen", "-"], ["check", "--json", "a"]])
def test_what_is_no_slip_is_let_be(args: list[str]) -> None:
    result = run(*args)
    assert (result.exit_code, result.stderr) == (0, "")


def test_help_has_the_commands_before_the_flags() -> None:
    text = run("--help").stdout
    assert text.index("Commands:") < text.index("Options:")


def test_help_of_a_command_has_its_own_flags_first() -> None:
    own, shared = run("check", "--help").stdout.split("Options of snimux itself:")
    assert "--output" in own
    assert "--help" in own
    assert own.count("NAME") == 1  # in the usage: it is no flag
    assert "--config FILE  a file" in shared
    assert "--config" not in own
