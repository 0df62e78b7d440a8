"""A capture as people have it -> the bytes: as they are, hex of any make, base64, or C.

Knows nothing of what the bytes mean.
"""

import base64
import binascii
import re

_TEXT = re.compile(rb"[\t\n\r -~]+")
_REQUEST_LINE = re.compile(rb"[A-Z]+ [^\r\n]* HTTP/")
# `0x16, 0x03` and "\x16\x03", whatever is declared around them.
_C = re.compile(r"(?:0x|\\x)([0-9a-fA-F]{2})(?![0-9a-fA-F])")
# `openssl s_client -msg`: a heading with > for what was sent, and < for what came; then its bytes.
_HEADING = re.compile(r"^(>>>|<<<) ")
_PAIRS = re.compile(r"\s*(?:[0-9a-fA-F]{2}[\s:,-]*)+")
# xxd, hexdump -C, Wireshark: an offset, up to 16 bytes, two spaces or more, what it looks like.
_LINE = re.compile(
    r"([0-9a-fA-F]{4,16}):? {1,2}((?:(?:[0-9a-fA-F]{2}){1,2} {1,2}){0,15}(?:[0-9a-fA-F]{2}){1,2})?"
    r"(?: .*)?"
)
_LINE_BYTES = 16
# What a * may stand for, in bytes: more than any hello has, and no more than there is room for.
_LONGEST = 1024 * 1024


def read(capture: bytes) -> tuple[bytes, str]:
    """The bytes of a capture, and what it was taken for: what is no text is the bytes.

    Args:
        capture: raw; or ASCII text with a dump by ``openssl s_client -msg``, xxd, hexdump -C or
            Wireshark, hex with or without spaces and colons, an array of C, or base64.
    """
    if not _TEXT.fullmatch(capture) or _REQUEST_LINE.match(capture):
        return capture, "raw bytes"
    text = capture.decode("ascii").strip()
    lines = text.splitlines()
    if any(_HEADING.match(line) for line in lines):
        return _openssl(lines), "a dump by openssl s_client -msg"
    if re.match("0+[: ]", text):
        return _dumped(lines), "a hex dump"
    in_c = _C.findall(text)
    if in_c:
        return bytes.fromhex("".join(in_c)), "bytes as in C"
    text = text.removeprefix("0x")
    if _PAIRS.fullmatch(text):
        return _hex(text), "hex"
    try:
        return base64.b64decode("".join(lines), validate=True), "base64"
    except binascii.Error:
        return capture, "raw bytes"


def _openssl(lines: list[str]) -> bytes:
    """Return what was sent first: the bytes below the headings with >, up to one with <."""
    sent, is_sent = [], False
    for line in lines:
        heading = _HEADING.match(line)
        if heading and heading[1] == "<<<":
            break
        is_sent = bool(heading) or (is_sent and bool(_PAIRS.fullmatch(line)))
        if is_sent and not heading:
            sent.append(line)
    return _hex("".join(sent))


def _dumped(lines: list[str]) -> bytes:
    """The bytes of a hex dump, in which a * is for lines like the one before it."""
    content = bytearray()
    for line in map(_LINE.fullmatch, lines):
        if line is None:
            continue
        missing = int(line[1], 16) - len(content)
        if 0 < missing <= _LONGEST:
            content += (content[-_LINE_BYTES:] * (missing // _LINE_BYTES + 1))[:missing]
        content += _hex(line[2] or "")[:_LINE_BYTES]
    return bytes(content)


def _hex(text: str) -> bytes:
    return bytes.fromhex(re.sub(r"[^0-9a-fA-F]", "", text))
