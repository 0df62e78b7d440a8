"""Read the text of a TOML file."""

import contextlib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from snimux.config import hints
from snimux.config.settings import PROVIDERS, SETTINGS, ProviderTable, choice, shown, weight
from snimux.config.source import (
    LISTEN_KEYS,
    NOT_EXEMPT,
    OFF,
    PROXIES,
    REFUSE,
    TARGET_KEYS,
    ConfigSource,
    read_setting,
)
from snimux.proto import hostname
from snimux.proto.client_hello import TLS
from snimux.routing.access import Access
from snimux.routing.address import AddressError, TcpAddress, parse_listen
from snimux.routing.routes import Backend, targets

LARGEST = 16 * 2**20
"""Bytes of a configuration file: twice what 100,000 routes take. What is no configuration at all,
such as a disk's image under the wrong name, would take the memory of those who are served."""
# Of known keys as many as can be read are listed.
_LISTED = 12
# Of so many problems it is no slip that made them, and a guess takes 0.1 ms.
_GUESSED = 1000
_NAMED_AS_FLAGS = "keys are named as the flags are; snimux --help lists these"
_ACCESS_KEYS = ("allow", "deny", "acme_exempt")
_RULE_KEYS = (*_ACCESS_KEYS, "proxy_from")
_FILE_KEYS = (
    *LISTEN_KEYS.values(), "route", "default", *(kind.name for kind in PROVIDERS),
    *(setting.key for setting in SETTINGS), *_RULE_KEYS,
)  # fmt: skip
_OF_A_BACKEND = tuple(x for x in SETTINGS if x.key in ("balance", "wait", "check"))
_ROUTE_KEYS = (
    "hosts", "listen", *(key for keys in TARGET_KEYS.values() for key in keys), "transparent",
    *_ACCESS_KEYS,
    *(setting.key for setting in _OF_A_BACKEND)
)  # fmt: skip
_ADDRESS_KEYS = ("address", "weight")
_LISTEN_KEYS = ("address", "name", *_RULE_KEYS)
# Where a key goes that is in the wrong table.
_PLACES: tuple[tuple[Sequence[str], str], ...] = (
    (_FILE_KEYS, "to the top, above the first [[...]]"),
    (_ROUTE_KEYS, "into a [[route]]"),
    (_LISTEN_KEYS, "into a [[listen]]"),
    *((x.keys, f"into a [[{x.name}]]") for x in PROVIDERS),
    (["weight"], 'to an address, as in to = [{ address = "127.0.0.1:8443", weight = 2 }]'),
    (["alpn"], 'into hosts, as in hosts = "secure.example.com/h2"'),
)
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


def read_routes(toml: str) -> ConfigSource:
    """Return what the text of a TOML file says that has routes and nothing else."""
    source = ConfigSource()
    document = _parsed(source, toml)
    for key in document.keys() - {"route"}:
        hint = hints.near(key, ["route"])
        advice = f"did you mean {hint}?" if hint else "such a file has only [[route]] tables"
        source.problems.append(f"unknown key {shown(key)}; {advice}")
    _read_routes(source, document)
    return source


def _parsed(source: ConfigSource, toml: str) -> Mapping[str, Any]:
    """Return what TOML says; empty where it is none, which is noted."""
    bare = _QUOTED.sub("_", toml)
    if endless := _ENDLESS.search(bare):
        is_number = re.match("[+-]?[0-9]", endless[0])
        what = "a number of a thousand digits" if is_number else "a key of 10,000 characters"
        source.problems.append(f"not TOML that can be read: {what}")
        return {}
    try:
        if _DEEP.search(bare):
            raise RecursionError
        return tomllib.loads(toml)
    except ValueError as error:  # TOMLDecodeError; or a number of thousands of digits
        source.problems.append(f"not TOML: {error}{hints.toml(toml, str(error))}")
    except RecursionError:
        source.problems.append("not TOML that can be read: nested too deep")
    return {}


