"""``explain.capture``: whatever a person has of a hello, the bytes are the same."""

import base64
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.explain.capture import read
from tests.conftest import need
from tests.hellos import HERE

# Begins with what nobody takes for text or for an offset.
HELLO = st.binary(max_size=300).map(lambda rest: b"\x16\x03\1" + rest)

OPENSSL = b"""\
CONNECTED(00000003)
>>> TLS 1.0, RecordHeader [length 0005]
    16 03 01 00 04
>>> TLS 1.3, Handshake [length 0004], ClientHello
    01 00 00
    00
<<< TLS 1.0, RecordHeader [length 0005]
    15 03 01 00 02
>>> TLS 1.0, RecordHeader [length 0005]
    15 03 01 00 02
"""


def canonical(data: bytes) -> str:
    """As hexdump -C, but for lines that are left out."""
    lines = []
    for at in range(0, len(data), 16):
        halves = [data[at : at + 8].hex(" "), data[at + 8 : at + 16].hex(" ")]
        shown = "".join(chr(x) if 32 <= x < 127 else "." for x in data[at : at + 16])
        lines.append(f"{at:08x}  {'  '.join(halves).rstrip():48}  |{shown}|")
    return "\n".join([*lines, f"{len(data):08x}"])


def xxd(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), 16):
        words = data[at : at + 16].hex(" ", -2)
        shown = "".join(chr(x) if 32 <= x < 127 else "." for x in data[at : at + 16])
        lines.append(f"{at:08x}: {words:39}  {shown}")
    return "\n".join(lines)


FORMS: list[tuple[str, Callable[[bytes], str]]] = [
    ("hex", bytes.hex),
    ("hex", lambda data: data.hex(" ")),
    ("hex", lambda data: data.hex(":").upper()),
    ("hex", lambda data: "0x" + data.hex()),
    ("hex", lambda data: "\n".join(data[i : i + 30].hex() for i in range(0, len(data), 30))),
    ("base64", lambda data: base64.encodebytes(data).decode()),
    ("bytes as in C", lambda data: "char hello[] = {" + ", ".join(map(hex_of, data)) + "};"),
    ("bytes as in C", lambda data: '"' + "".join(f"\\x{x:02x}" for x in data) + '"'),
    ("a hex dump", canonical),
    ("a hex dump", xxd),
]


def hex_of(octet: int) -> str:
    return f"0x{octet:02X}"


@given(HELLO)
def test_bytes_are_themselves(data: bytes) -> None:
    assert read(data) == (data, "raw bytes")


@pytest.mark.parametrize(("form", "write"), FORMS)
@given(data=HELLO)
def test_every_form_is_read_as_what_was_written(
    form: str, write: Callable[[bytes], str], data: bytes
) -> None:
    assert read(write(data).encode()) == (data, form)
    assert read(write(data).replace("\n", "\r\n").encode() + b"\n") == (data, form)


@given(st.binary(max_size=200))
def test_nothing_makes_it_fail(data: bytes) -> None:
    read(data)


@given(st.text("0123456789abcdefx:*>< \n\\GHTP/.", max_size=200))
def test_no_text_makes_it_fail(text: str) -> None:
    read(text.encode())


def test_of_what_openssl_dumps_the_first_flight_is_taken() -> None:
    assert read(OPENSSL) == (
        bytes.fromhex("1603010004 01000000"),
        "a dump by openssl s_client -msg",
    )


def test_a_request_is_itself_whatever_is_asked_for() -> None:
    request = b"GET /?x=0x16 HTTP/1.1\r\nHost: a.example\r\n\r\n"
    assert read(request) == (request, "raw bytes")


def test_words_are_themselves() -> None:
    assert read(b"no hello!") == (b"no hello!", "raw bytes")


@pytest.mark.parametrize(
    "command",
    [["xxd"], ["xxd", "-g1"], ["xxd", "-i"], ["xxd", "-p"], ["hexdump", "-C"],
     ["od", "-A", "x", "-t", "x1"]],
    ids=" ".join,
)  # fmt: skip
def test_what_programs_write_is_read(command: list[str]) -> None:
    need(None if shutil.which(command[0]) else f"needs {command[0]}")
    file: Path = HERE / "curl.bin"  # which has a long run of zeros
    written = subprocess.run([*command, str(file)], capture_output=True, check=True, timeout=30)
    assert read(written.stdout)[0] == file.read_bytes()
