"""``backend.balance``: shares are as the weights say, and what is tried next is everything else."""

from collections import Counter
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.backend.balance import Turns, by_source, well_first

weight_lists = st.lists(st.integers(1, 12), min_size=1, max_size=6)
pools = weight_lists.flatmap(
    lambda weights: st.tuples(
        st.just(weights),
        st.lists(st.booleans(), min_size=len(weights), max_size=len(weights)),
        st.lists(st.integers(0, 9), min_size=len(weights), max_size=len(weights)),
    )
)
Pool = tuple[list[int], list[bool], list[int]]
hosts = st.ip_addresses().map(str)


def names(count: int) -> list[str]:
    return [f"10.0.0.{number}:443" for number in range(count)]


@given(weight_lists)
def test_by_turns_each_has_its_share_of_every_round(weights: list[int]) -> None:
    turns, well = Turns(len(weights)), [True] * len(weights)
    for _ in range(3):
        taken = Counter(turns.order(weights, well)[0] for _ in range(sum(weights)))
        assert [taken[place] for place in range(len(weights))] == weights


def test_turns_are_smooth() -> None:
    """The sequence that nginx's own commit message has for these weights."""
    turns = Turns(3)
    taken = [turns.order([5, 1, 1], [True] * 3)[0] for _ in range(7)]
    assert "".join("abc"[place] for place in taken) == "aabacaa"


@given(pools, st.booleans())
def test_by_turns_all_are_tried_and_the_sick_last(pool: Pool, by_load: bool) -> None:
    weights, well, loads = pool
    turns = Turns(len(weights))
    for _ in range(5):
        order = turns.order(weights, well, loads if by_load else None)
        assert sorted(order) == list(range(len(weights)))
        assert [well[place] for place in order] == sorted(well, reverse=True)


@given(pools)
def test_the_sick_have_no_turns_and_the_others_keep_their_shares(pool: Pool) -> None:
    weights, well, _ = pool
    places = [place for place, is_well in enumerate(well) if is_well] or range(len(weights))
    turns = Turns(len(weights))
    round_of_the_well = sum(weights[place] for place in places)
    taken = Counter(turns.order(weights, well)[0] for _ in range(round_of_the_well))
    assert taken == {place: weights[place] for place in places}


@given(pools)
def test_the_least_loaded_for_its_weight_is_first(pool: Pool) -> None:
    weights, well, loads = pool
    order = Turns(len(weights)).order(weights, well, loads)
    load = [loads[place] / weights[place] for place in range(len(weights))]
    among = [place for place, is_well in enumerate(well) if is_well] or range(len(weights))
    assert load[order[0]] == min(load[place] for place in among)
    healthy = [load[place] for place in order if well[place]]
    assert healthy == sorted(healthy)


@given(weight_lists)
def test_where_all_are_idle_least_conn_is_by_turns(weights: list[int]) -> None:
    turns, nothing = Turns(len(weights)), [0] * len(weights)
    orders = [turns.order(weights, [True] * len(weights), nothing) for _ in range(sum(weights))]
    taken = Counter(order[0] for order in orders)
    assert [taken[place] for place in range(len(weights))] == weights


@given(weight_lists)
def test_connections_that_stay_are_spread_by_weight(weights: list[int]) -> None:
    turns, loads = Turns(len(weights)), [0] * len(weights)
    for _ in range(10 * sum(weights)):
        loads[turns.order(weights, [True] * len(weights), loads)[0]] += 1
    assert loads == [10 * weight for weight in weights]


@given(hosts, weight_lists)
def test_a_source_keeps_its_order_and_it_has_everything(host: str, weights: list[int]) -> None:
    order = by_source(host, names(len(weights)), weights)
    assert sorted(order) == list(range(len(weights)))
    assert order == by_source(host, names(len(weights)), weights)


@given(hosts, weight_lists, st.data())
def test_only_the_sources_of_what_is_gone_move(
    host: str, weights: list[int], data: st.DataObject
) -> None:
    every = names(len(weights))
    order = by_source(host, every, weights)
    gone = data.draw(st.integers(0, len(weights) - 1))
    left = [place for place in range(len(weights)) if place != gone]
    fewer = by_source(host, [every[place] for place in left], [weights[place] for place in left])
    assert [left[place] for place in fewer] == [place for place in order if place != gone]


def test_sources_are_spread_by_weight() -> None:
    """Of 7,000 sources, and always the same: nothing here is left to chance."""
    weights = [1, 2, 4]
    sources = [str(IPv4Address("198.18.0.0") + number) for number in range(7000)]
    taken = Counter(by_source(source, names(3), weights)[0] for source in sources)
    for place, weight in enumerate(weights):
        assert taken[place] == pytest.approx(1000 * weight, rel=0.1)


def test_a_household_is_one_source() -> None:
    pool, weights = names(50), [1] * 50
    first = by_source("2001:db8:0:1::1", pool, weights)
    assert by_source("2001:db8:0:1:ffff::2", pool, weights) == first
    assert by_source("2001:db8:0:2::1", pool, weights) != first


@given(st.lists(st.booleans(), max_size=8))
def test_the_well_come_first_in_their_order(well: list[bool]) -> None:
    order = well_first(range(len(well)), well)
    assert order == [x for x, is_well in enumerate(well) if is_well] + [
        x for x, is_well in enumerate(well) if not is_well
    ]
