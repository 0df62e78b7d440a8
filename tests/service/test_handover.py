"""``service.handover``: what is handed over is found again.

With real processes, see ``test_supervisor``.
"""

import os
import socket

import pytest

from snimux.net.listeners import Listener
from snimux.routing.address import FdAddress, parse_dial, parse_listen
from snimux.service.handover import Handed, handed_to_worker, shared, sockets, variable
from snimux.service.systemd import HandoverError


def test_only_what_a_supervisor_hands_over_makes_a_worker() -> None:
    assert handed_to_worker([]) is None
    assert handed_to_worker([("snimux.socket", 3), ("places", 4)]) is None
    assert handed_to_worker([("worker-1", 3)]) is None
    assert handed_to_worker([("worker-x", 3), ("places", 4)]) is None
    named = [("worker-2", 3), ("tls-7", 4), ("tls-8", 5), ("places", 6)]
    handed = Handed(2, 3, 6, None, (("tls-7", 4), ("tls-8", 5)))
    assert handed_to_worker(named) == handed
    assert handed.config_text() is None
    again = handed_to_worker([*named, ("config", 7), ("activated-http-9", 8)])
    assert again is not None
    assert again.config == 7
    assert again.questions() is None
    assert (handed.activated(), again.activated()) == ([], [("http", 8)])
    asked = handed_to_worker([*named, ("status", 9)])
    assert asked is not None
    assert (asked.status, asked.sockets) == (9, handed.sockets)


def test_a_listener_is_read_by_the_spelling_for_a_successor_too() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    handed = Handed(1, 0, 0, None, (("listener-7-8-http-%5B%3A%3A1%5D%3A80", sock.detach()),))
    (listener,) = handed.listeners()
    with listener.socket:
        assert listener.inode == (7, 8)
        assert (listener.protocol, listener.spec) == ("http", parse_listen("[::1]:80"))


@pytest.mark.parametrize("name", ["tls", "tls-x", "tls-7=nowhere", "listener-1", "tls-7"])
def test_what_no_supervisor_hands_over_is_said_by_its_name(name: str) -> None:
    reader, writer = socket.socketpair()  # no listener
    with reader, writer, pytest.raises(HandoverError, match=f"LISTEN_FDNAMES: '{name}': "):
        Handed(1, 0, 0, None, ((name, reader.fileno()),)).listeners()


def test_a_worker_knows_the_sockets_of_its_supervisor() -> None:
    own = [parse_dial("127.0.0.1:9443"), parse_dial("unix//run/a b=%3A:é")]
    environment = variable(own) | {"OTHER": "1"}
    assert sockets(environment) == own
    assert environment == {"OTHER": "1"}
    assert sockets(environment) == []


@pytest.mark.parametrize(
    ("wanted", "handed_over"),
    [(":443", False), ("[::1]:0", False), ("localhost:443", False), ("unix//run/a=%3A:é", False),
     ("fd/7", True)],
)  # fmt: skip
def test_a_worker_knows_what_each_listener_was_configured_by(
    wanted: str, handed_over: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = Listener(sock, None, "http", handed_over, parse_listen(wanted))
        ((name, _), _) = shared([listener], places=0, config=None)
        number = os.dup(sock.fileno())
        assert ":" not in name
        assert name.isascii()
        handed = Handed(1, 0, 0, None, ((name, number),))
        (again,) = handed.listeners()
        with again.socket:
            # what was handed over is known by its number, which is the worker's own
            known = FdAddress(number) if handed_over else parse_listen(wanted)
            assert (again.protocol, again.spec) == ("http", known)
        assert handed.activated() == ([("http", number)] if handed_over else [])
