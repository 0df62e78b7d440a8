"""``cli.command``: what is typed, what is printed, and the exit status; in this process.

A server that runs is a process of its own: see ``test_end_to_end``.
"""

import json
import os
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import snimux
from snimux.cli.command import main
from tests.hellos import HERE
from tests.support.caddy import closed_port

STORY = ["--route", "secure.ciso.com=127.0.0.1:8443",
         "--route", "dao.ciso.com,traefik.ciso.com=127.0.0.1:8444"]  # fmt: skip


def run(*args: str, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, args, input=stdin, prog_name="snimux")
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
    for command in ("check", "doctor", "explain", "init", "top"):
        assert f"\n  {command} " in text
    assert "EXIT STATUS\n    0 all green" in run("doctor", "--help").stdout
    assert "--output FILE" in run("init", "--help").stdout
    assert "--alpn P[,P...]" in run("explain", "--help").stdout


@pytest.mark.parametrize("command", [[], ["check"], ["doctor"], ["explain", "a"], ["init"]])
def test_every_command_has_the_flags_and_tells_of_mistakes_in_them(command: list[str]) -> None:
    assert "--route HOST" in run(*command, "--help").stdout
    result = run(*command, *STORY, "--listen", "443")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "snimux: --listen: '443': no port; perhaps :443\n"


_SERVE_AND_LIST_MODULES = """
import atexit, sys
atexit.register(lambda: print(*sys.modules))
from snimux.cli import main
main()
"""


def test_who_serves_imports_nothing_of_the_other_commands(tmp_path: Path) -> None:
    flags = ["--listen", "127.0.0.1:0", "--status", f"unix/{tmp_path}/status"]
    command = [sys.executable, "-c", _SERVE_AND_LIST_MODULES, *STORY, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert any(b"listening" in line for line in process.stderr)
        process.terminate()
        modules = process.communicate(timeout=60)[0].decode().split()
    assert "snimux.service.server" in modules
    commands = ("check", "doctor", "explain", "init", "top", "ask", "describe")
    packages = ("snimux.doctor", "snimux.explain", "snimux.top")
    libraries = ("psutil", "cryptography", "textual", "rich")
    for name in (*(f"snimux.cli.{command}" for command in commands), *packages, *libraries):
        assert name not in modules


def test_a_shell_completes_the_names_of_commands() -> None:
    environment = {**os.environ, "_SNIMUX_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    for words, names in (("snimux ", ["check", "doctor", "explain", "init", "top"]),
                         ("snimux t", ["top"])):  # fmt: skip
        program = "from snimux.cli.command import main; main(prog_name='snimux')"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"COMP_WORDS": words},
            stdout=subprocess.PIPE,
            check=False,
            timeout=60,
        )
        assert [x.partition(",")[2] for x in done.stdout.decode().split()] == names


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


def test_explain_tells_of_a_name_and_ends_as_the_client_would() -> None:
    served = run("explain", "https://DAO.ciso.com/", *STORY)
    assert (served.exit_code, served.stderr) == (0, "")
    assert served.stdout.splitlines()[-1] == "served"
    refused = run(*STORY, "explain", "dao.ciso.org", "--alpn", "h2", "--json")
    assert (refused.exit_code, refused.stderr) == (1, "")
    said = json.loads(refused.stdout)
    assert (said["status"], said["reason"], said["alpn"]) == (1, "no-route", ["h2"])


@pytest.mark.parametrize("form", ["raw", "hex"])
def test_explain_reads_hellos_from_files_and_standard_input(form: str, tmp_path: Path) -> None:
    data = (HERE / "curl.bin").read_bytes()
    file = tmp_path / "hello"
    file.write_bytes(data if form == "raw" else data.hex(" ").encode())
    from_file = run("explain", *STORY, "--hello", str(file))
    assert from_file.exit_code == 0
    assert "name secure.ciso.com, ALPN h2,http/1.1" in from_file.stdout
    piped = run("explain", *STORY, "--hello", "-", stdin=file.read_bytes())
    assert piped.stdout.splitlines()[1:] == from_file.stdout.splitlines()[1:]
    both = run("explain", "dao.ciso.com", *STORY, "--hello", str(file))
    assert "the bytes are for secure.ciso.com, not for dao.ciso.com" in both.stdout


