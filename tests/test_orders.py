"""``snimux.orders``: over a real socket, however it cuts what is sent."""

import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest
import trio

from snimux.orders import Gone, Order, Orders, send
from tests.sockets import open_descriptors


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
    orders = Orders(pair[1])
    for order, file in zip(sent, [None, *files, None], strict=True):
        found = await orders.receive()
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
    assert await orders.receive() is None


async def test_an_order_may_come_in_pieces(pair: Pair) -> None:
    words = {
        "what": "reloaded",
        "number": 3,
        "address": "",
        "serve": {},
        "descriptors": 0,
    }
    orders = Orders(pair[1])

    async def trickle() -> None:
        for byte in json.dumps(words).encode() + b"\n":
            pair[0].send(bytes([byte]))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        assert await orders.receive() == Order("reloaded", 3)


async def test_an_end_in_the_middle_is_an_end_and_leaves_nothing_open(pair: Pair) -> None:
    socket.send_fds(pair[0], [b'{"what": "rel'], [0, 1])
    pair[0].close()
    orders = Orders(pair[1])
    assert await orders.receive() is None
    orders.close()


async def test_descriptors_that_did_not_arrive_are_told(pair: Pair) -> None:
    line = b'{"what": "reload", "number": 1, "address": "", "serve": {}, "descriptors": 2}\n'
    socket.send_fds(pair[0], [line], [0])
    with pytest.raises(ValueError, match="did not arrive"):
        await Orders(pair[1]).receive()


@pytest.mark.parametrize("line", [b"{}", b"[]", b"7", b'{"what": "ask", "serve": []}', b"no"])
async def test_what_is_no_order_is_told_and_leaves_nothing_open(pair: Pair, line: bytes) -> None:
    orders = Orders(pair[1])
    socket.send_fds(pair[0], [line + b"\n"], [0])
    with pytest.raises(ValueError, match="no order"):
        await orders.receive()
    orders.close()


@pytest.mark.parametrize("words", [b"[" * 2**19 + b"\n", b" " * (2**20 + 1)])
async def test_an_order_is_read_up_to_a_limit(pair: Pair, words: bytes) -> None:
    orders = Orders(pair[1])
    pair[0].setblocking(True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, lambda: pair[0].sendall(words))
        with pytest.raises(ValueError, match="no order"):
            await orders.receive()
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
