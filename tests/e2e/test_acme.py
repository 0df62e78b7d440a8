"""ACME through the snimux command: who serves a name gets its certificate, by either challenge.

Two real Caddys as the README wants them, each with ports and storage of its own, and a real ACME
server that gets to them through snimux alone.
"""

import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio

from tests.conftest import need
from tests.support import acme, caddy, muxes
from tests.support.acme import Pebble
from tests.support.caddy import Caddy, free_port, listens, short_directory, until
from tests.support.muxes import Mux

# What the first Caddy serves, and the second.
NAMES = (("secure.ciso.com",), ("dao.ciso.com", "traefik.ciso.com"))
EVERY_NAME = {name for names in NAMES for name in names}

HTTP, TLS = "http-01", "tls-alpn-01"
# In Caddy's words. Of both it draws one by lot, and tries the other if that fails.
ALONE = {HTTP: "disable_tlsalpn_challenge", TLS: "disable_http_challenge"}

# What Caddy logs of a name before it waits.
FAILED = "could not get certificate from issuer"

_CADDYFILE = """\
{{
	admin unix/{plot.admin}
	storage file_system {plot.directory}/storage
	persist_config off
	renew_interval 1s
	skip_install_trust
	https_port {plot.https}
	http_port {plot.http}
	default_bind 127.0.0.1
	servers {{
		protocols h1 h2
	}}
	{certificates}
}}
http:// {{
}}
{names} {{
	respond "{{http.request.host}} on {plot.https}"
}}
"""
_NO_CERTIFICATES = "auto_https disable_certs"
# Without an email a Caddy 2.11 that asks for two certificates at once may give "default" for one,
# and is refused.
_BY_ACME = """\
cert_issuer acme {{
		dir {pebble.url}
		trusted_roots {pebble.trust}
		email hostmaster@ciso.com
		{alone}
	}}
"""

Challenge = tuple[str, str, str]
"""One that came through: which, for what name, and the backend or why there was none."""


@dataclass(frozen=True, slots=True)
class Plot:
    """What a Caddy has for itself."""

    names: Sequence[str]
    directory: Path
    https: int
    http: int

    @property
    def admin(self) -> Path:
        """Its admin API's UNIX socket."""
        return self.directory / "admin"

    def of(self, challenge: str) -> str:
        """The address at which it answers a challenge."""
        return f"127.0.0.1:{self.http if challenge == HTTP else self.https}"

    def caddyfile(self, certificates: str) -> str:
        """Its Caddyfile; where its certificates come from is an option."""
        return _CADDYFILE.format(plot=self, names=", ".join(self.names), certificates=certificates)


