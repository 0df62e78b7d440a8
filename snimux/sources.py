"""Flags, or a TOML text -> what this one source says, and each thing that is wrong with it.

Knows nothing of the other source, of what holds where none says anything, and of what the two
together mean: that is ``config``'s.
"""

import contextlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar, cast

from snimux import meant
from snimux.proto import hostname
from snimux.proto.proxy_header import Version
from snimux.routing.access import Access
from snimux.routing.address import (
    AddressError,
    AdminAddress,
    DialAddress,
    ListenAddress,
    TcpAddress,
    is_same,
    overlaps,
    parse_admin,
    parse_dial,
    parse_listen,
)
from snimux.routing.networks import UNIX, NetworkError, Networks, parse_network
from snimux.routing.routes import Backend, Pattern, PatternError, Route, parse_pattern
from snimux.settings import SETTINGS, Setting, choice, shown, weight

T = TypeVar("T")

LARGEST = 16 * 2**20
"""Bytes of a configuration file: twice what 100,000 routes take. What is no configuration at all,
such as a disk's image under the wrong name, would take the memory of those who are served."""
OFF = "off"
NOT_EXEMPT = "acme_exempt: is for allow and deny, and there is neither"
# Of known keys as many as can be read are listed.
_LISTED = 12
# Of so many problems it is no slip that made them, and a guess takes 0.1 ms.
_GUESSED = 1000
_NAMED_AS_FLAGS = "keys are named as the flags are; snimux --help lists these"
_ACCESS_KEYS = ("allow", "deny", "acme_exempt")
_RULE_KEYS = (*_ACCESS_KEYS, "proxy_from")
_FILE_KEYS = (
    "listen", "http", "route", "default", "caddy", *(setting.key for setting in SETTINGS),
    *_RULE_KEYS,
)  # fmt: skip
_OF_A_BACKEND = tuple(x for x in SETTINGS if x.key in ("balance", "wait", "check"))
_ROUTE_KEYS = (
    "hosts", "to", "proxy", "http", "http_proxy", "transparent", *_ACCESS_KEYS,
    *(setting.key for setting in _OF_A_BACKEND)
)  # fmt: skip
_ADDRESS_KEYS = ("address", "weight")
_LISTEN_KEYS = ("address", *_RULE_KEYS)
_CADDY_KEYS = ("admin", "proxy")
# Where a key goes that is in the wrong table.
_PLACES: tuple[tuple[Sequence[str], str], ...] = (
    (_FILE_KEYS, "to the top, above the first [[...]]"),
    (_ROUTE_KEYS, "into a [[route]]"),
    (_LISTEN_KEYS, "into a [[listen]]"),
    (_CADDY_KEYS, "into a [[caddy]]"),
    (["weight"], 'to an address, as in to = [{ address = "127.0.0.1:8443", weight = 2 }]'),
    (["alpn"], 'into hosts, as in hosts = "secure.example.com/h2"'),
)
# Things with a comma or a space between them.
_SEVERAL = re.compile(r"[^\s,;](?:\s*[,;][\s,;]*[^\s,;]|\s+[^\s,;:])")
# Strings and comments, whole or not: what is in them is neither a key nor a number. Each branch
# matches wherever it begins, so the time is linear.
_QUOTED = re.compile(
    r'''"""(?:[^"\\]++|\\.?|"(?!""))*+(?:"{3,5}|\Z)|"(?:[^"\\\n]++|\\[^\n]?)*+"?'''
    r"""|'''(?:[^']++|'(?!''))*+(?:'{3,5}|\Z)|'[^'\n]*+'?|#[^\n]*+""",
    re.DOTALL,
)
# A hundred bytes for each digit and thrice the square of the parts of a key are what tomllib takes;
# and a number of other than decimal digits it reads, but Python cannot say it again.
_ENDLESS = re.compile(r"(?<![\w+-])(?:0[xob][0-9A-Fa-f_]{1000}|[\w+-]{10000})")
_DEEP = re.compile(r"(?<![\w-])(?:[\w-]++[ \t]*+\.[ \t]*+){16}")
_PROXIES = ("v1", "v2", "auto", OFF)
_CADDY_PROXIES = ("auto", OFF)


