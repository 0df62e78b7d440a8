"""Ask a Caddy for its running configuration, and follow it as it changes.

Only ever ``GET /config/``, though whoever may do that may change all. What answers may be anything,
and every fault is one line. What the configuration means is ``caddy``'s affair.

Source: Caddy 2.6.2 and 2.11.7, admin.go.
"""

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from snimux import files
from snimux.address import AdminAddress, FileAddress, TcpAddress
from snimux.caddy import Sites, read
from snimux.fetch import LARGEST, FetchError, StatusError, StrangeError, cut, fetch

# Bytes of a refusal that are looked at.
_LARGEST_REFUSAL = 64 * 1024

# Seconds between two questions: there is nothing to wait on (no long poll, no event).
_EVERY = 2.0

# Two Caddys on one TCP port each get a random half of the connections (SO_REUSEPORT), and say
# nothing. So whatever is new is asked for so many times in all: two go unnoticed one time in eight
# then, and when the other one answers next. Once they are known, they do once in 30,000 times.
_AGREEING = 4
_AGREEING_AGAIN = 16

# What a configuration of Caddy's has on its top level; `null` is one, too: nothing is loaded.
_KEYS = frozenset({"admin", "logging", "storage", "apps"})


class AdminError(Exception):
    """No configuration can be had there; the message says why."""


class SharedError(AdminError):
    """Two Caddys answer there by turns."""


@dataclass(frozen=True, slots=True)
class Changed:
    """It serves this, from now on; and it answers, if it did not."""

    sites: Sites


@dataclass(frozen=True, slots=True)
class Lost:
    """It does not answer, or answers nonsense; said once, until it does."""

    why: str


@dataclass(frozen=True, slots=True)
class Back:
    """It answers again, what it did before."""


News = Changed | Lost | Back


async def look(address: AdminAddress) -> Sites:
    """What is served now by the Caddy at an address.

    Raises:
        AdminError: that cannot be learnt.
    """
    return await trio.to_thread.run_sync(_understood, await _settled(address, b"", _AGREEING))


async def follow(
    address: AdminAddress,
    tell: Callable[[News], None],
    *,
    early: Callable[[], Awaitable[None]] = trio.sleep_forever,
) -> None:
    """Ask a Caddy every two seconds, for ever, and tell what is new.

    Args:
        address: where to ask.
        tell: is told of every change, and once of each time in which there is no good answer.
        early: awaited between two questions; when it returns, the next is asked at once.
    """
    told, digest_told, is_lost, agreeing = None, b"", False, _AGREEING
    while True:
        try:
            body = await _settled(address, digest_told, agreeing)
            sites, digest = told, _digest(body)
            if digest != digest_told:
                sites = await trio.to_thread.run_sync(_understood, body)
                # Threads are not cancelled. Nobody is to be told of anything after that.
                await trio.lowlevel.checkpoint_if_cancelled()
            if sites is not None and sites != told:
                tell(Changed(sites))
            elif is_lost:
                tell(Back())
            told, digest_told, is_lost, agreeing = sites, digest, False, _AGREEING
        except AdminError as error:
            if not is_lost:
                tell(Lost(str(error)))
            is_lost = True
            agreeing = _AGREEING_AGAIN if isinstance(error, SharedError) else _AGREEING
        with trio.move_on_after(_EVERY):
            await early()


async def _settled(address: AdminAddress, known: bytes, agreeing: int) -> bytes:
    """An answer that is the same however often it is asked for, if it is not known already.

    Args:
        address: where to ask.
        known: the digest of the answer that was taken last.
        agreeing: how often a new one is to come; where not just `_AGREEING`, a known one, too.

    Raises:
        SharedError: an answer came, then another, then the first again.
    """
    digests = [known] if known else []
    again = 0
    while True:
        body = await _get(address)
        digest = _digest(body)
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
        is_known = digest == known and agreeing == _AGREEING
        if again >= agreeing or is_known or not isinstance(address, TcpAddress):
            return body


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def _understood(body: bytes) -> Sites:
    try:
        config = json.loads(body)
    except (ValueError, RecursionError):
        raise AdminError("not a Caddy: the answer is not JSON") from None
    is_empty = config is None or config == {}
    if not is_empty and not (isinstance(config, dict) and _KEYS & config.keys()):
        raise AdminError("not a Caddy: the answer is no configuration of Caddy's")
    wrong = None if is_empty else _misshapen(config)
    if wrong is not None:
        raise AdminError(f"the answer is no configuration of Caddy's: {wrong} is no object")
    return read(config)


def _misshapen(config: Mapping[str, Any]) -> str | None:
    """The first of the parts that routes are made of which is there and no JSON object.

    Else a mistake somewhere would read as a Caddy that serves nothing any more.
    """
    parts = [("apps", config.get("apps"))]
    for at, part in parts:  # which grows
        if part is not None and not isinstance(part, dict):
            return at
        known = {"apps": ("http", "tls"), "apps.http": ("servers",), "apps.http.servers": part}
        parts += [(f"{at}.{cut(name)}", part.get(name)) for name in known.get(at) or () if part]
    return None


async def _get(address: AdminAddress) -> bytes:
    """The body of the answer.

    Raises:
        AdminError: there is none, within the time and the size.
    """
    if isinstance(address, FileAddress):
        return _read_file(address.path)
    try:
        return await fetch(address, "/config/")
    except StatusError as error:
        raise AdminError(_refusal(error.status, error.body)) from None
    except StrangeError as error:
        raise AdminError(f"not a Caddy: {error}") from None
    except FetchError as error:
        raise AdminError(str(error)) from None


def _refusal(status: int, body: bytes) -> str:
    """What an answer says that is none, in the server's words if they are to be read."""
    body = body[:_LARGEST_REFUSAL]
    words = body.partition(b"\n")[0].decode("ascii", "backslashreplace").strip()
    with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
        words = str(json.loads(body)["error"])
    said = f": {cut(words)}" if words and not words.startswith("<") else ""
    if status == 403:
        return f"it refuses to answer (403{said}); see `origins` and `enforce_origin` of its admin"
    return f"not a Caddy's admin API: it answers {status}{said}"


def _read_file(path: str) -> bytes:
    try:
        return files.read(path, LARGEST)
    except OSError as error:
        raise AdminError(error.strerror or str(error)) from None
