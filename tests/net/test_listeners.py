"""``net.listeners``: all addresses or none, and words that say what to do."""

import contextlib
import errno
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from snimux.net import listeners as module
from snimux.net.listeners import Listener, ListenError, activated, adopted, besides, open_listeners
from snimux.routing.address import (
    Activated,
    FdAddress,
    ListenAddress,
    TcpAddress,
    UnixAddress,
    parse_listen,
)
from tests.support import caddy
from tests.support.caddy import short_directory
from tests.support.sockets import open_descriptors


def opened(*texts: str) -> list[Listener]:
    return open_listeners([parse_listen(text) for text in texts])


def close(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()


def refusal(address: ListenAddress) -> str:
    with pytest.raises(ListenError) as caught:
        open_listeners([address])
    return str(caught.value)


def test_no_host_is_every_interface_of_both_families_on_one_port() -> None:
    listeners = opened(":0")
    try:
        ports = {listener.socket.getsockname()[1] for listener in listeners}
        assert [listener.socket.family for listener in listeners] == [
            socket.AF_INET,
            socket.AF_INET6,
        ]
        assert len(ports) == 1
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, ports.copy().pop()), timeout=5).close()
        assert [str(listener) for listener in listeners] == [
            f"0.0.0.0:{min(ports)}", f"[::]:{min(ports)}",
        ]  # fmt: skip
    finally:
        close(listeners)


def test_listeners_are_non_blocking_and_never_share_their_port() -> None:
    listeners = opened("127.0.0.1:0", "[::1]:0", "localhost:0")
    try:
        for listener in listeners:
            assert not listener.socket.getblocking()
            assert not listener.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    finally:
        close(listeners)


def test_a_port_in_use_names_its_holder_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        before = open_descriptors()
        with pytest.raises(ListenError) as caught:
            opened("127.0.0.1:0", f"127.0.0.1:{port}")
        assert open_descriptors() == before
    assert str(caught.value).startswith(f"cannot listen on 127.0.0.1:{port}: ")
    assert re.search(rf": the port is held by \S+ \(pid {os.getpid()}\)$", str(caught.value))


def test_a_listener_knows_what_is_to_be_served_on_it() -> None:
    listeners = open_listeners([TcpAddress("127.0.0.1", 0)], [TcpAddress("127.0.0.1", 0)])
    assert [listener.protocol for listener in listeners] == ["tls", "http"]
    close(listeners)


def test_a_port_for_http_names_the_way_to_do_without() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = TcpAddress("127.0.0.1", holder.getsockname()[1])
        before = open_descriptors()
        with pytest.raises(ListenError) as caught:
            open_listeners([TcpAddress("127.0.0.1", 0)], [address])
        assert open_descriptors() == before
    assert str(caught.value).endswith(
        f" (pid {os.getpid()}); or leave plain HTTP to others: --http off"
    )


def test_a_port_may_be_had_again_at_once() -> None:
    (listener,) = opened("127.0.0.1:0")
    address = str(listener)
    host, port = listener.socket.getsockname()
    client = socket.create_connection((host, port), timeout=5)
    listener.socket.setblocking(True)
    accepted, _ = listener.socket.accept()
    accepted.close()  # the server closes first: its port goes to TIME_WAIT
    assert client.recv(1) == b""
    client.close()
    close([listener])
    close(opened(address))


