"""Guess what was meant by what is wrong in a configuration: the end of a line, with what to do.

Guesses by spelling alone, from the slips that people make: units, quotes, the words of other
programs. Decides nothing: what is wrong is refused in any case. Empty
where there is no guess.
"""

import difflib
import re
from collections.abc import Mapping, Sequence

SECONDS = {"": 1, "ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
BYTES = {"": 1, "b": 1, "k": 1024, "kb": 1024, "kib": 1024, "m": 1 << 20, "mb": 1 << 20}
A_SECOND = {"": 1, "/s": 1}
COUNT = {"": 1}
"""How much each unit is, of the one that a number has which is written alone."""

_WORDS = {
    True: "on", "true": "on", "yes": "on",
    False: "off", "false": "off", "no": "off", "none": "off", "never": "off", "unlimited": "off",
}  # fmt: skip

# What others call it, or what it is called in another table: the first that is known here is meant.
_TO, _HOSTS = ("to", "address"), ("hosts", "address")
_KEYS = {
    "backend": _TO, "backends": _TO, "upstream": _TO, "upstreams": _TO, "target": _TO,
    "server": _TO, "servers": _TO, "dial": _TO, "address": ("to", "admin"), "addresses": _TO,
    "host": _HOSTS, "name": ("hosts",), "names": ("hosts",), "domain": ("hosts",),
    "domains": ("hosts",), "sni": ("hosts",), "server_name": ("hosts",), "hostname": ("hosts",),
    "listener": ("listen",), "listeners": ("listen",), "entrypoints": ("listen",),
    "port": ("address",), "bind": ("address", "listen"), "url": ("admin", *_TO), "api": ("admin",),
    "proxy_protocol": ("proxy",), "send_proxy": ("proxy",), "weights": ("weight",),
    "accept_proxy": ("proxy_from",), "maxconn": ("max_connections",),
    "allowlist": ("allow",), "whitelist": ("allow",), "denylist": ("deny",), "blacklist": ("deny",),
}  # fmt: skip


def word(value: object, words: Sequence[str]) -> str:
    """Guess which of some words was meant by a value that is none of them."""
    if not isinstance(value, str | int | float):
        return ""
    text = value if isinstance(value, bool) else str(value).strip().lower().replace("-", "_")
    other = _WORDS.get(text)
    near = [other] if other in words else difflib.get_close_matches(str(text), words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def number(value: object, units: Mapping[str, float], words: Sequence[str] = ()) -> str:
    """Guess which number, or which of some words, was meant by a value that is none.

    Args:
        value: as it was written.
        units: those that it may have.
        words: what may be there instead of a number.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z/]*)", str(value).strip().lower())
    if match is None or isinstance(value, bool) or match[2] not in units:
        return word(value, words)
    meant = float(match[1]) * units[match[2]]
    if not isinstance(value, str) and not meant.is_integer():
        return ""  # it is only no whole one
    hint = f"; write {int(meant) if meant.is_integer() else meant}"
    if not isinstance(value, str):
        return hint
    return f"{hint}, without a unit" if match[2] else f"{hint}, without quotes"


def key(text: str, keys: Sequence[str]) -> str | None:
    """Guess which of a table's keys was meant by one that is none; None without a guess."""
    spelled = text.lower().replace("-", "_")
    meant = [spelled, *_KEYS.get(spelled, ())]
    return next((each for each in meant if each in keys), None)


def near(text: str, keys: Sequence[str]) -> str | None:
    """Return the key that is spelled nearly so; None if none is."""
    matches = difflib.get_close_matches(text.lower().replace("-", "_"), keys, n=1)
    return next(iter(matches), None)


def toml(text: str, fault: str) -> str:
    """Guess what was meant by the line that makes a text no TOML.

    Args:
        text: all of it.
        fault: what the parser says, with the number of the line.
    """
    at = re.search(r"\(at line ([0-9]+), ", fault)
    lines = text.rstrip("\n").split("\n")[: int(at[1]) if at else None]
    line = lines[-1].replace("\t", " ").rstrip("\r")
    if not line.isprintable():
        return ""  # what is repeated here is for a terminal
    if "overwrite" in fault:
        twice = re.search(r"[\w-]{1,80}", line)
        return (
            f"; {twice[0] if twice else 'it'} is there twice: as keys, or as a key and as a table"
        )
    match = re.fullmatch(r"""\s*([\w."'-]{1,80})\s*([=:])\s*([^#]{0,200})(?:#.*)?""", line)
    if match is None:
        return ""
    name, sign, value = match[1], match[2], match[3].strip()
    if sign == ":":
        return f"; write {name} = ..., with an equals sign"
    if not value:
        return f"; {name} has no value"
    if value.lower() in ("true", "false", "yes", "no"):
        return f"; write {name} = true or false, in small letters"
    if re.fullmatch(r"[0-9.]+ *[a-zA-Z]+", value):
        return f"; write {name} = {re.sub('[ a-zA-Z]', '', value)}, without a unit"
    if value[0] not in "\"'[{":
        return f'; text goes in quotes: {name} = "{value}"'
    return ""