def _read_routes(source: ConfigSource, document: Mapping[str, object]) -> None:
    tables = _tables(source, "route", document, 'hosts = "..." and to = "..."')
    for number, table in enumerate(tables, 1):
        _read_route(source, f"route {number}", table)


def read_toml(toml: str) -> ConfigSource:
    """Return what the text of a configuration file says."""
    source = ConfigSource()
    document = _parsed(source, toml)
    _check_keys(source, "", document, _FILE_KEYS)
    for protocol, key in LISTEN_KEYS.items():
        if key in document:
            source.add_listen(protocol, key, _read_listen(source, protocol, document[key]))
    source.rules = _read_rules(source, "", document, _RULE_KEYS)
    _read_routes(source, document)
    for kind in PROVIDERS:
        for number, table in enumerate(
            _tables(source, kind.name, document, f'{kind.key} = "..."'), 1
        ):
            _read_provider(source, kind, f"{kind.name} {number}", table)
    if "default" in document:
        to, weights = _addresses(source, "default", document["default"])
        backend = replace(source.backend("default", to, None), weights=weights)
        source.add_route("default", [hostname.ANY], targets(tls=backend))
    for setting in SETTINGS:
        if setting.key in document:
            read_setting(source, setting.key, setting, document[setting.key])
    return source


def _read_listen(source: ConfigSource, protocol: str, value: object) -> list[str]:
    """Return the addresses to listen on; each may be in a table with a name and rules."""
    key = LISTEN_KEYS[protocol]
    values = value if isinstance(value, list) and value else [value]
    if isinstance(value, int) and not isinstance(value, bool):
        source.problems.append(f'{key}: {value} is not a string; perhaps ":{value}"')
        return []
    is_tls = protocol == TLS.name
    if value == [] or (value is False and not is_tls):
        instead = "leave it out for :443" if is_tls else f'write {key} = "off"'
        source.problems.append(f"{key}: {shown(value)} has no address; {instead}")
        return []
    if not all(isinstance(item, str | dict) for item in values):
        form = f"a string or a list of strings, or tables, each headed [[{key}]]"
        source.problems.append(f"{key}: {shown(value)} is not {form}")
        return []
    addresses: list[str] = []
    for number, item in enumerate(values, 1):
        if isinstance(item, str):
            addresses.append(item)
            continue
        where = f"{key} {number}"
        keys = item.keys() | _check_keys(source, f"{where}: ", item, _LISTEN_KEYS)
        rules = _read_rules(source, f"{where}: ", item, _RULE_KEYS)
        if "name" in item and (name := source.attempt(f"{where}: name", _name, item["name"])):
            rules["name"] = name
            first = source.names.setdefault(protocol, {}).setdefault(name, where)
            if first != where:
                source.problems.append(f"{where}: name: {name} is given twice, first in {first}")
        address = item.get("address")
        if "address" in keys - item.keys():
            continue
        if not isinstance(address, str) or address == OFF:
            fault = f": {shown(address)} is no address" if "address" in item else " is missing"
            source.problems.append(f"{where}: address{fault}")
            continue
        addresses.append(address)
        with contextlib.suppress(AddressError):  # which is noted with the others
            again = source.own_rules.setdefault((protocol, parse_listen(address)), rules)
            if again != rules:  # at port 0 there may be several
                source.problems.append(f"{where}: {address} has another name or other rules above")
    return addresses


