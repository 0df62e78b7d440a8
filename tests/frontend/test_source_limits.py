"""``source_limits``: how many a source may have, how fast they may come, and its refusals."""

import pytest

from snimux.config.model import Limits
from snimux.frontend.limits import LocalLimits
from snimux.frontend.source_limits import Entry, SourceLimits, _source_key
from snimux.proto.proxy_header import Endpoint
from snimux.proto.reason import Reason
from snimux.service.generation import Current
from tests.support.generations import configured, in_effect

ONE, OTHER = ("192.0.2.1", 1), ("192.0.2.2", 1)


def current(limits: Limits) -> Current:
    return Current(in_effect(configured(limits=limits)))


def counting(limits: Limits) -> SourceLimits:
    return SourceLimits(LocalLimits(9), current(limits))


def entered(of: SourceLimits, source: Endpoint | None, refused: Reason | None = None) -> Entry:
    entry = of.count(source, refused)
    assert entry is not None
    return entry


def test_a_source_is_an_ipv4_address_or_an_ipv6_64() -> None:
    assert _source_key(("192.0.2.1", 1)) == _source_key(("192.0.2.1", 2))
    assert _source_key(("192.0.2.1", 1)) != _source_key(("192.0.2.2", 1))
    assert _source_key(("2001:db8::1", 1)) == _source_key(("2001:db8::ffff:0:0:2", 2))
    assert _source_key(("2001:db8::1", 1)) != _source_key(("2001:db8:0:1::1", 1))


def test_a_source_has_its_own_limit_until_one_of_its_connections_ends() -> None:
    of = counting(Limits(max_connections_per_source=2))
    first, second = entered(of, ONE), entered(of, ("192.0.2.1", 2))
    assert (first.refused, second.refused) == (None, None)
    assert entered(of, ONE).refused == Reason.TOO_MANY_FROM_SOURCE
    assert entered(of, OTHER).refused is None
    first.leave()
    assert entered(of, ONE).refused is None
    assert entered(of, ONE).refused == Reason.TOO_MANY_FROM_SOURCE


def test_as_many_refusals_as_connections_are_worth_a_word_at_a_time() -> None:
    of = counting(Limits(max_connections_per_source=2))
    for _ in range(2):
        entered(of, ONE)
    refusals = [entered(of, ONE) for _ in range(2)]
    assert of.count(ONE, None) is None
    refusals[0].leave()
    assert entered(of, ONE).refused == Reason.TOO_MANY_FROM_SOURCE


def test_who_is_refused_for_another_reason_takes_no_share() -> None:
    of = counting(Limits(max_connections_per_source=1))
    assert entered(of, ONE, Reason.ACCESS_DENIED).refused == Reason.ACCESS_DENIED
    assert of.count(ONE, Reason.ACCESS_DENIED) is None
    assert entered(of, ONE).refused is None


@pytest.mark.parametrize("most", [None, 9])
def test_a_source_may_come_no_faster_than_its_pace(most: int | None) -> None:
    of = counting(
        Limits(max_rate_per_source=0.001, max_burst_per_source=2, max_connections_per_source=most)
    )
    for _ in range(2):
        come = entered(of, ONE)
        assert come.refused is None
        come.leave()  # that it has gone again does not count
    assert entered(of, ONE).refused == Reason.RATE_LIMITED
    assert entered(of, OTHER).refused is None


def test_without_a_limit_on_connections_as_many_are_refused_at_a_time_as_the_burst() -> None:
    of = counting(Limits(max_rate_per_source=0.001, max_burst_per_source=2))
    for _ in range(2):
        entered(of, ONE)
    refusals = [entered(of, ONE) for _ in range(2)]
    assert {x.refused for x in refusals} == {Reason.RATE_LIMITED}
    assert of.count(ONE, None) is None


def test_who_has_no_address_has_no_limit() -> None:
    of = counting(
        Limits(max_connections_per_source=1, max_rate_per_source=0.001, max_burst_per_source=1)
    )
    assert [entered(of, None).refused for _ in range(3)] == [None] * 3
    assert entered(of, None, Reason.ACCESS_DENIED).refused == Reason.ACCESS_DENIED


def test_other_limits_hold_from_the_next_connection_on() -> None:
    now = current(Limits(max_connections_per_source=1))
    of = SourceLimits(LocalLimits(9), now)
    entered(of, ONE)
    now.put(in_effect(configured(limits=Limits(max_connections_per_source=2))))
    assert entered(of, ONE).refused is None
    assert entered(of, ONE).refused == Reason.TOO_MANY_FROM_SOURCE
