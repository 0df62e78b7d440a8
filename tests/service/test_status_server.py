"""``service.status_server``: one process at a time, and what one that has no workers tells."""

import contextlib
import io
import json
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from snimux.frontend.limits import LocalLimits
from snimux.log import Log
from snimux.net.listeners import Listener, open_listeners
from snimux.routing.address import TcpAddress
from snimux.service.generation import Current
from snimux.service.handover import Inheritance
from snimux.service.status_server import Alone, StatusServer
from snimux.service.systemd import Manager
from snimux.service.upgrade import Succession
from tests.support.generations import Process, configured, in_effect
from tests.support.sockets import open_descriptors, read_to_end, send_all


def process() -> Process:
    current = Current(in_effect(configured()))
    current.since = 0
    return Process(current, limits=LocalLimits(7))


async def page(listener: Listener, path: str) -> Any:
    with trio.socket.socket() as client:
        await client.connect(listener.socket.getsockname())
        await send_all(client, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        answer, _ = await read_to_end(client)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return json.loads(body)


@dataclass
class Running:
    """Where it is shown, until it is handed over; and the socket of a predecessor, if any."""

    succession: Succession
    listener: Listener
    predecessor: socket.socket
    done: trio.Event


@contextlib.asynccontextmanager
async def running(*, succeeds: bool = False) -> AsyncIterator[Running]:
    """Shown until it is left to another process."""
    log, manager = Log(io.StringIO()), Manager()
    before, own = socket.socketpair()
    (listener,) = open_listeners([], status=[TcpAddress("127.0.0.1", 0)])
    with before, own, listener.socket:
        predecessors = (os.dup(own.fileno()),) if succeeds else ()
        succession = Succession(log, manager, Inheritance((), (), predecessors))
        run = Running(succession, listener, before, trio.Event())

        async def show(*, task_status: trio.TaskStatus[None]) -> None:
            status_server = StatusServer([listener], log, succession)
            await status_server.run(Alone(process()), task_status=task_status)
            run.done.set()

        own.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(succession.listen_to_predecessors)
            await nursery.start(show)
            yield run
            succession.handed_over.set()
            before.close()
            await run.done.wait()


async def test_it_is_shown_until_it_is_left_to_another() -> None:
    before = open_descriptors()
    async with running() as run:
        assert await page(run.listener, "/routes") == {"total": 0, "lists": [], "routes": []}
        run.succession.handed_over.set()
        await run.done.wait()
        assert run.listener.socket.fileno() == -1
    assert open_descriptors() == before


async def test_who_comes_after_another_begins_when_that_has_handed_over() -> None:
    async with running(succeeds=True) as run, trio.open_nursery() as nursery:
        asked: list[Any] = []

        async def ask() -> None:
            asked.append(await page(run.listener, "/routes"))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked(0.02)
        assert not asked  # it is the predecessor's to answer, if it accepts still
        run.predecessor.send(b"h")
    assert asked == [{"total": 0, "lists": [], "routes": []}]


async def test_a_process_without_others_answers_for_itself() -> None:
    seen = process()
    alone = Alone(seen)
    ((number, pieces),) = (await alone.ask("routes")).items()
    assert (number, pieces) == (1, [{"generation": [0, 0, 0], "total": 0}])
    figures = await alone.figures()
    assert figures.processes == {"": os.getpid()}
    assert not figures.workers
    (told,) = figures.answers.values()
    assert told is not None
    assert (told[0]["limit"], told[0]["draining"]) == (7, False)


def test_it_serves_until_it_drains() -> None:
    seen = process()
    alone = Alone(seen)
    assert alone.why_not_serving() is None
    seen.draining = True
    assert alone.why_not_serving() == "draining"
