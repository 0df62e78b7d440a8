"""Gather what one source of the configuration says, the flags or a file, and what is wrong."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast

from snimux.config.settings import ProviderTable, Setting, shown
from snimux.proto import hostname
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.protocols import PROTOCOLS
from snimux.proto.proxy_header import Version
from snimux.routing.access import Access
from snimux.routing.address import (
    AddressError,
    DialAddress,
    ListenAddress,
    ProviderAddress,
    is_same,
    overlaps,
    parse_dial,
    parse_listen,
)
from snimux.routing.networks import UNIX, NetworkError, Networks, parse_network
from snimux.routing.routes import Backend, Pattern, PatternError, Route, Targets, parse_pattern

T = TypeVar("T")
OFF = "off"
REFUSE = "refuse"
"""Instead of a backend's address: whoever asks is refused."""
NOT_EXEMPT = "acme_exempt: is for allow and deny, and there is neither"
# Things with a comma or a space between them.
_SEVERAL = re.compile(r"[^\s,;](?:\s*[,;][\s,;]*[^\s,;]|\s+[^\s,;:])")
PROXIES = ("v1", "v2", "auto", OFF)
LISTEN_KEYS = {name: "listen" if name == TLS.name else name for name in PROTOCOLS}
"""By protocol: the key and the flag for where to listen."""
TARGET_KEYS = {
    name: ("to", "proxy") if name == TLS.name else (name, f"{name}_proxy") for name in PROTOCOLS
}
"""By protocol: the keys of a route for its backend, and for that one's PROXY protocol."""


