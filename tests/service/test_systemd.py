"""``service.systemd``: what a process is handed, and words to a real socket."""

import contextlib
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from snimux.service.systemd import HandoverError, Manager, how_ended, manager, receive
from tests.support.caddy import short_directory
from tests.support.sockets import open_descriptors


def test_what_is_meant_for_nobody_or_another_is_not_taken() -> None:
    assert receive({}, 1) == []
    assert receive({"LISTEN_FDS": "1"}, 1) == []
    assert receive({"LISTEN_PID": "1"}, 1) == []
    environment = {"LISTEN_PID": "2", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "tls", "OTHER": "x"}
    assert receive(environment, 1) == []
    assert environment == {"OTHER": "x"}
    assert receive({"LISTEN_PID": "1", "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}, 1) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"LISTEN_PID": "me"}, "LISTEN_PID: 'me' is not a number"),
        ({"LISTEN_PID": "-1"}, "LISTEN_PID: '-1' is not a number"),
        ({"LISTEN_FDS": "\u0663"}, "LISTEN_FDS: '\u0663' is not a number"),
        ({"LISTEN_FDS": "9" * 5000}, "LISTEN_FDS: '999"),
        ({"LISTEN_FDS": "999999999"}, "LISTEN_FDS: 999999999 descriptors, but number "),
        (
            {"LISTEN_FDS": "0", "LISTEN_FDNAMES": "a:b"},
            "LISTEN_FDNAMES: 2 names, but LISTEN_FDS: 0",
        ),
    ],
)
def test_what_is_not_as_the_protocol_has_it_is_told(wrong: dict[str, str], words: str) -> None:
    with pytest.raises(HandoverError) as caught:
        receive({"LISTEN_PID": "1", "LISTEN_FDS": "0"} | wrong, 1)
    assert str(caught.value).startswith(words)


def test_without_names_they_are_unknown() -> None:
    code = (
        "import os; from snimux.service.systemd import receive; "
        "print(receive(os.environ, os.getpid()))"
    )
    script = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -c "{code}" 3</dev/null'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, check=True)
    assert done.stdout == b"[('unknown', 3)]\n"


# --- saying how the service is