def test_a_unix_socket_left_behind_is_taken_over_and_removed_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    (listener,) = opened(f"unix/{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert refusal(UnixAddress(str(path))).endswith("another process listens there")
    assert str(listener) == f"unix/{path}"
    close([listener])
    assert not path.exists()


def test_a_unix_socket_that_is_anothers_by_now_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    (first,) = opened(f"unix/{path}")
    path.unlink()
    (second,) = opened(f"unix/{path}")
    close([first])
    assert path.exists()
    (adopted,) = open_listeners([FdAddress(os.dup(second.socket.fileno()))])
    close([adopted])
    assert path.exists()
    close([second])
    assert not path.exists()


def test_a_unix_listener_with_a_full_queue_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(str(path))
        busy.listen(0)
        clients.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        assert refusal(UnixAddress(str(path))).endswith("another process listens there")


def test_a_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    assert refusal(UnixAddress(str(path))).startswith(f"cannot listen on unix/{path}: ")
    assert path.read_text() == "x"


def test_a_listening_socket_may_be_handed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as parent:
        (listener,) = open_listeners([FdAddress(os.dup(parent.fileno()))])
        assert str(listener) == f"127.0.0.1:{parent.getsockname()[1]}"
        close([listener])


def test_what_is_handed_over_must_listen() -> None:
    with socket.socket() as idle:
        words = refusal(FdAddress(idle.fileno()))
        assert words.endswith("the descriptor is no listening stream socket")
        assert idle.fileno() > 0
    with Path("/dev/null").open() as file:
        assert refusal(FdAddress(file.fileno())).endswith(
            "no socket was handed over with that number"
        )
    assert refusal(FdAddress(9999)).endswith("no socket was handed over with that number")


def test_other_faults_are_told_too() -> None:
    assert refusal(TcpAddress("192.0.2.77", 0)).endswith(
        "no interface of this machine has that address"
    )
    assert "no-such-host.invalid:0: " in refusal(TcpAddress("no-such-host.invalid", 0))
    assert refusal(UnixAddress("/no/such/dir/s")).endswith(os.strerror(errno.ENOENT))


def test_a_port_kept_for_root_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words only; `test_end_to_end` meets the kernel's own refusal as an ordinary user."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "create_server", denied)
    words = refusal(TcpAddress("", 443))
    for way in ("--listen :4443", "ListenStream=443", "systemd/", "CAP_NET_BIND_SERVICE",
                "net.ipv4.ip_unprivileged_port_start=443"):  # fmt: skip
        assert way in words
    with pytest.raises(ListenError, match=r"ListenStream=80,.*--http off"):
        open_listeners([], [TcpAddress("", 80)])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert refusal(TcpAddress("127.0.0.1", 443)).endswith("--listen :443")


def test_what_was_handed_over_is_for_what_its_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as one_family,
        socket.create_server(path, family=socket.AF_UNIX) as unix,
    ):
        port, port_6 = tcp.getsockname()[1], one_family.getsockname()[1]
        tls = Activated(FdAddress(tcp.fileno()), "tls", TcpAddress("127.0.0.1", port))
        for name in ("tls", "snimux.socket", "unknown", ""):
            assert activated([(name, tcp.fileno())]) == [tls]
        on_unix = Activated(FdAddress(unix.fileno()), "http", UnixAddress(path))
        on_6 = Activated(FdAddress(one_family.fileno()), "tls", TcpAddress("::1", port_6))
        named = [("http", unix.fileno()), ("x", one_family.fileno())]
        assert activated(named) == [on_unix, on_6]
        # without a name the port says it
        monkeypatch.setattr(module, "_HTTP_PORT", port)
        assert [x.protocol for x in activated([("unknown", tcp.fileno())])] == ["http"]
        assert activated([("tls", tcp.fileno())]) == [tls]
        # it was only looked at; and its file is not ours to remove
        (listener,) = open_listeners([], [on_unix.descriptor])
        assert listener.handed_over
        assert not listener.socket.getblocking()
        listener.socket.detach()
        assert Path(path).is_socket()


@pytest.mark.needs(lambda: caddy.missing() is not None, str(caddy.missing()))
async def test_of_a_port_that_a_caddy_has_the_doctor_knows_more() -> None:
    with short_directory() as directory:
        running = caddy.start(directory, "a.example {\n\ttls internal\n}\n")
        try:
            await caddy.until(lambda: caddy.listens(running.port), "Caddy listens")
            with pytest.raises(ListenError, match=r"\(pid [0-9]+\); snimux doctor says how"):
                opened(f"127.0.0.1:{running.port}")
        finally:
            running.stop()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_one_socket_for_both_families_is_every_interface() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        port = both.getsockname()[1]
        (found,) = activated([("tls", both.fileno())])
        assert found.address == TcpAddress("", port)
        (listener,) = open_listeners([found.descriptor])
        assert str(listener) == f":{port}"
        listener.socket.detach()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_a_socket_without_a_file_has_an_address_too() -> None:
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0snimux-test-{os.getpid()}")
        abstract.listen(1)
        (found,) = activated([("tls", abstract.fileno())])
        assert found.address == UnixAddress(f"@snimux-test-{os.getpid()}")


def test_what_was_handed_over_and_cannot_be_listened_on_is_told() -> None:
    with socket.socket() as idle, socket.socket(type=socket.SOCK_DGRAM) as datagram:
        for number in (idle.fileno(), datagram.fileno(), 9999):
            with pytest.raises(ListenError) as caught:
                activated([("tls", number)])
            assert str(caught.value) == (
                f"descriptor {number} (tls) was handed over, but is no listening stream socket"
            )


