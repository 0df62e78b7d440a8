"""Keep the routes as the providers are that they are made from, and log what changes.

Knows what each provider said last: the providers look, ``merge`` makes the routes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import eq
from typing import Any, Generic, Protocol, TypeVar

import trio

from snimux.config.model import Config
from snimux.log import Field, Level, Log
from snimux.providers.base import Fault, Lost, News, Provider, Snapshot
from snimux.providers.caddy.admin import CaddyProvider
from snimux.providers.directory import DirectoryProvider
from snimux.providers.merge import Plan
from snimux.routing.address import DirectoryAddress, ProviderAddress
from snimux.runtime.background import in_thread
from snimux.runtime.keyed_tasks import KeyedTasks
from snimux.text import listed


class Merged(Protocol):
    """Something that can be put into effect."""

    @property
    def plan(self) -> Plan:
        """The routes that it was made of."""


Made = TypeVar("Made", bound=Merged)
Make = Callable[[Config, Mapping[ProviderAddress, Snapshot | None]], Made]
"""Returns what is put into effect for a configuration and what was said; called in a thread."""

# Seconds that the providers have to answer before connections are served without them.
_FIRST_ANSWERS = 1.0

# News are joined that come so soon after another (seconds), for at most so long: several Caddys are
# started together, and each makes all routes anew.
_QUIET, _JOINED = 0.05, 1.0

# A hello for a name that is not known has the providers asked at once; but not more often than
# this, for it may be a scanner's, and it waits no longer than this for their answers. Seconds.
_LEAST_APART = 0.5
_PATIENCE = 1.0

# Of a list as many as can be read; the whole of it is what `snimux check` is for.
_LISTED = 8


def provider(address: ProviderAddress) -> Provider:
    """Return the provider that is at an address: of which kind it is, its type says."""
    if isinstance(address, DirectoryAddress):
        return DirectoryProvider(address)
    return CaddyProvider(address)


async def ask_once(addresses: Iterable[ProviderAddress]) -> dict[ProviderAddress, News]:
    """Return what each provider says first."""
    addresses, answers = list(addresses), dict[ProviderAddress, News]()

    async def ask(address: ProviderAddress) -> None:
        with trio.CancelScope() as scope:

            async def publish(news: News) -> None:
                answers[address] = news
                scope.cancel()

            await provider(address).provide(publish)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(ask, address)
    return {address: answers[address] for address in addresses}


class ConfigInEffect(Protocol):
    """The part of what is in effect that a discovery reads."""

    @property
    def config(self) -> Config:
        """The providers that there are, and the written routes."""


class Discovery(Generic[Made]):
    """Knows what each provider serves, as far as it was said, and brings it into effect."""

    def __init__(
        self,
        config: Config,
        make: Make[Made],
        put: Callable[[Made], None],
        log: Log,
        *,
        provider: Callable[[ProviderAddress], Provider] = provider,
    ) -> None:
        """Begin with the routes of a configuration, and nothing of its providers.

        Args:
            config: which providers, and the routes that do not come from them.
            make: returns what is put into effect for what was said; called in a thread.
            put: puts that into effect.
            log: gets a line for each change.
            provider: returns the provider at an address.
        """
        self.provider = provider
        self.config = config
        self.make = make
        self.put = put
        self.log = log
        self.plan = Plan(config.routes, (), ())
        """The routes that are in effect."""
        self.changes = 0  # that were heard of
        self.changed = -math.inf  # when last
        self.in_effect = 0  # those of the changes that are
        self.making = trio.Lock()
        self.providers: dict[ProviderAddress, Provider] = {}
        self.tasks = KeyedTasks(self._provide)
        self.snapshots: dict[ProviderAddress, Snapshot | None] = {}
        """The last good one of each that was heard of; None where there was none."""
        self.lost: dict[ProviderAddress, str] = {}
        """Those that cannot be learnt of now, and why."""
        self.heard = trio.lowlevel.ParkingLot()
        self.rounds = 0  # in which all were to look at once
        self.round_began = -math.inf  # when last
        self.unheard: set[ProviderAddress] = set()  # since then
        self.all_heard = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Have the providers look until cancelled, and exchange the routes for what is new.

        Args:
            task_status: started once all have answered, or after a second.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.tasks.run)
            await self.begin(self.config.providers)
            await self.catch_up()
            task_status.started()

    async def begin(self, addresses: Iterable[ProviderAddress]) -> None:
        """Have these look from now on, too; wait until all have answered, or for a second."""
        new = [address for address in addresses if address not in self.tasks.scopes]
        for address in new:
            self.providers[address] = self.provider(address)
            self.tasks.begin(address)
        with trio.move_on_after(_FIRST_ANSWERS):
            while any(address not in self.snapshots for address in new):
                await self.heard.park()
        for address in new:
            if address not in self.snapshots:
                self._say(address, "warning", "no answer yet", routes="none yet")

    def reconcile(self, generation: ConfigInEffect) -> None:
        """Have its configuration from now on; who is no longer in it need not look any more.

        Whoever is new in it is to look first, by ``begin``. What is known of others is kept.
        """
        if generation.config is self.config:
            return  # who has begun for a configuration to come goes on
        self.config = generation.config
        self.end_unlisted()

    def end_unlisted(self) -> None:
        """End those that are not in the configuration that is in effect, and forget them."""
        for address in self.tasks.scopes.keys() - set(self.config.providers):
            self.tasks.end(address)
            for each in (self.providers, self.snapshots, self.lost):
                each.pop(address, None)
            self._answered(address)

    async def catch_up(self) -> None:
        """Have all that was heard by now in effect: made in one go, and by one at a time."""
        changes = self.changes
        async with self.making:
            if self.in_effect < changes:
                await self._until_quiet()
                await self._put_into_effect(self.config, self.make)

    async def _until_quiet(self) -> None:
        with trio.move_on_after(_JOINED):
            while (due := self.changed + _QUIET) > trio.current_time():  # noqa: ASYNC110
                await trio.sleep_until(due)

    async def reconfigure(self, config: Config, make: Make[Made]) -> None:
        """Put another configuration into effect, with what was heard by now.

        What is heard meanwhile is put into effect after it.

        Args:
            config: for ``reconcile``, too, which is to be called when it is put into effect.
            make: as of this object, but for this time; nothing else is made meanwhile.
        """
        async with self.making:
            await self._put_into_effect(config, make)

    async def _put_into_effect(self, config: Config, make: Make[Made]) -> None:
        # In a thread: of 10,000 sites it takes a quarter of a second, and connections go on.
        changes, snapshots = self.changes, dict(self.snapshots)
        made, refused = await in_thread(lambda: self._checked(make(config, snapshots)))
        self.put(made)
        self.plan, self.in_effect = made.plan, changes
        if refused is not None:
            self.log.write("error", "caddy-refused", {"sites": refused})

    def _checked(self, made: Made) -> tuple[Made, str | None]:
        """Return the same, and what is refused of it that was not before."""
        before = {(x.what, x.why) for x in self.plan.refused}
        refused = (x for x in made.plan.refused if (x.what, x.why) not in before)
        return made, _listed(f"{x.what}: {x.why}" for x in refused)

    async def _provide(self, address: ProviderAddress) -> None:
        await self.providers[address].provide(partial(self.hear, address))

    def poll_now(self) -> None:
        """Have all providers look at once, unless they were told to and have not answered."""
        if self.tasks.scopes and not self.unheard:
            self._begin_round()

    async def refresh(self) -> None:
        """Have all providers look anew, as soon as may be, and wait for them; but not for long.

        A Caddy that is given a new site asks for its certificate at once, and those who issue it
        are here within the second.
        """
        if not self.config.providers:
            return
        next_round = self.rounds + 1
        with trio.move_on_after(_PATIENCE):
            while self.rounds < next_round:
                too_soon = self.round_began + _LEAST_APART - trio.current_time()
                if self.unheard:
                    await self.all_heard.wait()
                elif too_soon > 0:
                    await trio.sleep(too_soon)
                else:
                    self._begin_round()
            await self.all_heard.wait()

    def _begin_round(self) -> None:
        self.rounds += 1
        self.round_began = trio.current_time()
        self.unheard = set(self.config.providers)
        self.all_heard = trio.Event()
        for each in self.providers.values():
            each.poll_now()

    def _answered(self, address: ProviderAddress) -> None:
        self.unheard.discard(address)
        if not self.unheard:
            self.all_heard.set()

    async def hear(self, address: ProviderAddress, news: News) -> None:
        """Take news of a provider, and have them in effect; what it said last holds until then."""
        await trio.lowlevel.checkpoint_if_cancelled()  # it may be no longer in the configuration
        last = self.snapshots.setdefault(address, None)
        if isinstance(news, Snapshot):
            await self._take(address, last, news)
        elif address not in self.lost:
            self.lost[address] = news.why
            routes = "none yet" if last is None else "kept"
            self._say(address, "warning", "lost", routes=routes, detail=news.why)
        self._answered(address)
        self.heard.unpark_all()

    async def _take(self, address: ProviderAddress, last: Snapshot | None, new: Snapshot) -> None:
        was_lost = self.lost.pop(address, None) is not None
        faults = () if last is None else last.faults
        for fault in new.faults:
            if fault not in faults:
                self._say(address, "error", "fault", what=fault.what, detail=fault.why)
        is_new = new is not last and (last is None or not await in_thread(partial(eq, new, last)))
        await trio.lowlevel.checkpoint_if_cancelled()  # it may have been ended by now
        if is_new:
            self.snapshots[address] = new
            self.changes += 1
            self.changed = trio.current_time()
            await self.catch_up()
            said = partial(changes, address, last or Snapshot(), new, self.plan)
            self._say(address, "info", "changed", **await in_thread(said))
        else:
            self.snapshots[address] = new  # with other faults, perhaps
            if was_lost:
                self._say(address, "info", "back")

    def _say(self, address: ProviderAddress, level: Level, state: str, **fields: Field) -> None:
        each = self.providers.get(address) or self.provider(address)
        name = {each.kind.replace("-", "_"): each.name}
        self.log.write(level, each.kind, {**name, "state": state, **fields})

    def faults(self) -> Iterator[Fault]:
        """Return what is wrong now with providers, and with parts of them."""
        for address, snapshot in self.snapshots.items():
            if address in self.lost:
                yield from faults_of(address, Lost(self.lost[address]))
            if snapshot is not None:
                yield from faults_of(address, snapshot)


def faults_of(address: ProviderAddress, news: News) -> list[Fault]:
    """Return what is wrong with a provider, or with parts of it, by its name."""
    if isinstance(news, Lost):
        return [Fault(str(address), news.why)]
    return [Fault(f"{address}: {fault.what}", fault.why) for fault in news.faults]


def changes(
    address: ProviderAddress, before: Snapshot, after: Snapshot, plan: Plan
) -> dict[str, str | int | None]:
    """Return the fields of the log line for what has changed at a provider."""
    old, new = by_pattern(before), by_pattern(after)
    own = [claim for claim in plan.claims if claim.wants == address]
    claimed = [f"{x.host} ({x.has} has it)" for x in (*own, *after.claims)]
    return {
        "names": len(new),
        "added": _listed(host for host in new if host not in old),
        "removed": _listed(host for host in old if host not in new),
        "moved": _listed(host for host in new if host in old and new[host] != old[host]),
        "claimed": _listed(claimed),
        "loops": _listed(loop.what for loop in plan.loops if loop.what in new),
        "needs_route": _listed(unrouted.what for unrouted in after.unrouted),
    }


def by_pattern(snapshot: Snapshot) -> dict[str, Any]:
    """Return what is served somewhere, by its pattern."""
    sites = {site.host: site for site in snapshot.sites if site.https or site.http}
    return {**sites, **{str(route.pattern): route for route in snapshot.routes}}


def _listed(words: Iterable[str]) -> str | None:
    """Return a list that fits into a line of the log; None if it is empty."""
    return listed(words, _LISTED) or None
