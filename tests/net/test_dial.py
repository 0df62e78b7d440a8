"""``net.dial``: every kind of address is dialled, and every failure has its words."""

import contextlib
import errno
import os
import resource
import select
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from snimux.net import dial as module
from snimux.net.dial import Dialled, NotDialled, _cause, _refuse_itself, _socket_address, dial
from snimux.net.listeners import open_listeners
from snimux.net.loop import NOWHERE, Own, own, reserved_at
from snimux.routing.address import DialAddress, TcpAddress, UnixAddress
from tests.support.sockets import open_descriptors


@contextmanager
def listening(host: str = "127.0.0.1", backlog: int = 8) -> Iterator[TcpAddress]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, backlog=backlog) as listener:
        yield TcpAddress(host, listener.getsockname()[1])


@contextmanager
def nobody() -> Iterator[TcpAddress]:
    """An address where nobody listens, kept from others by a socket that is only bound."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield TcpAddress("127.0.0.1", bound.getsockname()[1])


async def dialled(address: DialAddress, *, dial_timeout: float = 5) -> DialAddress:
    outcome = await dial(address, dial_timeout=dial_timeout)
    assert isinstance(outcome, Dialled), outcome
    with outcome.socket as sock:
        assert sock.getpeername()
    return outcome.address


async def not_dialled(address: DialAddress, *, dial_timeout: float = 5) -> NotDialled:
    outcome = await dial(address, dial_timeout=dial_timeout)
    assert isinstance(outcome, NotDialled)
    return outcome


async def test_every_kind_of_address() -> None:
    with listening("::1") as v6, listening() as v4:
        assert await dialled(v6) == v6
        by_name = TcpAddress("localhost", v4.port)
        assert await dialled(by_name) == by_name
    with tempfile.TemporaryDirectory(prefix="snimux-") as directory:
        path = f"{directory}/s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            assert await dialled(UnixAddress(path)) == UnixAddress(path)


def test_a_zone_becomes_its_number() -> None:
    (number, name), *_ = socket.if_nameindex()
    assert _socket_address(f"fe80::1%{name}", 443)[3] == number
    assert _socket_address("192.0.2.1", 443) == ("192.0.2.1", 443)


async def test_every_fault_is_told(tmp_path: Path) -> None:
    with nobody() as down:
        missing = UnixAddress(str(tmp_path / "no"))
        unknown = TcpAddress("no-such-host.invalid", 1)
        by_name = TcpAddress("localhost", down.port)
        found = [await not_dialled(x) for x in (down, missing, unknown, by_name)]
    first, second, third, fourth = (outcome.detail for outcome in found)
    assert first == f"{down}: Connection refused"
    assert second == f"{missing}: No such file or directory"
    assert third.startswith(f"{unknown}: ")
    assert fourth == f"localhost:{down.port}: Connection refused"
    assert not any(outcome.exhausted for outcome in found)


async def test_there_is_a_deadline(autojump_clock: MockClock) -> None:
    """A full accept queue swallows connections, as a black hole on the way does."""
    autojump_clock.autojump_threshold = 0.2
    with listening(backlog=0) as full:
        with socket.create_connection((full.host, full.port)):
            outcome = await not_dialled(full, dial_timeout=0.5)
            assert outcome.detail == f"{full}: no answer in 0.5 s"


def test_a_connection_to_itself_is_refused() -> None:
    """TCP connects a socket to its own port where nobody listens and the port is picked twice."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.connect(own.getsockname())
        with pytest.raises(ConnectionRefusedError):
            _refuse_itself(own, NOWHERE, transparent=False)


async def test_what_leads_back_to_snimux_is_no_backend(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "own")
    wanted = (TcpAddress("127.0.0.1", 0), UnixAddress(str(tmp_path / "own")))
    tcp, unix = listeners = open_listeners(wanted)
    places = (
        (tcp, TcpAddress("localhost", tcp.socket.getsockname()[1])),
        (tcp, TcpAddress("127.0.0.1", tcp.socket.getsockname()[1])),
        (unix, UnixAddress(str(tmp_path / "link"))),
    )
    before = open_descriptors()
    for listener, address in places:
        outcome = await dial(address, dial_timeout=5, own=own(listeners))
        detail = f"{address}: it is snimux itself (listener {listener})"
        assert outcome == NotDialled(detail, exhausted=False)
        await dialled(address)
    assert open_descriptors() == before
    for listener in listeners:
        listener.close()


