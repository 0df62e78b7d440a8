"""``service.control``: over a real socket, however it cuts what is sent."""

import io
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from snimux.log import Log
from snimux.service.control import Gone, Lines, Order, Respondent, answer, receive, send
from tests.support.sockets import open_descriptors


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    before = open_descriptors()
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()
    assert open_descriptors() == before


Pair = tuple[socket.socket, socket.socket]


async def test_orders_arrive_in_order_each_with_its_descriptors(pair: Pair) -> None:
    files = [os.memfd_create(str(number)) if hasattr(os, "memfd_create") else os.dup(0)
             for number in range(3)]  # fmt: skip
    sent = [
        Order("ask"),
        Order("listener", 7, descriptors=(files[0],)),
        Order("listener", 8, descriptors=(files[1],)),
        Order("reload", 1, {7: "tls", 8: "http"}, (files[2],)),
        Order("drain"),
    ]
    for order in sent:
        send(pair[0], order)
    orders = Lines(pair[1])
    for order, file in zip(sent, [None, *files, None], strict=True):
        found = await receive(orders)
        assert found is not None
        assert (found.what, found.number, found.serve) == (order.what, order.number, order.serve)
        assert len(found.descriptors) == len(order.descriptors)
        for descriptor in found.descriptors:
            assert file is not None
            assert os.path.samestat(os.fstat(descriptor), os.fstat(file))
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)
    for each in files:
        os.close(each)
    pair[0].close()
    assert await receive(orders) is None


async def test_an_order_may_come_in_pieces(pair: Pair) -> None:
    words = {
        "what": "reloaded",
        "number": 3,
        "address": "",
        "serve": {},
        "descriptors": 0,
    }
    orders = Lines(pair[1])

    async def trickle() -> None:
        for byte in json.dumps(words).encode() + b"\n":
            pair[0].send(bytes([byte]))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        assert await receive(orders) == Order("reloaded", 3)


async def test_an_end_in_the_middle_is_an_end_and_leaves_nothing_open(pair: Pair) -> None:
    socket.send_fds(pair[0], [b'{"what": "rel'], [0, 1])
    pair[0].close()
    orders = Lines(pair[1])
    assert await receive(orders) is None
    orders.close()


async def test_descriptors_that_did_not_arrive_are_told(pair: Pair) -> None:
    line = b'{"what": "reload", "number": 1, "address": "", "serve": {}, "descriptors": 2}\n'
    socket.send_fds(pair[0], [line], [0])
    with pytest.raises(ValueError, match="did not arrive"):
        await receive(Lines(pair[1]))


@pytest.mark.parametrize("line", [b"{}", b"[]", b"7", b'{"what": "ask", "serve": []}', b"no"])
async def test_what_is_no_order_is_told_and_leaves_nothing_open(pair: Pair, line: bytes) -> None:
    orders = Lines(pair[1])
    socket.send_fds(pair[0], [line + b"\n"], [0])
    with pytest.raises(ValueError, match="no order"):
        await receive(orders)
    orders.close()


@pytest.mark.parametrize("words", [b"[" * 2**19 + b"\n", b" " * (2**20 + 1)])
async def test_an_order_is_read_up_to_a_limit(pair: Pair, words: bytes) -> None:
    orders = Lines(pair[1])
    pair[0].setblocking(True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: pair[0].sendall(words))
        with pytest.raises(ValueError, match="no order"):
            await receive(orders)
        pair[1].close()
    orders.close()


def test_who_does_not_read_never_blocks_who_sends(pair: Pair) -> None:
    def fill() -> None:
        with pytest.raises(Gone):
            while True:
                send(pair[0], Order("ask"))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_who_is_gone_is_gone(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(Gone, match="Broken pipe"):
        send(pair[0], Order("drain"))


def tell(what: str) -> Iterator[dict[str, Any]]:
    yield {"asked": what}
    if what == "much":
        for number in range(200):
            yield {"number": number, "text": "x" * 10_000}


async def test_each_question_has_its_answer() -> None:
    here, there = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, there, tell, Log(io.StringIO()))
        worker = Respondent(here)
        assert await worker.ask("a") == [{"asked": "a"}]
        much = await worker.ask("much")
        assert much is not None
        assert [piece.get("number") for piece in much] == [None, *range(200)]
        answers: dict[str, Any] = {}

        async def ask(what: str) -> None:
            answers[what] = await worker.ask(what)

        async with trio.open_nursery() as asking:
            for what in "abcd":
                asking.start_soon(ask, what)
        assert answers == {what: [{"asked": what}] for what in "abcd"}
        worker.close()  # which ends the other side
    assert there.fileno() == -1
    assert await worker.ask("a") is None


