"""``service.run``: what keeps a process from being a server, and what it has room for.

A server that runs is a process of its own: see ``test_end_to_end``.
"""

import os
import re
import resource
import signal
import socket
import sys
import tempfile

import pytest
from click.testing import CliRunner

from snimux.cli.command import main
from snimux.config.load import load
from snimux.service.handover import Inheritance
from snimux.service.run import StartError, _raise_descriptor_limit, _room_for, handed_over, run
from snimux.service.spawn import start
from snimux.service.systemd import Manager

ROUTE = "secure.ciso.com=127.0.0.1:8443"


def test_what_cannot_be_listened_on_is_an_error_of_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        config = load({"route": (ROUTE,), "listen": (address,)})
        with pytest.raises(StartError) as caught:
            run(config, None, Manager(), Inheritance(()))
    words = str(caught.value)
    assert words.startswith(f"cannot listen on {address}: ")
    assert f" (pid {os.getpid()})" in words


def test_where_the_status_cannot_be_shown_is_an_error_of_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        config = load({"route": (ROUTE,), "listen": ("127.0.0.1:0",), "status": address})
        with pytest.raises(StartError) as caught:
            run(config, None, Manager(), Inheritance(()))
    words = str(caught.value)
    assert words.startswith(f"cannot listen on {address}: ")
    assert words.endswith(" (--status)")


def test_without_what_the_status_needs_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # as if it were not installed
    config = load({"route": (ROUTE,), "listen": ("127.0.0.1:0",), "status": "127.0.0.1:0"})
    words = f"--status: needs prometheus-client: {sys.executable} -m pip install prometheus-client"
    with pytest.raises(StartError, match=f"^{re.escape(words)}$"):
        run(config, None, Manager(), Inheritance(()))


def wrongly_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "x")


def test_what_is_handed_over_wrongly_is_an_error_of_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrongly_handed_over(monkeypatch)
    with pytest.raises(StartError, match=r"^LISTEN_FDS: 'x' is not a number$"):
        handed_over()


def test_an_error_of_the_start_is_a_line_and_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    wrongly_handed_over(monkeypatch)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        result = CliRunner().invoke(main, ["--route", ROUTE])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "snimux: LISTEN_FDS: 'x' is not a number\n"


def test_a_worker_of_another_version_than_its_supervisor_is_status_1(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(4096))
        file.flush()
        handed = [("worker-1", file.fileno()), ("places", file.fileno())]
        command = [sys.executable, "-m", "snimux", "--route", ROUTE]
        assert start(command, handed, environment=os.environ).wait() == 1
    words = "snimux: the supervisor is of another version of snimux: restart it\n"
    assert capfd.readouterr().err == words


def test_there_are_descriptors_for_every_connection_and_the_pipes() -> None:
    assert _room_for(20_000) == (20_000 - 80 - 256) // 2
    assert _room_for(256) == 72
    for descriptors in (64, 256, 1024, 4096, 10**6):
        assert 2 * _room_for(descriptors) + 80 + min(256, descriptors // 8) <= descriptors


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
