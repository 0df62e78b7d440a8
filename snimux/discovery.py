"""Keep the route table as the Caddys are that it is made from, and log what changes.

Knows what each Caddy served when it was last heard; ``admin`` asks them, ``caddy`` makes the
routes.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import trio

from snimux.address import AdminAddress
from snimux.admin import Back, Changed, Lost, News, follow
from snimux.caddy import Plan, Site, Sites, plan
from snimux.config import Config, is_own
from snimux.log import Log

# Seconds that the Caddys have to answer before connections are served without them.
_FIRST_ANSWERS = 1.0

# Of a list as many as can be read; the whole of it is what `snimux check` is for.
_LISTED = 8


async def discover(
    config: Config,
    exchange: Callable[[Plan], None],
    log: Log,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Ask the Caddys, for ever, and exchange the routes whenever they say something new.

    Args:
        config: which Caddys, and the routes that do not come from them.
        exchange: is given all routes, those of the configuration too, when they are others.
        log: told of what changes.
        task_status: told once all have answered, or after a second.
    """
    discovery = Discovery(config, exchange, log)
    async with trio.open_nursery() as nursery:
        for address in config.caddys:
            nursery.start_soon(follow, address, partial(discovery.hear, address))
        with trio.move_on_after(_FIRST_ANSWERS):
            await discovery.all_heard.wait()
        discovery.say_who_is_silent()
        task_status.started()


class Discovery:
    """What each Caddy serves, as far as was heard."""

    def __init__(self, config: Config, exchange: Callable[[Plan], None], log: Log) -> None:
        self.config = config
        self.exchange = exchange
        self.log = log
        self.sites: dict[AdminAddress, Sites | None] = {}  # None: no good answer yet
        self.all_heard = trio.Event()

    def hear(self, address: AdminAddress, news: News) -> None:
        """Take news of a Caddy; what it served last holds while there is nothing better."""
        known = self.sites.get(address)
        self.sites.setdefault(address, None)
        match news:
            case Changed(sites):
                self.sites[address] = sites
                found = planned(self.config, self.sites)
                self.exchange(found)
                self.log.write("info", "caddy", changes(address, known or Sites(), sites, found))
            case Lost(why):
                routes = "kept" if known else "none yet"
                fields = {"caddy": str(address), "state": "lost", "routes": routes, "detail": why}
                self.log.write("warning", "caddy", fields)
            case Back():
                self.log.write("info", "caddy", {"caddy": str(address), "state": "back"})
        if len(self.sites) == len(self.config.caddys):
            self.all_heard.set()

    def say_who_is_silent(self) -> None:
        """Log which Caddys have not been heard of, well or ill."""
        for address in self.config.caddys:
            if address not in self.sites:
                fields = {"caddy": str(address), "state": "no answer yet", "routes": "none yet"}
                self.log.write("warning", "caddy", fields)


def planned(config: Config, sites: Mapping[AdminAddress, Sites | None]) -> Plan:
    """The routes of a configuration, with those of what its Caddys serve."""
    heard = [(address, sites.get(address) or Sites()) for address in config.caddys]
    own = (*config.listen, *config.http)
    auto = set(config.caddys) - config.without_proxy
    return plan(heard, config.routes, lambda address: is_own(own, address), auto=auto)


def changes(
    address: AdminAddress, before: Sites, after: Sites, found: Plan
) -> dict[str, str | int | None]:
    """The fields of the log line for what has changed at a Caddy."""
    old, new = by_host(before.sites), by_host(after.sites)
    claimed = [f"{x.host} ({x.has} has it)" for x in found.claims if x.wants == address]
    return {
        "caddy": str(address),
        "state": "changed",
        "names": len(new),
        "added": listed(host for host in new if host not in old),
        "removed": listed(host for host in old if host not in new),
        "moved": listed(host for host in new if host in old and new[host] != old[host]),
        "claimed": listed(claimed),
        "loops": listed(loop.what for loop in found.loops if loop.what in new),
        "needs_route": listed(unrouted.what for unrouted in after.unrouted),
    }


def by_host(sites: Iterable[Site]) -> dict[str, Site]:
    """Sites that are served somewhere, by their host."""
    return {site.host: site for site in sites if site.https or site.http}


def listed(words: Iterable[str]) -> str | None:
    """A list that fits into a line; None if it is empty."""
    words = list(words)
    more = len(words) - _LISTED
    return ", ".join([*words[:_LISTED], *([f"and {more} more"] if more > 0 else [])]) or None