@contextlib.contextmanager
def told(path: str) -> Iterator[socket.socket]:
    """A manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.setblocking(False)
        yield sock


def all_said(sock: socket.socket) -> list[list[str]]:
    said = []
    with contextlib.suppress(BlockingIOError):
        while True:
            said.append(sock.recv(4096).decode().split("\n"))
    return said


READY = ["READY=1", f"MAINPID={os.getpid()}"]


def test_a_reload_begins_at_a_time_and_ends_in_ready() -> None:
    with short_directory() as directory, told(str(directory / "s")) as sock:
        manager = Manager(str(directory / "s"))
        manager.reloading()
        manager.reloaded("early")
        assert all_said(sock) == []
        manager.serving("fine")
        all_said(sock)
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        manager.reloading()
        ((word, at),) = all_said(sock)
        assert word == "RELOADING=1"
        assert (
            before
            <= int(at.removeprefix("MONOTONIC_USEC="))
            <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        )
        manager.reloaded("fine", fault="f: no" + "o" * 500)
        ((word, said),) = all_said(sock)
        assert word == "READY=1"
        assert said == "STATUS=fine; not reloaded: f: no" + "o" * 195
        manager.serving("fine")
        assert all_said(sock) == []
        manager.serving("well")
        assert all_said(sock)[0][0].startswith("STATUS=well; not reloaded: f: no")
        manager.reloaded("well")
        assert all_said(sock) == [["READY=1", "STATUS=well"]]
        manager.serving("well")
        assert all_said(sock) == []


def test_it_is_ready_once_and_its_status_is_said_when_it_changes() -> None:
    with short_directory() as directory, told(str(directory / "s")) as sock:
        environment = {"NOTIFY_SOCKET": str(directory / "s"), "OTHER": "x"}
        found = manager(environment, 1)
        assert environment == {"OTHER": "x"}
        assert (found.is_present, found.is_ready, found.watchdog) == (True, False, None)
        for status in ("one", "one", "two"):
            found.serving(status)
        assert found.is_ready
        found.stopping("ending", within=30)
        found.serving("ending")
        found.serving("ended")
        assert all_said(sock) == [
            [*READY, "STATUS=one"],
            ["STATUS=two"],
            ["STOPPING=1", "STATUS=ending", "EXTEND_TIMEOUT_USEC=35000000"],
            ["STATUS=ended"],
        ]


def test_a_watchdog_is_fed_each_time_and_often_enough() -> None:
    with short_directory() as directory, told(str(directory / "s")) as sock:
        variables = {"NOTIFY_SOCKET": str(directory / "s"), "WATCHDOG_USEC": "3000000"}
        found = manager({**variables, "WATCHDOG_PID": "1"}, 1)
        assert (found.watchdog, found.every) == (3, 1.5)
        for _ in range(3):
            found.serving("x")
        assert all_said(sock) == [[*READY, "STATUS=x"], ["WATCHDOG=1"], ["WATCHDOG=1"]]
        assert manager({**variables}, 1).watchdog == 3
        assert manager({**variables, "WATCHDOG_PID": "2"}, 1).watchdog is None
        assert manager({**variables, "WATCHDOG_USEC": "0"}, 1).watchdog is None
        assert manager({**variables, "WATCHDOG_USEC": "60000000"}, 1).every == 5


def test_who_stops_before_it_is_ready_never_says_that_it_is() -> None:
    with short_directory() as directory, told(str(directory / "s")) as sock:
        found = Manager(str(directory / "s"))
        found.stopping("ending", within=math.inf)
        found.serving("ended")
        assert all_said(sock) == [["STOPPING=1", "STATUS=ending"], ["STATUS=ended"]]


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_the_socket_may_have_no_file() -> None:
    name = f"snimux-test-{os.getpid()}"
    with told(f"\0{name}") as sock:
        Manager(f"@{name}").serving("x")
        assert all_said(sock) == [[*READY, "STATUS=x"]]


def test_what_could_not_be_said_is_said_the_next_time() -> None:
    with short_directory() as directory:
        found = Manager(str(directory / "s"))
        found.serving("x")
        assert not found.is_ready
        with told(str(directory / "s")) as sock:
            filler = Manager(str(directory / "s"))
            count = 0
            while not filler.is_ready or count < 10_000:  # until the queue is full
                count += 1
                filler.is_ready = False
                filler.serving("x")
                if not filler.is_ready:
                    break
            assert count < 10_000
            found.serving("x")
            assert not found.is_ready
            all_said(sock)
            found.serving("x")
            assert all_said(sock) == [[*READY, "STATUS=x"]]
        found.serving("y")  # it has gone


def test_it_is_told_when_no_descriptor_is_left() -> None:
    with short_directory() as directory, told(str(directory / "s")) as sock:
        found = Manager(str(directory / "s"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                socket.socket()
            found.serving("x")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert all_said(sock) == [[*READY, "STATUS=x"]]


def test_another_process_is_told_of_once_and_nothing_more_is_said() -> None:
    before = open_descriptors()
    with short_directory() as directory:
        path = str(directory / "s")
        variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3000000"}
        found = manager({**variables, "WATCHDOG_PID": "1"}, 1)
        # what the other one is to find, whose process id is not known yet
        assert found.variables == variables
        assert Manager(path).variables == {"NOTIFY_SOCKET": path}
        assert not found.hand_over(7)  # not now: there is nobody
        with told(path) as sock:
            assert found.hand_over(7)
            found.serving("x")
            found.stopping("y", within=1)
            assert all_said(sock) == [["MAINPID=7"]]
    assert not found.is_present
    assert open_descriptors() == before
    assert Manager().hand_over(7)
    assert Manager().variables == {}


def test_how_a_program_ended_is_for_people() -> None:
    assert how_ended(3) == {"status": 3}
    assert how_ended(-signal.SIGKILL) == {"signal": "SIGKILL"}
    assert how_ended(-1000) == {"signal": 1000}


def test_without_a_manager_nothing_is_said() -> None:
    before = open_descriptors()
    found = manager({"WATCHDOG_USEC": "1000000"}, 1)
    found.serving("x")
    found.stopping("x", within=1)
    assert not found.is_present
    assert not manager({"NOTIFY_SOCKET": ""}, 1).is_present
    assert open_descriptors() == before


@pytest.mark.parametrize("variable", ["WATCHDOG_USEC", "WATCHDOG_PID"])
def test_a_watchdog_that_is_no_number_is_told(variable: str) -> None:
    environment = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", variable: "soon"}
    with pytest.raises(HandoverError, match=f"{variable}: 'soon' is not a number"):
        manager(environment, 1)
