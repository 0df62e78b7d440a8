"""Keep the route table as the Caddys are that it is made from, and log what changes.

Knows what each Caddy served when it was last heard; ``admin`` asks them, ``caddy`` makes the
routes.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Generic, TypeVar

import trio

from snimux.config.model import Config
from snimux.log import Log
from snimux.providers.caddy.admin import Back, Changed, Lost, News, follow
from snimux.providers.caddy.sites import Site, Sites
from snimux.providers.merge import Plan, plan
from snimux.routing.address import (
    AdminAddress,
    DialAddress,
    FileAddress,
    TcpAddress,
    UnixAddress,
    is_own,
    reserved_for,
)
from snimux.runtime.background import in_thread
from snimux.text import listed

Made = TypeVar("Made")
"""What is put into effect."""
Result = TypeVar("Result")

# Seconds that the Caddys have to answer before connections are served without them.
_FIRST_ANSWERS = 1.0

DEFAULT_ADMIN = TcpAddress("localhost", 2019)
"""Where a Caddy has its admin API that is told nothing else."""

# A hello for a name that is not known has the Caddys asked at once; but not more often than this,
# for it may be a scanner's, and it waits no longer than this for their answers. Seconds.
_LEAST_APART = 0.5
_PATIENCE = 1.0

# Of a list as many as can be read; the whole of it is what `snimux check` is for.
_LISTED = 8


class Discovery(Generic[Made]):
    """What each Caddy serves, as far as was heard."""

    def __init__(
        self,
        config: Config,
        make: Callable[[Config, Plan], Made],
        exchange: Callable[[Made], None],
        log: Log,
    ) -> None:
        """Of the Caddys of a configuration.

        Args:
            config: which Caddys, and the routes that do not come from them.
            make: returns what is put into effect for a plan; called in a thread.
            exchange: puts that into effect.
            log: told of what changes.
        """
        self.config = config
        self.make = make
        self.exchange = exchange
        self.log = log
        self.plan = Plan(config.routes, (), ())
        """What is in effect."""
        self.changes = 0  # that were heard of
        self.in_effect = 0  # those of them that are
        self.making = trio.Lock()
        self.sites: dict[AdminAddress, Sites | None] = {}  # None: no good answer yet
        self.scopes: dict[AdminAddress, trio.CancelScope] = {}  # of those that are asked
        self.heard = trio.lowlevel.ParkingLot()
        self.nursery: trio.Nursery | None = None
        self.hurry = trio.Event()
        self.rounds = 0  # in which somebody was in a hurry
        self.hurried = -math.inf  # when last
        self.unheard: set[AdminAddress] = set()  # since then
        self.heard_again = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask the Caddys, for ever, and exchange the routes whenever they say something new.

        Args:
            task_status: told once all have answered, or after a second.
        """
        try:
            async with trio.open_nursery() as self.nursery:
                await self.begin(self.config.caddys)
                await self.catch_up()
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.nursery = None

    async def begin(self, caddys: Iterable[AdminAddress]) -> None:
        """Ask these from now on, too, and wait until all have answered, or for a second."""
        new = [address for address in caddys if address not in self.scopes]
        for address in new:
            if self.nursery is not None:
                self.scopes[address] = trio.CancelScope()
                self.nursery.start_soon(self._follow, address, self.scopes[address])
        with trio.move_on_after(_FIRST_ANSWERS):
            while any(address not in self.sites for address in new):
                await self.heard.park()
        self.say_who_is_silent(new)

    def turn_to(self, config: Config) -> None:
        """Have another configuration from now on; who is no longer in it is not asked any more.

        Whoever is new in it is to be asked first, by ``begin``. What is known of others is kept.
        """
        self.config = config
        for address in self.scopes.keys() - set(config.caddys):
            self.scopes.pop(address).cancel()
            self.sites.pop(address, None)
            self._answered(address)

    async def catch_up(self) -> None:
        """Have all that was heard by now in effect: made in one go, and by one at a time."""
        changes = self.changes
        async with self.making:
            if self.in_effect < changes:
                await self._put_into_effect(self.config, self.exchange)

    async def reconfigure(self, config: Config, exchange: Callable[[Made], Result]) -> Result:
        """Put another configuration into effect, with what was heard by now.

        Args:
            config: also for ``turn_to``, which is to be called in the exchange.
            exchange: puts what was made into effect; nothing else is while this is made.

        Returns:
            What the exchange does. What is heard meanwhile is put into effect after it.
        """
        async with self.making:
            return await self._put_into_effect(config, exchange)

    async def _put_into_effect(self, config: Config, exchange: Callable[[Made], Result]) -> Result:
        changes, sites = self.changes, dict(self.sites)
        plan, made, refused = await in_thread(partial(self._made, config, sites))
        result = exchange(made)
        self.plan, self.in_effect = plan, changes
        if refused is not None:
            self.log.write("error", "caddy-refused", {"sites": refused})
        return result

    def _made(
        self, config: Config, sites: Mapping[AdminAddress, Sites | None]
    ) -> tuple[Plan, Made, str | None]:
        """A plan, what is made of it, and what is refused of it that was not before."""
        plan, before = planned(config, sites), {(x.what, x.why) for x in self.plan.refused}
        new = (f"{x.what}: {x.why}" for x in plan.refused if (x.what, x.why) not in before)
        return plan, self.make(config, plan), _listed(new)

    async def _follow(self, address: AdminAddress, scope: trio.CancelScope) -> None:
        with scope:
            tell = partial(self.hear, address)
            await follow(address, tell, early=partial(self.pause, address))

    def hurry_up(self) -> None:
        """Ask all Caddys at once, unless they are being asked already."""
        if self.scopes and not self.unheard:
            self.ask_at_once()

    async def look_again(self) -> None:
        """Ask all Caddys anew, as soon as may be, and wait for what they say; but not for long.

        A Caddy that is given a new site asks for its certificate at once, and those who issue it
        are here within the second.
        """
        wanted = self.rounds + 1
        with trio.move_on_after(_PATIENCE):
            while self.rounds < wanted:
                too_soon = self.hurried + _LEAST_APART - trio.current_time()
                if self.unheard:
                    await self.heard_again.wait()
                elif too_soon > 0:
                    await trio.sleep(too_soon)
                else:
                    self.ask_at_once()
            await self.heard_again.wait()

    def ask_at_once(self) -> None:
        """Begin a round, in which all Caddys are asked."""
        self.rounds += 1
        self.hurried = trio.current_time()
        self.unheard = set(self.config.caddys)
        self.heard_again = trio.Event()
        hurry, self.hurry = self.hurry, trio.Event()
        hurry.set()

    async def pause(self, address: AdminAddress) -> None:
        """Wait until somebody is in a hurry; a Caddy has just answered, or was found not to."""
        self._answered(address)
        await self.hurry.wait()

    def _answered(self, address: AdminAddress) -> None:
        self.unheard.discard(address)
        if not self.unheard:
            self.heard_again.set()

    async def hear(self, address: AdminAddress, news: News) -> None:
        """Take news of a Caddy, and have it in effect; what it served last holds until then."""
        known = self.sites.get(address)
        self.sites.setdefault(address, None)
        match news:
            case Changed(sites):
                self.sites[address] = sites
                self.changes += 1
                await self.catch_up()
                said = partial(changes, address, known or Sites(), sites, self.plan)
                self.log.write("info", "caddy", await in_thread(said))
            case Lost(why):
                routes = "kept" if known else "none yet"
                fields = {"caddy": str(address), "state": "lost", "routes": routes, "detail": why}
                self.log.write("warning", "caddy", fields)
            case Back():
                self.log.write("info", "caddy", {"caddy": str(address), "state": "back"})
        self.heard.unpark_all()

    def say_who_is_silent(self, caddys: Iterable[AdminAddress]) -> None:
        """Log which of these Caddys have not been heard of, well or ill."""
        for address in caddys:
            if address not in self.sites:
                fields = {"caddy": str(address), "state": "no answer yet", "routes": "none yet"}
                self.log.write("warning", "caddy", fields)


