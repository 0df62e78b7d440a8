"""What is exempt is the last request of its connection, for nginx and Caddy as well.

Each head of a request is followed by another request, with it and after its answer. Where a server
answers that one, too, the head must not be exempt.
"""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snimux.proto.http_head import HTTP
from snimux.proto.verdict import START, Hello
from snimux.routing.access import is_validation
from tests.support import caddy
from tests.support.caddy import free_port, short_directory

_NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
NEEDS_NGINX = pytest.mark.needs(lambda: _NGINX is None, "needs nginx: apt-get install nginx-light")
NEEDS_CADDY = pytest.mark.needs(lambda: caddy.binary() is None, caddy.missing() or "")

_NGINX_CONF = """\
daemon off;
master_process off;
error_log stderr;
pid {here}/pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "here is $uri"; }}
    }}
}}
"""
_CADDYFILE = """\
{{
    admin off
    auto_https off
    persist_config off
    storage file_system {here}/storage
}}
http://:{port} {{
    bind 127.0.0.1
    respond "here is {{path}}"
}}
"""
_PATH = "/.well-known/acme-challenge/evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ"
_SECOND = b"GET /admin HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def nginx() -> Iterator[int]:
    """The port of one."""
    with short_directory() as here:
        port = free_port()
        (here / "nginx.conf").write_text(_NGINX_CONF.format(here=here, port=port), "utf-8")
        command = [str(_NGINX), "-p", str(here), "-e", "stderr", "-c", str(here / "nginx.conf")]
        with _running(command, here, port):
            yield port


@pytest.fixture(scope="module")
def one_caddy() -> Iterator[int]:
    """The port of one."""
    with short_directory() as here:
        port = free_port()
        (here / "Caddyfile").write_text(_CADDYFILE.format(here=here, port=port), "utf-8")
        command = [str(caddy.binary()), "run", "--config", str(here / "Caddyfile")]
        with _running(command, here, port):
            yield port


@contextlib.contextmanager
def _running(command: list[str], here: Path, port: int) -> Iterator[None]:
    with (here / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={"HOME": str(here)})
    try:
        while not caddy.listens(port):
            assert process.poll() is None, (here / "log").read_text("utf-8")
        yield
    finally:
        process.kill()
        process.wait()


def answered(port: int, head: bytes, *, at_once: bool) -> set[bytes]:
    """Which of the two requests a server answers."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head + _SECOND if at_once else head)
        with contextlib.suppress(OSError):  # reset, as it may be where it has said all
            if not at_once:
                received = client.recv(65536)
                client.sendall(_SECOND)
            client.shutdown(socket.SHUT_WR)
            while data := client.recv(65536):
                received += data
    return {path for path in (_PATH.encode(), b"/admin") if b"here is " + path in received}


_OPTIONS = ("close", "keep-alive", "Close", "close, keep-alive", "keep-alive, close", "close\t", "")
_FIELDS = (
    "",
    *(f"Connection: {option}\r\n" for option in _OPTIONS),
    *(f"Connection: {x}\r\nConnection: {y}\r\n" for x in _OPTIONS[:4] for y in _OPTIONS[:4]),
    "connection:close\r\n",
    "Connection:  close \r\n",
    "Connection: close\r\nKeep-Alive: timeout=60\r\n",
    "Connection: close\r\nProxy-Connection: keep-alive\r\n",
    "Connection: close\r\nContent-Length: 0\r\n",
    "Connection: close\r\nTransfer-Encoding: chunked\r\n",
    "Connection: close\r\nExpect: 100-continue\r\n",
    "Connection: close, Upgrade\r\nUpgrade: h2c\r\n",
    "Accept: */*\r\nUser-Agent: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n",
)  # fmt: skip
HEADS = [
    f"{method} {target} HTTP/{version}\r\nHost: a.test\r\n{fields}\r\n".encode()
    for method, target, version, fields in [
        *(("GET", _PATH, version, fields) for version in ("1.1", "1.0") for fields in _FIELDS),
        ("POST", _PATH, "1.1", "Connection: close\r\n"),
        ("GET", f"http://a.test{_PATH}", "1.1", "Connection: close\r\n"),
    ]
]


def is_exempt(head: bytes) -> bool:
    verdict = HTTP.peek(head, START, 16384)
    return isinstance(verdict, Hello) and is_validation(verdict)


def _answers_no_second_after_what_is_exempt(port: int) -> None:
    answers_second = {}
    for head, at_once in itertools.product(HEADS, (True, False)):
        found = answered(port, head, at_once=at_once)
        answers_second[head, at_once] = b"/admin" in found
        assert at_once or _PATH.encode() in found or not is_exempt(head)
    both = [head for (head, _), answers in answers_second.items() if answers]
    assert not [head for head in both if is_exempt(head)]
    # what is said to close, and does not, was exempt once
    assert [head for head in both if b": close" in head]


@NEEDS_NGINX
def test_nginx_answers_no_second_request_after_what_is_exempt(nginx: int) -> None:
    _answers_no_second_after_what_is_exempt(nginx)


@NEEDS_CADDY
def test_caddy_answers_no_second_request_after_what_is_exempt(one_caddy: int) -> None:
    _answers_no_second_after_what_is_exempt(one_caddy)


def test_some_are_exempt() -> None:
    assert sum(map(is_exempt, HEADS)) == 4
