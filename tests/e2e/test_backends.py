"""Several addresses for a route, with real Caddys behind them that stop, start and say nothing."""

import contextlib
import json
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trustme

from tests.conftest import need
from tests.support import caddy, muxes
from tests.support.caddy import Caddy, short_directory, until
from tests.support.muxes import Mux
from tests.support.sockets import reset

NAME = "pool.test"

# Its certificate is in files, so that it has one as soon as it listens.
_CADDYFILE = """\
{{
	admin unix/{admin}
	persist_config off
	storage file_system {storage}
	skip_install_trust
	auto_https off
	{servers}
}}
https://pool.test:{port} {{
	bind 127.0.0.1
	tls {certificate} {key}
	respond "{word}"
}}
"""

_REQUIRING = """\
servers {
		listener_wrappers {
			proxy_protocol {
				fallback_policy require
			}
			tls
		}
	}"""


@dataclass
class Pool:
    """Caddys that serve the same name, each with a word of its own; started and stopped by hand."""

    directory: Path
    context: ssl.SSLContext
    running: dict[str, Caddy]
    ports: dict[str, int]

    def start(self, word: str, *, servers: str = "") -> None:
        """Start the one that says a word, where it was before, if it was."""
        own = self.directory / word
        own.mkdir(exist_ok=True)
        file = _CADDYFILE.format(
            admin=own / "admin",
            storage=own / "storage",
            servers=servers,
            port=self.port(word),
            certificate=self.directory / "certificate.pem",
            key=self.directory / "key.pem",
            word=word,
        )
        self.running[word] = caddy.run(own, file, port=self.port(word))

    def stop(self, word: str) -> None:
        self.running.pop(word).stop()

    def port(self, word: str) -> int:
        if word not in self.ports:
            self.ports[word] = caddy.free_port()
        return self.ports[word]

    def address(self, word: str) -> str:
        return f"127.0.0.1:{self.port(word)}"

    async def serving(self, *words: str) -> None:
        """Wait until they listen; their certificates they have."""
        for port in map(self.port, words):
            await until(lambda port=port: caddy.listens(port), f"Caddy listens on {port}")  # type: ignore[misc]

    @contextlib.asynccontextmanager
    async def mux(self, route: str, *flags: str) -> AsyncIterator[Mux]:
        """A snimux with one route for the name, as the keys of its table say."""
        file = self.directory / "snimux.toml"
        file.write_text(f'[[route]]\nhosts = "{NAME}"\n{route}\n')
        async with muxes.running(self.directory, "--config", str(file), *flags) as mux:
            yield mux

    def to(self, *words: str, weights: tuple[int, ...] = ()) -> str:
        """The key of a route for these."""
        tables = [
            f"{{ address = {json.dumps(self.address(word))}, weight = {weight} }}"
            for word, weight in zip(words, weights or (1,) * len(words), strict=True)
        ]
        return f"to = [{', '.join(tables)}]\n"

    async def connect(self, mux: Mux) -> trio.SSLStream[trio.SocketStream]:
        """A connection to one of them, which stays open."""
        plain = await trio.open_tcp_stream("127.0.0.1", mux.port)
        tls = trio.SSLStream(plain, self.context, server_hostname=NAME, https_compatible=True)
        try:
            await tls.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(plain)
            raise
        return tls

    async def ask(self, mux: Mux) -> str:
        """The word of whom one request on a connection of its own comes to."""
        async with await self.connect(mux) as tls:
            return await said(tls)


