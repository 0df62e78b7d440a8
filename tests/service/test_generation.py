"""``generation``: what follows from a configuration, open sockets and what providers said."""

import time
from dataclasses import replace

from snimux.config.model import BackendDefaults
from snimux.net.listeners import open_listeners
from snimux.providers.merge import Plan
from snimux.routing.address import TcpAddress, UnixAddress
from snimux.routing.routes import Backend, Route, parse_pattern, targets
from snimux.routing.served import Served
from snimux.service.generation import Current, basis, following
from tests.support.generations import configured, in_effect

WRITTEN, SAID = TcpAddress("127.0.0.1", 1), TcpAddress("127.0.0.1", 2)
ROUTE = Route(parse_pattern("written.example"), targets(tls=Backend((WRITTEN,), "v2")))
NEWS = Plan(
    (ROUTE, Route(parse_pattern("said.example"), targets(tls=Backend((SAID,), "auto")))), (), (),
    listeners={SAID: Served(SAID)}, discovered=frozenset({SAID}),
)  # fmt: skip


def test_news_change_the_routes_and_what_follows_from_them_and_nothing_else() -> None:
    before = in_effect(configured([ROUTE], backends=BackendDefaults(check="tcp")))
    assert (before.number, before.reloads, len(before.table)) == (1, 0, 1)
    after = following(before, NEWS)
    assert (after.number, after.reloads, len(after.table)) == (2, 0, 2)
    assert {x.addresses[0] for x in after.backends} == after.checks.keys() == {WRITTEN, SAID}
    assert after.probes.keys() == after.discovered == {SAID}
    assert after.config is before.config
    assert len(before.table) == 1  # whoever has it keeps it


def test_a_reload_is_another_configuration_with_what_was_said() -> None:
    before = following(in_effect(configured([ROUTE])), NEWS)
    config = replace(before.config, backends=BackendDefaults(check="tls"))
    (listener,) = open_listeners([TcpAddress("127.0.0.1", 0)])
    with listener.socket:
        new = basis(config, [listener], 7, [UnixAddress("/run/status")])
        after = following(before, NEWS, new)
        port = listener.socket.getsockname()[1]
    assert (after.number, after.reloads, after.max_connections) == (3, 1, 7)
    assert (after.config, after.listeners, after.https_port) == (config, [listener], port)
    assert after.checks.keys() == {WRITTEN, SAID}
    assert after.own.by_port[port] == {"127.0.0.1": f"127.0.0.1:{port}"}
    assert after.own.reserved[UnixAddress("/run/status")] == "a socket of snimux's own"


def test_it_is_known_since_when_one_is_in_effect() -> None:
    current = Current(in_effect(configured()))
    began, before = current.since, time.monotonic()
    assert began <= before
    current.put(following(current.value, NEWS))
    assert current.since >= before
    assert len(current.value.table) == 2
