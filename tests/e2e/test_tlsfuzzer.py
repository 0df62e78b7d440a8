"""``fuzz.tlsfuzzer`` reads verdicts and compares them; and a server answers through snimux alike.

tlsfuzzer itself has to be had first, so it is not run here. Instead the corpus of hellos, real and
bent, is sent to its server: directly and through snimux, which refuses some by itself.
"""

import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import tlsfuzzer
from fuzz.targets import TARGETS
from fuzz.tlsfuzzer import Compared, Difference, Lane, Verdict, differing, read, said
from snimux.proto.client_hello import DEFAULT_MAX_HELLO, peek
from snimux.proto.reason import Reason
from snimux.proto.verdict import Foreign, Hello, Malformed, NeedMore

HELLOS = TARGETS["client_hello"].seeds()

PRINTED = """\
sanity ...
OK

no 'name' ...
Error encountered while processing node ExpectAlert()
Error while processing
Traceback (most recent call last):
  File "runner.py", line 235, in run
AssertionError: Unexpected message from peer: Handshake(server_hello)

sanity ...
OK

Test end
====================
TOTAL: 3
SKIP: 0
PASS: 2
XFAIL: 0
FAIL: 1
XPASS: 0
====================
FAILED:
\t"no 'name'"
"""
FAILED = {"no 'name'": "AssertionError: Unexpected message from peer: Handshake(server_hello)"}


def test_a_scripts_verdict_is_read() -> None:
    assert read(1, PRINTED) == Verdict(1, 3, FAILED)
    assert read(1, "Traceback ...") == Verdict(1, 0, {})
    assert read(0, "sanity ...\nOK\n\nTOTAL: 2\n====\n") == Verdict(0, 2, {})


def test_another_way_is_told_and_a_documented_one_is_well() -> None:
    one, other = Verdict(0, 3, {}), Verdict(1, 3, FAILED)
    assert differing(one, one) == {}
    assert list(differing(one, other)) == list(FAILED)
    alerts = Verdict(1, 3, {"no 'name'": "AssertionError: Alert(fatal, decode_error)"})
    assert list(differing(other, alerts)) == list(FAILED)
    known = [Difference("test-x", "no *", "bad-server-name", "why")]
    refused, not_refused = Counter({"bad-server-name": 1}), Counter[str]()
    for refusals, script, is_well in (
        (refused, "test-x", True),
        (not_refused, "test-x", False),
        (refused, "test-y", False),
    ):
        line, well = said(Compared(script, one, other, refusals), known)
        assert (well, "DIFFERENT" in line) == (is_well, not is_well)
    assert said(Compared("test-x", one, one, Counter()), []) == (
        "3 conversations, 0 failed; equal", True
    )  # fmt: skip
    assert said(Compared("test-x", one, None, Counter()), known)[1] is False
    assert said(Compared("test-x", one, Verdict(0, 2, {}), Counter()), known)[1] is False


def test_every_documented_difference_has_its_reason() -> None:
    for difference in tlsfuzzer.documented():
        assert difference.why.endswith(".")
        assert difference.refused in {reason.value for reason in Reason}


@pytest.fixture(scope="module")
def lane() -> Iterator[Lane]:
    with tempfile.TemporaryDirectory() as directory, tlsfuzzer.lane(Path(directory)) as lane:
        yield lane


def answer(port: int, data: bytes) -> bytes:
    """What comes for a hello: the type of record, and the alert or the type of message."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while piece := sock.recv(65536):
            received += piece
    return received[:1] + (received[5:7] if received[:1] == b"\x15" else received[5:6])


@pytest.mark.needs(lambda: shutil.which("openssl") is None, "openssl is missing")
def test_every_hello_of_the_corpus_is_answered_as_without_snimux(lane: Lane) -> None:
    answers: Counter[bytes] = Counter()
    for data in HELLOS:
        verdict = peek(data, max_hello=65536)
        through = answer(lane.mux.port, data)
        match verdict:
            case Hello():
                assert through == answer(lane.server, data), data
                answers[through] += 1
            case Malformed(_, _, farewell):
                assert through == farewell[:1] + farewell[5:7], data
            case NeedMore(_, _, _, farewell):
                assert through == farewell[:1] + farewell[5:7], data
            case Foreign():
                assert through == b"", data
    assert answers[b"\x16\x02"] > 50  # ServerHello
    assert DEFAULT_MAX_HELLO < 65536


@pytest.mark.needs(lambda: shutil.which("openssl") is None, "openssl is missing")
@pytest.mark.parametrize(("size", "is_read"), [(2**14, True), (2**14 + 1, False)])
def test_openssl_reads_records_of_the_same_length(lane: Lane, size: int, is_read: bool) -> None:
    """Of a message that is declared longer than a record, and comes no further."""
    data = b"\x16\3\1" + size.to_bytes(2, "big") + b"\1\0\x50\0" + bytes(size - 4)
    overflow = b"\x15\x02\x16"
    assert (answer(lane.server, data) != overflow) == is_read
    assert (answer(lane.mux.port, data) != overflow) == is_read
