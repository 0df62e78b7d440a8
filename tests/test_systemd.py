"""``snimux.systemd``: descriptors from one real process to another, under their names."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from snimux.systemd import HandoverError, Named, receive, start
from tests.sockets import open_descriptors

# The threads are those of other tests, and the child does nothing but execute.
pytestmark = pytest.mark.filterwarnings("ignore:.* is multi-threaded:DeprecationWarning")

# Says what it was handed, on the descriptor that is called "out".
CHILD = """
import json, os, signal
from snimux.systemd import receive
named = receive(os.environ, os.getpid())
said = {
    "names": [name for name, _ in named],
    "numbers": [number for _, number in named],
    "inodes": [os.fstat(number).st_ino for _, number in named],
    "inheritable": [os.get_inheritable(number) for _, number in named],
    "left": [name for name in os.environ if name.startswith("LISTEN_")],
    "kept": os.environ.get("KEPT"),
    "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "is_leader": os.getsid(0) == os.getpid(),
}
os.write(dict(named)["out"], json.dumps(said).encode())
"""

# Has its descriptors where they are to be, but in the reverse order, and the pipe of `start`
# among them: 3 is free, so it gets that.
PARENT = """
import os, sys
from snimux.systemd import start
out = int(sys.argv[1])
files = [os.open("/dev/null", 0), os.open("/", 0)]
os.dup2(files[0], 40); os.dup2(files[1], 41); os.dup2(out, 42)
os.closerange(3, 40)
os.dup2(40, 6); os.dup2(41, 5); os.dup2(42, 4)
os.closerange(40, 43)
wanted = [("null", 6), ("root", 5), ("out", 4)]
pid = start([sys.executable, "-c", sys.argv[2]], wanted, environment=os.environ)
assert os.waitpid(pid, 0)[1] == 0
"""


def said_by_child(descriptors: Sequence[Named] = (), **more: Any) -> dict[str, Any]:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as reading:
        handed = [*descriptors, ("out", writer)]
        environment = {**os.environ, "KEPT": "yes"}
        pid = start([sys.executable, "-c", CHILD], handed, environment=environment, **more)
        os.close(writer)
        said = json.loads(reading.read())
    assert os.waitpid(pid, 0) == (pid, 0)
    assert isinstance(said, dict)
    return said


def test_descriptors_arrive_in_order_under_their_names() -> None:
    before = open_descriptors()
    pipe = os.pipe()
    said = said_by_child([("tls", pipe[1]), ("http", pipe[0]), ("tls", pipe[1])])
    assert said["names"] == ["tls", "http", "tls", "out"]
    assert said["numbers"] == [3, 4, 5, 6]
    inodes = [os.fstat(pipe[number]).st_ino for number in (1, 0, 1)]
    assert said["inodes"][:3] == inodes
    assert said["kept"] == "yes"
    # the child's own children get nothing of it
    assert said["inheritable"] == [False] * 4
    assert said["left"] == []
    for descriptor in pipe:
        os.close(descriptor)
    assert open_descriptors() == before


def test_one_may_have_the_number_that_another_gets() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as reading:
        command = [sys.executable, "-c", PARENT, str(writer), CHILD]
        subprocess.run(command, pass_fds=[writer], check=True)
        os.close(writer)
        said = json.loads(reading.read())
    assert said["names"] == ["null", "root", "out"]
    assert said["inodes"][:2] == [os.stat("/dev/null").st_ino, os.stat("/").st_ino]  # noqa: PTH116


def test_blocked_signals_stay_blocked_and_the_session_is_new_where_wanted() -> None:
    assert said_by_child()["is_leader"] is False
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        said = said_by_child(new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert said["is_leader"] is True
    assert signal.SIGTERM in said["blocked"]


def test_what_cannot_be_started_is_an_error_here() -> None:
    before = open_descriptors()
    with pytest.raises(FileNotFoundError) as caught:
        start(["/nonexistent"], [("in", 0)], environment={})
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "/nonexistent"
    assert open_descriptors() == before


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
    code = "import os; from snimux.systemd import receive; print(receive(os.environ, os.getpid()))"
    script = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -c "{code}" 3</dev/null'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, check=True)
    assert done.stdout == b"[('unknown', 3)]\n"