@dataclass(frozen=True, slots=True)
class World:
    """Two Caddys that ask for certificates, and a snimux through which the ACME server dials."""

    mux: Mux
    pebble: Pebble
    caddys: Sequence[Caddy]

    @property
    def caddy_logs(self) -> str:
        """What both wrote so far."""
        return "\n".join(each.log for each in self.caddys)

    def told(self, message: str) -> set[str]:
        """The names of which a Caddy has logged this so far."""
        assert all(each.process.poll() is None for each in self.caddys), self.caddy_logs
        whole = (line for line in self.caddy_logs.splitlines(True) if line.endswith("}\n"))
        return {json.loads(line)["identifier"] for line in whole if message in line}

    @contextlib.contextmanager
    def connection(self, name: str) -> Iterator[ssl.SSLSocket]:
        """A client's, through snimux, that trusts the ACME server's authority alone."""
        context = ssl.create_default_context(cafile=self.pebble.root)
        with (
            socket.create_connection(("127.0.0.1", self.mux.port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=name) as tls,
        ):
            yield tls

    def certificate(self, name: str) -> bytes | None:
        """The one that a client is shown."""
        with self.connection(name) as tls:
            return tls.getpeercert(binary_form=True)

    def page(self, name: str) -> str:
        """What a client gets for its one request."""
        with self.connection(name) as tls, tls.makefile("rb") as answer:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return answer.read().decode()

    def is_routed(self, name: str) -> bool:
        """Whether snimux knows where a name goes, though there is no certificate for it."""
        with pytest.raises(ssl.SSLError) as caught:
            self.page(name)
        return caught.value.reason != "TLSV1_UNRECOGNIZED_NAME"

    def is_served(self, name: str) -> bool:
        """Whether a name has its certificate by now; one that has failed will not be in time."""
        assert name not in self.told(FAILED), self.caddy_logs
        with contextlib.suppress(OSError):
            return bool(self.page(name))
        return False

    async def challenges(self) -> set[Challenge]:
        """All that came through; ends snimux, for only then its log is whole."""
        for each in self.caddys:
            each.stop()  # asks for no more
        self.mux.send_signal()
        await self.mux.exit_status(seconds=60)
        found = set()
        for line in self.mux.lines(event="connection"):
            where = line.get("backend") or line["reason"]
            if line.get("protocol") == "http":
                found.add((HTTP, line["name"], where))
            elif line.get("alpn") == "acme-tls/1":
                found.add((TLS, line["name"], where))
        return found


@pytest.fixture
def plots() -> Iterator[list[Plot]]:
    need(caddy.missing())
    need(acme.missing())
    with contextlib.ExitStack() as stack:
        yield [
            Plot(names, stack.enter_context(short_directory()), free_port(), free_port())
            for names in NAMES
        ]


@contextlib.asynccontextmanager
async def started(
    plots: Sequence[Plot], toml: str, *, alone: str, are_held: bool = True
) -> AsyncIterator[World]:
    """A snimux with this configuration, and the Caddys asking for certificates.

    If they are held, they do so only once snimux knows them: one whose first attempt fails waits
    for a minute.
    """
    async with contextlib.AsyncExitStack() as stack:
        here = stack.enter_context(short_directory())
        config = here / "snimux.toml"
        config.write_text(toml, "utf-8")
        flags = (f"--config={config}", "--http=127.0.0.1:0")
        mux = await stack.enter_async_context(muxes.running(here, *flags))
        plain = await mux.log_line(event="listening", protocol="http")
        http_port = int(plain["address"].rpartition(":")[2])
        pebble = await stack.enter_async_context(
            acme.running(here, http_port=http_port, tls_port=mux.port)
        )
        caddys = []
        by_acme = _BY_ACME.format(pebble=pebble, alone=alone)
        for plot in plots:
            caddyfile = plot.caddyfile(_NO_CERTIFICATES if are_held else by_acme)
            caddys.append(caddy.run(plot.directory, caddyfile, port=plot.https))
            stack.callback(caddys[-1].stop)
        world = World(mux, pebble, caddys)
        if are_held:
            await all_are_routed(world, plots)
            for each, plot in zip(caddys, plots, strict=True):
                await reload(each, plot.caddyfile(by_acme))
        yield world


async def all_are_routed(world: World, plots: Sequence[Plot]) -> None:
    for plot in plots:
        await until(lambda port=plot.https: listens(port), "Caddy listens")  # type: ignore[misc]
        for name in plot.names:
            await until(lambda name=name: world.is_routed(name), f"{name} is routed")  # type: ignore[misc]


async def reload(running: Caddy, caddyfile: str) -> None:
    """Give a Caddy a new configuration."""
    file = running.directory / "Caddyfile"
    file.write_text(caddyfile, "utf-8")
    where = (f"--config={file}", f"--address=unix/{running.admin}")
    await trio.run_process([caddy.binary() or "caddy", "reload", *where], capture_stderr=True)


def renew_early(plot: Plot) -> None:
    """Have a Caddy renew certificates that have nearly all of their time left."""
    ratio = "http://127.0.0.1/config/apps/tls/automation/policies/0/renewal_window_ratio"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(plot.admin))) as client:
        client.post(ratio, json=0.99999999).raise_for_status()


def written(plots: Sequence[Plot], *, http: bool = True) -> str:
    """The routes that a person writes for the two Caddys, with their HTTP sides or without."""
    tables = []
    for plot in plots:
        tables.append(f"[[route]]\nhosts = {list(plot.names)}\nto = '{plot.of(TLS)}'")
        if http:
            tables.append(f"http = '{plot.of(HTTP)}'")
    return "\n".join(tables)


