"""``recheck``: which ends of connections and which dials have what looked at anew."""

import io

import pytest

from snimux.backend.proxy_auto import Prober
from snimux.frontend.outcome import Outcome
from snimux.frontend.recheck import Recheck
from snimux.log import Log
from snimux.net.resolver import Resolver
from snimux.proto.reason import Reason
from snimux.relay.interface import Tally
from snimux.routing.address import DialAddress, TcpAddress, UnixAddress
from snimux.routing.routes import Backend

BACKEND = Backend((TcpAddress("127.0.0.1", 8443),))
LOG = Log(io.StringIO())


@pytest.fixture
def doubted(monkeypatch: pytest.MonkeyPatch) -> list[Backend | str]:
    """The backends and the names that are looked at anew."""
    doubted: list[Backend | str] = []
    monkeypatch.setattr(Prober, "doubt", lambda _, backend: doubted.append(backend))
    monkeypatch.setattr(Resolver, "refresh", lambda _, name: doubted.append(name))
    return doubted


@pytest.mark.parametrize(("down", "is_doubted"), [(0, True), (511, True), (512, False)])
def test_a_backend_that_answered_little_is_probed(
    down: int, is_doubted: bool, doubted: list[Backend | str]
) -> None:
    observer = Recheck(Prober(LOG), Resolver(LOG))
    observer.ended(Outcome(None, ended="eof", to=BACKEND, tally=Tally(up=9, down=down)))
    assert doubted == ([BACKEND] if is_doubted else [])


def test_who_had_no_backend_has_nobody_probed(doubted: list[Backend | str]) -> None:
    Recheck(Prober(LOG), Resolver(LOG)).ended(
        Outcome(None, ended="refused", reason=Reason.NO_ROUTE)
    )
    assert not doubted


@pytest.mark.parametrize("is_for_client", [True, False])
def test_only_names_are_looked_up(is_for_client: bool, doubted: list[Backend | str]) -> None:
    addresses: list[DialAddress] = [TcpAddress("127.0.0.1", 1), TcpAddress("a.test", 1)]
    for address in (*addresses, UnixAddress("/run/a")):
        Recheck(Prober(LOG), Resolver(LOG)).dial_failed(address, is_for_client)
    assert doubted == ["a.test"]
