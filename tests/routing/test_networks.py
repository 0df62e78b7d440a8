"""``routing.networks``: spelling, membership, and that ``ipaddress`` agrees."""

import ipaddress
from bisect import bisect_right
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.routing.networks import Network, NetworkError, Networks, parse_network


def networks(*texts: str) -> Networks:
    return Networks(tuple(map(parse_network, texts)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.1", "192.0.2.1/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::/0", "::/0"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:0:0/95", None),
    ],
)
def test_networks_are_read(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(NetworkError):
            parse_network(text)
    else:
        assert str(parse_network(text)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no IP network, such as 192.0.2.0/24 or 2001:db8::/32"),
        ("office", "no IP network"),
        ("Any", "everybody is 0.0.0.0/0, ::/0 and unix"),
        ("*", "everybody is 0.0.0.0/0, ::/0 and unix"),
        ("localhost", "this machine is 127.0.0.0/8 and ::1"),
        ("UNIX", "who comes by a UNIX socket is unix, in small letters"),
        ("10.0.0.1:443", "2001:db8::/32; leave out the port"),
        ("[::1]:443", "2001:db8::/32; leave out the port"),
        ("office.example", "2001:db8::/32; names are not looked up"),
        ("10.1.2", "no IP network"),
        ("010.0.0.0/8", "no IP network"),
        ("office/8", "no IP network"),
        ("[::1]", "no IP network"),
        (" 10.0.0.0/8", "no IP network"),
        ("10.0.0.0/33", "the prefix is longer than the address"),
        ("::/129", "the prefix is longer than the address"),
        ("10.0.0.0/", "behind the / goes the length of the prefix"),
        ("10.0.0.0/255.0.0.0", "behind the / goes the length of the prefix"),
        ("10.0.0.0/+8", "behind the / goes the length of the prefix"),
        ("10.0.0.0/8/8", "behind the / goes the length of the prefix"),
        ("fe80::1%eth0", "a network has no zone"),
        ("fe80::%eth0/10", "a network has no zone"),
        ("10.1.2.3/8", "write 10.0.0.0/8 for the network, or 10.1.2.3 for this address"),
        ("2001:db8::1/32", "write 2001:db8::/32 for the network, or 2001:db8::1 for this"),
    ],
)
def test_what_is_no_network_is_told_with_the_right_spelling(text: str, words: str) -> None:
    with pytest.raises(NetworkError) as caught:
        parse_network(text)
    assert words in str(caught.value)


def test_each_family_is_apart_and_mapped_addresses_are_ipv4() -> None:
    assert "192.0.2.7" in networks("192.0.2.0/24")
    assert "::ffff:192.0.2.7" in networks("192.0.2.0/24")
    assert "192.0.2.7" not in networks("::/0")
    assert "::ffff:192.0.2.7" not in networks("::/0")
    assert "::c000:207" not in networks("192.0.2.0/24")
    assert "2001:db8::1" in networks("::/0")
    assert "2001:db8::1" not in networks("0.0.0.0/0")
    assert "fe80::1" in networks("fe80::/10")
    assert "192.0.2.7" not in networks()


def test_who_has_no_address_is_in_a_list_that_says_so() -> None:
    assert None not in networks("0.0.0.0/0", "::/0")
    assert None in Networks((), unix=True)
    assert "192.0.2.7" not in Networks((), unix=True)


def test_it_prints_as_it_is_written() -> None:
    listed = networks("192.0.2.0/24", "192.0.2.1", "::1", "2001:db8::/32").listed
    assert str(Networks(listed)) == "192.0.2.0/24, 192.0.2.1, ::1, 2001:db8::/32"
    assert str(Networks(listed[1:2], unix=True)) == "192.0.2.1, unix"


def test_it_is_a_value() -> None:
    one, other = networks("10.0.0.0/8"), networks("10.0.0.0/8")
    assert one == other
    assert hash(one) == hash(other)
    assert one != networks("10.0.0.0/9")


V4 = st.builds(
    lambda ip, length: IPv4Network((ip, length), strict=False),
    # few bits, so that networks overlap, touch, and hold what is looked up
    st.integers(0, 255).map(lambda low: 0x0A00_0000 + low) | st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
V6 = st.builds(
    lambda ip, length: IPv6Network((ip, length), strict=False),
    st.integers(0, 255).map(lambda low: (0x2001_0DB8 << 96) + low) | st.integers(0, 2**128 - 1),
    st.integers(0, 128),
)
HOSTS = (
    st.integers(0, 256).map(lambda low: IPv4Address(0x0A00_0000 + low))
    | st.integers(0, 256).map(lambda low: IPv6Address((0x2001_0DB8 << 96) + low))
    | st.ip_addresses()
)


@given(st.lists(V4 | V6, max_size=12), st.lists(HOSTS, max_size=12))
def test_ipaddress_agrees(listed: list[Network], hosts: list[IPv4Address | IPv6Address]) -> None:
    found = Networks(tuple(listed))
    edges = [x[at] for x in listed for at in (0, -1)]
    for ip in [*hosts, *edges]:
        mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
        assert (str(ip) in found) == any((mapped or ip) in network for network in listed)


@given(V4 | V6)
def test_what_is_printed_is_read_again(network: Network) -> None:
    is_mapped = network.version == 6 and network.subnet_of(IPv6Network("::ffff:0:0/96"))
    assert is_mapped or parse_network(str(network)) == network


def test_ten_thousand_networks_are_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tuple(ipaddress.ip_network((number << 12, 24)) for number in range(10_000))
    found = Networks(listed)
    searches: list[int] = []

    def counted(bounds: list[int], value: int) -> int:
        searches.append(len(bounds))
        return bisect_right(bounds, value)

    monkeypatch.setattr("snimux.routing.networks.bisect_right", counted)
    assert "0.0.16.255" in found
    assert "0.0.17.0" not in found
    assert searches == [20_000, 20_000]


def test_networks_that_touch_or_overlap_are_one_range() -> None:
    found = networks("10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "9.255.255.255")
    assert found._bounds[4] == [0x09FF_FFFF, 0x0B00_0000]
