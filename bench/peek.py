"""What it costs to read a hello: ``python -m bench.peek``.

Times ``client_hello.peek`` on a real Chrome-size hello and on a real one of 517 bytes, whole and
byte by byte, and says what share each step has. CPU time of this process, best of several runs:
what others do on the machine at the same time can only add.
"""

import sys
import time
from collections.abc import Callable

from snimux.proto import client_hello, hostname, tls_schema
from snimux.proto.verdict import START, Hello, NeedMore
from tests.hellos import load

_AIM = 25.0  # microseconds, for a Chrome-size hello
_RUNS = 25
_SECONDS = 0.04  # a run


def microseconds(work: Callable[[], object]) -> float:
    """CPU time of one call, in microseconds: the best of several runs."""
    count = 1
    while _cpu(work, count) < _SECONDS:
        count *= 2
    return min(_cpu(work, count) for _ in range(_RUNS)) / count * 1e6


def _cpu(work: Callable[[], object], count: int) -> float:
    started = time.process_time()
    for _ in range(count):
        work()
    return time.process_time() - started


def steps(data: bytes) -> dict[str, Callable[[], object]]:
    """The steps of reading one whole hello, by name."""
    framed = client_hello._scan(data, START, client_hello.DEFAULT_MAX_HELLO)
    assert isinstance(framed, tuple)
    body = framed[0][4:]
    extensions = dict(tls_schema.ROUTABLE_HELLO.parse(body).extensions)
    host_name = extensions[tls_schema.SERVER_NAME].host_name
    return {
        "records": lambda: client_hello._scan(data, START, client_hello.DEFAULT_MAX_HELLO),
        "hello": lambda: tls_schema.ROUTABLE_HELLO.parse(body),
        "canonical name": lambda: hostname.from_wire(host_name),
    }


def drip(data: bytes) -> None:
    """Read a hello that comes byte by byte."""
    received = bytearray()
    verdict: NeedMore | object = START
    for octet in data:
        received.append(octet)
        assert isinstance(verdict, NeedMore)
        verdict = client_hello.peek(received, verdict)
    assert isinstance(verdict, Hello)


def report(slug: str, data: bytes) -> float:
    """Print what one hello costs; returns the microseconds of a peek at it whole."""
    whole = microseconds(lambda: client_hello.peek(data))
    print(f"{slug}, {len(data)} bytes: {whole:.1f} us a peek")
    rest = whole
    for name, step in steps(data).items():
        cost = microseconds(step)
        rest -= cost
        print(f"    {name:15} {cost:6.1f} us  {100 * cost / whole:4.0f} %")
    print(f"    {'all else':15} {rest:6.1f} us  {100 * rest / whole:4.0f} %")
    dripped = microseconds(lambda: drip(data))
    print(f"    byte by byte, {len(data)} peeks: {dripped / len(data):.2f} us a byte")
    return whole


def main() -> None:
    """Time both hellos and say how the larger one compares with the aim."""
    hellos = {hello.slug: hello.data for hello in load()}
    print(f"Python {sys.version.split()[0]}; CPU time, best of {_RUNS} runs")
    report("curl", hellos["curl"])
    cost = report("chromium", hellos["chromium"])
    print(f"aim for a Chrome-size hello: {_AIM:g} us; {'met' if cost <= _AIM else 'not met'}")


if __name__ == "__main__":
    main()
