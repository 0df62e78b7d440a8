"""``service.worker``: what is seen of one worker. With several, see ``test_supervisor``."""

import signal
import socket
import subprocess
import sys
import tempfile

import trio

from snimux.service import scoreboard
from snimux.service.control import Order
from snimux.service.worker import Worker, start
from tests.support.sockets import open_descriptors

# Ends by a signal as soon as it is told anything.
ENDS = "import os, socket\nos.kill(os.getpid(), socket.socket(fileno=3).recv(1)[0] and 9)"


def ended() -> subprocess.Popen[bytes]:
    """A process of which nothing but that is to be known."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process


async def test_who_does_not_read_its_orders_finds_their_end_when_it_does() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        worker = Worker(1, ended(), near)
        for _ in range(100_000):
            worker.order(Order("ask"))
        far.settimeout(60)
        read = sum(iter(lambda: len(far.recv(2**20)), 0))
        assert 0 < read < 100_000 * 50
        # but an answer could still come
        far.sendall(b"x")
        assert near.recv(1) == b"x"


def test_silence_is_counted_until_there_is_a_sign_of_life() -> None:
    near, far = socket.socketpair()
    with near, far, tempfile.TemporaryFile() as file:
        counts = file.fileno()
        scoreboard.lay_out(counts, workers=1, limit=1, most=1)
        its = scoreboard.SharedLimits(counts, 1, most=1)
        worker = Worker(1, ended(), near)
        for _ in range(2):
            worker.check_heartbeat(counts, elapsed=10)
            worker.check_heartbeat(counts, elapsed=1)
            worker.check_heartbeat(counts, elapsed=0)
            assert worker.silence == 11
            worker.is_silent = True
            its.show_life(7)
            worker.check_heartbeat(counts, elapsed=10)
            assert (worker.silence, worker.is_silent) == (0, False)
            assert worker.heartbeat.routes == 7


async def test_nothing_is_kept_of_who_has_ended() -> None:
    before = open_descriptors()
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        worker = start([sys.executable, "-c", ENDS], 1, [], has_questions=True)
        assert not worker.reap()
        worker.order(Order("ask"))
        while not worker.reap():
            await anext(signals)
    assert worker.ended.is_set()
    assert worker.exit_code == -signal.SIGKILL
    assert open_descriptors() == before