async def test_others_have_their_turn_while_an_answer_is_given() -> None:
    here, there = socket.socketpair()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        nursery.start_soon(answer, there, tell, Log(io.StringIO()))
        worker = Respondent(here)
        before = turns
        assert len(await worker.ask("much") or ()) == 201
        assert turns - before >= 201
        worker.close()
        nursery.cancel_scope.cancel()


async def test_what_comes_too_late_is_no_answer_to_the_next_question(
    autojump_clock: MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05
    here, there = socket.socketpair()
    worker, far = Respondent(here), trio.socket.from_stdlib_socket(there)
    with far:
        started = trio.current_time()
        assert await worker.ask("first") is None
        assert trio.current_time() - started == 1
        assert await far.recv(100) == b"1 first\n"
        await far.send(b'{"late": ')
        # who owes an answer is asked nothing more
        assert await worker.ask("second") is None
        await far.send(b"1}\n1\n")
        async with trio.open_nursery() as nursery:
            answers = []

            async def ask() -> None:
                answers.append(await worker.ask("third"))

            nursery.start_soon(ask)
            assert await far.recv(100) == b"2 third\n"
            await far.send(b'{"in": "time"}\n2\n')
        assert answers == [[{"in": "time"}]]
    worker.close()


async def test_who_is_gone_or_talks_nonsense_has_no_answer() -> None:
    here, there = socket.socketpair()
    worker = Respondent(here)
    there.send(b"nonsense\n1\n")
    assert await worker.ask("first") is None
    there.close()
    assert await worker.ask("second") is None
    worker.close()


async def test_nested_nonsense_is_no_answer() -> None:
    here, there = socket.socketpair()
    worker = Respondent(here)
    there.send(b"[" * 100_000 + b"\n1\n")
    assert await worker.ask("first") is None
    there.close()
    worker.close()


async def test_neither_a_question_nor_an_answer_without_an_end_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snimux.service.control._LARGEST_PIECE", 2**17)
    monkeypatch.setattr("snimux.service.control._PATIENCE", 600.0)
    here, there = socket.socketpair()
    worker, stream = Respondent(here), io.StringIO()
    endless = trio.SocketStream(trio.socket.from_stdlib_socket(there))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(endless.send_all, b"x" * 2**19)
        assert await worker.ask("first") is None
        assert len(worker.lines.received) <= 2**17 + 2**17
        nursery.cancel_scope.cancel()
    worker.close()
    await endless.aclose()
    here, there = socket.socketpair()
    endless = trio.SocketStream(trio.socket.from_stdlib_socket(here))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, there, tell, Log(stream))
        with pytest.raises(trio.BrokenResourceError):
            await endless.send_all(b"x" * 2**22)
    await endless.aclose()
    assert "a line without an end" in stream.getvalue()


async def test_who_waits_when_it_is_closed_has_no_answer() -> None:
    here, there = socket.socketpair()
    worker = Respondent(here)
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await worker.ask("a"))

    with there:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await wait_all_tasks_blocked(0.01)
            worker.close()
    assert answers == [None]


async def test_who_asks_may_be_gone_in_the_middle_of_an_answer() -> None:
    here, there = socket.socketpair()
    with here:
        here.send(b"1 much\n2 much\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, there, tell, Log(io.StringIO()))
            await wait_all_tasks_blocked(0.01)
            here.close()
    assert there.fileno() == -1


async def test_who_cannot_answer_says_why_in_the_log_and_is_asked_no_more() -> None:
    here, there = socket.socketpair()
    stream = io.StringIO()

    def fails(what: str) -> Iterator[dict[str, Any]]:
        yield {"asked": what}
        raise RuntimeError("not expected")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, there, fails, Log(stream, form="json"))
        worker = Respondent(here)
        assert await worker.ask("a") is None
    assert there.fileno() == -1
    line = json.loads(stream.getvalue())
    assert (line["event"], line["detail"]) == ("status-failed", "RuntimeError('not expected')")
    worker.close()
