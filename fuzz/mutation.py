"""How bytes, text and JSON are bent: small changes that leave the rest of the format as it is.

All chance is the caller's, so that a search can choose it, and do the same again.
"""

import copy
from collections.abc import Sequence
from random import Random
from typing import Any


def octets(data: bytes, random: Random) -> bytes:
    """One change of some bytes: set, taken out, put in or said twice."""
    start = random.randint(0, len(data))
    end = min(len(data), start + random.choice((1, 1, 1, 2, 4, 16)))
    middle = random.choice(
        (b"", bytes([random.randint(0, 255)]), b"\0\0", b"\xff\xff", data[start:end] * 2)
    )
    return data[:start] + middle + data[end:]


def lines(data: bytes, random: Random, words: Sequence[bytes], *, end: bytes) -> bytes:
    """One change of text: of a line, or of a place within one, where a word is put.

    Args:
        data: the text.
        random: what chooses.
        words: what means something in such text.
        end: what ends a line.
    """
    if random.randint(0, 3) == 0:
        return octets(data, random)
    parts = data.split(end)
    at, other = random.randrange(len(parts)), random.randrange(len(parts))
    word = random.choice(words)
    match random.randint(0, 5):
        case 0:
            del parts[at]
        case 1:
            parts.insert(at, parts[other])
        case 2:
            parts[at], parts[other] = parts[other], parts[at]
        case 3:
            parts.insert(at, word)
        case _:
            cut = random.randint(0, len(parts[at]))
            behind = random.randint(cut, len(parts[at]))
            parts[at] = parts[at][:cut] + word + parts[at][behind:]
    return end.join(parts)


def tree(value: Any, random: Random, leaves: Sequence[Any], keys: Sequence[str]) -> Any:
    """One change of a JSON value: something else somewhere, or nothing, or one more.

    Args:
        value: what ``json`` makes; it is left as it is.
        random: what chooses.
        leaves: values that mean something in such JSON.
        keys: keys that do.
    """
    box = [copy.deepcopy(value)]
    holder: Any = box
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and random.randint(0, 5):
        holder = holder[key]
        places = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = random.choice(places)
    other = copy.deepcopy(random.choice([*leaves, [], {}, holder[key]]))
    match random.randint(0, 4):
        case 0 if holder is not box:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(keys)] = other
        case 2 if isinstance(holder, list):
            holder.insert(0, other)
        case 3:
            holder[key] = {random.choice(keys): holder[key]}
        case _:
            holder[key] = other
    return box[0]
