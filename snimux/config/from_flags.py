"""Read the flags."""

from collections.abc import Mapping
from typing import Any

from snimux.config.settings import PROVIDERS, SETTINGS, choice, shown
from snimux.config.source import LISTEN_KEYS, PROXIES, REFUSE, ConfigSource, read_setting
from snimux.proto import hostname
from snimux.routing.routes import targets


def read_flags(flags: Mapping[str, Any]) -> ConfigSource:
    """Read flags, which are as ``load`` has them."""
    source = ConfigSource()
    proxy = flags.get("proxy_protocol")
    if proxy is not None:
        proxy = source.attempt("--proxy-protocol", choice(*PROXIES), proxy)
    for protocol, key in LISTEN_KEYS.items():
        if flags.get(key):
            source.add_listen(protocol, f"--{key}", flags[key])
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
            refuses = _split(to) == [REFUSE]
            backend = None if refuses else source.backend("--route", _split(to), proxy)
            source.add_route("--route", _split(hosts), targets(tls=backend), refuses=refuses)
    for table in PROVIDERS:
        source.add_providers(table, table.flag, flags.get(table.name) or (), proxy)
    default = flags.get("default")
    if default is not None:
        backend = source.backend("--default", _split(default), proxy)
        source.add_route("--default", [hostname.ANY], targets(tls=backend))
    is_heeded = source.places or source.proxies
    if proxy is not None and not is_heeded and not source.problems:
        with_proxy = [x.flag for x in PROVIDERS if x.proxies and x.of(source.providers)]
        providers = "".join(f"; for {flag} it is auto or off" for flag in with_proxy)
        source.problems.append(
            f"--proxy-protocol: is for --route and --default, and there is none{providers}; "
            'in the file, write proxy = "..." in a [[route]]'
        )
    for setting in SETTINGS:
        text = flags.get(setting.key)
        if text is not None:
            read_setting(source, setting.flag, setting, _number_or_word(text))
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
