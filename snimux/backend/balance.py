"""Order a backend's addresses for one connection: by turns, by connections, or by who asks.

Pure: what is known of the addresses comes in, the places of all of them come out, the one that is
to have the connection first. Those that are not well come last, never not at all.

Source: nginx's round robin ("smooth", src/stream/ngx_stream_upstream_round_robin.c) and least_conn;
for hashing Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998), with
weights by the logarithmic method of Schindelhauer and Schomaker, "Weighted distributed hash tables"
(2005).
"""

import hashlib
import ipaddress
import math
from collections.abc import Iterable, Sequence

# An IPv6 /64 is one household, whose hosts change their addresses by themselves (RFC 8981).
_HOUSEHOLD = 8


class Turns:
    """A round robin among places with weights."""

    __slots__ = ("_current",)

    def __init__(self, count: int) -> None:
        """Begin with so many places, all new."""
        self._current = [0] * count

    def order(
        self, weights: Sequence[int], well: Sequence[bool], loads: Sequence[int] | None = None
    ) -> list[int]:
        """All places, in the order in which they are to be tried.

        Args:
            weights: how much of the whole each is to have, from 1.
            well: which of them get turns; where none is, all do.
            loads: how many connections each has, if the least loaded for its weight is to have
                the next, and turns are for those that have equally few; None if all is by turns.
        """
        places = [place for place, is_well in enumerate(well) if is_well] or range(len(well))
        load = {
            place: loads[place] / weights[place] if loads else 0.0 for place in range(len(well))
        }
        least = min(load[place] for place in places)
        first = self._take(weights, [place for place in places if load[place] == least])

        def rank(place: int) -> tuple[bool, bool, float, int]:
            return place != first, not well[place], load[place], -self._current[place]

        return sorted(range(len(well)), key=rank)

    def _take(self, weights: Sequence[int], places: Sequence[int]) -> int:
        """Take the next turn: smoothly, so that a heavy one's turns are not all in a row."""
        current = self._current
        for place in places:
            current[place] += weights[place]
        taken = max(places, key=current.__getitem__)
        current[taken] -= sum(weights[place] for place in places)
        return taken


def by_source(host: str, names: Sequence[str], weights: Sequence[int]) -> list[int]:
    """All places, in an order that is always the same for a source, and another for others.

    Each place is first for as large a part of the sources as its weight is of all; if it is left
    out, its sources are spread over the others, and no other source moves.

    Args:
        host: the source's IP address.
        names: what each place is known by; it counts, not where it stands.
        weights: of the places, from 1.
    """
    key = _key(host)

    def score(place: int) -> float:
        digest = hashlib.blake2b(names[place].encode() + b"\0" + key, digest_size=8).digest()
        uniform = (int.from_bytes(digest) + 1) / (2**64 + 2)  # above 0, below 1
        # 2**64 is more than a float has digits for: one that is rounded to 1 is the best there is
        return -weights[place] / math.log(uniform) if uniform < 1 else math.inf

    return sorted(range(len(names)), key=score, reverse=True)


def _key(host: str) -> bytes:
    ip = ipaddress.ip_address(host)
    return ip.packed[:_HOUSEHOLD] if ip.version == 6 else ip.packed


def well_first(places: Iterable[int], well: Sequence[bool]) -> list[int]:
    """The same places, those that are not well behind those that are, else in their order."""
    return sorted(places, key=lambda place: not well[place])
