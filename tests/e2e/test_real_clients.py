"""Each real TLS client of `tests.support.clients`, through a real snimux: to its site, to none."""

import ssl
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from tests.conftest import Shared, Sites, need
from tests.support import clients
from tests.support.clients import CLIENTS, Client

EACH = pytest.mark.parametrize("client", CLIENTS, ids=[client.name for client in CLIENTS])

# Too old for Caddy.
OLD = {"openssl-tls1.0", "openssl-tls1.1"}
SECONDS = 60  # a browser's first start on a busy machine takes some


@pytest.fixture(autouse=True)
def _client_is_there(client: Client) -> None:
    need(clients.available(client))


@dataclass(frozen=True, slots=True)
class Site:
    """A name that snimux has a route for, what is there, and the authority to trust for it."""

    name: str
    body: bytes
    ca_file: Path


async def fetch(client: Client, host: str, shared: Shared, ca_file: Path, work_dir: Path) -> bytes:
    """All that the client prints, both streams."""
    with trio.fail_after(SECONDS):
        outcome = await clients.run(client, host, shared.mux.port, ca_file, work_dir)
    return outcome.stdout + b"\n" + outcome.stderr


@pytest.fixture
async def site(
    client: Client, sites: Sites, shared: Shared, tmp_path: Path, nursery: trio.Nursery
) -> AsyncIterator[Site]:
    """The site to ask for: a Caddy's, or one that speaks the old versions."""
    if client.name not in OLD:
        yield Site("dao.ciso.com", b"dao.ciso.com HTTP/", sites.others.root)
        return
    authority, ca_file = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = _old_server(authority.issue_cert("tcp.test"))
    host, port = shared.tcp
    serve = partial(trio.serve_ssl_over_tcp, host=host, https_compatible=True)
    await nursery.start(serve, _answer, port, context)
    yield Site("tcp.test", b"an old server", ca_file)
    nursery.cancel_scope.cancel()


def _old_server(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


async def _answer(stream: trio.abc.Stream) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        data = await stream.receive_some()
        if not data:
            return
        received += data
    body = b"an old server"
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    await stream.send_all(head.encode() + body)
    await stream.aclose()


@EACH
async def test_the_client_gets_its_page(
    client: Client, site: Site, shared: Shared, tmp_path: Path
) -> None:
    printed = await fetch(client, site.name, shared, site.ca_file, tmp_path)
    assert site.body in printed, printed.decode(errors="replace")


@EACH
async def test_the_client_is_told_that_nobody_has_the_name(
    client: Client, sites: Sites, shared: Shared, tmp_path: Path
) -> None:
    host = f"{client.name.replace('_', '-')}.Unknown.Example"
    printed = await fetch(client, host, shared, sites.others.root, tmp_path)
    # In its own words: "unrecognized name", "UNRECOGNIZED_NAME_ALERT", "was not recognized".
    assert b"recognized" in printed.lower(), printed.decode(errors="replace")
    line = await shared.mux.log_line(event="connection", name=host.lower())
    assert (line["ended"], line["reason"]) == ("refused", "no-route")
    assert line["down"] == 0