class Resolver(trio.abc.HostnameResolver):
    """Knows some names of a test's own."""

    async def getaddrinfo(
        self,
        host: bytes | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        if host not in (b"a.test", b"b.test"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return socket.getaddrinfo("127.0.0.1", port, family, type, proto, flags)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_what_is_reserved_is_no_backend_in_whatever_way_it_is_dialled() -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    with socket.create_server(("0.0.0.0", 0)) as admin:
        port = admin.getsockname()[1]
        for reserved in ("127.0.0.1", "localhost", "a.test"):
            is_known = Own(reserved={TcpAddress(reserved, port): "an admin API"})
            for host in ("127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "a.test", "b.test", *near()):
                address = TcpAddress(host, port)
                refused = await dial(address, dial_timeout=5, own=is_known)
                words = f"{address}: it is an admin API, which only snimux may reach"
                assert refused == NotDialled(words, exhausted=False)
                # what somebody has written himself is not refused
                await dialled(address)
        others: dict[DialAddress, str] = {
            TcpAddress("127.0.0.1", port + 1): "b",
            TcpAddress("192.0.2.1", port): "c",
        }
        found = await dial(TcpAddress("127.0.0.1", port), dial_timeout=5, own=Own(reserved=others))
        assert isinstance(found, Dialled)
        found.socket.close()
        # where it is cannot be known: it may be here
        unknown = Own(reserved={TcpAddress("no.test", port): "an admin API"})
        refused = await dial(TcpAddress("127.0.0.1", port), dial_timeout=5, own=unknown)
        assert isinstance(refused, NotDialled)
        assert "no.test" in refused.detail


def near() -> list[str]:
    """Other addresses of this machine, if it has any."""
    hosts = ["127.0.0.2"] if sys.platform == "linux" else []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))  # sends nothing
        hosts.append(sock.getsockname()[0])
    return hosts


async def test_a_reserved_unix_socket_is_no_backend_by_whatever_path() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="snimux-") as name,
        socket.socket(socket.AF_UNIX) as admin,
    ):
        here = Path(name)
        (here / "d").mkdir()
        admin.bind(str(here / "d" / "admin"))
        admin.listen()
        (here / "link").symlink_to(here / "d" / "admin")
        (here / "again").symlink_to("link")
        (here / "e").symlink_to("d")
        (here / "hard").hardlink_to(here / "d" / "admin")
        for reserved in ("d/admin", "e/admin"):
            is_known = Own(reserved={UnixAddress(str(here / reserved)): "an admin API"})
            for path in ("d/admin", "link", "again", "e/admin", "d/../d//admin", "hard"):
                refused = await dial(UnixAddress(f"{here}/{path}"), dial_timeout=5, own=is_known)
                assert isinstance(refused, NotDialled)
                assert refused.detail.endswith("it is an admin API, which only snimux may reach")
        with socket.socket(socket.AF_UNIX) as site:
            site.bind(str(here / "site"))
            site.listen()
            found = await dial(UnixAddress(str(here / "site")), dial_timeout=5, own=is_known)
            assert isinstance(found, Dialled)
            found.socket.close()
            # a link that leads elsewhere as soon as it was dialled has led there all the same
            assert reserved_at(is_known, str(here / "site"), str(here / "d" / "admin"))
            assert not reserved_at(is_known, str(here / "site"), str(here / "site"))


async def test_out_of_descriptors_is_not_the_backends_fault() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening() as address:
        await dialled(address)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            outcome = await not_dialled(address)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcome == NotDialled(f"{address}: {os.strerror(errno.EMFILE)}", exhausted=True)


def test_a_race_in_which_one_was_out_of_descriptors_says_nothing_of_the_backend() -> None:
    refused, out = OSError(errno.ECONNREFUSED, "refused"), OSError(errno.EMFILE, "out")
    error = OSError("all attempts failed")
    assert _cause(error) is error
    error.__cause__ = ExceptionGroup("", [refused, refused])
    assert _cause(error) is refused
    error.__cause__ = ExceptionGroup("", [refused, out])
    assert _cause(error) is out


async def test_a_unix_listener_with_a_full_queue_is_waited_for() -> None:
    with tempfile.TemporaryDirectory(prefix="snimux-") as directory:
        path = UnixAddress(f"{directory}/s")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.path)
            listener.listen(0)
            first = await dial(path, dial_timeout=5)
            assert isinstance(first, Dialled)
            assert "no answer" in (await not_dialled(path, dial_timeout=0.1)).detail

            async def take_one() -> None:
                await trio.sleep(0.1)
                listener.accept()[0].close()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take_one)
                assert await dialled(path) == path
            first.socket.close()


async def test_a_backend_that_resets_at_once_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr("snimux.net.dial._refuse_itself", gone)
    with listening() as address:
        before = open_descriptors()
        for gone_at in (address, TcpAddress("localhost", address.port)):
            assert not (await not_dialled(gone_at)).exhausted
        assert open_descriptors() == before


async def test_a_cancelled_dial_leaves_no_descriptor() -> None:
    with listening(backlog=0) as full, socket.create_connection((full.host, full.port)):
        before = open_descriptors()
        with trio.move_on_after(0.05):
            await dial(full, dial_timeout=5)
        assert open_descriptors() == before


@pytest.mark.skipif(sys.platform != "linux", reason="waits for the reset by epoll")
@pytest.mark.parametrize("size", [0, 1, 1_000, 60_000])
@pytest.mark.parametrize("moment", ["_is_connected", "_refuse_itself", "_refuse_reserved"])
async def test_a_backend_that_sends_and_resets_at_once_has_sent(
    monkeypatch: pytest.MonkeyPatch, size: int, moment: str
) -> None:
    """Until here it was taken for one that could not be dialled, and its bytes were lost."""
    look = getattr(module, moment)
    listener = socket.create_server(("127.0.0.1", 0))

    def reset_before(sock: socket.socket, *args: object, **options: object) -> object:
        backend, _ = listener.accept()
        backend.sendall(bytes(size))
        backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        backend.close()
        with select.epoll() as edges:
            edges.register(sock.fileno())
            while not any(events & select.EPOLLERR for _, events in edges.poll(1)):
                pass
        return look(sock, *args, **options)

    monkeypatch.setattr(module, moment, reset_before)
    with listener:
        own = Own(reserved={TcpAddress("127.0.0.1", 2019): "an admin API"})
        dialled = await dial(TcpAddress(*listener.getsockname()), dial_timeout=5, own=own)
        if not size:
            assert isinstance(dialled, NotDialled)
            return
        assert isinstance(dialled, Dialled), dialled
        with dialled.socket as sock:
            got = bytearray()
            while len(got) < size:
                got += sock.recv(size)
