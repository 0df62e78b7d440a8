"""The target ``config``: a configuration file as people write it.

Whatever its text, there is a Config, or there are lines that say what is wrong with it, each
printable. What does not matter in TOML does not matter, and flags that say nothing change nothing.
"""

import math
import re
from collections.abc import Iterable
from importlib import resources
from random import Random
from typing import Any

from fuzz import mutation
from fuzz.target import Target
from snimux.config.load import load
from snimux.config.model import Config, ConfigError
from snimux.config.settings import SETTINGS
from snimux.proto.client_hello import TLS
from snimux.routing.address import parse_dial
from snimux.routing.routes import read_pattern

_FILE = "snimux.toml"
_EXAMPLE = resources.files("snimux").joinpath("example.toml")
_WORDS = (
    b"[[route]]", b"[[caddy]]", b"[route]", b'hosts = "a.example"', b'hosts = ["*", "**.x/h2"]',
    b'to = "127.0.0.1:1"', b'to = "unix//x"', b'to = ":443"', b'http = "127.0.0.1:2"', b'"off"',
    b"[[listen]]", b"[[http]]", b'address = ":443"', b'name = "in"', b'listen = "in"',
    b'to = "refuse"', b"route = a.example=refuse", b'listen = [":443", "[::1]:8443"]',
    b'listen = "fd/3"', b'http = ":80"', b'proxy = "auto"',
    b'proxy = "v2"', b'http_proxy = "v1"', b'admin = "localhost:2019"', b'admin = "file//x"',
    b'default = "127.0.0.1:3"', b'caddy = "x"', b"max_hello = 1024", b"workers = 2", b"drain = inf",
    b"hello_timeout = nan", b"idle_timeout = -0.0", b'relay = "portable"', b"max_connections = 1",
    b"1979-05-27", b"true", b"{}", b"[]", b'"\\u0000"', b'"\\u2028"', b'"\xc3\xbc.example"',
    b'"""', b"'", b"=", b",", b"#", b".", b"0x", b"9" * 5000, b"[" * 200, b"\xff", b"log-level",
    b"route = *.a.example=127.0.0.1:1,unix//x", b"caddy = localhost:2019", b"proxy_protocol = v2",
    b"route = **", b"default = localhost:2", b"max_hello = 1e3",
)  # fmt: skip

_VALUES = (
    b'""', b'"off"', b'"auto"', b'"a.example"', b'["*", "b.example/h2"]', b'"127.0.0.1:1"',
    b'["unix//x", "[::1]:8443"]', b'"localhost:2019"', b"[]", b"{}", b"[3]", b"{ a = 1 }", b"true",
    b"0", b"-1", b"1", b"1024", b"70000", b"0.5", b"1e300", b"inf", b"nan", b"1979-05-27",
    b"9" * 4000, b"[" * 2000, b'"x\\u0000"', b'"' + b"x" * 300 + b'"', b'"fd/3"', b'"file//x"',
)  # fmt: skip


def check(data: bytes) -> int:
    """Any text gives a Config or printable lines; how many of either."""
    text = data.decode("utf-8", "replace")
    found = _loaded(text)
    _is_said_well(_loaded("", **_as_flags(text)))
    assert _loaded(text, http=(), route=(), drain=None) == found
    if _is_plain(text):
        assert _loaded(f"{text}\n# a comment\n\n") == found
        assert _loaded(text.replace("\n", "\r\n")) == found
    return _is_said_well(found)


def _is_said_well(found: Config | tuple[str, ...]) -> int:
    if isinstance(found, Config):
        _is_in_order(found)
        return 10 + len(found.routes) + len(found.providers) + len(found.addresses(TLS))
    assert found
    for line in found:
        assert line.isprintable(), line
        assert line.strip()
    return min(9, len(found))


def _as_flags(text: str) -> dict[str, Any]:
    """What would be the file's lines, typed as flags."""
    flags: dict[str, Any] = {}
    for line in text.split("\n"):
        key, _, value = line.partition(" = ")
        value = value.strip('"')
        if key in ("listen", "http", "route", "caddy"):
            flags.setdefault(key, []).append(value)
        elif key in ("default", "proxy_protocol", *(setting.key for setting in SETTINGS)):
            flags[key] = value
    return flags


def _loaded(text: str, **flags: object) -> Config | tuple[str, ...]:
    try:
        return load(flags, _FILE, text)
    except ConfigError as error:
        return error.problems


def _is_plain(text: str) -> bool:
    """Whether its end ends no string of many lines, and a line's end is not within one."""
    return not re.search(r"\"\"\"|'''|\r", text) and isinstance(_loaded(text), Config)


def _is_in_order(config: Config) -> None:
    assert config.addresses(TLS)
    assert config.routes or config.providers
    for route in config.routes:
        assert read_pattern(str(route.pattern)) == route.pattern
        assert bool(route.targets) is not route.refuses
        for backend in route.backends:
            addresses = backend.addresses
            assert [parse_dial(str(address)) for address in addresses] == list(addresses)
    limits = config.limits
    for seconds in (limits.hello_timeout, limits.dial_timeout):
        assert 0 < seconds < math.inf
    assert limits.idle_timeout > 0
    assert limits.drain >= 0
    assert 512 <= limits.max_hello <= 65536


def mutate(data: bytes, random: Random) -> bytes:
    """Another value for a key; or lines and what is in them, changed."""
    keys = [match.span(1) for match in re.finditer(rb"(?m)^\w+ = (.*)$", data)]
    if not keys or random.randint(0, 2):
        return mutation.lines(data, random, _WORDS, end=b"\n")
    start, end = random.choice(keys)
    return data[:start] + random.choice(_VALUES) + data[end:]


def given() -> Iterable[bytes]:
    """The example, with all that it leaves out, and a small one."""
    example = _EXAMPLE.read_bytes()
    yield example
    yield re.sub(rb"(?m)^# ?(?=\[|[a-z_]+ = )", b"", example)
    yield b'default = "127.0.0.1:1"\n'
    yield b"listen = " + b"[" * 2000
    yield b'[[route]]\nhosts = "a.example"\nto = "127.0.0.1:1"\nproxy = "v2"\n'
    yield b"route = a.example,*=127.0.0.1:1\ncaddy = unix//x\nproxy_protocol = auto\nhttp = off"
    yield b'listen = ["127.0.0.1:443"]\n[[caddy]]\nadmin = "localhost:2019"\nproxy = "off"\n'


TARGET = Target(
    "config",
    (
        "config/load",
        "config/model",
        "config/source",
        "config/from_toml",
        "config/settings",
        "routing/address",
        "routing/routes",
    ),
    check,
    given,
    mutate,
    max_size=8192,
)