def test_explain_reads_a_hello_without_any_route() -> None:
    result = run("explain", "--hello", str(HERE / "curl.bin"))
    assert result.exit_code == 1
    assert "there are no routes at all" in result.stdout


def test_explain_wants_a_name_before_it_wants_routes() -> None:
    result = run("explain")
    assert result.exit_code == 2
    assert result.stderr == "snimux: nothing to explain: give a NAME, or --hello FILE\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "nothing to explain: give a NAME, or --hello FILE"),
        (["ftp://a"], "'ftp://a': ftp:// is neither https:// nor http://"),
        (["a", "--alpn", "ü"], "--alpn: 'ü' is no ALPN protocol, such as h2 or acme-tls/1"),
        (["a", "--from", "b"], "--from: 'b' is no IP address, such as 192.0.2.7"),
        (["--hello", "none/there"], "--hello: none/there: No such file or directory"),
        (
            ["--hello", "/dev/zero"],
            "--hello: /dev/zero: is a character device and not a regular file",
        ),
        (["--hello", "x", "--alpn", "h2"], "--alpn: is for NAME; a hello has its own"),
        (["--refused", "1"], "--refused: of which snimux? give its --status ADDR"),
        (
            ["a", "--refused", "1"],
            "--refused: goes without NAME, --alpn and --hello: what was sent is known",
        ),
    ],
)
def test_explain_tells_what_it_cannot_be_asked(args: list[str], words: str) -> None:
    result = run("explain", *args, *STORY)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"snimux: {words}\n")


def test_explain_tells_that_nobody_is_there_to_be_asked() -> None:
    at = f"127.0.0.1:{closed_port()}"
    for args in (["a"], ["--refused", "1"]):
        result = run("explain", *args, "--status", at)
        assert (result.exit_code, result.stdout) == (1, "")
        told = f": {at}: Connection refused; does a snimux run with that --status?\n"
        assert result.stderr.endswith(told)


def test_explain_goes_on_without_a_caddy_that_does_not_answer() -> None:
    result = run("explain", "dao.ciso.com", *STORY, "--caddy", "unix//none/there")
    assert result.exit_code == 0
    assert "hint       --caddy: unix//none/there: No such file or directory" in result.stdout


def test_a_caddy_that_cannot_be_asked_is_status_1() -> None:
    result = run("check", *STORY, "--caddy", "unix//none/there")
    assert (result.exit_code, "listen\n" in result.stdout) == (1, True)
    assert result.stderr == (
        "snimux: --caddy: unix//none/there: No such file or directory; "
        "snimux doctor looks where it is\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "args", [["--version"], ["--help"], ["check", *STORY], ["explain", "dao.ciso.com", *STORY]]
)
def test_what_cannot_be_written_is_told_in_a_line(args: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "snimux", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == b"snimux: standard output: No space left on device\n"


def test_that_standard_input_is_closed_is_told_in_a_line() -> None:
    command = f"{shlex.quote(sys.executable)} -m snimux explain --hello - {' '.join(STORY)} <&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == b"snimux: --hello: -: there is no standard input: it is closed\n"


def test_nothing_to_do_says_what_to_give() -> None:
    result = run()
    assert result.exit_code == 2
    assert result.stderr.startswith("snimux: no routes: give --route HOST=ADDR")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rout", "a=b:1"], "--rout: no such flag; did you mean --route?"),
        (["--config", "--route", "a=b:1"], "--config: its value is missing before --route; "
         "write --config FILE"),
        (["chekc"], "'chekc': no such command; did you mean check?"),
        (["check", "extra"], "'extra': check takes no such word; see snimux check --help"),
        (["top", "--interval", "1m"], "--interval: '1m' is not a number of seconds; "
         "write 60, without a unit"),
        (["top", "--interval", "nan"], "--interval: nan is not a number of seconds "
         "from 0.1 to 3600"),
    ],
)  # fmt: skip
def test_slips_are_told_in_one_line(args: list[str], words: str) -> None:
    result = run(*args)
    assert (result.exit_code, result.stderr) == (2, f"snimux: {words}\n")


def test_init_takes_no_flag_that_it_would_not_write() -> None:
    result = run("--allow", "::1", "init", *STORY)
    told = "init does not write it; leave it out, and add it to the file"
    assert result.stderr == f"snimux: --route: {told}\nsnimux: --allow: {told}\n"
    assert (result.exit_code, result.stdout) == (2, "")
