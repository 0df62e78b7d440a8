"""``snimux.cli``: what is typed, what is printed, and the exit status; in this process.

A server that runs is a process of its own: see ``test_end_to_end``.
"""

import os
import resource
import socket
import sys
import tempfile
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import snimux
from snimux.cli import _raise_descriptor_limit, _room_for, main
from snimux.settings import SETTINGS
from snimux.systemd import start

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


def test_help_names_every_flag_with_its_default_and_has_examples() -> None:
    text = run("--help").stdout
    for setting in SETTINGS:
        assert setting.flag in text
        assert f"[default: {setting.default}]" in " ".join(text.split())
    for words in ("--listen", "--http", "--route", "--default", "--proxy-protocol", "--caddy",
                  "--config", "EXAMPLES", "snimux --route secure.ciso.com=127.0.0.1:8443",
                  "PORT 80", "SYSTEMD", "EXIT STATUS"):  # fmt: skip
        assert words in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_has_the_commands_and_each_its_own() -> None:
    text = run("--help").stdout
    for command in ("check", "doctor", "init"):
        assert f"\n  {command} " in text
    assert "EXIT STATUS\n    0 all green" in run("doctor", "--help").stdout
    assert "--output FILE" in run("init", "--help").stdout


def test_check_prints_the_routes_as_they_are_understood() -> None:
    result = run("check", *STORY, "--route", "*.Bücher.example/h2=unix//run/x,[::1]:1",
                 "--proxy-protocol", "v2", "--idle-timeout", "off")  # fmt: skip
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "listen",
        "  :443",
        "routes",
        "  secure.ciso.com               ->  127.0.0.1:8443  (PROXY protocol v2)",
        "  dao.ciso.com                  ->  127.0.0.1:8444  (PROXY protocol v2)",
        "  traefik.ciso.com              ->  127.0.0.1:8444  (PROXY protocol v2)",
        "  *.xn--bcher-kva.example/h2    ->  unix//run/x, else [::1]:1  "
        "(PROXY protocol v2, *.bücher.example)",
        "  all else                      ->  refused with the alert unrecognized_name",
        "limits",
        "  hello_timeout                 5",
        "  max_hello                     16384",
        "  dial_timeout                  5",
        "  idle_timeout                  off",
        "  max_connections               auto",
        "  max_connections_per_source    off",
        "  drain                         30",
        "ok",
    ]


def test_check_prints_where_plain_http_goes(tmp_path: Path) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text("""
        listen = "127.0.0.1:8443"
        [[route]]
        hosts = ["dao.ciso.com", "*.bücher.example"]
        to = "127.0.0.1:1"
        http = ["127.0.0.1:2", "unix//run/80"]
        http_proxy = "v1"
        [[route]]
        hosts = ["secure.ciso.com", "secure.ciso.com/h2"]
        to = "127.0.0.1:3"
        """)
    lines = run("check", "--config", str(file), "--http", "127.0.0.1:8080").stdout.splitlines()
    assert lines[: lines.index("limits")] == [
        "listen",
        "  127.0.0.1:8443",
        "  127.0.0.1:8080                    plain HTTP",
        "routes",
        "  dao.ciso.com                  ->  127.0.0.1:1",
        "    plain HTTP                  ->  127.0.0.1:2, else unix//run/80  (PROXY protocol v1)",
        "  *.xn--bcher-kva.example       ->  127.0.0.1:1  (*.bücher.example)",
        "    plain HTTP                  ->  127.0.0.1:2, else unix//run/80  (PROXY protocol v1)",
        "  secure.ciso.com               ->  127.0.0.1:3",
        "    plain HTTP                  ->  redirected to https",
        "  secure.ciso.com/h2            ->  127.0.0.1:3",
        "  all else                      ->  refused with the alert unrecognized_name, or with 404",
    ]
    by_default = run("check", "--config", str(file)).stdout
    assert "  off                               plain HTTP\n" in by_default
    assert "redirected" not in by_default
    both = run("--http", ":81", "check", "--config", str(file), "--http", ":82").stdout
    assert [line.split()[0] for line in both.splitlines()[2:4]] == [":81", ":82"]


