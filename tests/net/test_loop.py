"""``net.loop``: connections that come back are known, by whatever way, and no others."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from snimux.net.listeners import Listener, open_listeners
from snimux.net.loop import NOWHERE, Own, _ends_here, listener_at, listener_behind, own
from snimux.routing.address import TcpAddress, UnixAddress

WILD = Own({443: {"0.0.0.0": "0.0.0.0:443", "::": "[::]:443"}})


@contextmanager
def listening(*addresses: TcpAddress | UnixAddress) -> Iterator[list[Listener]]:
    with ExitStack() as stack:
        listeners = open_listeners(addresses)
        for listener in listeners:
            stack.callback(listener.close)
        yield listeners


def ends(stack: ExitStack, host: str, port: int) -> tuple[object, object]:
    client = stack.enter_context(socket.create_connection((host, port), timeout=10))
    return client.getsockname(), client.getpeername()


def test_all_addresses_of_a_wildcard_are_its_own() -> None:
    with ExitStack() as stack:
        ipv4, *ipv6 = stack.enter_context(listening(TcpAddress("", 0)))
        port = ipv4.socket.getsockname()[1]
        found = own([ipv4, *ipv6])
        hosts = ["127.0.0.1", "127.0.1.1"] if sys.platform == "linux" else ["127.0.0.1"]
        for host in hosts:
            assert listener_behind(found, *ends(stack, host, port)) == f"0.0.0.0:{port}"
        for listener in ipv6:
            assert listener_behind(found, *ends(stack, "::1", port)) == str(listener)
        # what only listens for IPv6 has nothing that comes by IPv4
        assert listener_behind(own(ipv6), *ends(stack, "127.0.0.1", port)) is None
        assert listener_behind(NOWHERE, *ends(stack, "127.0.0.1", port)) is None


def test_one_socket_may_have_both_families() -> None:
    with ExitStack() as stack:
        sock = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        stack.enter_context(sock)
        port = sock.getsockname()[1]
        found = own([Listener(sock)])
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            assert listener_behind(found, *ends(stack, host, port)) == f":{port}"


def test_an_address_of_its_own_is_no_other() -> None:
    with ExitStack() as stack:
        first, second = stack.enter_context(
            listening(TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", 0))
        )
        port = second.socket.getsockname()[1]
        assert listener_behind(own([second]), *ends(stack, "127.0.0.1", port)) == str(second)
        assert listener_behind(own([first]), *ends(stack, "127.0.0.1", port)) is None


@pytest.mark.skipif(sys.platform != "linux", reason="is asked on Linux alone")
def test_an_address_of_this_machine_may_lead_elsewhere() -> None:
    """By a packet filter; the listener that would have it is there, but no connection."""
    with ExitStack() as stack:
        (listener,) = stack.enter_context(listening(TcpAddress("0.0.0.0", 0)))
        port = listener.socket.getsockname()[1]
        here, there = ends(stack, "127.0.0.1", port)
        assert _ends_here(here, there)
        assert not _ends_here(("127.0.0.1", 1), there)
        found = own([listener])
        assert listener_behind(found, ("192.0.2.1", 1), ("192.0.2.1", port)) is None


@pytest.mark.parametrize("is_here", [True, False])
def test_who_dials_its_own_machine_does_so_from_the_same_address(
    monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    monkeypatch.setattr("snimux.net.loop._ends_here", lambda here, there: is_here)
    one, other = "192.0.2.1", "192.0.2.2"
    expected = "0.0.0.0:443" if is_here else None
    assert listener_behind(WILD, (one, 9), (one, 443)) == expected
    assert listener_behind(WILD, (one, 9), (other, 443)) is None
    assert listener_behind(WILD, (one, 9), (one, 444)) is None
    # one that is dialled from a client's address says nothing by that
    assert listener_behind(WILD, (one, 9), (other, 443), transparent=True) == expected
    # the same host on another link is another
    near = ("fe80::1", 9, 0, 1)
    assert listener_behind(WILD, near, ("fe80::1", 443, 0, 2)) is None
    assert listener_behind(WILD, near, ("fe80::1", 443, 0, 1)) == ("[::]:443" if is_here else None)
    # an address that is listened on is of this machine, whatever it is dialled from
    listed = Own({443: {one: "192.0.2.1:443"}})
    assert listener_behind(listed, (other, 9), (one, 443)) == ("192.0.2.1:443" if is_here else None)


def test_a_path_is_its_file(tmp_path: Path) -> None:
    path, link = tmp_path / "own", tmp_path / "link"
    link.symlink_to(path)
    with listening(UnixAddress(str(path))) as listeners:
        found = own(listeners)
        assert listener_at(found, str(link)) == f"unix/{path}"
        assert listener_at(found, str(tmp_path / "no")) is None
        assert listener_at(NOWHERE, str(link)) is None
        # another's, in its place
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            assert listener_at(found, str(link)) is None
