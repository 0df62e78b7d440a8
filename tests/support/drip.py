"""Bytes that arrive cut by cut, for a protocol's ``peek``."""

from collections.abc import Callable, Iterable

from snimux.proto.client_hello import DEFAULT_MAX_HELLO
from snimux.proto.verdict import START, NeedMore, Verdict

Peek = Callable[[bytes | bytearray, NeedMore, int], Verdict]


def drip(
    peek: Peek, data: bytes, cuts: Iterable[int], max_hello: int = DEFAULT_MAX_HELLO
) -> Verdict:
    """The verdict at the first cut that gives one."""
    verdict: Verdict = START
    received = bytearray()
    for cut in [*cuts, len(data)]:
        received += data[len(received) : cut]
        assert isinstance(verdict, NeedMore)
        verdict = peek(received, verdict, max_hello)
        if not isinstance(verdict, NeedMore):
            break
    return verdict
