"""``config.from_toml``: flags and file say the same things; every mistake in one has its line."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.config.from_flags import read_flags
from snimux.config.from_toml import read_toml
from snimux.config.source import ConfigSource
from snimux.routing.access import Access
from snimux.routing.address import FdAddress, TcpAddress
from snimux.routing.networks import Networks, parse_network
from snimux.routing.routes import Backend, Route, parse_pattern, targets


def problems(source: ConfigSource) -> list[str]:
    for line in source.problems:
        assert line.isprintable()
        assert len(line) < 300
    return source.problems


def test_flags_and_file_say_the_same_in_the_same_words() -> None:
    typed = read_flags(
        {
            "listen": ("127.0.0.1:8443", "fd/3"),
            "http": (":80",),
            "route": ("Bücher.example, *.x.example/h2 = unix//run/a.sock, localhost:1",),
            "default": "127.0.0.1:2",
            "caddy": ("localhost:2019",),
            "hello_timeout": "0.5",
            "max_hello": "65536",
            "idle_timeout": "off",
        }
    )
    written = read_toml(
        """
        listen = ["127.0.0.1:8443", "fd/3"]
        http = ":80"
        default = "127.0.0.1:2"
        hello_timeout = 0.5
        max_hello = 65536
        idle_timeout = "off"
        [[route]]
        hosts = ["Bücher.example", "*.x.example/h2"]
        to = ["unix//run/a.sock", "localhost:1"]
        [[caddy]]
        admin = "localhost:2019"
        """
    )
    for source in (typed, written):
        assert problems(source) == []
        listen = [TcpAddress("127.0.0.1", 8443), FdAddress(3)]
        assert source.listen == {"tls": listen, "http": [TcpAddress("", 80)]}
        assert source.settings == {
            "hello_timeout": 0.5, "max_hello": 65536, "idle_timeout": math.inf,
        }  # fmt: skip
        assert (source.providers, source.proxies) == ([TcpAddress("localhost", 2019)], {})
    assert typed.routes == written.routes
    assert {
        str(pattern): str(route.targets.get("tls")) for pattern, route in typed.routes.items()
    } == {
        "xn--bcher-kva.example": "unix//run/a.sock,localhost:1",
        "*.x.example/h2": "unix//run/a.sock,localhost:1",
        "*": "127.0.0.1:2",
    }


def test_what_is_not_given_is_not_said() -> None:
    assert (
        read_flags({})
        == read_flags({"listen": (), "drain": None})
        == read_toml("")
        == ConfigSource()
    )
    assert read_flags({"http": ("off",)}).listen == read_toml("http = 'off'").listen == {"http": []}


def test_a_caddys_proxy_protocol_is_automatic_or_off() -> None:
    address = TcpAddress("x", 1)
    for word in ("auto", "off"):
        toml = f"[[caddy]]\nadmin = 'x:1'\nproxy = '{word}'"
        assert read_toml(toml).proxies == {address: word}
        flags = {"caddy": ("x:1",), "proxy_protocol": word}
        assert read_flags(flags).proxies == {address: word}


def test_a_route_may_be_for_plain_http_alone() -> None:
    source = read_toml("[[route]]\nhosts = 'a'\nhttp = '127.0.0.1:8080'")
    (route,) = source.routes.values()
    assert (route.targets.get("tls"), route.targets.get("http")) == (
        None,
        Backend((TcpAddress("127.0.0.1", 8080),)),
    )


def test_a_header_may_be_automatic_or_off() -> None:
    toml = """
    [[route]]
    hosts = "a"
    to = "x:1"
    proxy = "auto"
    http = "x:2"
    http_proxy = "off"
    """
    (route,) = read_toml(toml).routes.values()
    assert route.targets.get("tls") == Backend((TcpAddress("x", 1),), "auto")
    assert route.targets.get("http") == Backend((TcpAddress("x", 2),))
    typed = read_flags({"default": "x:1", "proxy_protocol": "auto"}).routes
    any_name = parse_pattern("*")
    assert typed == {any_name: Route(any_name, targets(tls=Backend((TcpAddress("x", 1),), "auto")))}


def test_a_proxy_protocol_for_no_route_is_no_wish_that_could_be_heeded() -> None:
    (line,) = problems(read_flags({"proxy_protocol": "v2"}))
    assert line.startswith("--proxy-protocol: is for --route and --default, and there is none")
    assert "--caddy" not in line
    (line,) = problems(read_flags({"proxy_protocol": "v2", "caddy": ("x:1",)}))
    assert "; for --caddy it is auto or off; in the file" in line


@pytest.mark.parametrize(
    ("given_flags", "line"),
    [
        ({"http": ("80",)}, "--http: '80': no port; perhaps :80"),
        ({"http": (":80", "off")}, "--http: off goes alone, without an address"),
        ({"http": (":1", "[::]:1")}, "--http: [::]:1 is covered by :1 already"),
        ({"route": ("foo",)}, "--route: 'foo' is not HOST[,HOST...]=ADDR[,ADDR...], "
                              "such as secure.example.com=127.0.0.1:8443"),
        ({"route": ("=1:1",)}, "--route: '=1:1' is not HOST"),
        ({"route": ("a=",)}, "--route: 'a=' is not HOST"),
        ({"route": ("a,,b=x:1",)}, "--route: '': an empty name"),
        ({"route": ("a=x",)}, "--route: 'x': no port; perhaps x:8443"),
        ({"route": ("a=:1",)}, "--route: ':1': no host to dial; perhaps 127.0.0.1:1"),
        ({"route": ("a b=x:1",)}, "--route: 'a b': has ' '; a name has letters"),
        ({"route": ("1.2.3.4=x:1",)}, "--route: '1.2.3.4': an IP address, not a name"),
        ({"route": ("a:443=x:1",)}, "--route: 'a:443': has a port; a name has none"),
        ({"route": ("a=x:1", "A.=y:1")},
         "--route: the pattern a is given twice, first in --route; several addresses go into one"),
        ({"route": ("*=x:1",), "default": "y:1"},
         "--default: the pattern * (the default is it, too) is given twice, first in --route"),
        ({"listen": ("443",)}, "--listen: '443': no port; perhaps :443"),
        ({"route": ("a=x:1,y:1, X:1",)}, "--route: x:1 is given twice"),
        ({"default": "unix//a,unix//a"}, "--default: unix//a is given twice"),
        ({"listen": (":1", ":1")}, "--listen: :1 is given twice"),
        ({"caddy": ("localhost",)}, "--caddy: 'localhost': no port; perhaps localhost:2019"),
        ({"caddy": ("http://localhost:2019/",)},
         "--caddy: 'http://localhost:2019/': a URL, not an address; perhaps localhost:2019"),
        ({"caddy": ("unix//run/a", "file/x", "unix//run/a")},
         "--caddy: unix//run/a is given twice"),
        ({"caddy": ("localhost:1", "127.0.0.1:1")},
         "--caddy: 127.0.0.1:1 is given twice, as localhost:1"),
        ({"default": "https://x:1"}, "--default: 'https://x:1': a URL, not an address; "
                                     "perhaps x:1"),
        ({"proxy_protocol": "2"}, "--proxy-protocol: '2' is not one of v1, v2"),
        ({"hello_timeout": "1" + "0" * 400}, "--hello-timeout: 1000"),
        ({"max_hello": "9" * 4000}, "--max-hello: 999"),
        ({"listen": ("127.0.0.1:1", ":1")}, "--listen: :1 is covered by 127.0.0.1:1 already"),
        ({"listen": ("[::]:1", "localhost:1")}, "--listen: localhost:1 is covered by [::]:1"),
        ({"route": ("https://a.b=x:1",)}, "--route: 'https://a.b': a URL, not a host"),
        ({"route": ("a/ h2=x:1",)}, "--route: 'a/ h2': behind the / goes an ALPN protocol"),
        ({"hello_timeout": "5s"}, "--hello-timeout: '5s' is not a number of seconds"),
        ({"hello_timeout": "off"}, "--hello-timeout: 'off' is not a number of seconds"),
        ({"hello_timeout": "0"}, "--hello-timeout: 0 is not a number of seconds above 0"),
        ({"dial_timeout": "nan"}, "--dial-timeout: nan is not a number of seconds above 0"),
        ({"drain": "inf"}, "--drain: inf is not a number of seconds above 0; "
                           "write off for no limit"),
        ({"idle_timeout": "0"}, "--idle-timeout: 0 is not a number of seconds above 0; "
                                "write off for no limit"),
        ({"idle_timeout": "-1"}, "--idle-timeout: -1 is not a number of seconds above 0"),
        ({"max_hello": "16"}, "--max-hello: 16 is not a number of bytes from 512 to 65536"),
        ({"max_hello": "65537"}, "--max-hello: 65537 is not a number of bytes from 512 to 65536"),
        ({"max_hello": "16KiB"}, "--max-hello: '16KiB' is not a number of bytes"),
        ({"max_hello": "1000.5"}, "--max-hello: 1000.5 is not a number of bytes"),
        ({"max_connections": "0"}, "--max-connections: 0 is not a number of connections or auto"),
        ({"workers": "0"}, "--workers: 0 is not a number of workers or auto from 1 to 256"),
        ({"max_connections": "off"}, "--max-connections: 'off' is not a number of connections"),
        ({"log_format": "xml"}, "--log-format: 'xml' is not one of logfmt, json"),
        ({"log_level": "loud"}, "--log-level: 'loud' is not one of debug, info, warning, error"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_flag_has_its_line(given_flags: dict[str, Any], line: str) -> None:
    (found,) = problems(read_flags(given_flags))
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("listen = ", "not TOML: "),
        ("drain = " + "9" * 5001, "not TOML: "),
        ("listen = 0x" + "f" * 5000, "not TOML that can be read: a number of a thousand digits"),
        ("[[caddy]]\nadmin = [0x" + "f" * 5000 + "]", "not TOML that can be read: a number of"),
        ("x = " + "[" * 5000, "not TOML that can be read: nested too deep"),
        ("x = " + "{x=" * 5000, "not TOML that can be read: nested too deep"),
        ("a." * 10**5 + "a = 1", "not TOML that can be read: nested too deep"),
        ("drain = 3\n[" + "a . " * 10**5 + "a]", "not TOML that can be read: nested too deep"),
        ("[[" + "'a'.\"\\\"\".b." * 10**5 + "a]]", "not TOML that can be read: nested too deep"),
        ("x = [\n{" + "a." * 10**5 + "a = 1}]", "not TOML that can be read: nested too deep"),
        ("x = '''#'''''\n" + "a." * 20 + "a = 1", "not TOML that can be read: nested too deep"),
        ("drain = " + "9" * 10**6, "not TOML that can be read: a number of a thousand digits"),
        ("drain = 1." + "9" * 10**6, "not TOML that can be read: a number of a thousand digits"),
        ("d" * 10**6 + " = 1", "not TOML that can be read: a key of 10,000 characters"),
        ("hello-timeout = 3", "unknown key 'hello-timeout'; did you mean hello_timeout?"),
        ("Drain = 3", "unknown key 'Drain'; did you mean drain?"),
        ("zebra = 3", "unknown key 'zebra'; keys are named as the flags are; snimux --help lists"),
        ("listen = 443", 'listen: 443 is not a string; perhaps ":443"'),
        ("listen = []", "listen: [] has no address; leave it out for :443"),
        ("listen = [1]", "listen: [1] is not a string or a list of strings"),
        ("hello_timeout = '5'", "hello_timeout: '5' is not a number of seconds"),
        ("hello_timeout = true", "hello_timeout: true is not a number of seconds"),
        ("idle_timeout = nan", "idle_timeout: nan is not a number of seconds above 0"),
        ("max_connections = 1.5", "max_connections: 1.5 is not a number of connections or auto"),
        ("max_connections = true", "max_connections: true is not a number of connections or auto"),
        ("log_level = 3", "log_level: 3 is not one of debug, info, warning, error"),
        ("http = 80", 'http: 80 is not a string; perhaps ":80"'),
        ("http = 'on'", "http: 'on': no port; perhaps on:8443"),
        ("[[route]]\nhosts='a'\nto='x:1'\nhttp=8080",
         "route 1: http: 8080 is not a string or a list"),
        ("[[route]]\nhosts='a'\nto='x:1'\nhttp=':1'", "route 1: http: ':1': no host to dial"),
        ("[[route]]\nhosts='a'\nto='x:1'\nhttp_proxy='v1'",
         "route 1: http_proxy: is for http, and there is none"),
        ("[[route]]\nhosts='a'\nhttp='x:1'\nproxy='v1'",
         "route 1: proxy: is for to, and there is none"),
        ("[[route]]\nhosts='a'\nto='x:1'\nhttp='x:2'\nhttp_proxy='v3'",
         "route 1: http_proxy: 'v3' is not one of v1, v2"),
        ("[[route]]\nhosts=['a', 'a/h2']\nto='x:1'\nhttp='x:2'",
         "route 1: http: plain HTTP has no ALPN protocol, so it cannot be for a/h2; "
         "give http in a route for a"),
        ("default = {}", "default: {} has no address"),
        ("default = '10.0.0.1'", "default: '10.0.0.1': no port; perhaps 10.0.0.1:8443"),
        ("caddy = 'localhost:2019'", "caddy: caddys are tables, each headed [[caddy]]"),
        ("[[caddy]]", "caddy 1: admin is missing"),
        ("[[caddy]]\nadmin = 3", "caddy 1: admin: 3 is not a string"),
        ("[[caddy]]\nadmin = 'x:1'\nname = 'x'",
         "caddy 1: unknown key 'name'; known are admin, proxy"),
        ("[[caddy]]\nadmin = 'x:1'\nproxy = 'v2'",
         "caddy 1: proxy: 'v2' is not one of auto, off"),
        ("[[caddy]]\nadmin = 'x:1'\n[[caddy]]\nadmin = 'x:1'",
         "caddy 2: admin: x:1 is given twice"),
        ("[[route]]\nhosts='a'\nto=['x:1', {address='x:1', weight=2}]",
         "route 1: x:1 is given twice; weight gives one a larger share"),
        ("route = 3", "route: routes are tables, each headed [[route]]"),
        ("[route]\nhosts='a'", "route: routes are tables, each headed [[route]]"),
        ("[[route]]\nto='x:1'", "route 1: hosts is missing"),
        ("[[route]]\nhosts='a'", "route 1: to is missing"),
        ("[[route]]\nhost='a'\nhosts='a'\nto='x:1'",
         "route 1: unknown key 'host'; did you mean hosts?"),
        ("[[route]]\nhosts='a'\nto='x:1'\n[[route]]\nhosts=['b', 'A.']\nto='x:1'",
         "route 2: the pattern a is given twice, first in route 1"),
        ("[[route]]\nhosts='a'\nto='x:1'\nproxy=2", "route 1: proxy: 2 is not one of v1, v2"),
        ("[[route]]\nhosts=[]\nto='x:1'", "route 1: hosts: [] is not a string or a list"),
        ("[[route]]\nhosts='a/'\nto='x:1'", "route 1: 'a/': behind the / goes an ALPN protocol"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_has_its_line(toml: str, line: str) -> None:
    (found,) = problems(read_toml(toml))
    assert found.startswith(line)


def test_what_is_no_configuration_is_not_guessed_at_without_end() -> None:
    found = problems(
        read_toml("drian = 1\n" + "".join(f"k{x} = 1\n" for x in range(999)) + "dran = 1")
    )
    assert found[0] == "unknown key 'drian'; did you mean drain?"
    assert found[1000].startswith("unknown key 'dran'; keys are named as the flags are")


def test_dots_and_brackets_in_texts_and_comments_nest_nothing() -> None:
    dots, brackets = "1." * 40 + "ip6.arpa", "[" * 5000
    for quoted in (f'"{dots}"', f"'{dots}'", f'"""{dots}"""', f"'''{dots}'''"):
        toml = f"# {dots} \"\n[[route]]\nhosts = {quoted} # {brackets} '''\nto = 'x:1'\n"
        source = read_toml(toml)
        assert not source.problems
        assert [str(pattern) for pattern in source.routes] == [dots]


ROUTE = '[[route]]\nhosts = "a.example"\nto = "127.0.0.1:1"\n'


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        (ROUTE + "weight = 2", "route 1: unknown key 'weight'; it goes to an address, as in "
         'to = [{ address = "127.0.0.1:8443", weight = 2 }]'),
        (ROUTE + 'proxy_protocol = "v2"', "route 1: unknown key 'proxy_protocol'; did you mean "
         "proxy?"),
        (ROUTE + "workers = 2", "route 1: unknown key 'workers'; it goes to the top, above the "
         "first [[...]]"),
        (ROUTE + 'admin = "localhost:2019"', "route 1: unknown key 'admin'; it goes into a "
         "[[caddy]]"),
        (ROUTE + 'alpn = "h2"', "route 1: unknown key 'alpn'; it goes into hosts, as in "
         'hosts = "secure.example.com/h2"'),
        (ROUTE + 'transparent = "true"', "route 1: transparent: 'true' is not true or false; "
         "write true, without quotes"),
        ("transparent = true", "unknown key 'transparent'; it goes into a [[route]]"),
        ('proxy = "v2"', "unknown key 'proxy'; it goes into a [[route]] or into a [[caddy]]"),
        ("[limits]\ndrain = 1", "unknown key 'limits'; there is no such table; settings go to the "
         "top, above the first [[...]]"),
        # said once, and not besides that the other is missing
        ('[[route]]\nhost = "a"\nto = "x:1"', "route 1: unknown key 'host'; did you mean hosts?"),
        ('[[route]]\nhosts = "a"\nbackend = "x:1"', "route 1: unknown key 'backend'; did you mean "
         "to?"),
        ('[[listen]]\nport = 443', "listen 1: unknown key 'port'; did you mean address?"),
        ('[[caddy]]\naddress = "x:1"', "caddy 1: unknown key 'address'; did you mean admin?"),
        ("[[caddy]]\nadmin = 2019", "caddy 1: admin: 2019 is not a string, such as "
         '"localhost:2019"; each Caddy has its own [[caddy]]'),
        ('caddy = "x:1"', "caddy: caddys are tables, each headed [[caddy]], with admin = \"...\""),
        ("default = 8443", "default: 8443 is not a string or a list of strings; perhaps "
         '"127.0.0.1:8443"'),
        ('default = "off"', "default: 'off': no address; where there is none, leave this out"),
        ('default = "a:1, b:1"', "default: 'a:1, b:1': one at a time; several are a list, each in "
         "its own quotes: [..., ...]"),
        ("drain = '5s'", "drain: '5s' is not a number of seconds or off; write 5, without a unit"),
        ("max_hello = '16k'", "max_hello: '16k' is not a number of bytes; write 16384, without a "
         "unit"),
        ("max_rate_per_source = '10/s'", "max_rate_per_source: '10/s' is not a number of "
         "connections a second or off; write 10, without a unit"),
        ("workers = '2'", "workers: '2' is not a number of workers or auto; write 2, without "
         "quotes"),
        ("watch = false", "watch: false is not one of on, off; did you mean off?"),
        ("log_level = 'warn'", "log_level: 'warn' is not one of debug, info, warning, error; did "
         "you mean warning?"),
        ("idle_timeout = 07:32:00", "idle_timeout: 07:32:00 is not a number of seconds or off"),
        ("status = 9443", "status: 9443 is not an address or off; perhaps 127.0.0.1:9443"),
        ("acme_exempt = True", "not TOML: Invalid value (at line 1, column 15); write "
         "acme_exempt = true or false, in small letters"),
    ],
)  # fmt: skip
def test_what_was_meant_by_a_mistake_is_told_in_the_same_line(toml: str, line: str) -> None:
    assert problems(read_toml(toml)) == [line]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["listen", "http", "route", "default", "drain", "x"]), JSON))
def test_any_document_is_read_or_refused_in_words(document: dict[str, Any]) -> None:
    def toml(value: Any) -> str:
        match value:
            case bool():
                return str(value).lower()
            case dict():
                return "{" + ", ".join(f"{quoted(k)} = {toml(v)}" for k, v in value.items()) + "}"
            case list():
                return "[" + ", ".join(map(toml, value)) + "]"
            case str():
                return quoted(value)
            case None:
                return "[]"
            case _:
                return repr(value)

    def quoted(text: str) -> str:
        escaped = "".join(f"\\U{ord(c):08x}" for c in text if not 0xD800 <= ord(c) < 0xE000)
        return f'"{escaped}"'

    text = "\n".join(f"{key} = {toml(value)}" for key, value in document.items())
    assert all(line and line.isprintable() for line in read_toml(text).problems)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    assert all(read_toml(text).problems)


# Who is let in.


def networks(*texts: str, unix: bool = False) -> Networks:
    return Networks(tuple(map(parse_network, texts)), unix)


def test_listeners_may_be_strings_and_tables_each_with_rules_of_its_own() -> None:
    mixed = """
        allow = "10.0.0.0/8"
        listen = [":443", {address = "127.0.0.1:8443", deny = ["10.1.0.0/16", "unix"]}]
        [[http]]
        address = ":80"
        allow = ["::1"]
        acme_exempt = true
        """
    source = read_toml(mixed)
    assert problems(source) == []
    listen = [TcpAddress("", 443), TcpAddress("127.0.0.1", 8443)]
    assert source.listen == {"tls": listen, "http": [TcpAddress("", 80)]}
    assert source.rules == {"allow": networks("10.0.0.0/8")}
    assert source.own_rules == {
        ("tls", TcpAddress("127.0.0.1", 8443)): {"deny": networks("10.1.0.0/16", unix=True)},
        ("http", TcpAddress("", 80)): {"allow": networks("::1"), "acme_exempt": True},
    }
    flags = {"allow": ("10.0.0.0/8", "::1"), "deny": ("10.0.0.1",), "proxy_from": ("unix",)}
    typed = read_flags(flags)
    assert problems(typed) == []
    assert typed.rules == {
        "allow": networks("10.0.0.0/8", "::1"),
        "deny": networks("10.0.0.1"),
        "proxy_from": networks(unix=True),
    }


def test_one_listener_may_be_a_table_of_its_own() -> None:
    source = read_toml('[listen]\naddress = ":443"\ndeny = "10.0.0.1"')
    assert problems(source) == []
    assert source.own_rules == {("tls", TcpAddress("", 443)): {"deny": networks("10.0.0.1")}}


def test_a_route_says_whom_it_serves() -> None:
    source = read_toml(
        """
        [[route]]
        hosts = ["a.example", "b.example"]
        to = "localhost:1"
        allow = ["10.0.0.0/8"]
        deny = "10.0.0.1"
        acme_exempt = true
        [[route]]
        hosts = "c.example"
        to = "localhost:1"
        """
    )
    assert problems(source) == []
    access = Access(networks("10.0.0.0/8"), networks("10.0.0.1"), acme_exempt=True)
    assert [x.access for x in source.routes.values()] == [access, access, None]


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ('allow = "10.0.0.1/8"', "allow: '10.0.0.1/8': has bits set behind the prefix; write "
         "10.0.0.0/8 for the network, or 10.0.0.1 for this address"),
        ("allow = []", "allow: an empty list would let nobody in; leave allow out to let "
         'everybody in, or write deny = ["0.0.0.0/0", "::/0", "unix"]'),
        ('deny = "any"', "deny: 'any': no IP network; everybody is 0.0.0.0/0, ::/0 and unix"),
        ('deny = "::1, ::2"', "deny: '::1, ::2': one at a time; several are a list, each in its "
         "own quotes: [..., ...]"),
        ("deny = [1]", "deny: [1] is not a string or a list of strings"),
        ("acme_exempt = 1", "acme_exempt: 1 is not true or false"),
        ("listen = []", "listen: [] has no address; leave it out for :443"),
        ("http = false", 'http: false has no address; write http = "off"'),
        ("listen = [1]", "listen: [1] is not a string or a list of strings, or tables, each "
         "headed [[listen]]"),
        ("[[listen]]", "listen 1: address is missing"),
        ("[[listen]]\naddress = 443", "listen 1: address: 443 is no address"),
        ('[[http]]\naddress = "off"', "http 1: address: 'off' is no address"),
        ('[[listen]]\naddress = "443"', "listen: '443': no port; perhaps :443"),
        ('[[listen]]\naddress = ":443"\ndenied = "::1"',
         "listen 1: unknown key 'denied'; did you mean deny?"),
        ('[[listen]]\naddress = ":443"\nproxy_from = true',
         "listen 1: proxy_from: true is not a string or a list of strings"),
        ('[[route]]\nhosts = "a.example"\nto = "localhost:1"\nproxy_from = "::1"',
         "route 1: unknown key 'proxy_from'; it goes to the top, above the first [[...]] or into a "
         "[[listen]]"),
        ('[[listen]]\naddress = ":443"\ndeny = "office"', "listen 1: deny: 'office': no IP "
         "network, such as 192.0.2.0/24 or 2001:db8::/32"),
        ('[[route]]\nhosts = "a.example"\nto = "localhost:1"\nallow = ["::1/0"]', "route 1: allow: "
         "'::1/0': has bits set behind the prefix; write ::/0 for the network, or ::1 for this "
         "address"),
        ('[[route]]\nhosts = "a.example"\nto = "localhost:1"\nacme_exempt = true',
         "route 1: acme_exempt: is for allow and deny, and there is neither"),
    ],
)  # fmt: skip
def test_every_mistake_about_who_is_let_in_names_its_key(toml: str, line: str) -> None:
    assert problems(read_toml(toml)) == [line]


def test_a_network_that_is_none_names_its_flag() -> None:
    (line,) = problems(read_flags({"deny": ("10.0.0.0/33",)}))
    assert line == "--deny: '10.0.0.0/33': the prefix is longer than the address"


def test_a_route_may_be_transparent() -> None:
    toml = '[[route]]\nhosts = "{0}"\nto = "127.0.0.1:1"\nhttp = "[::1]:2"\ntransparent = {0}\n'
    source = read_toml(toml.format("true") + toml.format("false"))
    assert problems(source) == []
    backends = [(x.targets.get("tls"), x.targets.get("http")) for x in source.routes.values()]
    assert [[x and x.transparent for x in pair] for pair in backends] == [[True] * 2, [False] * 2]


@pytest.mark.parametrize("address", ["unix//run/a.sock", "localhost:1"])
@pytest.mark.parametrize("key", ["to", "http"])
def test_what_is_transparent_goes_to_ip_addresses(address: str, key: str) -> None:
    toml = f'[[route]]\nhosts = "a"\n{key} = ["[::1]:1", "{address}"]\ntransparent = true'
    assert problems(read_toml(toml)) == [
        f"route 1: transparent: {address} is no IP address; a client's own is of the family that "
        "a backend has"
    ]
    (line,) = problems(read_toml('[[route]]\nhosts = "a"\nto = "[::1]:1"\ntransparent = "yes"'))
    assert line == "route 1: transparent: 'yes' is not true or false"


def test_who_is_denied_or_believed_may_be_nobody() -> None:
    source = read_toml(
        """
        deny = "::1"
        proxy_from = "unix"
        [[listen]]
        address = ":443"
        deny = []
        proxy_from = []
        """
    )
    assert problems(source) == []
    assert source.rules == {"deny": networks("::1"), "proxy_from": Networks(unix=True)}
    assert list(source.own_rules.values()) == [{"deny": Networks(), "proxy_from": Networks()}]


def test_routes_to_the_same_place_have_one_backend() -> None:
    one, two = read_toml(ROUTE + ROUTE.replace("a.example", "b.example")).routes.values()
    assert one.targets.get("tls") is two.targets.get("tls")
