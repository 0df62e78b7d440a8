"""``snimux.cli``: what is typed, what is printed, and the exit status; in this process.

A server that runs is a process of its own: see ``test_end_to_end``.
"""

from importlib import resources

import pytest
from click.testing import CliRunner, Result

import snimux
from snimux.cli import main

STORY = ["--route", "secure.ciso.com=127.0.0.1:8443",
         "--route", "dao.ciso.com,traefik.ciso.com=127.0.0.1:8444"]  # fmt: skip


def run(*args: str) -> Result:
    result = CliRunner().invoke(main, args)
    assert "Traceback" not in result.output
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result


def test_version() -> None:
    assert run("--version").stdout == f"snimux {snimux.__version__}\n"


def test_help_has_the_flags_and_examples() -> None:
    text = run("--help").stdout
    for words in ("--listen", "--workers", "EXAMPLES",
                  "snimux --route secure.ciso.com=127.0.0.1:8443",
                  "PORT 80", "SYSTEMD", "EXIT STATUS"):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_has_the_commands_and_each_its_own() -> None:
    text = run("--help").stdout
    for command in ("check", "doctor", "init"):
        assert f"\n  {command} " in text
    assert "EXIT STATUS\n    0 all green" in run("doctor", "--help").stdout
    assert "--output FILE" in run("init", "--help").stdout


@pytest.mark.parametrize("command", [[], ["check"], ["doctor"], ["init"]])
def test_every_command_has_the_flags_and_tells_of_mistakes_in_them(command: list[str]) -> None:
    assert "--route HOST" in run(*command, "--help").stdout
    result = run(*command, *STORY, "--listen", "443")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "snimux: --listen: '443': no port; perhaps :443\n"


def test_check_prints_what_it_understood_and_that_it_is_good() -> None:
    result = run("check", *STORY)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "listen"
    assert "  traefik.ciso.com              ->  127.0.0.1:8444" in lines
    assert lines[-1] == "ok"


def test_check_takes_its_flags_before_or_behind() -> None:
    behind = run("check", *STORY, "--drain", "1").stdout
    assert run(*STORY, "--drain", "1", "check").stdout == behind
    assert run(*STORY[:2], "check", *STORY[2:], "--drain", "1").stdout == behind
    assert run(*STORY, "--drain", "2", "check", "--drain", "1").stdout == behind


def test_the_example_file_is_good() -> None:
    with resources.as_file(resources.files("snimux").joinpath("example.toml")) as path:
        result = run("check", "--config", str(path))
    assert result.exit_code == 0
    assert "  *                             ->  127.0.0.1:8445\n" in result.stdout


def test_nothing_to_do_says_what_to_give() -> None:
    result = run()
    assert result.exit_code == 2
    assert result.stderr.startswith("snimux: no routes: give --route HOST=ADDR")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rout", "a=b:1"], "--route"),
        (["--route"], "requires an argument"),
        (["chekc"], "No such command 'chekc'"),
        (["check", "extra"], "unexpected extra argument"),
    ],
)
def test_unknown_words_are_told(args: list[str], words: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert words in result.stderr