@dataclass(slots=True)
class Source:
    """What one source (the flags, or a file) says, and what is wrong with it."""

    problems: list[str] = field(default_factory=list)
    listen: list[ListenAddress] = field(default_factory=list)
    http: list[ListenAddress] | None = None
    """None: not given; empty: off."""
    rules: dict[str, Any] = field(default_factory=dict)
    """Whom listeners let in, by key; for those that do not say it themselves."""
    own_rules: dict[ListenAddress, dict[str, Any]] = field(default_factory=dict)
    """What some listeners say themselves."""
    routes: dict[Pattern, Route] = field(default_factory=dict)
    places: dict[Pattern, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    caddys: list[AdminAddress] = field(default_factory=list)
    caddy_proxies: dict[AdminAddress, str] = field(default_factory=dict)
    """What is said of the PROXY protocol for some of them, auto or off."""

    def attempt(self, where: str, parse: Callable[[Any], T], value: object) -> T | None:
        """The parsed value; None where it is wrong, which is noted."""
        try:
            return parse(value)
        except (AddressError, NetworkError, PatternError) as error:
            self.problems.append(f"{where}: {shown(value)}: {_several(where, value) or error}")
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
        return None

    def attempt_all(self, where: str, parse: Callable[[str], T], values: Iterable[str]) -> list[T]:
        """Those of the values that can be parsed; the others are noted."""
        parsed = [self.attempt(where, parse, value) for value in values]
        return [value for value in parsed if value is not None]

    def add_listen(self, where: str, values: Iterable[str]) -> None:
        """Listen there for TLS."""
        self.listen += self.listeners(where, values)

    def add_http(self, where: str, values: Sequence[str]) -> None:
        """Listen there for plain HTTP; nowhere where it is off."""
        if OFF in values and len(values) > 1:
            self.problems.append(f"{where}: off goes alone, without an address")
        addresses = [value for value in values if value != OFF]
        self.http = self.listeners(where, addresses)

    def listeners(self, where: str, values: Iterable[str]) -> list[ListenAddress]:
        """The addresses, which must not overlap."""
        found: list[ListenAddress] = []
        for address in self.attempt_all(where, parse_listen, values):
            for other in found:
                if overlaps(address, other):
                    again = "given twice" if address == other else f"covered by {other} already"
                    self.problems.append(f"{where}: {address} is {again}")
            found.append(address)
        return found

    def networks(self, where: str, values: Iterable[str]) -> Networks:
        """Those of the networks that are good."""
        values = list(values)
        listed = self.attempt_all(where, parse_network, (x for x in values if x != UNIX))
        return Networks(tuple(listed), unix=UNIX in values)

    def backend(self, where: str, to: Iterable[str], proxy: str | None) -> Backend:
        """The backend at those of the addresses that are good."""
        addresses = tuple(self.attempt_all(where, parse_dial, to))
        if len(set(addresses)) < len(addresses):
            twice = next(x for x in addresses if addresses.count(x) > 1)
            share = "" if where.startswith("--") else "; weight gives one a larger share"
            self.problems.append(f"{where}: {twice} is given twice{share}")
        given = None if proxy == OFF else proxy
        return _backend(addresses, cast("Version | Literal['auto'] | None", given))

    def add_caddys(self, where: str, values: Iterable[str], proxy: str | None) -> None:
        """Ask these for further routes; a version of the PROXY protocol is not for them."""
        for address in self.attempt_all(where, parse_admin, values):
            for other in self.caddys:
                if is_same(address, other):
                    again = "" if address == other else f", as {other}"
                    self.problems.append(f"{where}: {address} is given twice{again}")
            self.caddys.append(address)
            if proxy in _CADDY_PROXIES:
                self.caddy_proxies[address] = proxy

    def add_route(
        self,
        where: str,
        hosts: Sequence[str],
        backend: Backend | None,
        http: Backend | None = None,
        access: Access | None = None,
    ) -> None:
        """Route each of the patterns so, where none is given twice."""
        for pattern in self.attempt_all(where, parse_pattern, hosts):
            if http is not None and pattern.alpn is not None:
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
            self.routes.setdefault(pattern, Route(pattern, backend, http, access))


# Of 100,000 routes most lead to the same few.
@lru_cache(1024)
def _backend(
    addresses: tuple[DialAddress, ...], proxy: Version | Literal["auto"] | None
) -> Backend:
    """A backend, which is the same one however many routes have it."""
    return Backend(addresses, proxy)


def read_flags(flags: Mapping[str, Any]) -> Source:
    """What flags say; they are as ``config.load`` is given them."""
    source = Source()
    proxy = flags.get("proxy_protocol")
    if proxy is not None:
        proxy = source.attempt("--proxy-protocol", choice(*_PROXIES), proxy)
    source.add_listen("--listen", flags.get("listen") or ())
    if flags.get("http"):
        source.add_http("--http", flags["http"])
    for key in ("allow", "deny", "proxy_from"):
        if flags.get(key):
            flag = "--" + key.replace("_", "-")
            source.rules[key] = source.networks(flag, flags[key])
    for text in flags.get("route") or ():
        hosts, equals, to = text.partition("=")
        if not (hosts and equals and to):
            source.problems.append(
                f"--route: {shown(text)} is not HOST[,HOST...]=ADDR[,ADDR...], "
                "such as secure.example.com=127.0.0.1:8443"
            )
        else:
            backend = source.backend("--route", _split(to), proxy)
            source.add_route("--route", _split(hosts), backend)
    source.add_caddys("--caddy", flags.get("caddy") or (), proxy)
    default = flags.get("default")
    if default is not None:
        backend = source.backend("--default", _split(default), proxy)
        source.add_route("--default", [hostname.ANY], backend)
    is_heeded = source.places or source.caddy_proxies
    if proxy is not None and not is_heeded and not source.problems:
        others = "; for --caddy it is auto or off" if source.caddys else ""
        source.problems.append(
            f"--proxy-protocol: is for --route and --default, and there is none{others}; "
            'in the file, write proxy = "..." in a [[route]]'
        )
    for setting in SETTINGS:
        text = flags.get(setting.key)
        if text is not None:
            _read_setting(source, setting.flag, setting, _number_or_word(text))
    return source


def _split(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


def _number_or_word(text: str) -> int | float | str:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _read_setting(source: Source, where: str, setting: Setting, value: object) -> None:
    source.settings[setting.key] = source.attempt(where, setting.parse, value)


def read_toml(toml: str) -> Source:
    """What the text of a TOML file says."""
    source = Source()
    bare = _QUOTED.sub("_", toml)
    if endless := _ENDLESS.search(bare):
        is_number = re.match("[+-]?[0-9]", endless[0])
        what = "a number of a thousand digits" if is_number else "a key of 10,000 characters"
        source.problems.append(f"not TOML that can be read: {what}")
        return source
    try:
        if _DEEP.search(bare):
            raise RecursionError
        document = tomllib.loads(toml)
    except ValueError as error:  # TOMLDecodeError; or a number of thousands of digits
        source.problems.append(f"not TOML: {error}{meant.toml(toml, str(error))}")
        return source
    except RecursionError:
        source.problems.append("not TOML that can be read: nested too deep")
        return source
    _check_keys(source, "", document, _FILE_KEYS)
    if "listen" in document:
        source.add_listen("listen", _read_listen(source, "listen", document["listen"]))
    if "http" in document:
        source.add_http("http", _read_listen(source, "http", document["http"]))
    source.rules = _read_rules(source, "", document, _RULE_KEYS)
    for number, table in enumerate(_tables(source, "route", document), 1):
        _read_route(source, f"route {number}", table)
    for number, table in enumerate(_tables(source, "caddy", document), 1):
        _read_caddy(source, f"caddy {number}", table)
    if "default" in document:
        to, weights = _addresses(source, "default", document["default"])
        backend = replace(source.backend("default", to, None), weights=weights)
        source.add_route("default", [hostname.ANY], backend)
    for setting in SETTINGS:
        if setting.key in document:
            _read_setting(source, setting.key, setting, document[setting.key])
    return source


def _read_listen(source: Source, key: str, value: object) -> list[str]:
    """The addresses to listen on, of which each may be in a table with rules of its own."""
    values = value if isinstance(value, list) and value else [value]
    if isinstance(value, int) and not isinstance(value, bool):
        source.problems.append(f'{key}: {value} is not a string; perhaps ":{value}"')
        return []
    if value == [] or (value is False and key == "http"):
        instead = 'write http = "off"' if key == "http" else "leave it out for :443"
        source.problems.append(f"{key}: {shown(value)} has no address; {instead}")
        return []
    if not all(isinstance(item, str | dict) for item in values):
        wanted = f"a string or a list of strings, or tables, each headed [[{key}]]"
        source.problems.append(f"{key}: {shown(value)} is not {wanted}")
        return []
    addresses = []
    for number, item in enumerate(values, 1):
        if isinstance(item, str):
            addresses.append(item)
            continue
        where = f"{key} {number}"
        given = item.keys() | _check_keys(source, f"{where}: ", item, _LISTEN_KEYS)
        rules = _read_rules(source, f"{where}: ", item, _RULE_KEYS)
        address = item.get("address")
        if "address" in given - item.keys():
            continue
        if not isinstance(address, str) or address == OFF:
            fault = f": {shown(address)} is no address" if "address" in item else " is missing"
            source.problems.append(f"{where}: address{fault}")
            continue
        addresses.append(address)
        with contextlib.suppress(AddressError):  # which is noted with the others
            source.own_rules[parse_listen(address)] = rules
    return addresses


def _read_rules(
    source: Source, where: str, table: Mapping[str, object], keys: Iterable[str]
) -> dict[str, Any]:
    """Those of the keys that are there, each with what it says."""
    rules: dict[str, Any] = {}
    for key in keys:
        value = table.get(key)
        if key not in table:
            continue
        if key == "allow" and value == []:
            source.problems.append(
                f"{where}allow: an empty list would let nobody in; leave allow out to let "
                'everybody in, or write deny = ["0.0.0.0/0", "::/0", "unix"]'
            )
        elif key != "acme_exempt":
            # Of those that are denied or believed there may be none, other than everywhere else.
            texts = _strings(source, f"{where}{key}", value) if value != [] else []
            rules[key] = source.networks(f"{where}{key}", texts)
        else:
            rules[key] = _is_true(source, f"{where}{key}", value)
    return rules


def _is_true(source: Source, where: str, value: object) -> bool:
    if not isinstance(value, bool):
        hint = f"; write {value}, without quotes" if value in ("true", "false") else ""
        source.problems.append(f"{where}: {shown(value)} is not true or false{hint}")
    return value is True


def _read_access(source: Source, where: str, table: Mapping[str, object]) -> Access | None:
    """Whom a route serves; None where it does not say."""
    rules = _read_rules(source, f"{where}: ", table, _ACCESS_KEYS)
    if rules.keys() == {"acme_exempt"}:
        source.problems.append(f"{where}: {NOT_EXEMPT}")
    return Access(**rules) if rules else None


def _read_route(source: Source, where: str, table: Mapping[str, object]) -> None:
    given = table.keys() | _check_keys(source, f"{where}: ", table, _ROUTE_KEYS)
    if "hosts" not in given:
        source.problems.append(f"{where}: hosts is missing")
    if "to" not in given and "http" not in given:
        source.problems.append(f"{where}: to is missing")
    for proxy_key, key in (("proxy", "to"), ("http_proxy", "http")):
        if proxy_key in table and key not in table:
            source.problems.append(f"{where}: {proxy_key}: is for {key}, and there is none")
    hosts = _strings(source, f"{where}: hosts", table.get("hosts", ["absent"]))
    backend = _read_backend(source, where, table, "to", "proxy")
    http = _read_backend(source, where, table, "http", "http_proxy")
    if "transparent" in table and _is_true(source, f"{where}: transparent", table["transparent"]):
        backend, http = (_transparent(source, f"{where}: transparent", x) for x in (backend, http))
    access = _read_access(source, where, table)
    said: dict[str, Any] = {
        x.key: source.attempt(f"{where}: {x.key}", x.parse, table[x.key])
        for x in _OF_A_BACKEND
        if x.key in table
    }
    if "hosts" in table:
        if said:
            backend, http = (x and replace(x, **said) for x in (backend, http))
        source.add_route(where, hosts, backend, http, access)


def _read_backend(
    source: Source, where: str, table: Mapping[str, object], key: str, proxy_key: str
) -> Backend | None:
    """The backend that two keys of a route describe; None where it has none."""
    proxy = None
    if proxy_key in table:
        proxy = source.attempt(f"{where}: {proxy_key}", choice(*_PROXIES), table[proxy_key])
    if key not in table:
        return None
    to, weights = _addresses(source, f"{where}: {key}", table[key])
    backend = source.backend(where if key == "to" else f"{where}: {key}", to, proxy)
    return replace(backend, weights=weights) if weights else backend


def _addresses(source: Source, where: str, value: object) -> tuple[list[str], tuple[int, ...]]:
    """Addresses, each a string or a table that has it, and their weights; no weights if equal."""
    items = value if isinstance(value, list) else [value]
    if not any(isinstance(item, dict) for item in items):
        is_port = isinstance(value, int) and not isinstance(value, bool)
        return _strings(source, where, value, f'"127.0.0.1:{value}"' if is_port else ""), ()
    tables = [item if isinstance(item, dict) else {"address": item} for item in items]
    weights = []
    for table in tables:
        given = table.keys() | _check_keys(source, f"{where}: ", table, _ADDRESS_KEYS)
        if "address" not in given:
            source.problems.append(f"{where}: {shown(table)} has no address")
        share = source.attempt(f"{where}: weight", weight, table.get("weight", 1))
        weights.append(share or 1)
    addresses = [table["address"] for table in tables if "address" in table]
    if not addresses:
        return [], ()
    is_weighted = any(share != 1 for share in weights)
    return _strings(source, where, addresses), tuple(weights) if is_weighted else ()


def _transparent(source: Source, where: str, backend: Backend | None) -> Backend | None:
    """The same backend, dialled from the client's own address."""
    if backend is None:
        return None
    source.problems += [
        f"{where}: {address} is no IP address; a client's own is of the family that a backend has"
        for address in backend.addresses
        if not (isinstance(address, TcpAddress) and address.is_numeric)
    ]
    return replace(backend, transparent=True)


def _read_caddy(source: Source, where: str, table: Mapping[str, object]) -> None:
    given = table.keys() | _check_keys(source, f"{where}: ", table, _CADDY_KEYS)
    admin, proxy = table.get("admin"), None
    if "proxy" in table:
        proxy = source.attempt(f"{where}: proxy", choice(*_CADDY_PROXIES), table["proxy"])
    if isinstance(admin, str):
        source.add_caddys(f"{where}: admin", [admin], proxy)
    elif "admin" not in given:
        source.problems.append(f"{where}: admin is missing")
    elif admin is not None:
        source.problems.append(
            f'{where}: admin: {shown(admin)} is not a string, such as "localhost:2019"; '
            "each Caddy has its own [[caddy]]"
        )


def _check_keys(
    source: Source, where: str, table: Mapping[str, object], known: Sequence[str]
) -> set[str]:
    """Note the keys that are not known; which of the known ones were meant by them."""
    guesses = set()
    for key in table:
        if key in known:
            continue
        guess = meant.key(key, known)
        elsewhere = None if guess else _elsewhere(key)
        if guess is None and elsewhere is None and len(source.problems) < _GUESSED:
            guess = meant.near(key, known)
        if guess is not None:
            guesses.add(guess)
            hint = f"did you mean {guess}?"
        elif elsewhere is not None:
            hint = elsewhere
        elif isinstance(table[key], dict):
            hint = "there is no such table; settings go to the top, above the first [[...]]"
        else:
            hint = f"known are {', '.join(known)}" if len(known) <= _LISTED else _NAMED_AS_FLAGS
        source.problems.append(f"{where}unknown key {shown(key)}; {hint}")
    return guesses


def _elsewhere(key: str) -> str | None:
    """Where a key goes that is not known where it is; None if it is known nowhere."""
    guess = meant.key(key, [each for known, _ in _PLACES for each in known])
    if guess != key and guess in ("hosts", "to", "address"):
        return None  # by words that may mean anything
    places = [place for known, place in _PLACES if guess in known]
    called = "it" if guess == key else guess
    return f"{called} goes {' or '.join(places)}" if places else None


def _several(where: str, value: object) -> str:
    """What to do where one text has several things; empty where it has not."""
    is_split = where in ("--route", "--default")
    if not isinstance(value, str) or is_split or not _SEVERAL.search(value):
        return ""
    if where.startswith("--"):
        return f"one at a time; give {where} again for each"
    return "one at a time; several are a list, each in its own quotes: [..., ...]"


def _tables(source: Source, key: str, document: Mapping[str, object]) -> list[Mapping[str, object]]:
    value = document.get(key, [])
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    example = 'hosts = "..." and to = "..."' if key == "route" else 'admin = "..."'
    source.problems.append(f"{key}: {key}s are tables, each headed [[{key}]], with {example}")
    return []


def _strings(source: Source, where: str, value: object, perhaps: str = "") -> list[str]:
    """One string or a list of them; anything else is noted, and so is an empty list."""
    values = [value] if isinstance(value, str) else value
    if isinstance(values, list) and values and all(isinstance(item, str) for item in values):
        return values
    hint = "; it is empty" if value == [] else f"; perhaps {perhaps}" if perhaps else ""
    source.problems.append(f"{where}: {shown(value)} is not a string or a list of strings{hint}")
    return []