async def said(tls: trio.SSLStream[trio.SocketStream]) -> str:
    await tls.send_all(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while piece := await tls.receive_some(2**16):
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body.decode()


async def ended(mux: Mux, count: int) -> None:
    """Wait until so many connections have ended, and are counted no more."""
    await until(lambda: len(mux.lines(event="connection")) == count, f"{count} lines")


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Nobody of it runs yet; ended with the test."""
    need(caddy.missing())
    with short_directory() as directory:
        authority = trustme.CA()
        own = authority.issue_cert(NAME)
        own.private_key_pem.write_to_path(directory / "key.pem")
        for pem in own.cert_chain_pems:
            pem.write_to_path(directory / "certificate.pem", append=True)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        found = Pool(directory, context, {}, {})
        try:
            yield found
        finally:
            for word in list(found.running):
                found.stop(word)


async def test_a_caddy_that_restarts_costs_no_connection(pool: Pool) -> None:
    pool.start("one")
    await pool.serving("one")
    async with pool.mux(pool.to("one") + "wait = 60") as mux:
        assert await pool.ask(mux) == "one"
        pool.stop("one")
        answers: list[str] = []

        async def ask_thrice() -> None:
            for _ in range(3):
                answers.append(await pool.ask(mux))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask_thrice)
            await mux.log_line(event="backend", state="down", backend=pool.address("one"))
            pool.start("one")
        assert answers == ["one"] * 60
        await ended(mux, 61)
        assert not mux.lines(ended="refused")
        assert sum("waited" in line for line in mux.lines(event="connection")) >= 1
        assert [x["state"] for x in mux.lines(event="backend")] == ["down", "up"]


async def test_connections_are_dealt_out_by_weight(pool: Pool) -> None:
    words = ("one", "two", "three")
    for word in words:
        pool.start(word)
    await pool.serving(*words)
    route = pool.to(*words, weights=(1, 3, 2)) + 'balance = "round_robin"'
    async with pool.mux(route) as mux:
        taken = Counter([await pool.ask(mux) for _ in range(12)])
        assert taken == {"one": 2, "two": 6, "three": 4}


async def test_the_one_with_the_fewest_connections_has_the_next(pool: Pool) -> None:
    for word in ("one", "two"):
        pool.start(word)
    await pool.serving("one", "two")
    async with pool.mux(pool.to("one", "two"), "--balance", "least_conn") as mux:
        # four that stay open are two each; those of "one" end, and it has the next two
        held = [await pool.connect(mux) for _ in range(4)]
        words = [await said(tls) for tls in held]
        assert Counter(words) == {"one": 2, "two": 2}
        for tls in held:
            await trio.aclose_forcefully(tls)
        await ended(mux, 4)

        first = await pool.connect(mux)
        others = []
        for number in range(5, 8):
            others.append(await pool.ask(mux))
            await ended(mux, number)
        assert len(set(others)) == 1  # the one that `first` is not at
        assert await said(first) not in others
        await trio.aclose_forcefully(first)


async def test_one_that_is_down_is_left_out_until_it_is_back(pool: Pool) -> None:
    for word in ("one", "two"):
        pool.start(word)
    await pool.serving("one", "two")
    async with pool.mux(pool.to("one", "two") + 'balance = "round_robin"') as mux:
        assert {await pool.ask(mux) for _ in range(2)} == {"one", "two"}
        pool.stop("two")
        assert {await pool.ask(mux) for _ in range(6)} == {"one"}
        down = await mux.log_line(event="backend", state="down")
        assert (down["backend"], down["level"]) == (pool.address("two"), "warning")
        assert down["detail"] == "Connection refused"
        pool.start("two")
        # it is dialled again after 15 seconds at the latest, as long as it was down for less
        await mux.log_line(within=40, event="backend", state="up", backend=pool.address("two"))
        assert {await pool.ask(mux) for _ in range(2)} == {"one", "two"}
        assert not mux.lines(ended="refused")
        assert not [line for line in mux.lines() if "waited" in line]


async def test_who_accepts_and_answers_no_hello_is_found_out_by_checks(pool: Pool) -> None:
    pool.start("one")
    await pool.serving("one")
    with socket.create_server(("127.0.0.1", pool.port("silent"))):
        route = pool.to("silent", "one") + 'check = "tls"'
        # which is what a check may take, too: enough for a Caddy on a machine that is busy
        async with pool.mux(route, "--check-every", "4", "--fall", "1") as mux:
            down = await mux.log_line(event="backend", state="down")
            assert down["backend"] == pool.address("silent")
            assert down["detail"] == "check: no answer: it was silent"
            assert [await pool.ask(mux) for _ in range(5)] == ["one"] * 5


async def test_a_caddy_that_requires_the_proxy_protocol_is_checked_with_it(pool: Pool) -> None:
    often = ("--check", "tls", "--check-every", "1", "--fall", "1", "--rise", "1")
    async with pool.mux(pool.to("one") + 'proxy = "v2"', *often) as mux:
        await mux.log_line(event="backend", state="down", backend=pool.address("one"))
        pool.start("one", servers=_REQUIRING)
        up = await mux.log_line(within=40, event="backend", state="up")
        assert up["detail"] == "check: a ServerHello"
        assert await pool.ask(mux) == "one"
    async with pool.mux(pool.to("one"), *often) as mux:
        await mux.log_line(event="backend", state="down", backend=pool.address("one"))


async def test_a_name_is_dialled_at_what_it_stands_for(pool: Pool) -> None:
    pool.start("one")
    await pool.serving("one")
    async with pool.mux(f'to = "localhost:{pool.port("one")}"') as mux:
        assert [await pool.ask(mux) for _ in range(5)] == ["one"] * 5


async def test_who_leaves_while_it_waits_gives_its_place_back(pool: Pool) -> None:
    pool.start("one")
    await pool.serving("one")
    async with pool.mux(pool.to("one") + "wait = 600", "--max-connections", "1") as mux:
        pool.stop("one")
        plain = await trio.open_tcp_stream("127.0.0.1", mux.port)
        out = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            pool.context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=NAME).do_handshake()
        await plain.send_all(out.read())
        await mux.log_line(event="backend", state="down")
        reset(plain.socket)
        left = await mux.log_line(ended="refused", reason="backend-down")
        assert left["detail"].endswith("; the client left")
        pool.start("one")
        assert await pool.ask(mux) == "one"


async def test_who_waits_is_drained_like_all_others(pool: Pool) -> None:
    async with pool.mux(pool.to("nobody") + "wait = 600", "--drain", "0") as mux:
        plain = await trio.open_tcp_stream("127.0.0.1", mux.port)
        async with plain:
            tls = trio.SSLStream(plain, pool.context, server_hostname=NAME)
            async with trio.open_nursery() as nursery:

                async def shake_hands() -> None:
                    with pytest.raises((trio.BrokenResourceError, ssl.SSLError)):
                        await tls.do_handshake()

                nursery.start_soon(shake_hands)
                await mux.log_line(event="backend", state="down")
                mux.send_signal()
                assert await mux.exit_status() == 0
        assert mux.lines(event="connection")[0]["ended"] == "shutdown"