def planned(config: Config, sites: Mapping[AdminAddress, Sites | None]) -> Plan:
    """The routes of a configuration, with those of what its Caddys serve."""
    heard = [(address, sites.get(address) or Sites()) for address in config.caddys]
    own = (*config.listen, *config.http, *config.handed_over)
    auto = set(config.caddys) - config.without_proxy
    # Thousands of sites have but a few addresses.
    return plan(
        heard,
        config.routes,
        functools.cache(partial(is_own, own)),
        auto=auto,
        reserved_for=functools.cache(partial(reserved_for, reserved(config))),
    )


def reserved(config: Config) -> dict[DialAddress, str]:
    """Return what only snimux may reach, and what each address is.

    Whoever can dial an admin API can change all of its Caddy, so none of them says where another's
    is and has strangers sent there. One that is known by a file is presumed where Caddys are.
    """
    found: dict[DialAddress, str] = {}
    for admin in config.caddys:
        address = DEFAULT_ADMIN if isinstance(admin, FileAddress) else admin
        found.setdefault(address, f"the admin API of the Caddy at {admin}")
    if isinstance(config.status, TcpAddress | UnixAddress):
        found.setdefault(config.status, "where snimux shows its status")
    return found


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
        "added": _listed(host for host in new if host not in old),
        "removed": _listed(host for host in old if host not in new),
        "moved": _listed(host for host in new if host in old and new[host] != old[host]),
        "claimed": _listed(claimed),
        "loops": _listed(loop.what for loop in found.loops if loop.what in new),
        "needs_route": _listed(unrouted.what for unrouted in after.unrouted),
    }


def by_host(sites: Iterable[Site]) -> dict[str, Site]:
    """Sites that are served somewhere, by their host."""
    return {site.host: site for site in sites if site.https or site.http}


def _listed(words: Iterable[str]) -> str | None:
    """Return a list that fits into a line of the log; None if it is empty."""
    return listed(words, _LISTED) or None