def _name(value: object) -> str:
    """Read the name of a listener. Of these characters none ends it where patterns are shown."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError(
            f"{shown(value)} is no name: up to 63 letters, digits, dots, - and _, such as internal"
        )
    return value


def _read_rules(
    source: ConfigSource, where: str, table: Mapping[str, object], keys: Iterable[str]
) -> dict[str, Any]:
    """Read those of the keys that a table has."""
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


def _is_true(source: ConfigSource, where: str, value: object) -> bool:
    if not isinstance(value, bool):
        hint = f"; write {value}, without quotes" if value in ("true", "false") else ""
        source.problems.append(f"{where}: {shown(value)} is not true or false{hint}")
    return value is True


def _read_access(source: ConfigSource, where: str, table: Mapping[str, object]) -> Access | None:
    """Read whom a route serves; None where it does not say."""
    rules = _read_rules(source, f"{where}: ", table, _ACCESS_KEYS)
    if rules.keys() == {"acme_exempt"}:
        source.problems.append(f"{where}: {NOT_EXEMPT}")
    return Access(**rules) if rules else None


def _read_route(source: ConfigSource, where: str, table: Mapping[str, object]) -> None:
    keys = table.keys() | _check_keys(source, f"{where}: ", table, _ROUTE_KEYS)
    refuses = table.get("to") in (REFUSE, [REFUSE])
    if refuses:
        source.problems += [
            f'{where}: {key}: is for who is served, and to = "refuse" serves nobody'
            for key in table
            if key in _ROUTE_KEYS and key not in ("hosts", "listen", "to")
        ]
        table = {key: table[key] for key in ("hosts", "listen") if key in table}
    if "hosts" not in keys:
        source.problems.append(f"{where}: hosts is missing")
    if not any(key in keys for key, _ in TARGET_KEYS.values()):
        source.problems.append(f"{where}: to is missing")
    for key, proxy_key in TARGET_KEYS.values():
        if proxy_key in table and key not in table:
            source.problems.append(f"{where}: {proxy_key}: is for {key}, and there is none")
    hosts = _strings(source, f"{where}: hosts", table.get("hosts", ["absent"]))
    backends = {
        protocol: _read_backend(source, where, table, *keys)
        for protocol, keys in TARGET_KEYS.items()
        if keys[0] in table
    }
    if "transparent" in table and _is_true(source, f"{where}: transparent", table["transparent"]):
        at = f"{where}: transparent"
        backends = {key: _transparent(source, at, backend) for key, backend in backends.items()}
    access = _read_access(source, where, table)
    listeners: Sequence[str | None] = [None]
    if "listen" in table:
        names = _strings(source, f"{where}: listen", table["listen"])
        listeners = list(dict.fromkeys(names)) or [None]
    said: dict[str, Any] = {
        x.key: source.attempt(f"{where}: {x.key}", x.parse, table[x.key])
        for x in _OF_A_BACKEND
        if x.key in table
    }
    if "hosts" in table:
        if said:
            backends = {key: replace(backend, **said) for key, backend in backends.items()}
        source.add_route(where, hosts, targets(**backends), access, listeners, refuses=refuses)


def _read_backend(
    source: ConfigSource, where: str, table: Mapping[str, object], key: str, proxy_key: str
) -> Backend:
    """Return the backend that two keys of a route describe."""
    proxy = None
    if proxy_key in table:
        proxy = source.attempt(f"{where}: {proxy_key}", choice(*PROXIES), table[proxy_key])
    to, weights = _addresses(source, f"{where}: {key}", table[key])
    backend = source.backend(where if key == "to" else f"{where}: {key}", to, proxy)
    return replace(backend, weights=weights) if weights else backend


def _addresses(
    source: ConfigSource, where: str, value: object
) -> tuple[list[str], tuple[int, ...]]:
    """Read addresses, each a string or in a table, and their weights; no weights if equal."""
    items = value if isinstance(value, list) else [value]
    if not any(isinstance(item, dict) for item in items):
        is_port = isinstance(value, int) and not isinstance(value, bool)
        return _strings(source, where, value, f'"127.0.0.1:{value}"' if is_port else ""), ()
    tables = [item if isinstance(item, dict) else {"address": item} for item in items]
    weights = []
    for table in tables:
        keys = table.keys() | _check_keys(source, f"{where}: ", table, _ADDRESS_KEYS)
        if "address" not in keys:
            source.problems.append(f"{where}: {shown(table)} has no address")
        share = source.attempt(f"{where}: weight", weight, table.get("weight", 1))
        weights.append(share or 1)
    addresses = [table["address"] for table in tables if "address" in table]
    if not addresses:
        return [], ()
    is_weighted = any(share != 1 for share in weights)
    return _strings(source, where, addresses), tuple(weights) if is_weighted else ()


def _transparent(source: ConfigSource, where: str, backend: Backend) -> Backend:
    """Return the same backend, dialled from the client's own address."""
    source.problems += [
        f"{where}: {address} is no IP address; a client's own is of the family that a backend has"
        for address in backend.addresses
        if not (isinstance(address, TcpAddress) and address.is_numeric)
    ]
    return replace(backend, transparent=True)