@dataclass(slots=True)
class ConfigSource:
    """The flags, or a file: what it says, and what is wrong with it."""

    problems: list[str] = field(default_factory=list)
    listen: dict[str, list[ListenAddress]] = field(default_factory=dict)
    """By protocol, where to listen: empty is off, and none is not said."""
    rules: dict[str, Any] = field(default_factory=dict)
    """Whom listeners let in, by key; for those that do not say it themselves."""
    own_rules: dict[tuple[str, ListenAddress], dict[str, Any]] = field(default_factory=dict)
    """By protocol and address, what some listeners say themselves; "name" among it."""
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    """By protocol, the names of listeners, and where each is written."""
    routes: dict[Pattern, Route] = field(default_factory=dict)
    places: dict[Pattern, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    providers: list[ProviderAddress] = field(default_factory=list)
    proxies: dict[ProviderAddress, str] = field(default_factory=dict)
    """What is said of the PROXY protocol for some of them, auto or off."""

    def attempt(self, where: str, parse: Callable[[Any], T], value: object) -> T | None:
        """Return the parsed value; None where it is wrong, which is noted."""
        try:
            return parse(value)
        except (AddressError, NetworkError, PatternError) as error:
            self.problems.append(f"{where}: {shown(value)}: {_several(where, value) or error}")
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
        return None

    def attempt_all(self, where: str, parse: Callable[[str], T], values: Iterable[str]) -> list[T]:
        """Return those of the values that can be parsed; note the rest."""
        parsed = [self.attempt(where, parse, value) for value in values]
        return [value for value in parsed if value is not None]

    def add_listen(self, protocol: str, where: str, values: Sequence[str]) -> None:
        """Listen there for a protocol; nowhere where it is off, which TLS never is."""
        if protocol != TLS.name and OFF in values:
            if len(values) > 1:
                self.problems.append(f"{where}: off goes alone, without an address")
            values = [value for value in values if value != OFF]
        self.listen[protocol] = self.listeners(where, values)

    def listeners(self, where: str, values: Iterable[str]) -> list[ListenAddress]:
        """Return the addresses, which must not overlap."""
        addresses: list[ListenAddress] = []
        for address in self.attempt_all(where, parse_listen, values):
            for other in addresses:
                if overlaps(address, other):
                    again = "given twice" if address == other else f"covered by {other} already"
                    self.problems.append(f"{where}: {address} is {again}")
            addresses.append(address)
        return addresses

    def networks(self, where: str, values: Iterable[str]) -> Networks:
        """Return those of the networks that are good."""
        values = list(values)
        listed = self.attempt_all(where, parse_network, (x for x in values if x != UNIX))
        return Networks(tuple(listed), unix=UNIX in values)

    def backend(self, where: str, to: Iterable[str], proxy: str | None) -> Backend:
        """Return the backend at those of the addresses that are good."""
        if REFUSE in (to := list(to)):
            self.problems.append(
                f'{where}: refuse goes alone, for a route: --route HOST=refuse, or to = "refuse" '
                "in a [[route]]; it is for TLS and for plain HTTP"
            )
        addresses = tuple(self.attempt_all(where, parse_dial, (x for x in to if x != REFUSE)))
        if len(set(addresses)) < len(addresses):
            twice = next(x for x in addresses if addresses.count(x) > 1)
            share = "" if where.startswith("--") else "; weight gives one a larger share"
            self.problems.append(f"{where}: {twice} is given twice{share}")
        version = None if proxy == OFF else proxy
        return shared_backend(addresses, cast("Version | Literal['auto'] | None", version))

    def add_providers(
        self, table: ProviderTable, where: str, values: Iterable[str], proxy: str | None
    ) -> None:
        """Ask these for further routes; a version of the PROXY protocol is not for them."""
        for address in self.attempt_all(where, table.parse, values):
            for other in self.providers:
                if is_same(address, other):
                    again = "" if address == other else f", as {other}"
                    self.problems.append(f"{where}: {address} is given twice{again}")
            self.providers.append(address)
            if proxy is not None and proxy in table.proxies:
                self.proxies[address] = proxy

    def add_route(
        self,
        where: str,
        hosts: Sequence[str],
        to: Targets,
        access: Access | None = None,
        listeners: Sequence[str | None] = (None,),
        *,
        refuses: bool = False,
    ) -> None:
        """Route each of the patterns so, at some listeners or all, where none is given twice."""
        patterns = self.attempt_all(where, parse_pattern, hosts)
        for pattern in (replace(x, listener=name) for x in patterns for name in listeners):
            if HTTP.name in to and pattern.alpn is not None:
                self.problems.append(
                    f"{where}: http: plain HTTP has no ALPN protocol, so it cannot be for "
                    f"{pattern}; give http in a route for {pattern.host}"
                )
            if pattern in self.routes:
                again = " (the default is it, too)" if str(pattern) == hostname.ANY else ""
                first = self.places[pattern]
                self.problems.append(
                    f"{where}: the pattern {pattern}{again} is given twice, first in {first}; "
                    "several addresses go into one route"
                )
            self.places.setdefault(pattern, where)
            self.routes.setdefault(pattern, Route(pattern, to, access, refuses=refuses))


def problems_of_listeners(source: ConfigSource, names: Mapping[str, Iterable[str]]) -> list[str]:
    """Say which routes are for listeners that there are not.

    Args:
        source: the routes, and where they are written.
        names: by protocol, those that listeners have.
    """
    named = {protocol: set(names.get(protocol, ())) for protocol in PROTOCOLS}
    problems: dict[str, None] = {}
    everywhere = sorted(set().union(*named.values()))
    listed = f"there are {', '.join(everywhere)}" if everywhere else "none has a name"
    own: dict[str, set[str]] = {}
    for pattern in source.routes:
        if pattern.listener is not None:
            own.setdefault(source.places[pattern], set()).add(pattern.listener)
    for pattern, route in source.routes.items():
        if (name := pattern.listener) is None:
            continue
        place = source.places[pattern]
        if name not in everywhere:
            problems[f"{place}: listen: no listener has the name {shown(name)}; {listed}"] = None
            continue
        for protocol in route.targets:
            if not own[place] & (named[protocol] | own[place] - set(everywhere)):
                key, label = TARGET_KEYS[protocol][0], PROTOCOLS[protocol].label
                problems[
                    f"{place}: {key}: is for {label}, and none of the listeners of this route is "
                    f"({', '.join(sorted(own[place]))}); give one of [[{LISTEN_KEYS[protocol]}]] "
                    "the name, or leave it out"
                ] = None
    return list(problems)


# Of 100,000 routes most lead to the same few.
@lru_cache(1024)
def shared_backend(
    addresses: tuple[DialAddress, ...], proxy: Version | Literal["auto"] | None
) -> Backend:
    """Return a backend, which is the same one however many routes have it."""
    return Backend(addresses, proxy)


def read_setting(source: ConfigSource, where: str, setting: Setting, value: object) -> None:
    """Note what a source says of a setting, or what is wrong with that."""
    source.settings[setting.key] = source.attempt(where, setting.parse, value)


def _several(where: str, value: object) -> str:
    """Say what to do where one text has several things; empty where it has not."""
    is_split = where in ("--route", "--default")
    if not isinstance(value, str) or is_split or not _SEVERAL.search(value):
        return ""
    if where.startswith("--"):
        return f"one at a time; give {where} again for each"
    return "one at a time; several are a list, each in its own quotes: [..., ...]"
