"""The names that the benchmark asks for, and real hellos that ask for them.

Each name is for one behaviour of the backend. All have as many letters as the name in the captured
hellos, so that it can be put into these without changing a length.
"""

from functools import cache

from tests.hellos import load

ANSWER, ECHOES, STREAM, UPLOAD, SECURE = "answer", "echoes", "stream", "upload", "secure"
MODES = (ANSWER, ECHOES, STREAM, UPLOAD)
"""What `bench.backend` does; `SECURE` is the real Caddy."""

_CAPTURED = b"secure.ciso.com"


def host(mode: str) -> str:
    """The server name that is routed to a backend."""
    return f"{mode}.ciso.com"


@cache
def hello(slug: str, mode: str) -> bytes:
    """A captured hello that asks for the backend of this mode."""
    data = next(each.data for each in load() if each.slug == slug)
    wanted = host(mode).encode("ascii")
    assert len(wanted) == len(_CAPTURED)
    assert data.count(_CAPTURED) == 1
    return data.replace(_CAPTURED, wanted)


def routes(number: int) -> list[tuple[str, str]]:
    """So many routes, at least five: pairs of server name and mode."""
    known = [(host(mode), mode) for mode in (*MODES, SECURE)]
    others = range(number - len(known))
    return [*((f"host-{n}.customers.example.net", ANSWER) for n in others), *known]