def asked(plots: Sequence[Plot]) -> str:
    """Only whom to ask for them."""
    return "\n".join(f"[[caddy]]\nadmin = 'unix/{plot.admin}'" for plot in plots)


def expected(plots: Sequence[Plot], challenge: str) -> set[Challenge]:
    """Each name's challenge at its own Caddy."""
    return {(challenge, name, plot.of(challenge)) for plot in plots for name in plot.names}


async def are_served(world: World, plots: Sequence[Plot]) -> None:
    for plot in plots:
        for name in plot.names:
            await until(lambda name=name: world.is_served(name), f"{name} is served", seconds=60)  # type: ignore[misc]
            assert world.page(name).endswith(f"{name} on {plot.https}")


async def are_refused(world: World, names: set[str]) -> None:
    await until(lambda: world.told(FAILED) >= names, f"{names} are refused", seconds=60)
    assert world.told("challenge failed") == names
    for name in names:
        with pytest.raises(ssl.SSLError, match="ALERT_INTERNAL_ERROR"):
            world.page(name)


@pytest.mark.parametrize("routes", [written, asked])
@pytest.mark.parametrize("challenge", [HTTP, TLS])
async def test_each_caddy_gets_its_certificates_by_one_challenge_alone(
    plots: list[Plot], challenge: str, routes: Callable[[Sequence[Plot]], str]
) -> None:
    async with started(plots, routes(plots), alone=ALONE[challenge]) as world:
        await are_served(world, plots)
        assert await world.challenges() == expected(plots, challenge)


@pytest.mark.parametrize("challenge", [HTTP, TLS])
async def test_a_caddy_that_snimux_has_not_heard_of_gets_them_at_once(
    plots: list[Plot], challenge: str
) -> None:
    async with started(plots, asked(plots), alone=ALONE[challenge], are_held=False) as world:
        await are_served(world, plots)
        assert not world.told("challenge failed")


@pytest.mark.parametrize("challenge", [HTTP, TLS])
async def test_each_caddy_renews_its_certificates(plots: list[Plot], challenge: str) -> None:
    async with started(plots, written(plots), alone=ALONE[challenge]) as world:
        await are_served(world, plots)
        first = {name: world.certificate(name) for name in EVERY_NAME}
        for plot in plots:
            renew_early(plot)
        for name in EVERY_NAME:
            await until(
                lambda name=name: world.certificate(name) != first[name],  # type: ignore[misc]
                f"the certificate of {name} is another",
                seconds=60,
            )
        assert await world.challenges() == expected(plots, challenge)


async def test_with_port_80_neither_challenge_needs_to_be_disabled(plots: list[Plot]) -> None:
    async with started(plots, written(plots), alone="") as world:
        await are_served(world, plots)
        assert not world.told("challenge failed")
        came = await world.challenges()
        assert came <= expected(plots, HTTP) | expected(plots, TLS)
        assert {name for _, name, _ in came} == EVERY_NAME


# The controls: what would become of the tests above if snimux did not do its part.


async def test_http_01_fails_where_port_80_is_not_passed_on(plots: list[Plot]) -> None:
    async with started(plots, written(plots, http=False), alone=ALONE[HTTP]) as world:
        await are_refused(world, EVERY_NAME)
        assert await world.challenges() == {(HTTP, name, "no-http") for name in EVERY_NAME}


async def test_tls_alpn_01_fails_where_the_other_caddy_is_asked(plots: list[Plot]) -> None:
    first, second = plots
    hosts = [f"{name}/acme-tls/1" for name in second.names]
    crossed = f"[[route]]\nhosts = {hosts}\nto = '{first.of(TLS)}'"
    async with started(plots, f"{written(plots)}\n{crossed}", alone=ALONE[TLS]) as world:
        await are_refused(world, set(second.names))
        await are_served(world, [first])
        assert await world.challenges() == {(TLS, name, first.of(TLS)) for name in EVERY_NAME}