def test_check_takes_its_flags_before_or_behind() -> None:
    behind = run("check", *STORY, "--drain", "1").stdout
    assert run(*STORY, "--drain", "1", "check").stdout == behind
    assert run(*STORY[:2], "check", *STORY[2:], "--drain", "1").stdout == behind
    assert run(*STORY, "--drain", "2", "check", "--drain", "1").stdout == behind


def test_check_with_a_default_has_no_refusals() -> None:
    assert "refused" not in run("check", "--default", "127.0.0.1:1").stdout


def test_the_example_file_is_good() -> None:
    with resources.as_file(resources.files("snimux").joinpath("example.toml")) as path:
        result = run("check", "--config", str(path))
    assert result.exit_code == 0
    assert "  *                             ->  127.0.0.1:8445\n" in result.stdout


@pytest.mark.parametrize("command", [[], ["check"]])
def test_every_mistake_has_its_line_and_status_2(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "snimux.toml"
    file.write_text("drian = 3\n[[route]]\nhosts = 'a..b'\n")
    result = run(*command, "--config", str(file), "--listen", "443", "--route", "x")
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


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    missing = run("--config", str(tmp_path / "no.toml"))
    assert missing.stderr == f"snimux: --config: {tmp_path}/no.toml: No such file or directory\n"
    assert run("--config", str(tmp_path)).stderr.endswith(": Is a directory\n")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert run("check", "--config", str(binary)).stderr.endswith(": not UTF-8, so not TOML\n")
    assert run("--config", str(tmp_path / "no.toml")).exit_code == 2


def test_what_cannot_be_listened_on_is_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        result = run(*STORY, "--listen", address)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"snimux: cannot listen on {address}: ")
    assert f" (pid {os.getpid()})" in result.stderr


def test_what_is_handed_over_wrongly_is_status_1() -> None:
    handed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}
    result = CliRunner().invoke(main, STORY, env=handed)
    assert result.exit_code == 1
    assert result.stderr == "snimux: LISTEN_FDS: 'x' is not a number\n"


# The threads are those of other tests, and the child does nothing but execute.
@pytest.mark.filterwarnings("ignore:.* is multi-threaded:DeprecationWarning")
def test_what_is_handed_over_and_no_listening_socket_is_status_1(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryFile() as file:
        command = [sys.executable, "-m", "snimux", *STORY]
        pid = start(command, [("tls", file.fileno())], environment=os.environ)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    words = "snimux: descriptor 3 (tls) was handed over, but is no listening stream socket\n"
    assert capfd.readouterr().err == words


# The threads are those of other tests, and the child does nothing but execute.
@pytest.mark.filterwarnings("ignore:.* is multi-threaded:DeprecationWarning")
def test_a_worker_of_another_version_than_its_supervisor_is_status_1(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(4096))
        file.flush()
        handed = [("worker-1", file.fileno()), ("places", file.fileno())]
        command = [sys.executable, "-m", "snimux", *STORY]
        pid = start(command, handed, environment=os.environ)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    words = "snimux: the supervisor is of another version of snimux: restart it\n"
    assert capfd.readouterr().err == words


def test_there_are_descriptors_for_every_connection_and_the_pipes() -> None:
    assert _room_for(20_000) == (20_000 - 32 - 256) // 2
    assert _room_for(256) == 96
    for descriptors in (64, 256, 1024, 4096, 10**6):
        assert 2 * _room_for(descriptors) + 32 + min(256, descriptors // 8) <= descriptors


def test_the_soft_limit_on_descriptors_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        raised = _raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, hard)
        assert raised > 256
        assert _raise_descriptor_limit() == raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