def ports(listeners: Sequence[Listener]) -> list[int]:
    return [listener.socket.getsockname()[1] for listener in listeners]


ANYWHERE = TcpAddress("127.0.0.1", 0)


def test_what_is_there_for_an_address_is_used_again_and_the_rest_is_told() -> None:
    other = TcpAddress("::1", 0)
    before = open_listeners([ANYWHERE, other])
    after = open_listeners([ANYWHERE, TcpAddress("", 0)], (), before)
    try:
        assert after[0] == before[0]
        assert after[0].spec == ANYWHERE
        assert besides(after, before) == after[1:]
        assert [x.spec for x in after[1:]] == [TcpAddress("", 0)] * 2
        (gone,) = besides(before, after)
        assert gone == before[1]
        socket.create_connection(gone.socket.getsockname()[:2], timeout=5).close()
    finally:
        close([*after, *besides(before, after)])


def test_all_families_of_an_address_are_used_again() -> None:
    before = opened(":0", ":0")
    try:
        assert open_listeners([TcpAddress("", 0)] * 2, (), before) == before
        after = open_listeners([TcpAddress("", 0)], (), before)
        assert after == before[:2]
        assert besides(before, after) == before[2:]
    finally:
        close(before)


def test_an_address_that_changes_its_protocol_keeps_its_socket() -> None:
    before = open_listeners([ANYWHERE])
    address = TcpAddress("127.0.0.1", ports(before)[0])
    before = [Listener(before[0].socket, spec=address)]
    try:
        after = open_listeners([ANYWHERE], [address], before)
        assert [(x.spec, x.protocol) for x in after] == [(ANYWHERE, "tls"), (address, "http")]
        assert after[1].socket is before[0].socket
        assert besides(before, after) == []
        assert besides(after, before) == after[:1]
    finally:
        close(after)


def test_rather_a_listener_of_the_same_protocol_is_used_again() -> None:
    before = open_listeners([ANYWHERE], [ANYWHERE])
    try:
        assert open_listeners([ANYWHERE], [ANYWHERE], before) == before
        assert open_listeners([], [ANYWHERE], before) == before[1:]
        (moved,) = open_listeners([], [ANYWHERE], before[:1])
        assert (moved.socket, moved.protocol) == (before[0].socket, "http")
    finally:
        close(before)


def test_if_one_cannot_be_had_nothing_is_new_and_nothing_is_closed() -> None:
    before = open_listeners([ANYWHERE])
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = TcpAddress("127.0.0.1", holder.getsockname()[1])
        descriptors = open_descriptors()
        with pytest.raises(ListenError, match=r"the port is held by "):
            open_listeners([ANYWHERE, TcpAddress("::1", 0), taken], (), before)
        assert open_descriptors() == descriptors
    socket.create_connection(("127.0.0.1", ports(before)[0]), timeout=5).close()
    close(before)


@pytest.mark.parametrize(("first", "second"), [("", "127.0.0.1"), ("127.0.0.1", "")])
def test_an_overlap_with_what_is_there_needs_a_restart(first: str, second: str) -> None:
    before = open_listeners([TcpAddress(first, 0)])
    try:
        with pytest.raises(ListenError) as caught:
            open_listeners([TcpAddress(second, ports(before)[0])], (), before)
        assert f": it overlaps {before[0]}, where snimux listens now" in str(caught.value)
        assert str(caught.value).endswith("; it needs a restart")
    finally:
        close(before)


def test_a_descriptor_is_handed_over_at_the_start_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as handed:
        number = FdAddress(os.dup(handed.fileno()))
        before = open_listeners([number])
        try:
            assert open_listeners([number], (), before) == before
            other = FdAddress(os.dup(handed.fileno()))
            with pytest.raises(ListenError, match="no socket was handed over with that number"):
                open_listeners([other], (), before)
            os.close(other.number)
        finally:
            close(before)


def test_what_another_process_listened_on_is_used_again_by_the_address_that_it_was_for() -> None:
    with short_directory() as directory:
        path = UnixAddress(str(directory / "s"))
        (first,) = open_listeners([path])
        number = first.socket.detach()
        there = adopted(number, path, protocol="http", inode=first.inode)
        (again,) = open_listeners([path], current=[there])
        assert again == replace(there, protocol="tls")
        assert not again.handed_over
        again.close()
        assert not Path(path.path).exists()
    with socket.socket() as deaf, pytest.raises(OSError, match="no listening"):
        adopted(deaf.fileno(), FdAddress(3))
