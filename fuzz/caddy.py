"""The target ``caddy``: the JSON that a Caddy's admin API gives.

Whatever it is, sites are read from it that can be routed, and words on the rest that can be
printed; and to read it again gives the same.
"""

import contextlib
import json
from collections.abc import Iterable
from random import Random
from typing import Any

from fuzz import mutation
from fuzz.target import Target
from snimux.providers.caddy.read import read
from snimux.routing.address import parse_dial
from tests import caddyfiles
from tests.providers.caddy import test_read as test_caddy

_LEAVES = (
    None, True, False, 0, 80, 443, 65536, -1, 1e308, "", "a.example", "*.a.example", "**.x", "*",
    "b..c", "B\u00fccher.example", "\ud800", "{env.X}", "10.0.0.1", ":443", ":80", ":80-90", ":0",
    "unix//run/x|0200", "unix/@x", "[::]:8443", "0.0.0.0:80", "192.0.2.1:80", "localhost:81",
    "tcp6/:1", "udp/:443", "fd/3", "\n", "x" * 90, "tls", "proxy_protocol", "h3", "require",
)  # fmt: skip
_KEYS = (
    "apps", "http", "tls", "servers", "http_port", "https_port", "srv0", "srv1", "listen", "routes",
    "match", "host", "sni", "automatic_https", "disable", "skip", "disable_redirects",
    "tls_connection_policies", "listener_wrappers", "wrapper", "allow", "deny", "fallback_policy",
    "certificates", "automate", "encrypted_client_hello", "configs", "public_name", "automation",
    "policies", "on_demand", "protocols", "listen_protocols", "strict_sni_host",
    "client_authentication",
)  # fmt: skip


def check(data: bytes) -> int:
    """What ``read`` makes of JSON is in order; how much it is. Other bytes never come to it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return 0
    test_caddy.check(value)
    found = read(value)
    hosts = [site.host for site in found.sites]
    assert len(set(hosts)) == len(hosts)
    for listener in (each for site in found.sites for each in (*site.https, *site.http)):
        assert parse_dial(str(listener.address)) == listener.address
    for server in found.servers:
        assert server.redirect_port is None or 0 < server.redirect_port < 65536
    return len(hosts) + 3 * len(found.unrouted) + 5 * len(found.servers)


def mutate(data: bytes, random: Random) -> bytes:
    """Something else at some place of the JSON; sometimes just bytes."""
    with contextlib.suppress(ValueError, RecursionError):
        if random.randint(0, 9):
            bent: Any = mutation.tree(json.loads(data), random, _LEAVES, _KEYS)
            return json.dumps(bent).encode()
    return mutation.octets(data, random)


def given() -> Iterable[bytes]:
    """Those of real Caddys."""
    return (json.dumps(adapted.config).encode() for adapted in caddyfiles.load())


TARGET = Target("caddy", ("providers/caddy/read",), check, given, mutate, max_size=16384)
