"""What tests share: two real Caddys and a snimux in front of them, started once; and `need`."""

import contextlib
import os
import resource
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import hypothesis
import pytest
import trio

from tests.support import caddy, muxes
from tests.support.caddy import Caddy
from tests.support.muxes import Mux

# How long an example takes says more of what else the machine does than of what is tested.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

BIG = 200 * 10**6
"""Bytes in the file that `/files/big` of secure.ciso.com is."""

_SECURE = """\
secure.ciso.com {{
	bind 127.0.0.1 unix/{socket}
	tls internal
	handle /files/* {{
		root {files}
		file_server
	}}
	handle /up {{
		reverse_proxy unix/{up}
	}}
	respond "secure.ciso.com {{http.request.proto}}"
}}
"""
_OTHERS = """\
dao.ciso.com, traefik.ciso.com {
	tls internal
	respond "{http.request.host} {http.request.proto}"
}
"""


def need(what_is_missing: str | None) -> None:
    """Skip the test if something is missing; but fail where nothing may be missing, in CI."""
    if what_is_missing is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(what_is_missing)
    pytest.skip(what_is_missing)


@pytest.fixture(autouse=True)
def _has_what_it_needs(request: pytest.FixtureRequest) -> None:
    """Heed ``@pytest.mark.needs(is_missing, words)``; in an async test a skip loses its words."""
    for mark in request.node.iter_markers("needs"):
        is_missing, words = mark.args
        need(words if is_missing() else None)


@pytest.fixture(autouse=True)
def _signal_mask() -> Iterator[None]:
    """Leave no signal blocked: what a later test starts would never hear it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Let ^C end the run in an async test too, where it comes in a group of a nursery."""
    try:
        return (yield)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@dataclass(frozen=True, slots=True)
class Sites:
    """The two Caddys of the story: secure in one; dao and traefik in the other."""

    secure: Caddy
    others: Caddy

    @property
    def socket(self) -> Path:
        """The UNIX socket on which secure.ciso.com is served too."""
        return self.secure.directory / "https"

    @property
    def up(self) -> Path:
        """The UNIX socket of the server, not running, that has /up of secure.ciso.com."""
        return self.secure.directory / "up"

    @property
    def big(self) -> Path:
        """The file that is served as /files/big of secure.ciso.com."""
        return self.secure.directory / "files/big"

    def of(self, name: str) -> Caddy:
        """The Caddy that serves a name."""
        return self.secure if name == "secure.ciso.com" else self.others

    @property
    def routes(self) -> list[str]:
        """The flags that route the three names."""
        return [
            f"--route=secure.ciso.com=127.0.0.1:{self.secure.port}",
            f"--route=dao.ciso.com,traefik.ciso.com=127.0.0.1:{self.others.port}",
        ]


@dataclass(frozen=True, slots=True)
class Shared:
    """The snimux that all tests share which change nothing of it.

    Besides the sites it has routes to where a test may listen itself: tcp.test and unix.test; and
    to where nobody ever does: down.test.
    """

    mux: Mux
    tcp: tuple[str, int]
    unix: str


@pytest.fixture(scope="session", autouse=True)
def _descriptors() -> None:
    """Room for the clients of the tests: macOS starts with 256 descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))


@pytest.fixture(scope="session")
def sites() -> Iterator[Sites]:
    """The two Caddys, answering."""
    need(caddy.missing())
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(caddy.short_directory()) for _ in range(2))
        _write_big(first / "files/big")
        secure = _SECURE.format(socket=first / "https", files=first, up=first / "up")
        found = Sites(
            # for hellos without a name
            caddy.start(first, secure, options="default_sni secure.ciso.com"),
            caddy.start(second, _OTHERS),
        )
        for each in (found.secure, found.others):
            stack.callback(each.stop)
        trio.run(caddy.answering, found.secure, ["secure.ciso.com"])
        trio.run(caddy.answering, found.others, ["dao.ciso.com", "traefik.ciso.com"])
        yield found


def _write_big(path: Path) -> None:
    """Write a file in which no two places are alike, without the cost of that much randomness."""
    path.parent.mkdir()
    noise = os.urandom(10**6 - 8)
    with path.open("wb") as file:
        for number in range(BIG // 10**6):
            file.write(number.to_bytes(8, "big") + noise)


@pytest.fixture
def shared(snimux_of_all: Shared) -> Shared:
    """The shared snimux, listening, with a log that begins with the test."""
    return replace(snimux_of_all, mux=snimux_of_all.mux.from_here())


@pytest.fixture(scope="session")
def snimux_of_all(sites: Sites) -> Iterator[Shared]:
    """The shared snimux, listening."""
    tcp, down = ("127.0.0.1", caddy.free_port()), caddy.closed_port()
    with caddy.short_directory() as directory:
        unix = str(directory / "backend")
        routes = [
            *sites.routes,
            f"--route=tcp.test=127.0.0.1:{tcp[1]}",
            f"--route=unix.test=unix/{unix}",
            f"--route=down.test=127.0.0.1:{down}",
            "--wait=off",
        ]
        mux = muxes.start(directory / "snimux.log", *routes)
        try:
            trio.run(lambda: mux.log_line(event="listening"))
            yield Shared(mux, tcp, unix)
            # others would be dialled by it, beside the connections that tests wait for
            assert {x["backend"] for x in mux.lines(event="backend")} <= {f"127.0.0.1:{down}"}
        finally:
            mux.end()
