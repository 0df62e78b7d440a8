"""Take an answer of a Caddy's admin API for what that Caddy serves, or say why it is none.

Takes any bytes. Run as a process (``main``) it reads them from its standard input, for to read JSON
is one call of C, which lets nobody else run in its process. Knows nothing of how they were got.
"""

import json
import pickle
import sys
from collections.abc import Mapping
from typing import Any

from snimux.providers.caddy.read import read
from snimux.providers.caddy.sites import Sites

# What a configuration of Caddy's has on its top level; `null` is one, too: nothing is loaded.
_KEYS = frozenset({"admin", "logging", "storage", "apps"})


class NotCaddyError(ValueError):
    """Bytes that no Caddy answers; the message says why."""


def parse(body: bytes) -> Sites:
    """Read the body of an answer to ``GET /config/``.

    Raises:
        NotCaddyError: it is none.
    """
    try:
        config = json.loads(body)
    except (ValueError, RecursionError):
        raise NotCaddyError("not a Caddy: the answer is not JSON") from None
    is_empty = config is None or config == {}
    if not is_empty and not (isinstance(config, dict) and _KEYS & config.keys()):
        raise NotCaddyError("not a Caddy: the answer is no configuration of Caddy's")
    wrong = None if is_empty else _misshapen(config)
    if wrong is not None:
        raise NotCaddyError(f"the answer is no configuration of Caddy's: {wrong} is no object")
    return read(config)


def _misshapen(config: Mapping[str, Any]) -> str | None:
    """The first of the parts that routes are made of which is there and no JSON object.

    Else a mistake somewhere would read as a Caddy that serves nothing any more.
    """
    parts = [("apps", config.get("apps"))]
    for at, part in parts:  # which grows
        if part is not None and not isinstance(part, dict):
            return at
        inner = {"apps": ("http", "tls"), "apps.http": ("servers",), "apps.http.servers": part}
        parts += [(f"{at}.{name}", part.get(name)) for name in inner.get(at) or () if part]
    return None


def unpack(output: bytes) -> Sites:
    """Return what a process has read; it must be one of ``main``.

    Raises:
        NotCaddyError: it was no answer of a Caddy's.
    """
    answer = pickle.loads(output)
    if isinstance(answer, Sites):
        return answer
    raise NotCaddyError(answer)


def main() -> None:
    """Read an answer from standard input, and write the sites, or why there are none, pickled."""
    try:
        answer: Sites | str = parse(sys.stdin.buffer.read())
    except NotCaddyError as error:
        answer = str(error)
    sys.stdout.buffer.write(pickle.dumps(answer))
