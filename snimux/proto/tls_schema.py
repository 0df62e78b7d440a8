"""The messages of TLS before it is TLS: records, handshake and ClientHello as construct schemas.

The same schemas parse and build. No enumeration is closed: unknown types are ordinary (GREASE).

Knows no order of bytes in time: how much of a hello is there is ``client_hello``'s business.

Source: RFC 8446 sections 4.1.2 and 5.1 (TLS 1.3), RFC 5246 section 7.4.1.2 (hellos without
extensions), RFC 6066 section 3 (server_name), RFC 7301 section 3.1 (ALPN), RFC 8701 (GREASE), RFC
9849 (ECH).
"""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from construct import (
    Bytes,
    Check,
    Construct,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int24ub,
    Prefixed,
    Rebuild,
    StreamError,
    Struct,
    Terminated,
    len_,
    this,
)

# Extension types (IANA "TLS ExtensionType Values").
SERVER_NAME = 0
ALPN = 16
ENCRYPTED_CLIENT_HELLO = 0xFE0D


class ExtensionBlock(Construct):  # type: ignore[misc]
    """The extensions of a hello as a list of (type, value); absent and empty both give [].

    Args:
        kept: schemas of the extensions to keep when parsing, by type; None keeps all, as bytes.
    """

    def __init__(self, kept: Mapping[int, Construct] | None = None) -> None:
        super().__init__()
        self.kept = kept

    # Neither GreedyRange nor Optional: both take what fails to parse for what is absent, so that a
    # hello cut short in its extensions would be one without a name, and go to the default route.
    # This fails unless the extensions fill the block and the block fills the message. It steps
    # over what is not kept, because a schema for each of a dozen extensions took 130 to 220 us,
    # more than all else that is done for a connection.
    def _parse(self, stream: BytesIO, context: Any, path: str) -> list[tuple[int, Any]]:
        block = stream.read()
        if not block:  # RFC 5246 section 7.4.1.2: a hello may end before its extensions
            return []
        end = len(block)
        if end < 2 or int.from_bytes(block[:2], "big") != end - 2:
            raise StreamError("the extensions do not fill the message", path=path)
        extensions: list[tuple[int, Any]] = []
        at = 2
        while at < end:
            data = at + 4
            after = data + (block[at + 2] << 8 | block[at + 3]) if data <= end else data
            if after > end:
                raise StreamError("an extension is cut short", path=path)
            kind = block[at] << 8 | block[at + 1]
            if self.kept is None:
                extensions.append((kind, block[data:after]))
            # One more than can be kept shows that one occurs twice; there may be thousands, which
            # would keep all other connections waiting.
            elif kind in self.kept and len(extensions) <= len(self.kept):
                # Not by parse(): it makes a context first, which costs as much as the rest.
                inner = BytesIO(block[data:after])
                extensions.append((kind, self.kept[kind]._parsereport(inner, context, path)))
            at = after
        return extensions

    def _build(
        self, obj: list[tuple[int, bytes]], stream: BytesIO, context: Any, path: str
    ) -> list[tuple[int, bytes]]:
        block = b"".join(_EXTENSION.build({"type": kind, "data": data}) for kind, data in obj)
        stream.write(_VECTOR16.build(block))
        return obj


_VECTOR16 = Prefixed(Int16ub, GreedyBytes)
_EXTENSION = Struct("type" / Int16ub, "data" / _VECTOR16)

PLAINTEXT = Struct(
    "type" / Int8ub,
    "legacy_record_version" / Int16ub,
    "fragment" / _VECTOR16,
)
"""TLSPlaintext, RFC 8446 section 5.1."""

HANDSHAKE = Struct("msg_type" / Int8ub, "body" / Prefixed(Int24ub, GreedyBytes))
"""Handshake, RFC 8446 section 4."""


def _client_hello(extensions: Construct) -> Construct:
    # Flat, with explicit lengths, because that compiles to fast code. Compiled code reads short at
    # the end of the bytes without a word, hence a Check on every length.
    return Struct(
        "legacy_version" / Int16ub,
        "random" / Bytes(32),
        "session_id_length" / Rebuild(Int8ub, len_(this.legacy_session_id)),
        "legacy_session_id" / Bytes(this.session_id_length),
        Check(this.session_id_length <= 32),
        "cipher_suites_length" / Rebuild(Int16ub, len_(this.cipher_suites)),
        "cipher_suites" / Bytes(this.cipher_suites_length),
        Check(len_(this.cipher_suites) == this.cipher_suites_length),
        Check(this.cipher_suites_length >= 2),
        Check(this.cipher_suites_length % 2 == 0),
        "compression_methods_length" / Rebuild(Int8ub, len_(this.legacy_compression_methods)),
        "legacy_compression_methods" / Bytes(this.compression_methods_length),
        Check(len_(this.legacy_compression_methods) == this.compression_methods_length),
        Check(this.compression_methods_length >= 1),
        "extensions" / extensions,
    )


CLIENT_HELLO = _client_hello(ExtensionBlock())
"""ClientHello, RFC 8446 section 4.1.2, with all its extensions: parses, and builds."""

SERVER_NAME_LIST = Struct(
    "list_length" / Rebuild(Int16ub, len_(this.host_name) + 3),
    "name_type" / Int8ub,
    "host_name_length" / Rebuild(Int16ub, len_(this.host_name)),
    "host_name" / Bytes(this.host_name_length),
    Check(this.list_length == this.host_name_length + 3),
    Check(len_(this.host_name) == this.host_name_length),
    Check(this.name_type == 0),
    Terminated,
)
"""ServerNameList of exactly one host_name, RFC 6066 section 3: the only form there is in use."""


class ProtocolNames(Construct):  # type: ignore[misc]
    """A ProtocolNameList as a tuple of bytes, RFC 7301 section 3.1: none empty, at least one."""

    def _parse(self, stream: BytesIO, context: Any, path: str) -> tuple[bytes, ...]:
        block = stream.read()
        end = len(block)
        if end < 4 or int.from_bytes(block[:2], "big") != end - 2:
            raise StreamError("the protocol names do not fill their extension", path=path)
        names = []
        at = 2
        while at < end:
            after = at + 1 + block[at]
            if after > end or not block[at]:
                raise StreamError("a protocol name is empty or cut short", path=path)
            names.append(block[at + 1 : after])
            at = after
        return tuple(names)

    def _build(self, obj: tuple[bytes, ...], stream: BytesIO, context: Any, path: str) -> Any:
        stream.write(_VECTOR16.build(b"".join(bytes([len(name)]) + name for name in obj)))
        return obj


PROTOCOL_NAMES = ProtocolNames()

ROUTABLE_HELLO = _client_hello(
    ExtensionBlock(
        {
            SERVER_NAME: SERVER_NAME_LIST.compile(),
            ALPN: PROTOCOL_NAMES,
            ENCRYPTED_CLIENT_HELLO: GreedyBytes,
        }
    )
).compile()
"""ClientHello with the extensions alone that routing reads; compiled, parses only."""
