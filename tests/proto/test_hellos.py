"""The corpus of real hellos is whole, and an independent parser reads in it what origin.toml says.

The parser is that of tlslite-ng; it knows nothing of records, so they are joined here.
"""

import re
import tomllib
import warnings

import pytest

from tests.hellos import HERE, RealHello, load
from tests.support import clients

with warnings.catch_warnings():
    # it imports asyncore where Python still has it, and that warns of its end
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite.constants import ContentType, HandshakeType
    from tlslite.extensions import ALPNExtension, SNIExtension
    from tlslite.messages import ClientHello, RecordHeader3
    from tlslite.utils.codec import Parser

HELLOS = load()
EACH = pytest.mark.parametrize("hello", HELLOS, ids=[hello.slug for hello in HELLOS])


def parse(data: bytes) -> ClientHello:
    records, message = Parser(bytearray(data)), bytearray()
    while records.getRemainingLength():
        header = RecordHeader3().parse(records)
        assert header.type == ContentType.handshake
        message += records.getFixBytes(header.length)
    assert message[0] == HandshakeType.client_hello
    parser = Parser(message)
    parser.get(1)
    hello = ClientHello().parse(parser)
    assert parser.getRemainingLength() == 0
    return hello


def test_every_file_has_an_entry_and_every_entry_a_file() -> None:
    assert {path.stem for path in HERE.glob("*.bin")} == {hello.slug for hello in HELLOS}


def test_the_corpus_has_every_client_of_the_table() -> None:
    assert {client.name for client in clients.CLIENTS} <= {hello.slug for hello in HELLOS}


@EACH
def test_an_independent_parser_agrees(hello: RealHello) -> None:
    parsed = parse(hello.data)
    server_name = parsed.getExtension(0)
    alpn = parsed.getExtension(16)
    names = server_name.hostNames if isinstance(server_name, SNIExtension) else ()
    protocols = alpn.protocol_names if isinstance(alpn, ALPNExtension) else ()
    assert [name.decode("ascii") for name in names] == ([hello.name] if hello.name else [])
    assert tuple(bytes(protocol) for protocol in protocols) == hello.alpn
    assert (parsed.getExtension(0xFE0D) is not None) == hello.ech


def test_origin_is_complete_and_says_nothing_of_the_machine() -> None:
    text = (HERE / "origin.toml").read_text("utf-8")
    assert not re.search(r"/(home|root|tmp|usr|work|opt|var)\b|127\.0\.0\.1:\d", text)
    for slug, entry in tomllib.loads(text).items():
        assert ("command" in entry) != ("how" in entry), slug
        assert entry["size"] == (HERE / f"{slug}.bin").stat().st_size, slug
        assert entry["client"], slug
        assert entry["date"], slug
