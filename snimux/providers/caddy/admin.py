"""Provide the sites of a Caddy: ask for its running configuration, again and again.

Only ever ``GET /config/``, though whoever may do that may change all. What answers may be anything,
and every fault is one line. What the configuration means is ``caddy``'s affair.

Source: Caddy 2.6.2 and 2.11.7, admin.go.
"""

import contextlib
import hashlib
import json
from functools import partial

import trio

from snimux.net.http_get import LARGEST, BadAnswerError, FetchError, StatusError, fetch
from snimux.providers.base import Lost, Publish
from snimux.providers.caddy.document import NotCaddyError, parse, unpack
from snimux.providers.caddy.sites import Sites
from snimux.routing.address import AdminAddress, FileAddress, TcpAddress
from snimux.runtime import files
from snimux.runtime.background import ProcessError, in_process, in_thread
from snimux.text import brief

# Bytes of a refusal that are looked at.
_LARGEST_REFUSAL = 4 * 1024

# Seconds between two questions: there is nothing to wait on (no long poll, no event).
_EVERY = 2.0

# Two Caddys on one TCP port each get a random half of the connections (SO_REUSEPORT), and say
# nothing. So whatever is new is asked for so many times in all: two go unnoticed one time in eight
# then, and when the other one answers next. Once they are known, they do once in 30,000 times.
_AGREEING = 4
_AGREEING_AGAIN = 16

# Bytes of an answer that are read in this process: at the worst, which is lists of nothing, that is
# one call of C for 10 ms, which is as long as a process takes to start.
_LARGEST_HERE = 64 * 1024

_in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)


class AdminError(Exception):
    """No configuration can be had there; the message says why."""


class SharedError(AdminError):
    """Two Caddys answer there by turns."""


async def look(address: AdminAddress) -> Sites:
    """Return what is served now by the Caddy at an address.

    Raises:
        AdminError: that cannot be learnt.
    """
    body, _ = await _settled(address, b"", _AGREEING)
    return await _understood(body)


class CaddyProvider:
    """A Caddy, asked every two seconds."""

    kind = "caddy"

    def __init__(self, address: AdminAddress) -> None:
        """Ask nobody yet.

        Args:
            address: of the admin API, or of a file with what it would answer.
        """
        self.address = address
        self.name = str(address)
        self.hurry = trio.Event()

    def poll_now(self) -> None:
        """Ask at once; once more where it is being asked."""
        self.hurry.set()

    async def provide(self, publish: Publish) -> None:
        """Publish what each answer says: for the same bytes, the same value as before."""
        sites, last, agreeing = Sites(), b"", _AGREEING
        while True:
            self.hurry = trio.Event()
            try:
                body, digest = await _settled(self.address, last, agreeing)
                if digest != last:
                    sites, last = await _understood(body), digest
                agreeing = _AGREEING
                await publish(sites)
            except AdminError as error:
                agreeing = _AGREEING_AGAIN if isinstance(error, SharedError) else _AGREEING
                await publish(Lost(str(error)))
            with trio.move_on_after(_EVERY):
                await self.hurry.wait()


async def _settled(address: AdminAddress, last: bytes, agreeing: int) -> tuple[bytes, bytes]:
    """Return an answer that is the same however often it is asked for, and its digest.

    Args:
        address: where to ask.
        last: the digest of the answer that was taken before.
        agreeing: how often a new one is to come; where not just `_AGREEING`, the last one, too.

    Raises:
        SharedError: an answer came, then another, then the first again.
    """
    digests = [last] if last else []
    again = 0
    while True:
        body, digest = await _get(address)
        is_other = digest not in digests[-1:]
        again = 1 if is_other else again + 1
        if is_other and (digest in digests or len(digests) > agreeing):
            raise SharedError(
                "answers come by turns from two Caddys on this one port; give each an admin "
                "address of its own"
            )
        if is_other:
            digests.append(digest)
        # No two have one UNIX socket or one file.
        is_last = digest == last and agreeing == _AGREEING
        if again >= agreeing or is_last or not isinstance(address, TcpAddress):
            return body, digest


def _with_digest(body: bytes) -> tuple[bytes, bytes]:
    return body, hashlib.sha256(body).digest()


async def _understood(body: bytes) -> Sites:
    """Return what an answer means.

    A large one is read in a process of its own: one call of C reads JSON, and would stop everybody
    in this process meanwhile.

    Raises:
        AdminError: nothing.
    """
    try:
        if len(body) <= _LARGEST_HERE:
            return await in_thread(partial(parse, body))
        output = await in_process("snimux.providers.caddy.document", body)
        return await in_thread(partial(unpack, output))
    except NotCaddyError as error:
        raise AdminError(brief(str(error))) from None
    except ProcessError as error:
        raise AdminError(f"the answer was not read: {error}") from None


async def _get(address: AdminAddress) -> tuple[bytes, bytes]:
    """Return the body of the answer, and its digest.

    Raises:
        AdminError: there is none, within the time and the size.
    """
    if isinstance(address, FileAddress):
        return await _in_thread(_read_file, address.path)
    try:
        return await _in_thread(_with_digest, await fetch(address, "/config/"))
    except StatusError as error:
        raise AdminError(_refusal(error.status, error.body)) from None
    except BadAnswerError as error:
        raise AdminError(f"not a Caddy: {error}") from None
    except FetchError as error:
        raise AdminError(str(error)) from None


def _refusal(status: int, body: bytes) -> str:
    """Say why an answer is none, in the server's words if they are to be read."""
    body = body[:_LARGEST_REFUSAL]
    words = body.partition(b"\n")[0].decode("ascii", "backslashreplace").strip()
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        words = str(json.loads(body)["error"])
    said = f": {brief(words)}" if words and not words.startswith("<") else ""
    if status == 403:
        return f"it refuses to answer (403{said}); see `origins` and `enforce_origin` of its admin"
    return f"not a Caddy's admin API: it answers {status}{said}"


def _read_file(path: str) -> tuple[bytes, bytes]:
    try:
        body = files.read(path, LARGEST)
    except OSError as error:
        raise AdminError(error.strerror or str(error)) from None
    return _with_digest(body)
