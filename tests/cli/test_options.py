"""``cli.options``: flags are had as a Config, or every problem has its line and a status.

What each flag accepts: ``test_config``. That every command has them: ``test_cli``.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from snimux.cli.ask import search_option
from snimux.cli.options import configured, fail, merge, options, read_file
from snimux.config.settings import SETTINGS
from snimux.service.spawn import start

STORY = ["--route", "secure.ciso.com=127.0.0.1:8443"]


@click.command
@options
@search_option
def command(*, no_search: bool, **flags: Any) -> None:
    """What a command is that has the flags: prints what they came to."""
    config = configured(flags, read_file(flags["config"]), needs_routes=not no_search)
    click.echo(" ".join(f"{route.pattern}" for route in config.routes))


def run(*args: str) -> Result:
    result = CliRunner().invoke(command, args)
    if result.exception is not None:
        assert isinstance(result.exception, SystemExit), result.exception
    return result


def test_help_names_every_flag_with_its_default() -> None:
    text = " ".join(run("--help").stdout.split())
    for setting in SETTINGS:
        assert setting.flag in text
        assert f"[default: {setting.default}]" in text
    for flag in ("--listen", "--http", "--route", "--default", "--proxy-protocol", "--caddy",
                 "--config", "--no-search"):  # fmt: skip
        assert flag in text


def test_flags_and_file_come_together(tmp_path: Path) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text("[[route]]\nhosts = 'dao.ciso.com'\nto = '127.0.0.1:1'\n")
    result = run(*STORY, "--config", str(file))
    assert result.stdout == "dao.ciso.com secure.ciso.com\n"
    assert result.exit_code == 0


def test_no_route_is_a_mistake_where_routes_are_needed() -> None:
    assert run().stderr.startswith("snimux: no routes: give --route HOST=ADDR")
    assert run().exit_code == 2
    assert run("--no-search").exit_code == 0


def test_flags_before_a_command_are_joined_by_those_behind_and_give_way() -> None:
    lists: dict[str, Any] = {"listen": (), "http": (":81",), "route": ("a",), "caddy": ()}
    before = {**lists, "drain": "1", "workers": "2"}
    behind = {**lists, "http": (":82",), "route": ("b",), "drain": "3", "workers": None}
    merged = merge(before, behind)
    assert merged["http"] == (":81", ":82")
    assert merged["route"] == ("a", "b")
    assert (merged["drain"], merged["workers"]) == ("3", "2")


def test_failing_says_every_problem_and_has_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fail(1, "this", "that")
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", "snimux: this\nsnimux: that\n")


def test_every_mistake_has_its_line_and_status_2(tmp_path: Path) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text("drian = 3\n[[route]]\nhosts = 'a..b'\n")
    result = run("--config", str(file), "--listen", "443", "--route", "x")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "snimux: --listen: '443': no port; perhaps :443",
        "snimux: --route: 'x' is not HOST[,HOST...]=ADDR[,ADDR...], "
        "such as secure.example.com=127.0.0.1:8443",
        f"snimux: {file}: unknown key 'drian'; did you mean drain?",
        f"snimux: {file}: route 1: to is missing",
        f"snimux: {file}: route 1: 'a..b': has an empty label, or one longer than 63 characters",
    ]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    missing = run("--config", str(tmp_path / "no.toml"))
    assert missing.stderr == f"snimux: --config: {tmp_path}/no.toml: No such file or directory\n"
    assert run("--config", str(tmp_path)).stderr.endswith(": Is a directory\n")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert run("--config", str(binary)).stderr.endswith(": not UTF-8, so not TOML\n")
    assert run("--config", str(tmp_path / "no.toml")).exit_code == 2
    for device in ("/dev/zero", "/dev/urandom"):
        words = f"snimux: --config: {device}: is a character device and not a regular file\n"
        assert run("--config", device).stderr == words
    with binary.open("wb") as sparse:
        sparse.truncate(2**40)
    assert run("--config", str(binary)).stderr.endswith(": is larger than 16 MiB\n")
    assert run("--config", os.devnull, *STORY).stdout == "secure.ciso.com\n"


def test_what_is_handed_over_and_no_listening_socket_is_status_1(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryFile() as file:
        command = [sys.executable, "-m", "snimux", *STORY]
        assert start(command, [("tls", file.fileno())], environment=os.environ).wait() == 1
    words = "snimux: descriptor 3 (tls) was handed over, but is no listening stream socket\n"
    assert capfd.readouterr().err == words