def _read_provider(
    source: ConfigSource, kind: ProviderTable, where: str, table: Mapping[str, object]
) -> None:
    key = kind.key
    keys = table.keys() | _check_keys(source, f"{where}: ", table, kind.keys)
    address, proxy = table.get(key), None
    if "proxy" in table and kind.proxies:
        proxy = source.attempt(f"{where}: proxy", choice(*kind.proxies), table["proxy"])
    if isinstance(address, str):
        source.add_providers(kind, f"{where}: {key}", [address], proxy)
    elif key not in keys:
        source.problems.append(f"{where}: {key} is missing")
    elif address is not None:
        source.problems.append(
            f'{where}: {key}: {shown(address)} is not a string, such as "{kind.example}"; '
            f"each {kind.noun} has its own [[{kind.name}]]"
        )


def _check_keys(
    source: ConfigSource, where: str, table: Mapping[str, object], keys: Sequence[str]
) -> set[str]:
    """Note the keys that there are none of; return which were meant by them."""
    guesses = set()
    for key in table:
        if key in keys:
            continue
        guess = hints.key(key, keys)
        elsewhere = None if guess else _elsewhere(key)
        if guess is None and elsewhere is None and len(source.problems) < _GUESSED:
            guess = hints.near(key, keys)
        if guess is not None:
            guesses.add(guess)
            hint = f"did you mean {guess}?"
        elif elsewhere is not None:
            hint = elsewhere
        elif isinstance(table[key], dict):
            hint = "there is no such table; settings go to the top, above the first [[...]]"
        else:
            hint = f"known are {', '.join(keys)}" if len(keys) <= _LISTED else _NAMED_AS_FLAGS
        source.problems.append(f"{where}unknown key {shown(key)}; {hint}")
    return guesses


def _elsewhere(key: str) -> str | None:
    """Return where a key goes that is in the wrong table; None if it is no key at all."""
    guess = hints.key(key, [each for keys, _ in _PLACES for each in keys])
    if guess == "name" or (guess != key and guess in ("hosts", "to", "address")):
        return None  # by words that may mean anything
    places = [place for keys, place in _PLACES if guess in keys]
    called = "it" if guess == key else guess
    return f"{called} goes {' or '.join(places)}" if places else None


def _tables(
    source: ConfigSource, key: str, document: Mapping[str, object], example: str
) -> list[Mapping[str, object]]:
    value = document.get(key, [])
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    source.problems.append(f"{key}: {key}s are tables, each headed [[{key}]], with {example}")
    return []


def _strings(source: ConfigSource, where: str, value: object, perhaps: str = "") -> list[str]:
    """Read a string or a list of them; anything else is noted, and so is an empty list."""
    values = [value] if isinstance(value, str) else value
    if isinstance(values, list) and values and all(isinstance(item, str) for item in values):
        return values
    hint = "; it is empty" if value == [] else f"; perhaps {perhaps}" if perhaps else ""
    source.problems.append(f"{where}: {shown(value)} is not a string or a list of strings{hint}")
    return []
